"""The consumer's pulse: renews its leases, says that it is alive, and clears away those that are not.

A lease is lost only if it is not renewed for its whole length (30 s), and it is renewed at a third of that:
the event loop would have to be held up for two thirds (20 s) in one go, or the server be away for as long.
What could hold it up, and what bounds each:

- computing: the model runs in a process of its own;
- text: tokens become text, and text tokens, in two threads. The tokenizer runs without the interpreter's
  lock; templates and our own code hold it, but the interpreter takes it from them every 5 ms;
- one call that keeps the lock: at most the decoding of one job's JSON (4 MiB, some 10 ms), or the check of an
  output that has a form (a schema's cost is bounded beforehand, see `schema_cost`; a regular expression's
  is linear);
- what the loop does itself: a frame of the engine, a reply of the server or, at most once a second, the text
  of its metrics, each some milliseconds.

A pulse that comes too late in spite of this (SIGSTOP, a machine asleep) does no harm: the server tells which
leases are lost, and those jobs are dropped without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable

from consumer.broker import Broker
from consumer.lease import Lease
from consumer.outage import Outage
from penstock.errors import ServerError
from penstock.messages import Heartbeat

log = logging.getLogger(__name__)

_TELL_EVERY_S = 2.0


class Pulse:
    """Beats three times a lease, and whenever it is quickened."""

    def __init__(
        self,
        broker: Broker,
        lease_s: float,
        held: Callable[[], list[Lease]],
        beat: Callable[[], Heartbeat],
        on_lost: Callable[[Lease], None],
        outage: Outage,
    ) -> None:
        self._broker = broker
        self._lease_s = lease_s
        self._held = held
        self._beat = beat
        self._on_lost = on_lost
        self._outage = outage
        self._quickened = asyncio.Event()
        self._sweep_at = 0.0
        self.put_off_sweep()

    def quicken(self) -> None:
        """Something has changed that others should know: beat now."""
        self._quickened.set()

    def put_off_sweep(self) -> None:
        """Clear away the dead about one lease from now, not all consumers at once.

        Also after an outage: until then the others have had time to say that they are alive.
        """
        self._sweep_at = time.monotonic() + self._lease_s * random.uniform(0.75, 1.25)

    async def run(self) -> None:
        """Beat for ever, whatever the server does."""
        while True:
            self._quickened.clear()
            try:
                for lease in await self._broker.renew(self._held()):
                    self._on_lost(lease)
                await self._broker.heartbeat(self._beat())
                wait_s = self._lease_s / 3
                self._outage.worked("leases")
                await self._sweep_if_due()
            except ServerError as error:
                self._outage.failed("leases", error)
                wait_s = min(1.0, self._lease_s / 10)
            with contextlib.suppress(TimeoutError):
                # Not asyncio.wait_for: before Python 3.12 it can swallow a cancellation.
                async with asyncio.timeout(wait_s):
                    await self._quickened.wait()

    async def tell(self, work_done: Callable[[], int]) -> None:
        """Beat oftener while work is done, for those who watch it; leases are left to `run`."""
        told = 0
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            done = work_done()
            if done != told:
                with contextlib.suppress(ServerError):  # `run` meets it as well
                    await self._broker.heartbeat(self._beat())
                    told = done

    async def _sweep_if_due(self) -> None:
        if time.monotonic() < self._sweep_at or self._outage.lasts:
            return
        self.put_off_sweep()
        try:
            released = await self._broker.sweep()
        except ServerError as error:  # there will be another time, and other consumers
            log.info("could not clear away dead consumers: %s", error)
            return
        if released:
            log.info("released %d jobs of dead consumers", released)
