"""A batch's two files, output and errors: its segments while it runs, afterwards files like others."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from producer.gateway.batches.objects import BatchRecord, now
from producer.gateway.batches.segments import INVALID, Segment, Written, find_segments
from producer.gateway.batches.store import BatchStore
from producer.gateway.files.objects import FileObject, FileRecord
from producer.gateway.files.store import FileStore, expiring
from producer.gateway.storage import pieces


class Part(Struct, frozen=True):
    """A stretch of an object that is a stretch of a file."""

    name: str
    start: int
    size: int | None
    """None to its end."""
    lines: int


class Outputs:
    """The files that one batch writes. Blocks."""

    def __init__(self, batches: BatchStore, files: FileStore, tenant: str) -> None:
        self._batches = batches
        self._files = files
        self._tenant = tenant

    def show(self, record: BatchRecord, written: Written) -> tuple[str | None, str | None]:
        """Ids of output and errors, each made a file to be looked at as soon as it has a line."""
        batch, found = record.batch, list[str | None]()
        shown = (batch.output_file_id, batch.error_file_id)
        for at, lines in enumerate((written.output_lines, written.error_lines)):
            if lines and shown[at] is None:
                self._files.save(self._tenant, self._record(record, at, batch=batch.id))
            found.append(record.file_ids[at] if lines else None)
        return found[0], found[1]

    def conclude(self, record: BatchRecord, written: Written) -> tuple[str | None, str | None]:
        """Write both files whole, and give the ids of those that have a line.

        For a driver that has had its batch since the last segment was stored: whoever else comes to write
        them, then or later, writes the very same bytes under the same names.
        """
        found = list[str | None]()
        for at, lines in enumerate((written.output_lines, written.error_lines)):
            if not lines:
                found.append(None)
                continue
            draft, size = self._record(record, at, lines=lines), 0
            with self._files.storage.writing(self._files.blob(self._tenant, draft)) as file:
                for part in self._parts(record.batch.id, at, written.segments):
                    for piece in self.read(part):
                        size += file.write(piece)
            whole = msgspec.structs.replace(draft, file=msgspec.structs.replace(draft.file, bytes=size))
            self._files.save(self._tenant, whole)
            found.append(record.file_ids[at])
        return found[0], found[1]

    def clear(self, record: BatchRecord) -> None:
        """The batch has ended: it writes no file any more."""
        for file_id in record.file_ids:
            self._files.end_running(self._tenant, file_id)

    def parts(self, file: FileRecord) -> list[Part]:
        """Where the bytes of a file lie; those of one that a batch is writing, as far as they are there.

        Raises:
            FileNotFoundError: the batch has just ended; look at the file again.
        """
        if not file.batch:
            return [Part(self._files.blob(self._tenant, file), 0, None, file.lines)]
        folder = self._batches.folder(self._tenant, file.batch)
        at = 0 if file.kind == "output" else 1
        return self._parts(file.batch, at, find_segments(self._files.storage, folder))

    def read(self, part: Part) -> Iterator[bytes]:
        """Its bytes.

        Raises:
            FileNotFoundError: they have been moved or deleted.
        """
        with self._files.storage.open(part.name) as file:
            file.seek(part.start)
            yield from pieces(file, part.size)

    def _parts(self, batch_id: str, at: int, segments: list[Segment]) -> list[Part]:
        folder = self._batches.folder(self._tenant, batch_id)
        if at == 0:
            found = [Part(f"{folder}/{one.name}", 0, one.output_bytes, one.output_lines) for one in segments]
        else:
            found = self._invalid(folder)
            for one in segments:
                found.append(Part(f"{folder}/{one.name}", one.output_bytes, one.error_bytes, one.error_lines))
        return [part for part in found if part.lines]

    def _invalid(self, folder: str) -> list[Part]:
        """The part that the validation wrote: looked into, as it is short and says nowhere how long."""
        try:
            with self._files.storage.open(f"{folder}/{INVALID}") as file:
                size = lines = 0
                for piece in pieces(file):
                    size += len(piece)
                    lines += piece.count(b"\n")
        except FileNotFoundError:
            return []
        return [Part(f"{folder}/{INVALID}", 0, size, lines)]

    def _record(self, record: BatchRecord, at: int, *, batch: str = "", lines: int = 0) -> FileRecord:
        file = FileObject(
            id=record.file_ids[at],
            bytes=0,
            created_at=now(),
            filename=f"{record.batch.id}_{'output' if at == 0 else 'error'}.jsonl",
            purpose="batch_output",
        )
        return FileRecord(
            # Its time begins when it is whole.
            file=file if batch else expiring(file, record.output_expires_after_s),
            lines=lines,
            batch=batch,
            kind="output" if at == 0 else "error",
        )
