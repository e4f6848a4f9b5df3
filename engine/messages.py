"""Typed messages between the consumer and its engine process: msgpack frames over a socket pair.

Consumer to engine: `Submit`, `Abort`. Engine to consumer: `Loading`, `Ready`, then one `Step` for every step
that has something to say, or `Fatal` before the process ends. Closing the socket ends the engine.
A frame is a 4-byte little-endian length and that many bytes.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
from msgspec import Struct

from engine.request import Output, Request

HEADER: Final = struct.Struct("<I")


class Submit(Struct, frozen=True, tag=True):
    """Requests to admit, in order."""

    requests: list[Request]
    last: bool = False
    """Whether the queue held no more when these were claimed: the backlog ends, and long ones start first."""


class Abort(Struct, frozen=True, tag=True):
    """Requests to drop. Unknown and finished ids are ignored; output after an abort may still arrive."""

    request_ids: list[str] = []
    """Dropped with all their samples."""
    samples: list[tuple[str, int]] = []
    """Request id and sample index: only that sample is dropped."""


class Loading(Struct, frozen=True, tag=True):
    """What the engine is doing before it is ready, in words for a person."""

    phase: str


class Ready(Struct, frozen=True, tag=True, kw_only=True):
    """The engine takes requests from here on."""

    model: str
    """The name it was asked for: a folder or a hub id."""
    model_path: str
    """The local folder that holds tokenizer and configs."""
    fingerprint: str
    """Model and precision: equal fingerprints may continue each other's output."""
    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    num_blocks: int
    block_size: int
    eos_token_ids: list[int]


class Step(Struct, frozen=True, tag=True, kw_only=True):
    """One step's outputs, and how full the engine is after it."""

    outputs: list[Output]
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_preemptions: int
    """Since start."""
    num_prompt_tokens: int = 0
    """Of sequences that started, since start."""
    num_cached_tokens: int = 0
    """How many of them were found in the prefix cache."""
    num_steps: int = 0
    """Since start: those that had something to compute."""
    num_computed_tokens: int = 0
    """Tokens that went through the model in these steps."""
    busy_us: int = 0
    """Microseconds that these steps took, since start."""


class Fatal(Struct, frozen=True, tag=True):
    """The engine cannot start or go on; the process ends after this."""

    message: str


Command = Submit | Abort
Report = Loading | Ready | Step | Fatal

_encoder = msgspec.msgpack.Encoder()
command_decoder: Final = msgspec.msgpack.Decoder(Command)
report_decoder: Final = msgspec.msgpack.Decoder(Report)


def encode_frame(message: Command | Report) -> bytes:
    """One frame: header and body."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body
