"""What crosses into the engine and back: plain values, no tensors. See `engine.messages` for the wire."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

FinishReason = Literal["stop", "length"]


class RequestParams(Struct, frozen=True, kw_only=True):
    """Sampling parameters with every default resolved; see `penstock.messages.SamplingParams`."""

    max_tokens: int
    """Output tokens in all, resumed ones included; at least 1."""
    seed: int
    """64 bits, unsigned: the Philox key of this request's draws."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    """Ends with finish reason `stop` and the id as stop reason. The model's end tokens are not among them."""
    ignore_eos: bool = False
    sample: int = 0
    """Which of several samples of one job this is: part of every draw's counter."""


class Request(Struct, frozen=True, kw_only=True):
    """One prompt to continue. Immutable; the scheduler keeps its state in a `Sequence`.

    `output_token_ids` are tokens that an earlier run of the same request has already produced: the engine
    prefills prompt + output and goes on after them, and reports only what is new.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: RequestParams
    output_token_ids: list[int] = []


class Output(Struct, frozen=True, kw_only=True):
    """What one step added to one request. `finish_reason` is set on its last output.

    An end token or stop token is the last of `token_ids`: whoever detokenizes leaves it out of the text.
    `error` is set where the engine could not run this request; the others are not affected.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The end token or stop token that ended it."""
    error: str | None = None


def refusal(request: Request, max_model_len: int, vocab_size: int) -> str | None:
    """Why an engine of this window and vocabulary cannot run a request, in words; None if it can."""
    params = request.params
    if not request.prompt_token_ids:
        return "the prompt has no tokens"
    if params.max_tokens < 1:
        return f"max_tokens is {params.max_tokens}: at least 1 is needed"
    num_tokens = len(request.prompt_token_ids) + len(request.output_token_ids)
    resumable = len(request.output_token_ids) > 0 and num_tokens == max_model_len
    if num_tokens >= max_model_len and not resumable:
        return f"{num_tokens} tokens leave no room for output: the window is {max_model_len} tokens"
    for token_ids in (request.prompt_token_ids, request.output_token_ids):
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
            return f"a token id is outside the vocabulary of {vocab_size}"
    return _params_refusal(params)


def _params_refusal(params: RequestParams) -> str | None:
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        return f"temperature is {params.temperature}: it must be 0 or more"
    if not 0 < params.top_p <= 1:
        return f"top_p is {params.top_p}: it must be above 0 and at most 1"
    if not 0 <= params.min_p <= 1:
        return f"min_p is {params.min_p}: it must be from 0 to 1"
    if not 0 <= params.top_k < 2**31:
        return f"top_k is {params.top_k}: it must be 0 (all) or more, and fit 31 bits"
    if not 0 <= params.seed < 2**64:
        return f"seed is {params.seed}: it must fit 64 bits without a sign"
    if not 0 <= params.sample < 2**32:
        return f"sample is {params.sample}: it must fit 32 bits without a sign"
    return None
