"""File objects, as OpenAI's API shows them and as they lie in the storage."""

from __future__ import annotations

import re
import secrets
import time
from typing import Final, Literal

import msgspec
from msgspec import Struct

Purpose = Literal["batch", "batch_output"]

_FILE_ID: Final = re.compile(r"file-[0-9a-f]{28}")


class FileObject(Struct, frozen=True, kw_only=True):
    """OpenAI's file object."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"
    expires_at: int | None = None


class FileList(Struct, frozen=True, kw_only=True):
    """OpenAI's list of them."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Struct, frozen=True, kw_only=True):
    """What became of a file."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class FileRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file's object as it lies beside its bytes."""

    file: FileObject
    lines: int = 0
    batch: str = ""
    """The batch that is still writing it; the bytes then are the batch's segments."""
    kind: Literal["output", "error"] = "output"
    is_deleted: bool = False
    """Nobody sees it any more; a batch that runs still reads it."""

    def is_gone(self) -> bool:
        """Whether it was deleted, or its time is over."""
        expires_at = self.file.expires_at
        return self.is_deleted or (expires_at is not None and expires_at <= time.time())


_decoder = msgspec.json.Decoder(FileRecord)


def encode_record(record: FileRecord) -> bytes:
    """As it lies in the storage."""
    return msgspec.json.encode(record)


def decode_record(data: bytes) -> FileRecord:
    """As it lies in the storage."""
    return _decoder.decode(data)


def stamp() -> str:
    """An id's random part, which sorts by the time at which it was made."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(8)}"


def new_file_id() -> str:
    """Ids sort by time."""
    return f"file-{stamp()}"


def made_at(made_id: str) -> float:
    """Unix time at which a file's or a batch's id was given."""
    return int(made_id[-28:-16], 16) / 1000


def is_file_id(text: str) -> bool:
    """Whether it has the form of one: nothing else is looked for in the storage."""
    return _FILE_ID.fullmatch(text) is not None
