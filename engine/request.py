"""What crosses into the engine and back: plain values, no tensors. See `engine.messages` for the wire."""

from __future__ import annotations

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
