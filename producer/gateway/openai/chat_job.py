"""From a chat completion's request to its job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from penstock.chat import Message, TextPart
from penstock.messages import Heartbeat, Job
from producer.gateway.errors import BadRequest
from producer.gateway.openai.body import read_body
from producer.gateway.openai.chat_request import ChatMessage, ChatRequest, RefusalPart
from producer.gateway.openai.checked import beat_of, checked_jobs
from producer.gateway.openai.dialect import Dialect
from producer.gateway.openai.form import ChatForm
from producer.gateway.openai.parameters import sampling_params
from producer.gateway.openai.tool_choice import Choice, as_dicts, choose

_NAMES: Final = {"custom_id": "request_id"}


def read_chat(body: bytes | Mapping[str, Any], models: Mapping[str, Heartbeat]) -> tuple[list[Job], ChatForm]:
    """The job of a request, the only one of the list, and how its end is told.

    Raises:
        BadRequest: the body breaks the contract; `param` is the field.
        NotFound: the model is not served.
    """
    return chat_job(read_body(body, ChatRequest), models)


def chat_job(request: ChatRequest, models: Mapping[str, Heartbeat]) -> tuple[list[Job], ChatForm]:
    """As `read_chat`, of a request that was read."""
    dialect = Dialect.of(beat_of(request.model, models))
    _check(request)
    choice = choose(request, dialect)
    jobs = checked_jobs(lambda: [_job(request, choice)], _NAMES)
    constrained = jobs[0].sampling_params.structured_outputs is not None
    variables = jobs[0].chat_template_kwargs
    form = ChatForm(
        tools=as_dicts(choice.tools),
        calls=choice.calls,
        named_tool=choice.named,
        parallel_calls=request.parallel_tool_calls is not False,
        reasons=not constrained and not request.continue_final_message,
        reasoning_opened=variables.get("enable_thinking", variables.get("thinking", True)) is not False,
        include_reasoning=request.include_reasoning is not False,
        prefix=_prefix(request),
        as_token_ids=request.return_tokens_as_token_ids is True,
        token_ids=request.return_token_ids is True,
        include_usage=request.include_usage,
        continuous_usage=request.continuous_usage,
        dialect=dialect,
    )
    return jobs, form


def _check(request: ChatRequest) -> None:
    """What no single field's type can say."""
    limits = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(limits) > 1:
        words = "'max_tokens' and 'max_completion_tokens' differ; give one of them"
        raise BadRequest(words, param="max_tokens", code="invalid_value")
    if request.top_logprobs is not None and request.logprobs is not True:
        words = "'top_logprobs' is only allowed when 'logprobs' is true"
        raise BadRequest(words, param="top_logprobs", code="invalid_value")
    check_stream(request.stream, given=request.stream_options is not None)
    if request.stream and request.prompt_logprobs is not None:
        words = "'prompt_logprobs' can't be streamed"
        raise BadRequest(words, param="prompt_logprobs", code="invalid_value")
    for number, message in enumerate(request.messages):
        _check_message(message, f"messages[{number}]")


def check_stream(stream: bool | None, *, given: bool) -> None:
    """Refuse options for a stream that is none.

    Raises:
        BadRequest: there are some.
    """
    if given and not stream:
        words = "'stream_options' is only allowed when 'stream' is true"
        raise BadRequest(words, param="stream_options", code="invalid_value")


def _check_message(message: ChatMessage, path: str) -> None:
    if message.role == "tool" and message.tool_call_id is None:
        raise BadRequest(
            f"Missing required parameter: '{path}.tool_call_id'.",
            param=f"{path}.tool_call_id",
            code="missing_required_parameter",
        )
    for name in ("tool_calls", "refusal", "reasoning", "reasoning_content"):
        if getattr(message, name) and message.role != "assistant":
            raise BadRequest(
                f"'{path}.{name}' is for messages of role 'assistant'",
                param=f"{path}.{name}",
                code="invalid_value",
            )
    thought = message.reasoning or message.reasoning_content
    if not (message.content is not None or message.tool_calls or message.refusal or thought):
        raise BadRequest(
            f"Missing required parameter: '{path}.content'.",
            param=f"{path}.content",
            code="missing_required_parameter",
        )


def _job(request: ChatRequest, choice: Choice) -> Job:
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    more: dict[str, Any] = {}
    if choice.structured_outputs is not None:
        more["structured_outputs"] = choice.structured_outputs
    return Job(
        messages=[_message(message) for message in request.messages],
        model=request.model,
        stream=request.stream is True,
        sampling_params=sampling_params(
            request,
            max_tokens=request.max_completion_tokens or request.max_tokens,
            logprobs=logprobs,
            **more,
        ),
        custom_id=request.request_id,
        chat_template_kwargs=_variables(request),
        return_token_ids=request.return_token_ids is True,
        tools=choice.tools or None,
        documents=request.documents,
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=request.continue_final_message is True,
        add_special_tokens=request.add_special_tokens,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
    )


def _variables(request: ChatRequest) -> dict[str, Any]:
    """For the template; a reasoning effort is one for those that know it, and none at all turns it off."""
    variables: dict[str, Any] = {}
    if request.reasoning_effort is not None:
        variables["reasoning_effort"] = request.reasoning_effort
    if request.reasoning_effort == "none":
        variables["enable_thinking"] = False
    return variables | (request.chat_template_kwargs or {})


def _message(message: ChatMessage) -> Message:
    content = message.content
    if isinstance(content, list):
        texts = [part.refusal if isinstance(part, RefusalPart) else part.text for part in content]
        content = [TextPart(text) for text in texts]
    if not content and message.refusal:
        content = message.refusal
    return Message(
        role="system" if message.role == "developer" else message.role,
        content=content,
        name=message.name,
        tool_calls=message.tool_calls or None,
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning or message.reasoning_content,
    )


def _prefix(request: ChatRequest) -> str:
    """vLLM's `echo`: the last message, where the model goes on with it, is given back with the answer."""
    last = request.messages[-1]
    return _message(last).text if request.echo and last.role == "assistant" else ""
