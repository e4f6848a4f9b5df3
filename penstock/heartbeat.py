"""What a consumer says of itself and of its model."""

from __future__ import annotations

import msgspec
from msgspec import Struct


class ReasoningMarkers(Struct, frozen=True, kw_only=True):
    """Between which texts the model's outputs reason."""

    start: str
    end: str
    opened: bool
    """Whether the chat template itself writes the start marker, so that outputs begin inside."""


class Heartbeat(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a consumer says of itself in the hash `consumers`, under its name."""

    model: str
    phase: str
    """`ready`, `draining`, or what the engine is doing before it is ready."""
    at_ms: int
    """Server time of this heartbeat."""
    interval_ms: int
    """Time to the next one; a consumer silent for three intervals is taken for dead."""
    max_num_seqs: int = 0
    num_running: int = 0
    defaults: dict[str, float] = {}
    """Sampling parameters that the model's generation_config.json sets where a job does not."""

    max_model_len: int = 0
    """The model's window: tokens of a prompt and its output together."""
    started_ms: int = 0
    """Unix time in milliseconds, by its own clock, at which the consumer was started."""
    tool_format: str | None = None
    """How the model writes tool calls, one of the names in docs/wire.md; `None` where that is not known."""
    reasoning: ReasoningMarkers | None = None
    """`None` where the model's chat template marks no reasoning."""

    num_waiting: int = 0
    """Sequences that the engine has and cannot run yet."""
    kv_usage: float = 0.0
    """The part of the KV cache that is in use, from 0 to 1."""
    prompt_tokens_total: int = 0
    """Tokens of prompts that it has run since it was started, those of the prefix cache included."""
    generation_tokens_total: int = 0
    """Tokens that it has generated since it was started."""
    jobs_total: int = 0
    """Jobs whose end it has written since it was started."""
    queue_seconds_total: float = 0.0
    """How long these jobs had waited, added up: from enqueue to the claim after which they ended."""
    e2e_seconds_total: float = 0.0
    """How long they took in all, from enqueue to their written end, added up."""

    def alive(self, now_ms: int) -> bool:
        """Whether the consumer is to be counted on at server time `now_ms`."""
        return now_ms - self.at_ms <= 3 * self.interval_ms


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Heartbeat)


def encode_heartbeat(heartbeat: Heartbeat) -> bytes:
    """Encode a heartbeat for the hash `consumers`."""
    return _encoder.encode(heartbeat)


def decode_heartbeat(data: bytes | str) -> Heartbeat:
    """Decode a heartbeat; raises `msgspec.DecodeError` where the bytes are not one of ours."""
    return _decoder.decode(data)
