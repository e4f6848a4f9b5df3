"""The bytes of a file, from a line on; of one that a batch is still writing, as far as they are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec
from msgspec import Struct

from producer.gateway.batches.outputs import Outputs, Part
from producer.gateway.errors import NotFound
from producer.gateway.files.objects import FileObject, FileRecord
from producer.gateway.files.store import FileStore

Parts: TypeAlias = Callable[[], list[Part]]


class Content(Struct, frozen=True):
    """What is to be sent of a file."""

    pieces: Iterator[bytes]
    is_complete: bool
    lines: int
    """Of the file so far: the `offset` from which to go on later."""
    size: int | None
    """Bytes of `pieces`, where known."""


class Contents:
    """One tenant's files, read. Blocks."""

    def __init__(self, files: FileStore, outputs: Outputs, tenant: str) -> None:
        self._files = files
        self._outputs = outputs
        self._tenant = tenant

    def of(self, file_id: str, offset: int) -> Content:
        """A file behind its first `offset` lines.

        Raises:
            NotFound: the tenant has none of this id.
        """
        record, parts = self._find(file_id)
        size = sum(part.size or 0 for part in parts) if record.batch else record.file.bytes
        pieces = _pieces(lambda: self._find(file_id)[1], parts, size, offset, self._outputs.read)
        return Content(
            pieces,
            not record.batch,
            sum(part.lines for part in parts),
            size if offset == 0 else None,
        )

    def sized(self, record: FileRecord) -> FileObject:
        """A file's object, with the bytes that it has by now where a batch is writing it."""
        if not record.batch:
            return record.file
        try:
            record, parts = self._find(record.file.id)
        except NotFound:  # deleted since it was listed
            return record.file
        size = sum(part.size or 0 for part in parts) if record.batch else record.file.bytes
        return msgspec.structs.replace(record.file, bytes=size)

    def _find(self, file_id: str) -> tuple[FileRecord, list[Part]]:
        for _ in range(3):
            record = self._files.find(self._tenant, file_id)
            try:
                return record, self._outputs.parts(record)
            except FileNotFoundError:
                continue  # its batch ended between the two looks
        raise NotFound(f"No such File object: {file_id}", param="id", code="file_not_found")


def _pieces(
    parts_now: Parts, parts: list[Part], size: int, skip: int, read: Callable[[Part], Iterator[bytes]]
) -> Iterator[bytes]:
    """The bytes up to `size`, behind `skip` lines. Segments that are made one file meanwhile are read on
    there, as that begins with the same bytes."""
    at, tries = 0, 0
    while parts and skip and parts[0].size is not None and parts[0].lines <= skip:
        first = parts.pop(0)
        at, skip = at + (first.size or 0), skip - first.lines
        if not parts:
            return
    begun = at
    while at < size:
        try:
            for piece in _from(parts, at - begun, read):
                piece = piece[: size - at]
                at += len(piece)
                if skip:
                    piece, skip = _behind(piece, skip)
                if piece:
                    yield piece
                if at >= size:
                    return
            return
        except FileNotFoundError:
            tries += 1
            if tries > 3:
                raise
            parts, begun = parts_now(), 0


def _from(parts: list[Part], skip: int, read: Callable[[Part], Iterator[bytes]]) -> Iterator[bytes]:
    for part in parts:
        if part.size is not None and skip >= part.size:
            skip -= part.size
            continue
        rest = None if part.size is None else part.size - skip
        yield from read(msgspec.structs.replace(part, start=part.start + skip, size=rest))
        skip = 0


def _behind(piece: bytes, lines: int) -> tuple[bytes, int]:
    """What of the piece is behind so many lines, and how many are left to pass over."""
    at = 0
    while lines:
        end = piece.find(b"\n", at)
        if end < 0:
            return b"", lines
        at, lines = end + 1, lines - 1
    return piece[at:], 0
