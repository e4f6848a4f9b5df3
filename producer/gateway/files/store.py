"""Files in the storage: TENANT/files/ID are a file's bytes, ID.json beside it is its object.

A file that a batch is still writing has ID.running as its object, and its bytes are the batch's segments. Two
names, because a driver that was replaced and does not know it may still write the one: it must not come over
the other.

Everything here blocks. Whether a file exists is its object's to say, so that a file without one (a killed
upload, a half-done deletion) is never seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, Final
from urllib.parse import quote

import msgspec

from producer.gateway.errors import BadRequest, NotFound
from producer.gateway.files.objects import (
    FileObject,
    FileRecord,
    decode_record,
    encode_record,
    is_file_id,
    made_at,
)
from producer.gateway.storage import DRAFT_S, Storage

TENANTS: Final = "tenants"
OBJECT: Final = ".json"
RUNNING: Final = ".running"


def folder_of(tenant: str) -> str:
    """Where a tenant's things lie."""
    return f"{TENANTS}/{quote(tenant, safe='')}"


class FileStore:
    """The files of all tenants."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def find(self, tenant: str, file_id: str) -> FileRecord:
        """A tenant's file.

        Raises:
            NotFound: the tenant has none of this id.
        """
        try:
            record = self.kept(tenant, file_id)
            if not record.is_gone():
                return record
        except FileNotFoundError:
            pass
        raise NotFound(f"No such File object: {file_id}", param="id", code="file_not_found")

    def kept(self, tenant: str, file_id: str) -> FileRecord:
        """A tenant's file, deleted from sight or not: what a batch reads it may read to its end.

        Raises:
            FileNotFoundError: the tenant has none of this id.
        """
        if not is_file_id(file_id):
            raise FileNotFoundError(file_id)
        name = _name(tenant, file_id)
        # The last look is for a batch that ended between the first two.
        for suffix in (OBJECT, RUNNING):
            with suppress(FileNotFoundError):
                return decode_record(self.storage.read(name + suffix))
        return decode_record(self.storage.read(name + OBJECT))

    def open(self, tenant: str, record: FileRecord) -> IO[bytes]:
        """A file's bytes.

        Raises:
            FileNotFoundError: they are gone.
        """
        return self.storage.open(self.blob(tenant, record))

    def blob(self, tenant: str, record: FileRecord) -> str:
        """Name of a file's bytes in the storage."""
        return _name(tenant, record.file.id)

    def save(self, tenant: str, record: FileRecord) -> None:
        """Make a file's object, or replace it."""
        suffix = RUNNING if record.batch else OBJECT
        self.storage.write(_name(tenant, record.file.id) + suffix, encode_record(record))

    def end_running(self, tenant: str, file_id: str) -> None:
        """No batch writes the file any more."""
        self.storage.delete(_name(tenant, file_id) + RUNNING)

    def listed(self, tenant: str, *, newest_first: bool, after: str | None) -> Iterator[FileRecord]:
        """A tenant's files by the time at which they were made, from behind `after`.

        Raises:
            BadRequest: `after` is no file of the tenant's.
        """
        ids = self._ids(tenant)
        if newest_first:
            ids.reverse()
        if after is not None:
            if after not in ids:
                raise BadRequest(f"after: there is no file {after!r}", param="after", code="invalid_value")
            ids = ids[ids.index(after) + 1 :]
        for file_id in ids:
            try:
                yield self.find(tenant, file_id)
            except NotFound:
                continue

    def delete(self, tenant: str, record: FileRecord, *, is_read: bool) -> None:
        """Remove a file; where a batch still reads it, only from sight."""
        if is_read:
            self.save(tenant, msgspec.structs.replace(record, is_deleted=True))
            return
        for suffix in (OBJECT, RUNNING, ""):
            self.storage.delete(_name(tenant, record.file.id) + suffix)

    def sweep(self, is_used: Callable[[str], bool]) -> None:
        """Remove what was deleted from sight or has expired, of all tenants, and what a killed process left
        of files that never were; `is_used` says of a file's id whether a batch still reads or writes it."""
        self.storage.sweep_drafts()
        for name in self.storage.names(TENANTS):
            folder = f"{TENANTS}/{name}/files"
            names = self.storage.names(folder)
            objects = {entry.removesuffix(OBJECT) for entry in names if entry.endswith(OBJECT)}
            for entry in names:
                file_id = entry.partition(".")[0]
                if file_id in objects or not is_file_id(file_id) or is_used(file_id):
                    continue
                if made_at(file_id) < time.time() - DRAFT_S:
                    self.storage.delete(f"{folder}/{entry}")
            for file_id in objects:
                self._sweep_one(folder, file_id, is_used)

    def _sweep_one(self, folder: str, file_id: str, is_used: Callable[[str], bool]) -> None:
        try:
            record = decode_record(self.storage.read(f"{folder}/{file_id}{OBJECT}"))
        except FileNotFoundError:
            return
        if record.is_gone() and not is_used(file_id):
            for suffix in (OBJECT, RUNNING, ""):
                self.storage.delete(f"{folder}/{file_id}{suffix}")

    def _ids(self, tenant: str) -> list[str]:
        names = self.storage.names(f"{folder_of(tenant)}/files")
        found = (name.removesuffix(OBJECT).removesuffix(RUNNING) for name in names if "." in name)
        return list(dict.fromkeys(found))


def _name(tenant: str, file_id: str) -> str:
    return f"{folder_of(tenant)}/files/{file_id}"


def expiring(file: FileObject, after_s: int | None) -> FileObject:
    """The file, to be gone so many seconds after it was made."""
    return file if after_s is None else msgspec.structs.replace(file, expires_at=file.created_at + after_s)
