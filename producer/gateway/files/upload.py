"""An upload: a multipart form that is read as it comes, its file written to the storage as it is read."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import IO, Final

from msgspec import Struct
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from producer.gateway.errors import BadRequest, TooLarge
from producer.gateway.files.objects import FileObject, FileRecord, new_file_id
from producer.gateway.files.store import FileStore, expiring
from producer.gateway.storage import CHUNK
from producer.threads import in_thread

FORM_BYTES: Final = 64 * 1024
"""What a form has beside its file, at most."""
FIELD_BYTES: Final = 4096
"""Longest value of a form's field that is no file."""
FIELDS: Final = 16
SHORTEST_S: Final = 3600
LONGEST_S: Final = 30 * 86400


class Form(Struct):
    """What has been read of the form."""

    fields: dict[str, str] = {}
    filename: str | None = None
    size: int = 0
    lines: int = 0
    last: bytes = b"\n"


class Upload:
    """One upload into one tenant's files."""

    def __init__(self, files: FileStore, tenant: str, max_bytes: int) -> None:
        self._files = files
        self._tenant = tenant
        self._max_bytes = max_bytes
        self._form = Form()
        self._file: IO[bytes] | None = None
        self._held: list[bytes] = []
        self._held_size = 0

    async def take(self, content_type: str, chunks: AsyncIterator[bytes]) -> FileObject:
        """Read the form to its end, and give the file that it made. Anything else leaves nothing behind.

        Raises:
            BadRequest: the form is not one that makes a file.
            TooLarge: its file is longer than files may be.
        """
        parser = _parser(content_type)
        file_id = new_file_id()
        draft = FileRecord(
            file=FileObject(id=file_id, bytes=0, created_at=int(time.time()), filename="", purpose="batch")
        )
        with ExitStack() as stack:
            writing = self._files.storage.writing(self._files.blob(self._tenant, draft))
            self._file = await in_thread(stack.enter_context, writing)
            try:
                await self._read(parser, chunks)
                record = self._checked(draft)
                await self._flush()
            except BaseException as error:
                # The draft is removed, in a thread as everything that touches the storage.
                await _leave(stack, error)
                raise
            await in_thread(stack.close)
        await in_thread(self._files.save, self._tenant, record)
        return record.file

    async def _read(self, parser: PushMultipartParser, chunks: AsyncIterator[bytes]) -> None:
        segment: MultipartSegment | None = None
        value, received = bytearray(), 0
        try:
            async for chunk in chunks:
                received += len(chunk)
                if received > self._max_bytes + FORM_BYTES:  # of what is in no part, too
                    raise too_large(self._max_bytes)
                for event in parser.parse(chunk):
                    if isinstance(event, MultipartSegment):
                        segment, value = event, bytearray()
                        self._begin(segment)
                    elif event:
                        assert segment is not None
                        if segment.name == "file":
                            await self._take_bytes(bytes(event))
                        else:
                            value += event
                            if len(value) > FIELD_BYTES:
                                raise BadRequest(f"{segment.name}: too long", param=segment.name)
                    elif segment is not None and segment.name != "file":
                        self._form.fields[segment.name or ""] = value.decode("utf-8", "replace")
            parser.close()
        except MultipartError as error:
            raise BadRequest(f"the body is not a multipart form: {error}", code="invalid_form") from None

    def _begin(self, segment: MultipartSegment) -> None:
        if segment.name != "file":
            return
        if self._form.filename is not None:
            raise BadRequest("file: an upload is one file", param="file", code="invalid_value")
        self._form.filename = segment.filename or "upload.jsonl"

    async def _take_bytes(self, data: bytes) -> None:
        form = self._form
        form.size += len(data)
        if form.size > self._max_bytes:
            raise too_large(self._max_bytes)
        form.lines += data.count(b"\n")
        form.last = data[-1:]
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size >= CHUNK:
            await self._flush()

    async def _flush(self) -> None:
        held, self._held, self._held_size = self._held, [], 0
        if held and self._file is not None:
            await in_thread(self._file.write, b"".join(held))

    def _checked(self, draft: FileRecord) -> FileRecord:
        form, file = self._form, draft.file
        purpose = form.fields.get("purpose")
        if purpose is None:
            raise BadRequest(
                "'purpose' is missing; it is 'batch'", param="purpose", code="missing_required_parameter"
            )
        if purpose != "batch":
            raise BadRequest(
                f"'{purpose[:64]}' is not a purpose that files can have here; the one there is is 'batch'",
                param="purpose",
                code="invalid_value",
            )
        if form.filename is None:
            raise BadRequest("'file' is missing", param="file", code="missing_required_parameter")
        made = FileObject(
            id=file.id,
            bytes=form.size,
            created_at=file.created_at,
            filename=form.filename[:512],
            purpose="batch",
        )
        lines = form.lines + (form.last != b"\n")
        return FileRecord(file=expiring(made, _expires_after(form.fields)), lines=lines)


def too_large(limit: int) -> TooLarge:
    """What is told of a file that is longer than files may be."""
    return TooLarge(f"a file may have {limit} bytes, and this one has more", code="file_too_large")


def _expires_after(fields: dict[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise BadRequest(
            "expires_after[anchor] must be 'created_at'", param="expires_after.anchor", code="invalid_value"
        )
    return checked_seconds(seconds, "expires_after.seconds")


def checked_seconds(value: object, param: str) -> int:
    """Seconds after which a file is to be gone.

    Raises:
        BadRequest: that is not from an hour to 30 days.
    """
    with contextlib.suppress(ValueError):
        if isinstance(value, (str, int)) and SHORTEST_S <= int(value) <= LONGEST_S:
            return int(value)
    raise BadRequest(
        f"{param} must be a whole number from {SHORTEST_S} to {LONGEST_S}", param=param, code="invalid_value"
    )


def _parser(content_type: str) -> PushMultipartParser:
    kind, options = parse_options_header(content_type)
    with contextlib.suppress(MultipartError):
        if kind == "multipart/form-data":
            return PushMultipartParser(options.get("boundary", ""), max_segment_count=FIELDS)
    raise BadRequest(
        "an upload is a multipart/form-data with the fields 'purpose' and 'file'", code="invalid_form"
    )


async def _leave(stack: ExitStack, error: BaseException) -> None:
    leaving = stack.pop_all()
    with contextlib.suppress(asyncio.CancelledError):
        await in_thread(leaving.__exit__, type(error), error, error.__traceback__)
