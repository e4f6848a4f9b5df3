"""Batches in the storage: TENANT/batches/ID is a folder.

    batch.json        the object, replaced as the batch goes on, by its driver alone
    cancel            there once somebody wants it cancelled
    end.json          the object as it ended; nothing that is written to batch.json afterwards counts
    …                 what segments.py writes

and `open/ID`, which holds the tenant's name, is there until the batch has ended: what gateways look for.
Nothing of this is on the server, so nothing has to be rebuilt when that loses its data. Everything here
blocks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final
from urllib.parse import unquote

from producer.gateway.batches.objects import (
    ENDED,
    BatchRecord,
    changed,
    decode_batch,
    encode_batch,
    is_batch_id,
    now,
)
from producer.gateway.errors import BadRequest, Conflict, NotFound
from producer.gateway.files.objects import made_at
from producer.gateway.files.store import TENANTS, folder_of
from producer.gateway.storage import DRAFT_S, Storage

OPEN: Final = "open"
LOOKS: Final = 3
"""At a batch that changes while it is looked at."""
_STATE: Final = "batch.json"
_CANCEL: Final = "cancel"
_END: Final = "end.json"


class BatchStore:
    """The batches of all tenants."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def folder(self, tenant: str, batch_id: str) -> str:
        """Where everything of a batch lies."""
        return f"{folder_of(tenant)}/batches/{batch_id}"

    def create(self, tenant: str, record: BatchRecord) -> None:
        """A batch that is to be driven. Its marker comes first: none is seen that nobody will drive."""
        self.storage.write(f"{OPEN}/{record.batch.id}", tenant.encode())
        self.save(tenant, record)

    def find(self, tenant: str, batch_id: str) -> BatchRecord:
        """A tenant's batch as it is now.

        Raises:
            NotFound: the tenant has none of this id.
        """
        for _ in range(LOOKS if is_batch_id(batch_id) else 0):
            folder = self.folder(tenant, batch_id)
            names = self.storage.names(folder)
            # What was there when it was listed is not always there to be read: the batch has just ended.
            with suppress(FileNotFoundError):
                if _END in names:
                    return decode_batch(self.storage.read(f"{folder}/{_END}"))
                if _STATE not in names:
                    break
                record = decode_batch(self.storage.read(f"{folder}/{_STATE}"))
                return self._cancelling(record, folder) if _CANCEL in names else record
        raise NotFound(f"No batch found with id '{batch_id}'.", param="id", code="batch_not_found")

    def state(self, tenant: str, batch_id: str) -> BatchRecord:
        """A batch as its driver left it; its end, where it has ended.

        Raises:
            FileNotFoundError: there is no such batch.
        """
        folder = self.folder(tenant, batch_id)
        try:
            return decode_batch(self.storage.read(f"{folder}/{_END}"))
        except FileNotFoundError:
            return decode_batch(self.storage.read(f"{folder}/{_STATE}"))

    def clear(self, tenant: str, batch_id: str) -> None:
        """Remove what an ended batch needs no more."""
        folder = self.folder(tenant, batch_id)
        for name in self.storage.names(folder):
            if name != _END:
                self.storage.delete(f"{folder}/{name}")

    def _cancelling(self, record: BatchRecord, folder: str) -> BatchRecord:
        if record.batch.status in ENDED:
            return record
        at = int(self.storage.read(f"{folder}/{_CANCEL}") or b"0")
        return changed(record, status="cancelling", cancelling_at=at)

    def save(self, tenant: str, record: BatchRecord) -> None:
        """Replace a batch's object; for its driver."""
        self.storage.write(f"{self.folder(tenant, record.batch.id)}/{_STATE}", encode_batch(record))

    def end(self, tenant: str, record: BatchRecord) -> None:
        """A batch's last word."""
        self.storage.write(f"{self.folder(tenant, record.batch.id)}/{_END}", encode_batch(record))

    def is_cancelling(self, tenant: str, batch_id: str) -> bool:
        """Whether somebody wants it cancelled."""
        return _CANCEL in self.storage.names(self.folder(tenant, batch_id))

    def cancel(self, tenant: str, batch_id: str) -> BatchRecord:
        """Want a batch cancelled, which its driver sees; the batch as it is now.

        Raises:
            NotFound: the tenant has none of this id.
            Conflict: it has ended.
        """
        record = self.find(tenant, batch_id)
        if record.batch.status == "cancelling" or record.batch.status == "cancelled":
            return record
        if record.batch.status in ENDED:
            raise Conflict(
                f"Cannot cancel a batch with status '{record.batch.status}'.", code="invalid_status"
            )
        self.storage.write(f"{self.folder(tenant, batch_id)}/{_CANCEL}", str(now()).encode())
        return self.find(tenant, batch_id)

    def listed(self, tenant: str, after: str | None) -> Iterator[BatchRecord]:
        """A tenant's batches, newest first, from behind `after`.

        Raises:
            BadRequest: `after` is no batch of the tenant's.
        """
        ids = [name for name in self.storage.names(f"{folder_of(tenant)}/batches") if is_batch_id(name)]
        ids.reverse()
        if after is not None:
            if after not in ids:
                raise BadRequest(f"after: there is no batch {after!r}", param="after", code="invalid_value")
            ids = ids[ids.index(after) + 1 :]
        for batch_id in ids:
            try:
                yield self.find(tenant, batch_id)
            except NotFound:
                continue

    def latest(self, count: int) -> list[tuple[str, str]]:
        """Ids and tenants of the batches that were made last, of all tenants, newest first."""
        found: list[tuple[str, str]] = []
        for name in self.storage.names(TENANTS):
            ids = [one for one in self.storage.names(f"{TENANTS}/{name}/batches") if is_batch_id(one)]
            found += [(one, unquote(name)) for one in ids[-count:]]
        return sorted(found, reverse=True)[:count]

    def open_batches(self) -> list[str]:
        """Ids of batches that have not ended, of all tenants, oldest first."""
        return [name for name in self.storage.names(OPEN) if is_batch_id(name)]

    def tenant_of(self, batch_id: str) -> str | None:
        """Whose an open batch is; None where it has just ended."""
        try:
            return self.storage.read(f"{OPEN}/{batch_id}").decode()
        except FileNotFoundError:
            return None

    def close(self, batch_id: str) -> None:
        """Nothing is left to do for a batch."""
        self.storage.delete(f"{OPEN}/{batch_id}")

    def close_unmade(self, batch_id: str) -> None:
        """Remove the marker of a batch whose maker was killed before it was one."""
        if made_at(batch_id) < time.time() - DRAFT_S:
            self.close(batch_id)

    def files_used(self) -> set[str]:
        """Ids of the files that open batches read or write."""
        found: set[str] = set()
        for batch_id in self.open_batches():
            tenant = self.tenant_of(batch_id)
            if tenant is not None:
                with suppress(NotFound):
                    record = self.find(tenant, batch_id)
                    found.update((record.batch.input_file_id, *record.file_ids))
        return found
