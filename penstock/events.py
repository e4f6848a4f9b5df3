"""What a job's result stream says: `tokens` while it runs, then one of `done` and `failed`.

Events ignore unknown fields, so that an older client reads what a newer consumer writes.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec
from msgspec import Struct

FinishReason = Literal["stop", "length", "repetition"]


class TopLogprob(Struct, frozen=True, kw_only=True):
    """One of the most likely tokens at a position."""

    token_id: int
    token: str
    """The token's text, decoded alone: U+FFFD where it is part of a character."""
    logprob: float
    """Natural logarithm of its probability, before penalties, temperature and filters."""


class TokenLogprob(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The token that is there, and the most likely ones that could have been."""

    token_id: int
    token: str
    logprob: float
    rank: int
    """1 where no token was more likely."""
    top_logprobs: list[TopLogprob] = []
    """Most likely first."""


class Completion(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished sample of a job."""

    text: str
    finish_reason: FinishReason
    index: int = 0
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it, if one did."""
    token_ids: list[int] | None = None
    logprobs: list[TokenLogprob] | None = None


class Score(Struct, frozen=True, kw_only=True):
    """How likely the prompt's tokens from the second on are, each given those before it."""

    logprob: float
    """Sum over the tokens: the natural logarithm of the text's likelihood given its first token."""
    tokens: list[TokenLogprob]


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Token counts of one job, over all its samples."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt's tokens: how many the prefix cache had."""
    reasoning_tokens: int = 0
    """Of the outputs' tokens: how many were spent on reasoning, with its end marker, where the markers are
    single tokens."""


class Error(Struct, frozen=True, kw_only=True):
    """Why a job failed. `type` is one of the names in `ERROR_TYPES`; newer consumers may add some."""

    type: str
    message: str
    retryable: bool = False


ERROR_TYPES: Final = {
    "invalid_job": "the job is not JSON, breaks the schema, or has a value out of range",
    "job_too_large": "the job's JSON is longer than the limit",
    "prompt_too_long": "prompt and at least one new token do not fit the model's window",
    "model_not_served": "the job names a model that this queue does not serve",
    "cancelled": "the job was cancelled",
    "deadline_exceeded": "the job had not ended within its `deadline_s`",
    "engine_error": "the engine failed on this job",
    "invalid_output": "a finished output is not what `structured_outputs` asked for",
    "result_too_large": "the result is longer than a server takes",
}


class Tokens(Struct, frozen=True, kw_only=True, tag="tokens", tag_field="type", omit_defaults=True):
    """A stretch of one sample's output: also the checkpoint from which another consumer resumes."""

    text: str
    token_ids: list[int]
    text_offset: int
    """Characters of the sample's text before this event."""
    sample: int = 0
    fingerprint: str = ""
    """Model and precision that made these tokens."""
    logprobs: list[TokenLogprob] | None = None
    """One for each of `token_ids`, where the job asks for them."""
    prompt_tokens: int | None = None
    """In a sample's first event: how many tokens the prompt has."""


class Done(Struct, frozen=True, kw_only=True, tag="done", tag_field="type", omit_defaults=True):
    """Terminal event of a job that ran to its end."""

    outputs: list[Completion]
    """One per sample, in order; none for the other kinds of job."""
    usage: Usage
    model: str
    score: Score | None = None
    """`score` jobs only."""
    embedding: list[float] | None = None
    """`embed` jobs only."""
    prompt_logprobs: list[TokenLogprob] | None = None
    """Of the prompt's tokens from the second on, where asked for."""
    fingerprint: str = ""
    """Model and precision that made the output, or the end of it where there is `resumed_from`."""
    resumed_from: list[str] = []
    """Other fingerprints under which the beginning of a streamed output was published."""
    custom_id: str | None = None
    prompt: str | None = None
    """The prompt's text, for a job with `echo`: as given or rendered; decoded where tokens were given, or
    where it was truncated."""
    prompt_tokens: list[str] | None = None
    """The text of each of the prompt's tokens, decoded alone, for a job with `echo`."""
    prompt_token_ids: list[int] | None = None
    """For a job with `return_token_ids`."""

    @property
    def text(self) -> str:
        """Text of the first sample; empty where the job's kind generates none."""
        return self.outputs[0].text if self.outputs else ""


class Failed(Struct, frozen=True, kw_only=True, tag="failed", tag_field="type", omit_defaults=True):
    """Terminal event of a job that did not run to its end."""

    error: Error
    custom_id: str | None = None


Event = Tokens | Done | Failed
TerminalEvent = Done | Failed


_encoder = msgspec.json.Encoder()
_terminal_decoder = msgspec.json.Decoder(TerminalEvent)
_event_decoder = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Encode an event for the field `event` of a result stream."""
    return _encoder.encode(event)


def decode_event(data: bytes | str) -> Event:
    """Decode an event; raises `msgspec.DecodeError` where the bytes are not one of ours."""
    return _event_decoder.decode(data)


def decode_terminal(data: bytes | str) -> Done | Failed:
    """Decode a terminal event; raises `msgspec.DecodeError` where the bytes are not one of ours."""
    return _terminal_decoder.decode(data)


def encode_error(error: Error) -> bytes:
    """Encode an error for the record of a failed attempt."""
    return _encoder.encode(error)
