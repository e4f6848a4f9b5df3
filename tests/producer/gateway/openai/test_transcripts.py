"""A streamed answer adds up to the one that is not streamed, however the text came."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.messages import Completion, Done, ReasoningMarkers, Tokens, Usage
from producer.gateway.openai.chat_chunks import ChatTranscript
from producer.gateway.openai.chat_reply import chat_completion
from producer.gateway.openai.completion_chunks import CompletionTranscript
from producer.gateway.openai.dialect import Dialect
from producer.gateway.openai.form import ChatForm, CompletionForm
from producer.gateway.openai.usage import CompletionUsage
from tests.producer.gateway.openai.parsers.reading import cut

JOB = "standard.1763820000000-0.0123456789abcdef"
MARKERS = ReasoningMarkers(start="<think>", end="</think>", opened=False)
CALL = '<tool_call>{"name": "look", "arguments": {"a": "é"}}</tool_call>'
TEXT = f"<think>\nhm, hm\n</think>\n\nI look twice.\n{CALL}\n{CALL}"

FORMS = {
    "all of it": ChatForm(calls="dialect"),
    "one call": ChatForm(calls="dialect", parallel_calls=False),
    "no reasoning": ChatForm(calls="dialect", include_reasoning=False),
    "no calls": ChatForm(),
    "a prefix": ChatForm(prefix="So: "),
    "a named tool": ChatForm(calls="named", named_tool="look"),
}


def done(text: str) -> Done:
    usage = Usage(prompt_tokens=1, completion_tokens=len(text))
    return Done(outputs=[Completion(text=text, finish_reason="stop")], usage=usage, model="m")


def streamed(form: ChatForm, dialect: Dialect, parts: list[str]) -> dict[str, Any]:
    """The message that a client puts together, and why it ended."""
    transcript = ChatTranscript(msgspec.structs.replace(form, dialect=dialect), JOB, "m", 1)
    chunks = list(transcript.begin())
    for part in parts:
        chunks += transcript.take(0, Tokens(text=part, token_ids=[0] * len(part), text_offset=0))
    whole = "".join(parts)
    message: dict[str, Any] = {"content": "", "calls": []}
    for chunk in [*chunks, *transcript.end(0, done(whole + "!"))]:  # the end has what no event had
        (choice,) = msgspec.to_builtins(chunk)["choices"]
        delta = choice["delta"]
        message["content"] += delta.get("content") or ""
        if "reasoning" in delta:
            message["reasoning"] = message.get("reasoning", "") + delta["reasoning"]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                message["calls"].append({"id": call["id"], **call["function"]})
            else:
                message["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
        message["finish_reason"] = choice["finish_reason"]
    return message


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("tool_format", ["hermes", "mistral"])
@settings(max_examples=40, deadline=None)
@given(places=st.lists(st.integers(0, 500), max_size=10))
def test_chunks_add_up_to_the_reply(form: ChatForm, tool_format: str, places: list[int]) -> None:
    dialect = Dialect(tool_format=tool_format, reasoning=MARKERS)
    (choice,) = msgspec.to_builtins(chat_completion(form, dialect, JOB, done(TEXT + "!")))["choices"]
    message = choice["message"]
    wanted = {
        "content": message["content"] or "",
        "calls": [{"id": call["id"], **call["function"]} for call in message.get("tool_calls", ())],
        "finish_reason": choice["finish_reason"],
    }
    if "reasoning" in message:
        wanted["reasoning"] = message["reasoning"]
    assert streamed(form, dialect, cut(TEXT, places)) == wanted


def test_mistrals_templates_can_read_the_ids_of_calls() -> None:
    text = '[TOOL_CALLS]look{"a": 1}'
    dialect = Dialect(tool_format="mistral")
    reply = chat_completion(ChatForm(calls="dialect"), dialect, JOB, done(text))
    (call,) = msgspec.to_builtins(reply)["choices"][0]["message"]["tool_calls"]
    assert len(call["id"]) == 9
    assert call["id"].isalnum()


def test_the_last_chunks_usage_so_far_is_the_whole() -> None:
    """Also where the end has tokens that no event had."""
    ended = done("Hello!")
    begun = Tokens(text="Hel", token_ids=[0] * 3, text_offset=0, prompt_tokens=1)
    chat = ChatTranscript(ChatForm(continuous_usage=True), JOB, "m", 1)
    text = CompletionTranscript(CompletionForm(continuous_usage=True), [JOB], "m")
    for transcript in (chat, text):
        first, last = transcript.take(0, begun)[0].usage, transcript.end(0, ended)[-1].usage
        assert isinstance(first, CompletionUsage)
        assert isinstance(last, CompletionUsage)
        assert (first.completion_tokens, last.completion_tokens) == (3, 6)
        assert last.total_tokens == 7
