"""Every message that crosses Redis, and the codecs for them.

A `Job` travels as JSON in the field `job` of a lane's stream entry; an `Event` travels as JSON in the
field `event` of a result stream's entry. Jobs refuse unknown fields, so that a misspelt parameter is an
error and not a silent default; events ignore unknown fields, so that an older client reads what a newer
consumer writes. New fields have defaults, and no field is ever retyped.

Field names follow OpenAI and vLLM where those have one.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from penstock.errors import InvalidJob, JobTooLarge
from penstock.sampling import (
    PoolingParams,
    RepetitionDetection,
    SamplingParams,
    StructuredOutputs,
    TokenId,
)

MAX_JOB_BYTES: Final = 4 * 1024 * 1024
"""Upper bound of a job's JSON in bytes; a longer one fails with `job_too_large`."""

DEFAULT_RESULT_TTL_S: Final = 86400
"""How long a result is kept where neither job nor consumer says otherwise."""

BATCH_ID_PATTERN: Final = r"^[A-Za-z0-9_-]{1,64}$(?!\n)"  # to Python, `$` also is before a last newline
BatchId = Annotated[str, Meta(pattern=BATCH_ID_PATTERN)]
RowNumber = Annotated[int, Meta(ge=0, le=2**53 - 1)]  # scripts count in doubles
FinishReason = Literal["stop", "length", "repetition"]


class TextPart(Struct, frozen=True, forbid_unknown_fields=True):
    """One text part of a chat message's content."""

    text: str
    type: Literal["text"] = "text"


class Message(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One chat message, rendered by the model's chat template."""

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[TextPart]
    name: Annotated[str, Meta(max_length=64)] | None = None


_DEFAULT_POOLING: Final = PoolingParams()


class Job(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a client asks for. Exactly one of `prompt`, `messages` and `prompt_token_ids` is given."""

    prompt: str | None = None
    messages: Annotated[list[Message], Meta(max_length=4096)] | None = None
    prompt_token_ids: list[TokenId] | None = None
    kind: Literal["generate", "score", "embed"] = "generate"
    """`score`: the log-likelihood of the prompt, nothing is generated. `embed`: a vector for the prompt."""
    sampling_params: SamplingParams = SamplingParams()
    pooling_params: PoolingParams = PoolingParams()
    stream: bool = False
    """Publish `tokens` events while the job runs."""
    model: str | None = None
    """Fail unless the queue serves this model; by default whatever it serves."""
    custom_id: Annotated[str, Meta(max_length=512)] | None = None
    """The caller's label, given back in the terminal event."""
    batch: BatchId | None = None
    """An open batch that this job is a row of."""
    row: RowNumber | None = None
    """Row number in the batch, given back with the row's end."""
    chat_template_kwargs: dict[str, Any] = {}
    """Further variables for the chat template."""
    return_token_ids: bool = False
    """Put the token ids into the terminal event as well."""
    result_ttl_s: Annotated[int, Meta(ge=1, le=30 * 86400)] | None = None
    """How long the result is kept; by default as the consumer is set, one day."""

    deadline_s: Annotated[float, Meta(gt=0, le=30 * 86400)] | None = None
    """Seconds after it was enqueued by which the job has ended, or fails with `deadline_exceeded`."""
    max_attempts: Annotated[int, Meta(ge=1, le=100)] | None = None
    """How often it may fail in a way that is worth another try; by default as the consumer is set, 3."""
    retry_of: Annotated[str, Meta(max_length=256)] | None = None
    """Id of the dead letter's job that this one repeats."""

    def __post_init__(self) -> None:
        names = ("prompt", "messages", "prompt_token_ids")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            found = (
                "none is given" if not given else f"{' and '.join(f'`{name}`' for name in given)} are given"
            )
            raise InvalidJob(f"a job has exactly one of `prompt`, `messages` and `prompt_token_ids`; {found}")
        if not getattr(self, given[0]):
            raise InvalidJob(f"`{given[0]}` is empty; a job needs at least one character, message or token")
        if self.deadline_s is not None and not math.isfinite(self.deadline_s):
            raise InvalidJob(f"`deadline_s` is {self.deadline_s}; it must be a number")  # JSON would drop it
        if self.pooling_params != _DEFAULT_POOLING and self.kind != "embed":
            raise InvalidJob(f"`pooling_params` are for jobs of kind `embed`; this one is `{self.kind}`")
        if self.kind != "generate":
            self._check_nothing_is_generated()

    def _check_nothing_is_generated(self) -> None:
        """Refuse what only makes sense for output, rather than let it pass for something that works."""
        what = "an `embed` job" if self.kind == "embed" else "a `score` job"
        if self.stream:
            raise InvalidJob(f"{what} generates nothing to `stream`")
        neutral, useful = SamplingParams(), {"prompt_logprobs"} if self.kind == "score" else set[str]()
        for name in neutral.__struct_fields__:
            if name not in useful and getattr(self.sampling_params, name) != getattr(neutral, name):
                raise InvalidJob(f"{what} generates nothing; leave out `{name}`")


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

    def alive(self, now_ms: int) -> bool:
        """Whether the consumer is to be counted on at server time `now_ms`."""
        return now_ms - self.at_ms <= 3 * self.interval_ms


class JobLabels(Struct, frozen=True):
    """What can still be read of a job that breaks the contract, so that its failure finds its batch."""

    custom_id: str | None = None
    batch: str | None = None
    row: int | None = None


class _RawLabels(Struct, frozen=True):
    """Each label as it stands in the JSON, so that a bad one does not hide the others."""

    custom_id: Raw = Raw(b"null")
    batch: Raw = Raw(b"null")
    row: Raw = Raw(b"null")


_encoder = msgspec.json.Encoder()
_job_decoder = msgspec.json.Decoder(Job)
_labels_decoder = msgspec.json.Decoder(_RawLabels)
_terminal_decoder = msgspec.json.Decoder(TerminalEvent)
_event_decoder = msgspec.json.Decoder(Event)
_heartbeat_decoder = msgspec.json.Decoder(Heartbeat)

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*?)`(?: - at `(?P<path>\$[^`]*)`)?")

_STRUCTS: Final[dict[str, type[Struct]]] = {
    "$": Job,
    "$.sampling_params": SamplingParams,
    "$.sampling_params.structured_outputs": StructuredOutputs,
    "$.sampling_params.repetition_detection": RepetitionDetection,
    "$.pooling_params": PoolingParams,
}


def encode_job(job: Job) -> bytes:
    """Encode and check a job.

    Raises:
        InvalidJob: a value is out of range, or the JSON is longer than `MAX_JOB_BYTES`.
    """
    try:
        data = _encoder.encode(job)
    except (
        TypeError,
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:  # lone surrogates, objects
        raise InvalidJob(f"the job cannot be written as JSON: {error}") from None
    decode_job(data)  # constructors do not check ranges; one decode does, in a few microseconds
    return data


def decode_job(data: bytes | str) -> Job:
    """Decode and check a job's JSON.

    Raises:
        InvalidJob: says what is wrong, where, and what would be right.
    """
    if len(data) > MAX_JOB_BYTES:
        raise JobTooLarge(f"the job has {len(data)} bytes; the limit is {MAX_JOB_BYTES}")
    try:
        return _job_decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidJob(_explain(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidJob(f"the job is not valid JSON in UTF-8: {error}") from None
    except RecursionError:
        raise InvalidJob("the job's JSON is nested too deeply") from None


def decode_labels(data: bytes | str) -> JobLabels:
    """Read what labels can be read of a job that `decode_job` refused; never raises."""
    try:
        raw = _labels_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return JobLabels()
    return JobLabels(
        custom_id=_label(raw.custom_id, str | None),
        batch=_label(raw.batch, BatchId | None),
        row=_label(raw.row, RowNumber | None),
    )


def _label(raw: Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def encode_event(event: Event) -> bytes:
    """Encode an event for the field `event` of a result stream."""
    return _encoder.encode(event)


def decode_event(data: bytes | str) -> Event:
    """Decode an event; raises `msgspec.DecodeError` where the bytes are not one of ours."""
    return _event_decoder.decode(data)


def decode_terminal(data: bytes | str) -> Done | Failed:
    """Decode a terminal event; raises `msgspec.DecodeError` where the bytes are not one of ours."""
    return _terminal_decoder.decode(data)


def encode_heartbeat(heartbeat: Heartbeat) -> bytes:
    """Encode a heartbeat for the hash `consumers`."""
    return _encoder.encode(heartbeat)


def decode_heartbeat(data: bytes | str) -> Heartbeat:
    """Decode a heartbeat; raises `msgspec.DecodeError` where the bytes are not one of ours."""
    return _heartbeat_decoder.decode(data)


def encode_error(error: Error) -> bytes:
    """Encode an error for the record of a failed attempt."""
    return _encoder.encode(error)


def _explain(message: str) -> str:
    """msgspec's words, with the nearest known name where a field is unknown, and a broken bound's range."""
    match = _UNKNOWN_FIELD.fullmatch(message)
    if match is None:
        from penstock.ranges import right_words  # for the unhappy few

        words = right_words(Job, message)
        # It may quote the job, which may be large.
        return message[:300] if words is None else f"{message[:300]}; {words}"
    name, path = match["name"][:64], match["path"] or "$"
    struct = _STRUCTS.get(path, Message)
    known = [field.encode_name for field in msgspec.structs.fields(struct)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known fields: {', '.join(known)}"
    return f"unknown field `{name}` at `{path}`; {hint}"
