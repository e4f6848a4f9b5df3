"""From a text completion's request to its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from penstock.messages import Heartbeat, Job
from penstock.sampling import SamplingParams
from producer.gateway.errors import BadRequest
from producer.gateway.openai.body import read_body
from producer.gateway.openai.chat_job import check_stream
from producer.gateway.openai.checked import beat_of, checked_jobs
from producer.gateway.openai.completion_request import CompletionRequest
from producer.gateway.openai.form import CompletionForm
from producer.gateway.openai.parameters import sampling_params
from producer.gateway.openai.prompts import Prompt, prompts_of

DEFAULT_MAX_TOKENS: Final = 16
"""OpenAI's, for this endpoint alone."""

_NAMES: Final = {"prompt_token_ids": "prompt", "custom_id": "request_id"}


def read_completion(
    body: bytes | Mapping[str, Any], models: Mapping[str, Heartbeat]
) -> tuple[list[Job], CompletionForm]:
    """The jobs of a request, one for each prompt, and how their ends are told.

    Raises:
        BadRequest: the body breaks the contract; `param` is the field.
        NotFound: the model is not served.
    """
    return completion_jobs(read_body(body, CompletionRequest), models)


def completion_jobs(
    request: CompletionRequest, models: Mapping[str, Heartbeat]
) -> tuple[list[Job], CompletionForm]:
    """As `read_completion`, of a request that was read."""
    beat_of(request.model, models)
    _check(request)
    prompts = prompts_of(request.prompt, "prompt")
    jobs = checked_jobs(lambda: [_job(request, prompt) for prompt in prompts], _NAMES)
    form = CompletionForm(
        n=request.n or 1,
        echo=request.echo is True,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs is not None,
        as_token_ids=request.return_tokens_as_token_ids is True,
        token_ids=request.return_token_ids is True,
        include_usage=request.include_usage,
        continuous_usage=request.continuous_usage,
    )
    return jobs, form


def _check(request: CompletionRequest) -> None:
    if request.best_of is not None and request.best_of != (request.n or 1):
        words = "'best_of' is not supported: outputs are not ranked; ask for 'n' and choose"
        raise BadRequest(words, param="best_of", code="unsupported_parameter")
    check_stream(request.stream, given=request.stream_options is not None)
    if request.stream and request.prompt_logprobs is not None:
        words = "'prompt_logprobs' can't be streamed"
        raise BadRequest(words, param="prompt_logprobs", code="invalid_value")
    if request.stream and (request.echo or request.max_tokens == 0):
        param = "echo" if request.echo else "max_tokens"
        words = f"'{param}': the prompt is told of with its end, so this can't be streamed"
        raise BadRequest(words, param=param, code="invalid_value")
    if request.max_tokens == 0 and (request.n or 1) > 1:
        raise BadRequest("'n' is 1 where nothing is generated", param="n", code="invalid_value")


def _job(request: CompletionRequest, prompt: Prompt) -> Job:
    # Where the prompt is echoed with log-probabilities, they are asked for as of the output.
    echoed = request.logprobs if request.echo else None
    prompt_logprobs = max((one for one in (echoed, request.prompt_logprobs) if one is not None), default=None)
    scores = request.max_tokens == 0
    if scores:
        sampling = SamplingParams(prompt_logprobs=prompt_logprobs or 0)
    else:
        limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        sampling = sampling_params(
            request, max_tokens=limit, logprobs=request.logprobs, prompt_logprobs=prompt_logprobs
        )
    return Job(
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=None if isinstance(prompt, str) else prompt,
        kind="score" if scores else "generate",
        model=request.model,
        stream=request.stream is True,
        sampling_params=sampling,
        custom_id=request.request_id,
        return_token_ids=request.return_token_ids is True,
        add_special_tokens=request.add_special_tokens,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
        echo=request.echo is True,
    )
