"""Ends that tenants are told of: what is told, and the loops that see to it.

Both loops are of no single gateway: which jobs are watched and which deliveries are due stands on the server,
and whoever lives takes it from there.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from penstock.backoff import pauses
from penstock.client import Client
from penstock.errors import JobFailed, JobLost, PenstockError
from penstock.keys import Keys
from penstock.link import Link
from penstock.presence import server_time_ms
from penstock.scripts import DUE
from producer.gateway.handles import JobHandles
from producer.gateway.webhooks.deliveries import Deliveries, Delivery
from producer.gateway.webhooks.endpoints import Webhooks
from producer.gateway.webhooks.sender import NotDelivered, Sender

POLL_S: Final = 1.0
"""How soon deliveries that others left behind, or that are due again, are seen."""

WATCH_LEASE_S: Final = 30.0
MOST_WATCHED: Final = 10_000
"""Jobs that one gateway follows at once; more wait until some of them have ended."""

MOST_SENT: Final = 32
"""Deliveries under way at once."""

log = logging.getLogger(__name__)


class Ended(Protocol):
    """A batch that has ended, in OpenAI's form."""

    @property
    def id(self) -> str: ...
    @property
    def status(self) -> str: ...


class EventData(Struct, frozen=True):
    """What an event is about."""

    id: str


class WebhookEvent(Struct, frozen=True, kw_only=True):
    """OpenAI's form of an event: what it was about is asked for by its id."""

    id: str
    object: str = "event"
    type: str
    created_at: int
    data: EventData


class Events:
    """Tells of ends. Use it as a context: within it, watched jobs are followed and deliveries are made."""

    def __init__(self, client: Client, link: Link, keys: Keys, webhooks: Webhooks, sender: Sender) -> None:
        self._client = client
        self._link = link
        self._watched = keys.gateway_watched
        self._webhooks = webhooks
        self._handles = JobHandles(link, keys)
        self._deliveries = Deliveries(link, keys)
        self._sender = sender
        self._to_watch = asyncio.Event()
        self._to_send = asyncio.Event()
        self._following: dict[str, asyncio.Task[None]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []

    async def batch_ended(self, tenant: str, batch: Ended) -> None:
        """Tell a tenant that a batch has ended. Telling it again is safe.

        Raises:
            ServerError: nobody may ever be told.
        """
        await self._tell(tenant, f"batch.{batch.status}", batch.id)

    async def job_ended(self, tenant: str, job_id: str, *, completed: bool) -> None:
        """Tell a tenant that a job has ended. Telling it again is safe.

        Raises:
            ServerError: nobody may ever be told.
        """
        handle = await self._handles.sign(job_id, tenant)
        await self._tell(tenant, f"job.{'completed' if completed else 'failed'}", handle)

    async def watch(self, tenant: str, job_id: str) -> None:
        """Tell a tenant when a job ends; by another gateway where this one is gone by then.

        Raises:
            ServerError: nobody may ever be told.
        """
        await self._link.command("ZADD", self._watched, "NX", 0, f"{tenant} {job_id}")
        self._to_watch.set()

    async def __aenter__(self) -> Events:
        self._loops = [
            asyncio.create_task(self._for_ever(self._watch_some, self._to_watch), name="gateway-watch"),
            asyncio.create_task(self._for_ever(self._send_some, self._to_send), name="gateway-webhooks"),
            asyncio.create_task(self._for_ever(self._keep_watching, asyncio.Event()), name="gateway-keep"),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._loops, *self._following.values(), *self._sending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, tenant: str, event_type: str, about: str) -> None:
        # Of what it is about, so that two gateways that saw one end tell of one event.
        event_id = f"evt_{hashlib.sha256(f'{event_type} {about}'.encode()).hexdigest()[:32]}"
        now = int(time.time())
        event = WebhookEvent(id=event_id, type=event_type, created_at=now, data=EventData(about))
        for webhook in (await self._webhooks.all()).values():
            if webhook.wants(tenant, event_type):
                await self._deliveries.add(
                    Delivery(
                        id=f"{event_id}.{webhook.id}",
                        event_id=event_id,
                        event_type=event_type,
                        webhook_id=webhook.id,
                        payload=msgspec.json.encode(event).decode(),
                        created_at=now,
                    )
                )
        self._to_send.set()

    async def _for_ever(self, work: Callable[[], Awaitable[bool]], wanted: asyncio.Event) -> None:
        """Do some work whenever it is wanted, and now and then; a server that is away is waited for."""
        waits = pauses()
        while True:
            wanted.clear()
            try:
                while await work():
                    pass
                waits = pauses()
            except PenstockError as error:
                log.warning("webhooks wait: %s", error)
                await asyncio.sleep(next(waits))
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await wanted.wait()

    async def _watch_some(self) -> bool:
        room = min(MOST_WATCHED - len(self._following), 500)
        if room <= 0:
            return False
        taken: list[bytes] = await self._link.script(DUE, [self._watched], [room, int(WATCH_LEASE_S * 1000)])
        for member in (member.decode() for member in taken):
            if member not in self._following:
                task = asyncio.create_task(self._follow(member))
                self._following[member] = task
                task.add_done_callback(lambda _, member=member: self._following.pop(member, None))
        return len(taken) == room

    async def _keep_watching(self) -> bool:
        """Renew the leases on what is followed, twice in each."""
        await asyncio.sleep(WATCH_LEASE_S / 2)
        until = await server_time_ms(self._link) + int(WATCH_LEASE_S * 1000)
        for member in list(self._following):
            await self._link.command("ZADD", self._watched, "XX", until, member)
        return False

    async def _follow(self, member: str) -> None:
        tenant, _, job_id = member.partition(" ")
        try:
            completed = await self._ends_well(job_id)
            await self._link.patiently(lambda: self.job_ended(tenant, job_id, completed=completed))
            await self._link.command("ZREM", self._watched, member)
        except PenstockError as error:
            log.warning("the end of job %s is told later: %s", job_id, error)

    async def _ends_well(self, job_id: str) -> bool:
        try:
            await self._client.result(job_id)
        except (JobFailed, JobLost):
            return False
        return True

    async def _send_some(self) -> bool:
        room = MOST_SENT - len(self._sending)
        if room <= 0:
            return False
        taken = await self._deliveries.take(room)
        for delivery in taken:
            task = asyncio.create_task(self._send(delivery))
            self._sending.add(task)
            task.add_done_callback(self._sent)
        return len(taken) == room

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._to_send.set()  # there is room again
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a webhook's delivery is made later: %s", error)

    async def _send(self, delivery: Delivery) -> None:
        webhook = (await self._webhooks.all()).get(delivery.webhook_id)
        if webhook is None:  # deleted meanwhile
            await self._deliveries.made(delivery)
            return
        try:
            await self._sender.send(webhook, delivery)
        except NotDelivered as error:
            again = await self._deliveries.failed(delivery, str(error), for_good=error.for_good)
            what = "is tried again later" if again else "is given up"
            log.warning("webhook %s, event %s: %s; it %s", webhook.id, delivery.event_id, error, what)
        else:
            await self._deliveries.made(delivery)
