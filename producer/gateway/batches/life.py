"""The life of one batch, from wherever it is to its end, by the one gateway that has taken it.

Where it is, is in the storage; whose it is, on the server (see producer/driver.py). Killed at any moment,
the next gateway that takes the batch begins at the same stage.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import IO, Any, Final, Literal, TypeAlias

from penstock.backoff import pauses
from penstock.errors import BatchTaken, BatchUnknown, ServerError, ServerUnavailable
from producer.driven import Pace, Queue
from producer.driver import Driver
from producer.gateway.batches.lines import BadLine, Checker
from producer.gateway.batches.narrator import LogNarrator
from producer.gateway.batches.objects import (
    ENDED,
    BatchError,
    BatchErrors,
    BatchUsage,
    InputDetails,
    OutputDetails,
    RequestCounts,
    changed,
    now,
)
from producer.gateway.batches.outputs import Outputs
from producer.gateway.batches.rest import cancel_all, find_jobs
from producer.gateway.batches.rows import Ends, Note, Rows
from producer.gateway.batches.segments import Totals, Written
from producer.gateway.batches.share import Share
from producer.gateway.batches.validation import Validation, Verdict
from producer.gateway.batches.works import Works
from producer.gateway.openai.endpoints import Models
from producer.threads import in_thread

LOOK_S: Final = 2.0
"""How often the storage is asked whether the batch is to be cancelled, by another gateway."""
MAX_TOKENS: Final = 2.0**25
"""Of one batch in the queue at most, where its key has no limit."""

Stop: TypeAlias = Literal["cancelled", "expired"]

log = logging.getLogger(__name__)


class Life:
    """One batch in this gateway's hands."""

    def __init__(self, works: Works, tenant: str, batch_id: str) -> None:
        self._works = works
        self._tenant = tenant
        self._id = batch_id
        self._outputs = Outputs(works.batches, works.files, tenant)
        self._written = Written(works.batches.storage, works.batches.folder(tenant, batch_id))
        self._wake = asyncio.Event()
        self._is_failed = False

    def look(self) -> None:
        """Somebody may want the batch cancelled."""
        self._wake.set()

    async def run(self) -> None:
        """Bring the batch to its end.

        Raises:
            BatchTaken: another gateway has it.
            ServerError, OSError: it can't go on now; trying again later is right.
        """
        try:
            self._record = await in_thread(self._works.batches.state, self._tenant, self._id)
        except FileNotFoundError:  # it is being made just now, or never was
            await in_thread(self._works.batches.close_unmade, self._id)
            return
        self._checker = Checker(self._record.batch.endpoint, await self._models())
        self._driver = self._make_driver()
        await self._driver.hold()
        living, keeping = asyncio.create_task(self._live()), asyncio.create_task(self._keep())
        try:
            await asyncio.wait((living, keeping), return_when=asyncio.FIRST_COMPLETED)
            (living if living.done() else keeping).result()
        finally:
            for task in (living, keeping):
                task.cancel()
            await asyncio.gather(living, keeping, return_exceptions=True)
            await self._let_go()

    async def _live(self) -> None:
        # Again, now that nobody else can have moved it.
        self._record = await in_thread(self._works.batches.state, self._tenant, self._id)
        if self._record.batch.status in ENDED:
            await self._leave()
            return
        if self._record.batch.status == "validating":
            stop = await self._unless_stopped(self._validate())
            if stop is not None or self._is_failed:
                await self._end(stop or "failed")
                return
        await self._share.renew()
        stop = await self._unless_stopped(self._driver.finish())
        if stop is not None:
            await self._stop_rows(stop)
        await self._conclude(stop or "completed")

    # The stages

    async def _validate(self) -> None:
        works, record = self._works, self._record
        folder = works.batches.folder(self._tenant, self._id)
        validation = Validation(self._id, self._open_input, self._checker, works.batches.storage, folder)
        try:
            if not record.had_input:
                raise FileNotFoundError(record.batch.input_file_id)
            verdict = await validation.run()
        except FileNotFoundError:
            why = f"No such File object: {record.batch.input_file_id}"
            self._fail([BatchError(code="invalid_request", message=why, param="file_id")])
            return
        if verdict.total == 0:
            self._fail([BatchError(code="empty_file", message="The input file has no requests in it.")])
            return
        self._count(verdict)
        if verdict.bad == verdict.total or (record.is_strict and verdict.bad):
            self._fail(verdict.errors)
            return
        self._record = changed(self._record, status="in_progress", in_progress_at=now(), model=verdict.model)
        self._written.invalid_lines = verdict.bad
        await self._show()

    def _fail(self, errors: list[BatchError]) -> None:
        self._is_failed = True
        self._record = changed(self._record, errors=BatchErrors(data=errors))

    def _count(self, verdict: Verdict) -> None:
        counts = RequestCounts(total=verdict.total, failed=verdict.bad)
        self._record = changed(self._record, request_counts=counts)

    async def _stop_rows(self, stop: Stop) -> None:
        """End what is in the queue, take what had ended by itself, and write all other rows as not run."""
        self._ends.is_closing = True
        waits = pauses()
        while True:
            try:
                batch, job_ids = await self._driver.outstanding()
                if job_ids is None:
                    works = self._works
                    job_ids = await find_jobs(works.link, works.keys, self._record.lane, self._id)
                await cancel_all(self._works.client, job_ids)
                await self._driver.drain(batch)
                break
            except (ServerUnavailable, BatchUnknown):  # it is down, or lost the batch in between
                await asyncio.sleep(next(waits))
        await self._ends.write_rest(self._rows(), expired=stop == "expired")

    async def _conclude(self, status: Literal["completed", "cancelled", "expired"]) -> None:
        # Its segments are all that there will be, for everybody: see `Outputs.conclude`.
        await self._renew()
        if status != "cancelled":
            self._record = changed(self._record, status="finalizing", finalizing_at=now())
            await in_thread(self._works.batches.save, self._tenant, self._record)
        output, errors = await in_thread(self._outputs.conclude, self._record, self._written)
        self._tally()
        self._record = changed(self._record, output_file_id=output, error_file_id=errors)
        await self._end(status)

    async def _end(self, status: Literal["completed", "cancelled", "expired", "failed"]) -> None:
        at: dict[str, Any] = {f"{status}_at": now()}
        if status == "cancelled":
            shown = await in_thread(self._works.batches.find, self._tenant, self._id)
            at["cancelling_at"] = shown.batch.cancelling_at
        self._record = changed(self._record, status=status, **at)
        await self._renew()  # the last word is not for one who was replaced
        await in_thread(self._works.batches.end, self._tenant, self._record)
        log.info("batch %s is %s: %s", self._id, status, self._record.batch.request_counts)
        await self._leave()

    async def _leave(self) -> None:
        """After the end: tell it, and clear away what is needed no more; what keeps others away goes last."""
        await self._works.on_end(self._tenant, self._record.batch)
        await in_thread(self._outputs.clear, self._record)
        await in_thread(self._works.batches.clear, self._tenant, self._id)
        await in_thread(self._works.batches.close, self._id)
        assert self._driver.batch is not None
        with suppress(BatchTaken, ServerUnavailable):  # it expires
            await self._driver.batch.delete()

    # Whose the batch is, and whether it is to go on

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._works.lease_s / 3)
            try:
                await self._renew()
                if self._record.batch.status == "in_progress":
                    await self._share.renew()
            except (BatchUnknown, ServerUnavailable) as error:
                log.debug("batch %s: %s", self._id, error)  # the driver meets it too, and knows what to do

    async def _renew(self) -> None:
        assert self._driver.batch is not None
        await self._driver.batch.renew(self._works.lease_s)

    async def _let_go(self) -> None:
        """Whoever wants the batch next need not wait."""
        if self._driver.batch is not None:
            with suppress(ServerError, BatchTaken, BatchUnknown, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._share.leave()
                    await self._driver.batch.renew(0.0)

    async def _unless_stopped(self, work: Coroutine[Any, Any, object]) -> Stop | None:
        """Do the work, until it is done or the batch is to end; nothing of it where it is to end already."""
        if (stop := await self._stop_wanted()) is not None:
            work.close()
            return stop
        working, stopping = asyncio.create_task(work), asyncio.create_task(self._stopped())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return None
            return stopping.result()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _stopped(self) -> Stop:
        while True:
            self._wake.clear()
            if (stop := await self._stop_wanted()) is not None:
                return stop
            left = max(self._record.batch.expires_at - now(), 0)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(left, LOOK_S))

    async def _stop_wanted(self) -> Stop | None:
        if await in_thread(self._works.batches.is_cancelling, self._tenant, self._id):
            return "cancelled"
        return "expired" if self._record.batch.expires_at <= now() else None

    # What the driver needs

    def _make_driver(self) -> Driver[Note, BadLine]:
        works, record = self._works, self._record
        queue = Queue(works.client, works.link, works.keys, record.lane)
        self._ends = Ends(self._id, self._written, self._models, self._stored)
        who = works.keys.gateway_batches(record.key_id or record.lane)
        self._share = Share(works.link, who, self._id, record.max_tokens)
        pace = Pace(works.window, lambda: self._share.tokens(MAX_TOKENS), works.lease_s)
        return Driver(queue, self._rows(), self._ends, pace, LogNarrator(self._id))

    def _rows(self) -> Rows:
        return Rows(self._open_input, self._checker, self._id)

    def _open_input(self) -> IO[bytes]:
        files = self._works.files
        return files.open(self._tenant, files.kept(self._tenant, self._record.batch.input_file_id))

    async def _models(self) -> Models:
        return await self._works.served.known_models()

    async def _stored(self) -> None:
        """A segment has been written: show how far the batch is."""
        self._tally()
        await self._show()

    async def _show(self) -> None:
        output, errors = await in_thread(self._outputs.show, self._record, self._written)
        self._record = changed(self._record, output_file_id=output, error_file_id=errors)
        await in_thread(self._works.batches.save, self._tenant, self._record)

    def _tally(self) -> None:
        totals = self._written.totals
        counts = RequestCounts(
            total=self._record.batch.request_counts.total, completed=totals.completed, failed=totals.failed
        )
        self._record = changed(self._record, request_counts=counts, usage=_usage(totals))


def _usage(totals: Totals) -> BatchUsage:
    return BatchUsage(
        input_tokens=totals.input_tokens,
        input_tokens_details=InputDetails(cached_tokens=totals.cached_tokens),
        output_tokens=totals.output_tokens,
        output_tokens_details=OutputDetails(reasoning_tokens=totals.reasoning_tokens),
        total_tokens=totals.input_tokens + totals.output_tokens,
    )
