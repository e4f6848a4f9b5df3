"""What a client asks for, and its codec.

Jobs refuse unknown fields, so that a misspelt parameter is an error and not a silent default.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Raw, Struct

from penstock.chat import FunctionCall, FunctionDefinition, Message, TextPart, Tool, ToolCall
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
TRACEPARENT_PATTERN: Final = (
    r"^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$(?!\n)"
)
"""Version, trace id, parent id and flags, by W3C's Trace Context."""

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
    tools: list[Tool] | None = None
    """What the chat template tells the model that it may call."""
    documents: list[dict[str, Any]] | None = None
    """What the chat template gives the model to answer from."""
    add_generation_prompt: bool = True
    """Open the assistant's turn behind the messages; a `score` or an `embed` job never does."""
    continue_final_message: bool = False
    """Cut the rendered messages behind the text of the last one, for the model to go on with it."""
    add_special_tokens: bool | None = None
    """Whether the tokenizer adds its special tokens; by default to a `prompt`, and not to `messages`, whose
    template writes its own."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    """Keep the prompt's last so many tokens; -1 for as many as the window holds beside `max_tokens`."""
    echo: bool = False
    """Give the prompt's text, and that of each of its tokens, in the terminal event."""
    traceparent: Annotated[str, Meta(pattern=TRACEPARENT_PATTERN)] | None = None
    """The caller's span, by W3C's Trace Context."""

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
        if self.truncate_prompt_tokens == 0:
            raise InvalidJob("`truncate_prompt_tokens` is 0; it must be 1 or more, or -1 for the window")
        self._check_rendering(given[0])
        if self.kind != "generate":
            self._check_nothing_is_generated()

    def _check_rendering(self, given: str) -> None:
        """Refuse what is for a chat template where none is at work, and two wishes that disagree."""
        if self.messages is None:
            told = {
                "tools": self.tools is not None,
                "documents": self.documents is not None,
                "add_generation_prompt": not self.add_generation_prompt,
                "continue_final_message": self.continue_final_message,
            }
            for name, is_told in told.items():
                if is_told:
                    raise InvalidJob(f"`{name}` is for `messages`; this job has `{given}`")
        elif self.continue_final_message and self.add_generation_prompt:
            raise InvalidJob(
                "`continue_final_message` and `add_generation_prompt` are both true; to continue the last "
                "message, set `add_generation_prompt` to false"
            )

    def _check_nothing_is_generated(self) -> None:
        """Refuse what only makes sense for output, rather than let it pass for something that works."""
        what = "an `embed` job" if self.kind == "embed" else "a `score` job"
        if self.stream:
            raise InvalidJob(f"{what} generates nothing to `stream`")
        neutral, useful = SamplingParams(), {"prompt_logprobs"} if self.kind == "score" else set[str]()
        for name in neutral.__struct_fields__:
            if name not in useful and getattr(self.sampling_params, name) != getattr(neutral, name):
                raise InvalidJob(f"{what} generates nothing; leave out `{name}`")


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

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>.*?)`(?: - at `(?P<path>\$[^`]*)`)?")

_STRUCTS: Final[dict[str, type[Struct]]] = {
    "$": Job,
    "$.sampling_params": SamplingParams,
    "$.sampling_params.structured_outputs": StructuredOutputs,
    "$.sampling_params.repetition_detection": RepetitionDetection,
    "$.pooling_params": PoolingParams,
    "$.messages[]": Message,
    "$.messages[].content[]": TextPart,
    "$.messages[].tool_calls[]": ToolCall,
    "$.messages[].tool_calls[].function": FunctionCall,
    "$.tools[]": Tool,
    "$.tools[].function": FunctionDefinition,
}
"""By path, the brackets of arrays left empty."""


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


def _explain(message: str) -> str:
    """msgspec's words, with the nearest known name where a field is unknown, and a broken bound's range."""
    match = _UNKNOWN_FIELD.fullmatch(message)
    if match is None:
        from penstock.ranges import right_words  # for the unhappy few

        words = right_words(Job, message)
        # It may quote the job, which may be large.
        return message[:300] if words is None else f"{message[:300]}; {words}"
    name, path = match["name"][:64], match["path"] or "$"
    struct = _STRUCTS[re.sub(r"\[[^]]*\]", "[]", path)]
    known = [field.encode_name for field in msgspec.structs.fields(struct)]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean `{near[0]}`?" if near else f"known fields: {', '.join(known)}"
    return f"unknown field `{name}` at `{path}`; {hint}"
