"""The reply to a chat completion that is not streamed."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import UNSET, Struct, UnsetType

from penstock.messages import Completion, Done, FinishReason
from producer.gateway.openai.answer import AnswerParser
from producer.gateway.openai.dialect import Dialect
from producer.gateway.openai.form import ChatForm
from producer.gateway.openai.identity import call_id, created
from producer.gateway.openai.logprobs import ChatLogprobs, PromptLogprobs, chat_logprobs, prompt_logprobs
from producer.gateway.openai.parsers.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from producer.gateway.openai.usage import CompletionUsage, usage_of

ChatFinish = Literal["stop", "length", "tool_calls"]

FINISH: Final[dict[FinishReason, Literal["stop", "length"]]] = {
    "stop": "stop",
    "length": "length",
    "repetition": "stop",  # `stop_reason` tells
}


class CalledFunction(Struct, kw_only=True):
    """What the model wants called."""

    name: str
    arguments: str


class ToolCallReply(Struct, frozen=True, kw_only=True):
    """One tool call of a message."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class ChatMessageReply(Struct, frozen=True, kw_only=True):
    """What the assistant says."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    tool_calls: list[ToolCallReply] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    """The same, by its older name."""


class ChatChoice(Struct, frozen=True, kw_only=True):
    """One sample."""

    index: int
    message: ChatMessageReply
    finish_reason: ChatFinish
    logprobs: ChatLogprobs | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """The reply."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None
    service_tier: Literal["default"] = "default"
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


def chat_completion(form: ChatForm, dialect: Dialect, job_id: str, done: Done) -> ChatCompletion:
    """Made of a job's end."""
    return ChatCompletion(
        id=f"chatcmpl-{job_id}",
        created=created(job_id),
        model=done.model,
        choices=[_choice(form, dialect, job_id, output) for output in done.outputs],
        usage=usage_of([done]),
        system_fingerprint=done.fingerprint or None,
        prompt_logprobs=UNSET if done.prompt_logprobs is None else prompt_logprobs(done.prompt_logprobs),
        prompt_token_ids=UNSET if done.prompt_token_ids is None else done.prompt_token_ids,
    )


def finish_reason(output: Completion, num_calls: int) -> ChatFinish:
    """Why a sample ended, in OpenAI's words."""
    reason = FINISH[output.finish_reason]
    return "tool_calls" if num_calls and reason == "stop" else reason


def _choice(form: ChatForm, dialect: Dialect, job_id: str, output: Completion) -> ChatChoice:
    parser = AnswerParser.of(form, dialect)
    message, num_calls = _message(
        form, dialect, (job_id, output.index), parser.feed(output.text) + parser.end()
    )
    logprobs = output.logprobs
    return ChatChoice(
        index=output.index,
        message=message,
        finish_reason=finish_reason(output, num_calls),
        logprobs=None if logprobs is None else chat_logprobs(logprobs, as_token_ids=form.as_token_ids),
        stop_reason=output.stop_reason,
        token_ids=UNSET if output.token_ids is None else output.token_ids,
    )


def _message(
    form: ChatForm, dialect: Dialect, place: tuple[str, int], pieces: list[Piece]
) -> tuple[ChatMessageReply, int]:
    """The message, and how many calls it has."""
    content, reasoning, calls = form.prefix, "", list[ToolCallReply]()
    for piece in pieces:
        match piece:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case CallStart(name):
                function = CalledFunction(name=name, arguments="")
                calls.append(
                    ToolCallReply(id=call_id(*place, len(calls), dialect.tool_format), function=function)
                )
            case CallArguments(text):
                calls[-1].function.arguments += text
    if not form.parallel_calls:
        del calls[1:]
    thought = reasoning if reasoning and form.include_reasoning else UNSET
    message = ChatMessageReply(
        content=content if content or not (calls or reasoning) else None,
        tool_calls=calls or UNSET,
        reasoning=thought,
        reasoning_content=thought,
    )
    return message, len(calls)
