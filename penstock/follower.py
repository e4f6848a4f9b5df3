"""Follow many result streams over one connection.

One XREAD BLOCK covers every followed stream. A stream that joins while it blocks wakes it by CLIENT UNBLOCK;
where the server does not allow that (an ACL, a proxy), reads block only briefly instead. Reading takes
nothing from the server, so that any of this may be cancelled or repeated at any time. Nothing more is read
for somebody who has not yet taken what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from penstock.backoff import pauses
from penstock.errors import PenstockError, ServerError, ServerUnavailable
from penstock.keys import EVENT
from penstock.link import BLOCK_MS, Link, request
from penstock.refusals import in_our_words

SHORT_BLOCK_MS: Final = 100
"""How long a read blocks where it cannot be woken."""

READ_COUNT: Final = 100
"""Entries taken from one stream by one read."""

GATHER_S: Final = 10e-6
"""Per followed stream: how long to let further streams or events gather before the next read is sent."""

LONGEST_ID: Final = 41
"""Characters of an entry's id: two numbers of 64 bits."""

EntryId = tuple[int, int]
Entry = tuple[str, bytes]
"""An entry's id and its event's JSON."""


def parse_entry_id(text: str) -> EntryId:
    """Parse `N-M`, or `N` for `N-0`; ids compare as pairs of ints.

    Raises:
        ValueError: the text is neither.
    """
    first, dash, second = text.partition("-")
    # What the server would refuse is refused here: one read is for many followers, and would fail them all.
    if text.isascii() and len(text) <= LONGEST_ID and first.isdecimal() and (second.isdecimal() or not dash):
        place = int(first), int(second or 0)
        if max(place) < 2**64:
            return place
    raise ValueError(f"{text[:60]!r} is not a stream entry's id; one looks like `12-0`")


def is_terminal(event_id: str) -> bool:
    """Whether the id, `COUNT-0` or `COUNT-1`, is a terminal event's."""
    return event_id.endswith("-1")


class Subscription:
    """One reader's place in one stream."""

    def __init__(self, key: str, after: EntryId, on_room: Callable[[], None]) -> None:
        """Begin behind `after`; `on_room` is called when a full one is read empty."""
        self.key = key
        self._on_room = on_room
        self.after = after
        self.after_id = f"{after[0]}-{after[1]}"
        """`after` as text: thousands of them go into every read."""
        self._entries: deque[Entry] = deque()
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    def offer(self, place: EntryId, entry: Entry) -> None:
        """Take an entry, unless it was taken before."""
        if place > self.after:
            self.after = place
            self.after_id = entry[0]
            self._entries.append(entry)
            self._changed.set()

    def is_past(self, event_id: str) -> bool:
        """Whether an entry of this id would not be given any more."""
        return self.after >= parse_entry_id(event_id)

    def fail(self, error: Exception) -> None:
        """Make every further `next` raise."""
        self._error = error
        self._changed.set()

    @property
    def is_full(self) -> bool:
        """Whether its reader is behind. No more is read for it then: the server's stream is the buffer."""
        return len(self._entries) >= READ_COUNT

    def ready(self) -> list[Entry]:
        """Entries that are here already."""
        if self.is_full:
            self._on_room()
        entries = list(self._entries)
        self._entries.clear()
        if not self._error:
            self._changed.clear()
        return entries

    async def next(self, timeout_s: float) -> list[Entry]:
        """Wait for entries; none come back when `timeout_s` seconds have passed.

        Raises:
            ServerError: the server refuses to be read.
            RuntimeError: the client was closed.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        entries = self.ready()
        if self._error and not entries:
            raise self._error
        return entries


class Follower:
    """The reading task, and who wants what it reads."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._streams: dict[str, list[Subscription]] = {}
        self._added = 0  # streams ever added, and how many of them the read under way knows of
        self._known = 0
        self._wanted = asyncio.Event()
        self._connection_id: int | None = None  # while a read that can be woken is under way
        self._block_ms = BLOCK_MS
        self._reading: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._closed = False

    @contextlib.contextmanager
    def follow(self, key: str, after: str) -> Generator[Subscription, None, None]:
        """Follow a stream from behind the entry `after` until the context ends.

        Raises:
            ValueError: `after` is not an entry id.
        """
        subscription = Subscription(key, parse_entry_id(after), self._join)
        if self._closed:
            raise RuntimeError("the client is closed")
        self._streams.setdefault(key, []).append(subscription)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_for_ever(), name="penstock-follower")
        self._join()
        try:
            yield subscription
        finally:
            self._forget(subscription)

    async def aclose(self) -> None:
        """Stop reading; whoever still waits gets a RuntimeError."""
        self._closed = True
        self._fail_all(RuntimeError("the client was closed"))
        tasks = [task for task in (self._waking, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _join(self) -> None:
        """A stream is to be read that the read under way may not know of."""
        self._added += 1
        self._wanted.set()
        if self._connection_id is not None and (self._waking is None or self._waking.done()):
            self._waking = asyncio.create_task(self._wake(), name="penstock-follower-wake")

    def _forget(self, subscription: Subscription) -> None:
        subscriptions = self._streams.get(subscription.key, [])
        if subscription in subscriptions:
            subscriptions.remove(subscription)
        if not subscriptions:
            self._streams.pop(subscription.key, None)
        if not self._streams:
            self._wanted.clear()

    def _fail_all(self, error: Exception) -> None:
        for key in list(self._streams):
            self._fail(key, error)

    def _fail(self, key: str, error: Exception) -> None:
        for subscription in self._streams.pop(key, ()):
            subscription.fail(error)
        if not self._streams:
            self._wanted.clear()

    async def _read_for_ever(self) -> None:
        waits = pauses()
        while True:
            try:
                async with self._link.connection() as connection:
                    connection_id = await self._identify(connection)
                    while True:
                        await self._read(connection, connection_id)
                        waits = pauses()
            except (RedisError, OSError, PenstockError) as error:
                ours = in_our_words(error)
                if not isinstance(ours, ServerUnavailable):
                    self._fail_all(ours)  # refused: trying again would not help
            except Exception as error:
                self._fail_all(error)
                raise
            await asyncio.sleep(next(waits))

    async def _identify(self, connection: AbstractConnection) -> int | None:
        """Learn by which number this connection can be woken, if at all."""
        try:
            connection_id = int(await request(connection, "CLIENT", "ID"))
            await request(connection, "CLIENT", "UNBLOCK", connection_id)  # wakes nothing: is it allowed?
            return connection_id
        except Exception as error:
            if isinstance(in_our_words(error), ServerUnavailable):
                raise
            self._block_ms = SHORT_BLOCK_MS
            return None

    async def _read(self, connection: AbstractConnection, connection_id: int | None) -> None:
        """Read once from all streams, and hand out what came."""
        await self._wanted.wait()
        await asyncio.sleep(GATHER_S * len(self._streams))
        self._known = self._added
        # Whoever joins during the read may be behind where it begins: it is not for them.
        readers = {
            key: waiting
            for key, all_of_it in self._streams.items()
            if (waiting := [reader for reader in all_of_it if not reader.is_full])
        }
        if not readers:
            self._wanted.clear()  # until somebody joins, or has read what there is
            return
        keys = list(readers)
        ids = [_least(readers[key]).after_id for key in keys]
        self._connection_id = connection_id
        try:
            block = ("BLOCK", self._block_ms)
            reply = await self._link.read(
                connection, "XREAD", "COUNT", READ_COUNT, *block, "STREAMS", *keys, *ids, blocks_ms=block[1]
            )
        finally:
            self._connection_id = None
        for key, entries in reply or ():
            self._hand_out(key.decode(), entries, readers[key.decode()])

    def _hand_out(self, key: str, entries: list[Any], readers: list[Subscription]) -> None:
        for raw_id, fields in entries:
            text = raw_id.decode()
            try:
                event = event_of(fields)
            except PenstockError as error:
                self._fail(key, error)
                return
            place = parse_entry_id(text)
            for reader in readers:
                reader.offer(place, (text, event))

    async def _wake(self) -> None:
        """Wake the read under way until one is sent that knows all streams.

        The call may reach the server before the read does; then it wakes nothing, and is repeated.
        """
        await asyncio.sleep(GATHER_S * len(self._streams))
        while self._known != self._added and self._connection_id is not None:
            try:
                await self._link.command("CLIENT", "UNBLOCK", self._connection_id)
            except ServerUnavailable:
                await asyncio.sleep(0.1)
            except ServerError:
                self._block_ms = SHORT_BLOCK_MS
                return
            await asyncio.sleep(0.002)


def _least(subscriptions: list[Subscription]) -> Subscription:
    """Who is furthest behind in a stream; most often there is only one."""
    return subscriptions[0] if len(subscriptions) == 1 else min(subscriptions, key=lambda one: one.after)


def event_of(fields: list[bytes]) -> bytes:
    """The event's JSON among an entry's fields.

    Raises:
        PenstockError: the entry has none.
    """
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    try:
        return values[EVENT.encode()]
    except KeyError:
        raise PenstockError(f"a result entry has no field `{EVENT}`; it is not one of penstock's") from None
