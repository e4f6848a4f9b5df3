"""Where a job goes on after another's death."""

from __future__ import annotations

from consumer.checkpoint import checkpoint
from penstock.messages import SamplingParams, TokenLogprob, Tokens, encode_event


def event(ids: list[int], offset: int, sample: int = 0, *, logprobs: bool = False) -> bytes:
    text = "".join(map(chr, ids))
    found = [logprob(token) for token in ids] if logprobs else None
    return encode_event(
        Tokens(
            text=text,
            token_ids=ids,
            text_offset=offset,
            sample=sample,
            fingerprint="f",
            logprobs=found,
        )
    )


def logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token_id=token, token=chr(token), logprob=-0.5, rank=1)


def tokens(published: list[tuple[str, bytes]], n: int = 1) -> dict[int, list[int]]:
    found = checkpoint(published, "f", SamplingParams(n=n))
    return {index: sample.token_ids for index, sample in found.items()}


FIRST, SECOND = event([97, 98], 0), event([99], 2)


def test_all_events_in_order_are_the_checkpoint() -> None:
    assert tokens([("2-0", FIRST), ("3-0", SECOND)]) == {0: [97, 98, 99]}


def test_samples_are_counted_together_and_kept_apart() -> None:
    other, rest = event([100, 101], 0, sample=2), event([102], 2, sample=2)
    published = [("2-0", FIRST), ("4-0", other), ("5-0", SECOND), ("6-0", rest)]
    assert tokens(published, n=3) == {0: [97, 98, 99], 2: [100, 101, 102]}
    assert tokens(published, n=2) == {0: [97, 98]}, "a sample that the job does not have ends it"


def test_what_is_behind_a_hole_is_not() -> None:
    assert tokens([("3-0", SECOND)]) == {}
    assert tokens([("2-0", FIRST), ("9-0", SECOND)]) == {0: [97, 98]}
    assert tokens([("2-0", FIRST), ("3-0", event([99], 5))]) == {0: [97, 98]}
    assert tokens([("2-0", FIRST), ("3-0", event([99], 2, sample=1))], n=2) == {0: [97, 98]}


def test_what_cannot_be_read_ends_it() -> None:
    assert tokens([("2-0", FIRST), ("2-1", b'{"type":"unheard of"}'), ("3-0", SECOND)]) == {0: [97, 98]}
    assert tokens([("1-0", b"")]) == {}


def test_log_probabilities_come_with_the_tokens_and_a_lack_of_them_ends_it() -> None:
    published = [("2-0", event([97, 98], 0, logprobs=True)), ("3-0", event([99], 2, logprobs=True))]
    params = SamplingParams(logprobs=0)
    found = checkpoint(published, "f", params)[0]
    assert found.logprobs == [logprob(97), logprob(98), logprob(99)]
    assert checkpoint([*published[:1], ("3-0", SECOND)], "f", params)[0].token_ids == [97, 98]
