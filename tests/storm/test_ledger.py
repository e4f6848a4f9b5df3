"""The storm's judges: what is wrong, they see."""

from __future__ import annotations

import pytest

from penstock.messages import Completion, Done, Error, Event, Failed, Job, SamplingParams, Tokens, Usage
from tests.storm.ledger import Ledger, Record
from tests.storm.pool import Question, Spec

JOB_ID = "standard.1-0.0123456789abcdef"
Events = list[tuple[str, Event]]


def question(*, stream: bool) -> Question:
    job = Job(prompt="p", stream=stream, sampling_params=SamplingParams(max_tokens=4))
    return Question(
        Spec("long" if stream else "plain", job), [Completion(text="abcd", finish_reason="length")]
    )


def done(text: str = "abcd") -> Done:
    usage = Usage(prompt_tokens=1, completion_tokens=4)
    return Done(outputs=[Completion(text=text, finish_reason="length")], usage=usage, model="m")


def streamed(*texts: str, end: Event | None = None) -> Events:
    """Two tokens a piece, as they must be."""
    events: Events = [
        (f"{2 * n + 2}-0", Tokens(text=text, token_ids=[1, 2], text_offset=2 * n))
        for n, text in enumerate(texts)
    ]
    return [*events, (f"{2 * len(texts)}-1", end or done())]


CANCELLED = Failed(error=Error(type="cancelled", message="m"))
BROKEN = Failed(error=Error(type="engine_error", message="m"))


def judged(events: Events, *, stream: bool = True, cancelled: bool | None = False) -> tuple[Ledger, Record]:
    ledger = Ledger()
    record = ledger.accepted(JOB_ID, question(stream=stream))
    ledger.close(record, events, cancelled=cancelled)
    return ledger, record


def blamed(ledger: Ledger) -> list[str]:
    return [problem.fault for problem in ledger.problems]


@pytest.mark.parametrize(
    ("events", "cancelled", "fault"),
    [
        (streamed("ab", "cd"), False, []),
        (streamed("ab", "xx"), False, ["changed"]),
        (streamed("ab", "cd", end=done("abcx")), False, ["changed", "changed"]),
        (streamed("ab", "cd")[1:], False, ["changed"]),
        ([*streamed("ab", "cd")[:1], *streamed("ab", "cd")], False, ["doubled"]),
        (streamed("ab", end=BROKEN), False, ["changed"]),
        (streamed("ab", end=CANCELLED), False, ["changed"]),
        (streamed("ab", end=CANCELLED), None, []),
        (streamed("ab", end=CANCELLED), True, []),
        (streamed("ab", "cd"), True, ["changed"]),
        (streamed("ab", "cd"), None, []),
    ],
)
def test_what_a_subscriber_saw(events: Events, cancelled: bool | None, fault: list[str]) -> None:
    ledger, _ = judged(events, cancelled=cancelled)
    assert blamed(ledger) == fault


@pytest.mark.parametrize(
    ("stored", "fault"),
    [
        (streamed("ab", "cd"), []),
        ([], ["lost"]),
        (streamed("ab", "cd")[-1:], ["changed"]),
        (streamed("ab", "cd", end=CANCELLED), ["changed"]),
        ([*streamed("ab", "cd"), ("6-1", done())], ["doubled"]),
    ],
)
def test_what_the_server_holds_later(stored: Events, fault: list[str]) -> None:
    ledger, record = judged(streamed("ab", "cd"))
    ledger.audit(record, stored)
    assert blamed(ledger) == fault


def test_a_job_that_nobody_followed_is_judged_by_its_end() -> None:
    ledger, record = judged([("", done())], stream=False)
    ledger.audit(record, [("4-1", done())])
    assert blamed(ledger) == []
    ledger, record = judged([("", done("abcx"))], stream=False)
    assert blamed(ledger) == ["changed"]
