"""Files in the storage: TENANT/files/ID are a file's bytes, ID.json beside it is its object.

Everything here blocks. Whether a file exists is its object's to say, so that a file without one (a killed
upload, a half-done deletion) is never seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
            if is_file_id(file_id):
                record = decode_record(self.storage.read(_name(tenant, file_id) + OBJECT))
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
        return decode_record(self.storage.read(_name(tenant, file_id) + OBJECT))

    def open(self, tenant: str, record: FileRecord) -> IO[bytes]:
        """A file's bytes.

        Raises:
            FileNotFoundError: they are gone.
        """
        return self.storage.open(self.blob(tenant, record))

    def blob(self, tenant: str, record: FileRecord) -> str:
        """Name of a file's bytes in the storage."""
        return _name(tenant, record.blob or record.file.id)

    def save(self, tenant: str, record: FileRecord) -> None:
        """Make a file's object, or replace it."""
        self.storage.write(_name(tenant, record.file.id) + OBJECT, encode_record(record))

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
        self.storage.delete(_name(tenant, record.file.id) + OBJECT)
        self.storage.delete(self.blob(tenant, record))

    def clear_others(self, tenant: str, file_id: str) -> None:
        """Remove what was written to be a file's bytes and is not."""
        folder = f"{folder_of(tenant)}/files"
        try:
            kept = self.kept(tenant, file_id).blob
        except FileNotFoundError:
            kept = ""
        for name in self.storage.names(folder):
            if name.startswith(f"{file_id}.") and name not in (kept, file_id + OBJECT):
                self.storage.delete(f"{folder}/{name}")

    def sweep(self, is_read: Callable[[str], bool]) -> None:
        """Remove what was deleted from sight or has expired, of all tenants, and bytes that never got an
        object; `is_read` says of a file's id whether a batch still reads it."""
        self.storage.sweep_drafts()
        for name in self.storage.names(TENANTS):
            folder = f"{TENANTS}/{name}/files"
            names = self.storage.names(folder)
            objects = {entry.removesuffix(OBJECT) for entry in names if entry.endswith(OBJECT)}
            for entry in names:
                file_id = entry.partition(".")[0]
                if file_id in objects or not is_file_id(file_id):
                    continue
                if made_at(file_id) < time.time() - DRAFT_S:
                    self.storage.delete(f"{folder}/{entry}")
            for file_id in objects:
                self._sweep_one(folder, file_id, is_read)

    def _sweep_one(self, folder: str, file_id: str, is_read: Callable[[str], bool]) -> None:
        try:
            record = decode_record(self.storage.read(f"{folder}/{file_id}{OBJECT}"))
        except FileNotFoundError:
            return
        if record.is_gone() and not record.batch and not is_read(file_id):
            self.storage.delete(f"{folder}/{file_id}{OBJECT}")
            self.storage.delete(f"{folder}/{record.blob or file_id}")

    def _ids(self, tenant: str) -> list[str]:
        names = self.storage.names(f"{folder_of(tenant)}/files")
        return [name.removesuffix(OBJECT) for name in names if name.endswith(OBJECT)]


def _name(tenant: str, file_id: str) -> str:
    return f"{folder_of(tenant)}/files/{file_id}"


def expiring(file: FileObject, after_s: int | None) -> FileObject:
    """The file, to be gone so many seconds after it was made."""
    return file if after_s is None else msgspec.structs.replace(file, expires_at=file.created_at + after_s)
