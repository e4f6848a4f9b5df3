"""Cancel a job: final at once, whether or not someone works on it."""

from __future__ import annotations

from typing import Any

from penstock.errors import InvalidJob
from penstock.keys import GROUP, JOB, JobId, Keys
from penstock.link import Link
from penstock.messages import (
    DEFAULT_RESULT_TTL_S,
    Error,
    Failed,
    JobLabels,
    decode_job,
    decode_labels,
    encode_event,
)
from penstock.scripts import CANCEL


async def cancel(link: Link, keys: Keys, job_id: JobId) -> bool:
    """End the job with a `cancelled` failure; False where it had ended already or never was.

    The entry is read first: it never changes, and says whose row it is and how long its result is kept.

    Raises:
        ServerUnavailable: the job may or may not have been cancelled; asking again is safe.
    """
    lane, entry = keys.jobs(job_id.lane), job_id.entry
    found: list[Any] = await link.command("XRANGE", lane, entry, entry)
    if not found:
        return False
    fields: list[bytes] = found[0][1]
    data = dict(zip(fields[::2], fields[1::2], strict=True)).get(JOB.encode(), b"")
    labels, ttl_s = _read(data)
    event = Failed(error=Error(type="cancelled", message="the job was cancelled"), custom_id=labels.custom_id)
    names = [lane, keys.result(str(job_id)), keys.control, keys.attempts]
    if labels.batch is not None:
        names += [keys.batch(labels.batch), keys.batch_done(labels.batch)]
    row = "" if labels.row is None else labels.row
    args = [GROUP, entry, job_id.nonce or "", str(job_id), ttl_s * 1000, row, encode_event(event)]
    return bool(await link.script(CANCEL, names, args))


def _read(data: bytes) -> tuple[JobLabels, int]:
    """Labels and result TTL in seconds of a job, however bad the job is."""
    try:
        job = decode_job(data)
    except InvalidJob:
        return decode_labels(data), DEFAULT_RESULT_TTL_S
    labels = JobLabels(custom_id=job.custom_id, batch=job.batch, row=job.row)
    return labels, job.result_ttl_s or DEFAULT_RESULT_TTL_S
