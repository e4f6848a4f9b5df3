"""A new batch of the rows of an old one that failed."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from producer.answers import RowSet
from producer.gateway.batches.creation import MAX_PAIRS, BatchRequest, made_batch
from producer.gateway.batches.objects import ENDED, BatchRecord, now
from producer.gateway.batches.reply_lines import row_of
from producer.gateway.batches.works import Works
from producer.gateway.caller import Caller
from producer.gateway.errors import Conflict, NotFound
from producer.gateway.files.objects import FileObject, FileRecord, new_file_id
from producer.rows import rows_of


def retried(works: Works, caller: Caller, batch_id: str) -> BatchRecord:
    """The new batch, not stored yet; its input, the failed lines as they are in the old one's, is. Blocks.

    Raises:
        NotFound: the tenant has no such batch, or its input is gone.
        Conflict: it has not ended, or nothing of it failed.
    """
    old = works.batches.find(caller.tenant, batch_id)
    batch = old.batch
    if batch.status not in ENDED:
        raise Conflict(
            f"Cannot retry a batch with status '{batch.status}'; wait for its end.", code="invalid_status"
        )
    if batch.error_file_id is None:
        raise Conflict(
            "The batch has no error file: nothing of it was run and failed.", code="nothing_to_retry"
        )
    input_id = _copy_failed(works, caller.tenant, old)
    metadata = dict(batch.metadata or {})
    if len(metadata) < MAX_PAIRS:
        metadata["retry_of"] = batch_id
    asked = BatchRequest(
        input_file_id=input_id,
        endpoint=batch.endpoint,
        completion_window=batch.completion_window,
        metadata=dict(metadata),
    )
    made = made_batch(asked, caller, is_strict=old.is_strict, retry_of=batch_id)
    return msgspec.structs.replace(made, output_expires_after_s=old.output_expires_after_s)


def _copy_failed(works: Works, tenant: str, old: BatchRecord) -> str:
    files, batch = works.files, old.batch
    assert batch.error_file_id is not None
    failed = RowSet()
    try:
        errors = files.find(tenant, batch.error_file_id)
        source = files.find(tenant, batch.input_file_id)
    except NotFound as error:
        raise NotFound(f"{error}; without it the batch can't be retried", code="file_not_found") from None
    with files.open(tenant, errors) as lines:
        for line in lines:
            failed.add(row_of(line))
    name = f"{batch.id}_retry.jsonl"
    file = FileObject(id=new_file_id(), bytes=0, created_at=now(), filename=name, purpose="batch")
    size = count = 0
    with (
        files.open(tenant, source) as rows,
        files.storage.writing(files.blob(tenant, FileRecord(file=file))) as to,
    ):
        for line in _those(rows_of(rows), failed):
            size += to.write(line)
            count += 1
    whole = FileRecord(file=msgspec.structs.replace(file, bytes=size), lines=count)
    files.save(tenant, whole)
    return file.id


def _those(rows: Iterator[tuple[int, bytes]], wanted: RowSet) -> Iterator[bytes]:
    for number, line in rows:
        if number in wanted:
            yield line if line.endswith(b"\n") else line + b"\n"
