"""The consumer's side of Redis: every state change of a lease is one fenced script.

Nothing is retried in here: trouble surfaces as `ServerError`, and the loops above wait and call again. That
is safe because every script checks the lease's token first, so a repeat of a call whose reply was lost
changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from consumer.lease import Ending, Lease, Progress
from penstock import keys as k
from penstock.keys import JobId, Keys
from penstock.link import Link
from penstock.messages import Heartbeat, encode_heartbeat
from penstock.presence import alive_consumers, server_time_ms
from penstock.scripts import BEAT, CLAIM, COMMIT, PUBLISH, RELEASE, RENEW, RETIRE, Argument

T = TypeVar("T")

_BATCH = 128
"""Jobs per script call: bounds how long one call keeps the server from others."""


class Broker:
    """Claims, renews, publishes, commits and releases for one consumer process."""

    def __init__(self, link: Link, keys: Keys, consumer: str, lease_ms: int) -> None:
        self._link = link
        self.keys = keys
        self.consumer = consumer
        self._lease_ms = lease_ms
        self._lanes: list[str] = [k.DEFAULT_LANE]
        self._cursors: dict[str, str] = {}
        self._delivered: dict[str, str] = {}
        self._control_id = "0-0"
        self._claim_control_id = "0-0"
        self._reclaim_from = 0.0

    async def start(self, *, take_over: str | None) -> None:
        """Skip old notices, learn the lanes; take over what `take_over` (a stable name) left behind."""
        newest = await self._link.command("XREVRANGE", self.keys.control, "+", "-", "COUNT", 1)
        self._control_id = _text(newest[0][0]) if newest else "0-0"
        await self._refresh_lanes()
        if take_over is not None:
            await self.retire(f"{take_over}.*", spare=self.consumer)

    async def _refresh_lanes(self) -> None:
        """Read the declared lanes; the default lane is always one of them."""
        declared = await self._link.command("SMEMBERS", self.keys.lanes)
        self._lanes = sorted({_text(lane) for lane in declared} | {k.DEFAULT_LANE})

    def connection_lost(self) -> None:
        """Pause reclaiming: idle times have counted the outage, and owners need a moment to renew."""
        self._reclaim_from = time.monotonic() + self._lease_ms / 3000

    async def claim(self, credit: int) -> list[Lease]:
        """Take up to `credit` jobs: expired and released ones first, then new ones."""
        reclaim = time.monotonic() >= self._reclaim_from
        # Whatever control says after this moment, the claim may not have seen.
        self._claim_control_id = self._control_id
        self._lanes = self._lanes[1:] + self._lanes[:1]  # no lane is always the last to be served
        lanes = self._lanes
        cursors = [self._cursors.get(lane, "0-0") if reclaim else "" for lane in lanes]
        taken, states = await self._link.script(
            CLAIM,
            [self.keys.jobs(lane) for lane in lanes],
            [k.GROUP, self.consumer, self._lease_ms, credit, *cursors],
        )
        for lane, (delivered, cursor) in zip(lanes, states, strict=True):
            self._delivered[lane] = _text(delivered)
            if reclaim:
                self._cursors[lane] = _text(cursor)
        return [_lease(lanes[index], _text(entry), count, fields) for index, entry, count, fields in taken]

    async def wait_for_jobs(self, block_ms: int) -> None:
        """Wait until there may be something to claim, or for `block_ms`. Takes nothing.

        That is an entry beyond the last claim, or word on the control stream of a release or a new lane.
        """
        lanes = list(self._lanes)
        streams = [self.keys.jobs(lane) for lane in lanes] + [self.keys.control]
        ids = [self._delivered.get(lane, "0-0") for lane in lanes] + [self._claim_control_id]
        await self._link.blocking("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *streams, *ids)

    async def wait_for_cancelled(self, block_ms: int) -> set[str]:
        """Wait for the control stream: ids of jobs cancelled since, none when `block_ms` pass.

        Newly declared lanes are taken up in here as well: this loop misses no notice.
        """
        reply = await self._link.blocking(
            "XREAD", "COUNT", 1000, "BLOCK", block_ms, "STREAMS", self.keys.control, self._control_id
        )
        notices = [(_text(entry_id), _named(fields)) for entry_id, fields in reply[0][1]] if reply else []
        if any(k.LANE in fields for _, fields in notices):
            await self._refresh_lanes()  # before the notices count as read, for the sake of `claim`
        if notices:
            self._control_id = notices[-1][0]
        return {_text(fields[k.CANCEL]) for _, fields in notices if k.CANCEL in fields}

    async def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """Extend leases; gives back those that are lost."""
        lost: list[Lease] = []
        for part in _parts(leases):
            held = await self._link.script(RENEW, [self._lane(lease) for lease in part], self._fenced(part))
            lost += [lease for lease, kept in zip(part, held, strict=True) if not kept]
        return lost

    async def publish(self, progress: Sequence[Progress]) -> list[Lease]:
        """Append `tokens` events; gives back leases that are lost, or whose stream the server lost."""
        lost: list[Lease] = []
        for part in _parts(progress):
            names: list[str] = []
            args: list[Argument] = [k.GROUP, self.consumer]
            for item in part:
                names += [self._lane(item.lease), self.keys.result(item.lease.key)]
                args += [item.lease.job_id.entry, item.lease.deliveries]
                args += [item.ttl_ms, item.num_before, item.event_id, item.event]
            published = await self._link.script(PUBLISH, names, args)
            lost += [item.lease for item, kept in zip(part, published, strict=True) if not kept]
        return lost

    async def commit(self, endings: Sequence[Ending]) -> list[Lease]:
        """End jobs; gives back leases that were lost, whose ends were not written."""
        lost: list[Lease] = []
        for part in _parts(endings):
            names: list[str] = []
            args: list[Argument] = [k.GROUP, self.consumer]
            for ending in part:
                names += self._commit_keys(ending)
                args += _commit_args(ending)
            committed = await self._link.script(COMMIT, names, args)
            lost += [ending.lease for ending, done in zip(part, committed, strict=True) if not done]
        return lost

    async def release(self, leases: Sequence[Lease], delay_ms: int = 0) -> None:
        """Give leases back, to be claimed by anyone after `delay_ms`."""
        for part in _parts(leases):
            await self._link.script(
                RELEASE,
                [self.keys.control, *(self._lane(lease) for lease in part)],
                [k.GROUP, self.consumer, self._lease_ms, delay_ms, *self._fenced(part)[2:]],
            )

    async def retire(self, names: str, *, spare: str = "") -> int:
        """Release all that consumers of this name (or prefix, with `*`) hold, and delete the names."""
        streams = [self.keys.jobs(lane) for lane in self._lanes]
        return await self._link.script(
            RETIRE,
            [self.keys.control, self.keys.consumers, *streams],
            [k.GROUP, self._lease_ms, names, spare],
        )

    async def published(self, job_id: JobId) -> list[tuple[str, bytes]]:
        """What earlier runs of this job have published: (event id, event JSON), oldest first."""
        entries = await self._link.command("XRANGE", self.keys.result(str(job_id)), "-", "+")
        return [(_text(entry_id), _named(fields).get(k.EVENT, b"")) for entry_id, fields in entries]

    async def heartbeat(self, heartbeat: Heartbeat) -> None:
        """Write this consumer's heartbeat, stamped with the server's time."""
        stamped = msgspec.structs.replace(heartbeat, at_ms=await server_time_ms(self._link))
        await self._link.script(BEAT, [self.keys.consumers], [self.consumer, encode_heartbeat(stamped)])

    async def others(self) -> dict[str, Heartbeat]:
        """Heartbeats of the other consumers that are alive, by name."""
        alive = await alive_consumers(self._link, self.keys)
        return {name: beat for name, beat in alive.items() if name != self.consumer}

    def _lane(self, lease: Lease) -> str:
        return self.keys.jobs(lease.job_id.lane)

    def _fenced(self, leases: Sequence[Lease]) -> list[Argument]:
        args: list[Argument] = [k.GROUP, self.consumer]
        for lease in leases:
            args += [lease.job_id.entry, lease.deliveries]
        return args

    def _commit_keys(self, ending: Ending) -> list[str]:
        lane = self._lane(ending.lease)
        result = self.keys.result(ending.lease.key)
        if ending.batch is None:
            return [lane, result, lane, lane]
        return [lane, result, self.keys.batch(ending.batch), self.keys.batch_done(ending.batch)]


def _commit_args(ending: Ending) -> list[Argument]:
    counter = "" if ending.batch is None else k.COMPLETED if ending.completed else k.FAILED
    row = "" if ending.row is None else ending.row
    lease = ending.lease
    head = [lease.job_id.entry, lease.deliveries, ending.result_ttl_ms, lease.key, counter, row]
    return [*head, ending.tokens_id, ending.tokens, ending.terminal_id, ending.terminal]


def _lease(lane: str, entry: str, deliveries: int, flat: Sequence[bytes]) -> Lease:
    fields = _named(flat)
    nonce = fields.get(k.NONCE, b"").decode("ascii", "replace")
    job_id = JobId(lane, entry, nonce if k.is_nonce(nonce) else None)
    return Lease(job_id=job_id, key=str(job_id), deliveries=deliveries, job=fields.get(k.JOB))


def _named(flat: Sequence[bytes]) -> dict[str, bytes]:
    """Field, value, field, value … by name."""
    return {_text(name): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _parts(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
