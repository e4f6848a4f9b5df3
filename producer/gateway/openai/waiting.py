"""Waiting for the ends of a request's jobs, for as long as somebody wants to know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from litestar.types import Receive

from penstock.client import Client
from penstock.errors import JobFailed, PenstockError
from penstock.messages import Done
from producer.gateway.errors import ApiError
from producer.gateway.openai.connection import gone
from producer.gateway.openai.failures import JobTooSlow, error_of

log = logging.getLogger(__name__)


class ClientGone(ApiError):
    """Nobody reads this."""

    status = 499
    kind = "invalid_request_error"


async def wait_for_all(
    client: Client, job_ids: Sequence[str], receive: Receive, max_wait_s: float, prompt_param: str
) -> list[tuple[str, Done]]:
    """The ends of all jobs, in order. Where there will be no reply, those that go on are cancelled.

    Args:
        prompt_param: the request's name for the prompt.

    Raises:
        ApiError: a job failed, or there was not enough time.
        ClientGone: the client went away.
        JobLost: the server lost one.
    """
    ends = asyncio.ensure_future(_all(client, job_ids))
    leaving = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait((ends, leaving), timeout=max_wait_s, return_when=asyncio.FIRST_COMPLETED)
        if ends.done():
            return list(zip(job_ids, ends.result(), strict=True))
        if leaving.done():
            raise ClientGone("the client went away")
        raise JobTooSlow(
            f"there was no answer within {max_wait_s:g} s; the job was cancelled. A stream or a batch may "
            "wait longer",
            code="timeout",
        )
    except BaseException as error:
        if not (isinstance(error, JobFailed) and len(job_ids) == 1):
            await asyncio.shield(cancel_all(client, job_ids))
        if isinstance(error, JobFailed):
            raise error_of(error.error, prompt_param) from None
        raise
    finally:
        for task in (ends, leaving):
            task.cancel()
        await asyncio.gather(ends, leaving, return_exceptions=True)


async def cancel_all(client: Client, job_ids: Sequence[str]) -> None:
    """Cancel what has not ended. Where the server can't be told, they run to their end."""
    try:
        for job_id in job_ids:
            await client.cancel(job_id)
    except PenstockError as error:
        log.warning("%d jobs that nobody waits for could not be cancelled: %s", len(job_ids), error)


async def _all(client: Client, job_ids: Sequence[str]) -> list[Done]:
    results = [asyncio.ensure_future(client.result(job_id)) for job_id in job_ids]
    try:
        return await asyncio.gather(*results)
    finally:
        for result in results:
            result.cancel()
        await asyncio.gather(*results, return_exceptions=True)
