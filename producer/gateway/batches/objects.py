"""Batch objects, as OpenAI's API shows them and as they lie in the storage."""

from __future__ import annotations

import re
import time
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from producer.gateway.files.objects import stamp

Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDED: Final = frozenset({"failed", "completed", "expired", "cancelled"})

_BATCH_ID: Final = re.compile(r"batch_[0-9a-f]{28}")


class BatchError(Struct, frozen=True, kw_only=True):
    """Why a batch, or one of its lines, can't be run."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None
    """Of the input, counted from 1, blank lines too."""


class BatchErrors(Struct, frozen=True, kw_only=True):
    """OpenAI's list of them."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(Struct, frozen=True, kw_only=True):
    """How far a batch is."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(Struct, frozen=True, kw_only=True):
    """Of a batch's prompts."""

    cached_tokens: int = 0


class OutputDetails(Struct, frozen=True, kw_only=True):
    """Of a batch's outputs."""

    reasoning_tokens: int = 0


class BatchUsage(Struct, frozen=True, kw_only=True):
    """Tokens of all rows that were answered."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int = 0
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int = 0


class BatchObject(Struct, frozen=True, kw_only=True):
    """OpenAI's batch object."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    created_at: int
    expires_at: int
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, str] | None = None
    model: str | None = None
    usage: BatchUsage = BatchUsage()
    retry_of: str | None = None
    """The batch whose failed rows these are; penstock's own field."""


class BatchList(Struct, frozen=True, kw_only=True):
    """OpenAI's list of them."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A batch's object as it lies in the storage, and what its driver has to know beside."""

    batch: BatchObject
    lane: str
    max_tokens: int | None = None
    """Tokens that all batches of its key may have in the queue at once: the limit of the key that made it."""
    key_id: str = ""
    """Of that key."""
    is_strict: bool = False
    had_input: bool = True
    """Whether its input was there when it was made: what its tenant deletes later, it reads all the same."""
    output_expires_after_s: int | None = None
    file_ids: tuple[str, str]
    """Of the output and of the errors, shown once there is a line in them."""


_record_decoder = msgspec.json.Decoder(BatchRecord)


def encode_batch(record: BatchRecord) -> bytes:
    """As it lies in the storage."""
    return msgspec.json.encode(record)


def decode_batch(data: bytes) -> BatchRecord:
    """As it lies in the storage."""
    return _record_decoder.decode(data)


def changed(record: BatchRecord, **fields: Any) -> BatchRecord:
    """The record with other fields in its batch object."""
    return msgspec.structs.replace(record, batch=msgspec.structs.replace(record.batch, **fields))


def now() -> int:
    """Unix time in whole seconds, as OpenAI's objects have it."""
    return int(time.time())


def new_batch_id() -> str:
    """Ids sort by time."""
    return f"batch_{stamp()}"


def is_batch_id(text: str) -> bool:
    """Whether it has the form of one: nothing else is looked for in the storage."""
    return _BATCH_ID.fullmatch(text) is not None
