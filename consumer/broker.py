"""The consumer's side of Redis: every state change of a lease is one fenced script.

Nothing is retried in here: trouble surfaces as `ServerError`, and the loops above wait and call again. That
is safe because every script checks the lease's token first, so a repeat of a call whose reply was lost
changes nothing.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from consumer.lease import DROP_TOKENS, Ending, Lease, Progress
from penstock import keys as k
from penstock.command import Argument
from penstock.errors import ServerError, ServerUnavailable
from penstock.keys import JobId, Keys
from penstock.link import Link
from penstock.messages import Heartbeat, encode_error, encode_heartbeat
from penstock.presence import alive_consumers, server_time_ms
from penstock.scripts import BEAT, CLAIM, COMMIT, FAIL, PUBLISH, RELEASE, RENEW, RETIRE

T = TypeVar("T")

_JOB, _NONCE = k.JOB.encode(), k.NONCE.encode()

_START = "0-0"
"""Of a scan for expired leases: it begins, or has come to the end of the lane's."""
_RELEASED = "released"
"""Of a claim that takes back only what has no owner."""
_RECLAIM_EVERY_S = 0.25
"""Between two such scans, unless there is word of a release."""
_MOST_PENDING = 10_000
_BATCH = 256
"""Jobs per script call: bounds how long one call keeps the server from others."""

_serials = itertools.count(1)
"""Of leases, over all brokers of this process: no two have the same."""

DEAD_LETTER_TTL_MS: Final = 30 * 86400 * 1000
"""Dead letters are kept for so long; older ones go as new ones come."""

FailureOutcome = Literal["retry", "dead", "lost"]
_OUTCOMES: Final[dict[bytes, FailureOutcome]] = {b"retry": "retry", b"dead": "dead", b"lost": "lost"}


class Broker:
    """Claims, renews, publishes, commits and releases for one consumer process."""

    def __init__(self, link: Link, keys: Keys, consumer: str, lease_ms: int) -> None:
        self._link = link
        self.keys = keys
        self.consumer = consumer
        self._lease_ms = lease_ms
        self._lanes: list[str] = [k.DEFAULT_LANE]
        self._lanes_stale = False
        self._cursors: dict[str, str] = {}
        self._delivered: dict[str, str] = {}
        self._control_id = "0-0"
        self._claim_control_id = "0-0"
        self._reclaim_from = 0.0
        self._paused_until = 0.0

    async def start(self, *, take_over: str | None) -> None:
        """Skip old notices, learn the lanes; take over what `take_over` (a stable name) left behind."""
        newest = await self._link.command("XREVRANGE", self.keys.control, "+", "-", "COUNT", 1)
        self._control_id = _text(newest[0][0]) if newest else "0-0"
        await self._refresh_lanes()
        if take_over is not None:
            await self.retire(f"{take_over}.*", spare=self.consumer)
        names = await self._link.command("HKEYS", self.keys.consumers)
        if {*map(_text, names)} - {self.consumer} and await self._server_is_young():
            self.connection_lost()  # it has just restarted, and others were here before: they come first

    async def _server_is_young(self) -> bool:
        """Whether the server started less than a lease ago; False where it does not say."""
        try:
            info: bytes = await self._link.command("INFO", "server")
        except ServerUnavailable:
            raise
        except ServerError:
            return False
        found = re.search(rb"uptime_in_seconds:(\d+)", info)
        return found is not None and int(found[1]) * 1000 < self._lease_ms

    async def _refresh_lanes(self) -> None:
        """Read the declared lanes; the default lane is always one of them."""
        declared = await self._link.command("HKEYS", self.keys.lanes)
        names = {_text(lane) for lane in declared} | {k.DEFAULT_LANE}
        self._lanes = sorted(names - {k.WHOLE_QUEUE})
        self._lanes_stale = False

    def connection_lost(self) -> None:
        """Pause reclaiming: idle times have counted the outage, and owners need a moment to renew."""
        self._reclaim_from = self._paused_until = time.monotonic() + self._lease_ms / 3000
        self._lanes_stale = True  # notices may have come and gone

    async def claim(self, credit: int) -> list[Lease]:
        """Take up to `credit` jobs: expired and released ones first, then new ones, in the lanes' shares."""
        if self._lanes_stale:
            await self._refresh_lanes()
        # Looking for expired leases costs the server more than the claim itself: not at every one.
        reclaim = time.monotonic() >= self._reclaim_from
        # Whatever control says after this moment, the claim may not have seen.
        self._claim_control_id = self._control_id
        lanes = self._lanes
        args: list[Argument] = [k.GROUP, self.consumer, self._lease_ms, credit]
        otherwise = _RELEASED if time.monotonic() < self._paused_until else ""
        for lane in lanes:
            args += [lane, self._cursors.get(lane, _START) if reclaim else otherwise]
        names = [self.keys.lanes, self.keys.deficits, self.keys.attempts]
        reply = await self._link.script(CLAIM, [*names, *map(self.keys.jobs, lanes)], args)
        taken, states, now_ms = reply
        for lane, (delivered, cursor) in zip(lanes, states, strict=True):
            self._delivered[lane] = _text(delivered)
            if reclaim:
                self._cursors[lane] = _text(cursor)
        if reclaim and all(cursor == _START for cursor in self._cursors.values()):
            self._reclaim_from = time.monotonic() + _RECLAIM_EVERY_S
        return [_lease(lanes[item[0]], item, now_ms) for item in taken]

    async def wait_for_jobs(self, block_ms: int) -> None:
        """Wait until there may be something to claim, or for `block_ms`. Takes nothing.

        That is an entry beyond the last claim, or word on the control stream of a release or a new lane.
        """
        lanes = list(self._lanes)
        streams = [self.keys.jobs(lane) for lane in lanes] + [self.keys.control]
        ids = [self._delivered.get(lane, "0-0") for lane in lanes] + [self._claim_control_id]
        reply = await self._link.blocking("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *streams, *ids)
        if any(stream == self.keys.control.encode() for stream, _ in reply or ()):
            self._reclaim_from = min(self._reclaim_from, self._paused_until)

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
        for lane, part in _by_lane(leases, lambda lease: lease):
            args: list[Argument] = [k.GROUP, self.consumer]
            for lease in part:
                args += [lease.job_id.entry, lease.deliveries]
            held = await self._link.script(RENEW, [self.keys.jobs(lane)], args)
            lost += [lease for lease, kept in zip(part, held, strict=True) if not kept]
        return lost

    async def publish(self, progress: Sequence[Progress]) -> list[Lease]:
        """Append `tokens` events; gives back leases that are lost, or whose stream the server lost."""
        lost: list[Lease] = []
        for lane, part in _by_lane(progress, lambda item: item.lease):
            args: list[Argument] = [k.GROUP, self.consumer]
            for item in part:
                args += [item.lease.job_id.entry, item.lease.deliveries]
                args += [item.ttl_ms, item.num_before, item.event_id, item.event]
                args.append(DROP_TOKENS if item.drop else "")
            names = [self.keys.jobs(lane), *(self.keys.result(item.lease.key) for item in part)]
            published = await self._link.script(PUBLISH, names, args)
            lost += [item.lease for item, kept in zip(part, published, strict=True) if not kept]
        return lost

    async def commit(self, endings: Sequence[Ending]) -> list[Lease]:
        """End jobs; gives back leases that are lost, or whose stream the server lost: no end was written."""
        by_batch: dict[str | None, list[Ending]] = {}
        for ending in endings:
            by_batch.setdefault(ending.batch, []).append(ending)
        lost: list[Lease] = []
        for batch, of_batch in by_batch.items():
            for lane, part in _by_lane(of_batch, lambda ending: ending.lease):
                names = [self.keys.jobs(lane), self.keys.deficits, self.keys.attempts]
                args: list[Argument] = [k.GROUP, self.consumer, lane, int(batch is not None)]
                if batch is not None:
                    names += [self.keys.batch(batch), self.keys.batch_done(batch)]
                for ending in part:
                    names.append(self.keys.result(ending.lease.key))
                    args += _commit_args(ending)
                committed = await self._link.script(COMMIT, names, args)
                lost += [ending.lease for ending, done in zip(part, committed, strict=True) if not done]
        return lost

    async def fail(self, ending: Ending, delay_ms: int) -> FailureOutcome:
        """Charge a job with a failed attempt: again after `delay_ms`, or, at its last, its end."""
        lease, failure = ending.lease, ending.failure
        assert failure is not None
        names = [self._lane(lease), self.keys.result(lease.key), self.keys.attempts, self.keys.dead]
        if ending.batch is not None:
            names += [self.keys.batch(ending.batch), self.keys.batch_done(ending.batch)]
        args: list[Argument] = [
            *(k.GROUP, self.consumer, lease.job_id.entry, lease.deliveries, self._lease_ms, delay_ms),
            *(failure.max_attempts, encode_error(failure.error), ending.result_ttl_ms),
            *(ending.tokens_id if ending.tokens_id == DROP_TOKENS else "", ending.terminal_id),
            *(ending.terminal, "" if ending.row is None else ending.row, DEAD_LETTER_TTL_MS),
        ]
        outcome = _OUTCOMES[await self._link.script(FAIL, names, args)]
        if outcome == "dead":
            await self.settle(lease, ending.num_tokens)
        return outcome

    async def release(self, leases: Sequence[Lease], delay_ms: int = 0) -> None:
        """Give leases back, to be claimed by anyone after `delay_ms`."""
        for _, part in _by_lane(leases, lambda lease: lease):
            await self._link.script(
                RELEASE,
                [self.keys.control, *(self._lane(lease) for lease in part)],
                [k.GROUP, self.consumer, self._lease_ms, delay_ms, *self._fenced(part)[2:]],
            )

    async def release_strays(self, held: Callable[[], Sequence[Lease]]) -> None:
        """Give back what is pending for this consumer and is none of the leases that it holds.

        Args:
            held: asked once the server has answered, so that what was committed meanwhile is not missed.
        """
        for lane in self._lanes:
            try:
                pending = await self._link.command(
                    "XPENDING", self.keys.jobs(lane), k.GROUP, "-", "+", _MOST_PENDING, self.consumer
                )
            except ServerUnavailable:
                raise
            except ServerError:
                continue  # no group, or no lane: nothing is pending there
            known = {(lease.job_id.entry, lease.deliveries) for lease in held() if lease.job_id.lane == lane}
            entries = [(_text(entry), deliveries) for entry, _, _, deliveries in pending]
            strays = [
                Lease(job_id=JobId(lane, entry), key="", deliveries=deliveries, job=None)
                for entry, deliveries in entries
                if (entry, deliveries) not in known
            ]
            await self.release(strays)

    async def retire(self, names: str, *, spare: str = "") -> int:
        """Release all that consumers of this name (or prefix, with `*`) hold, and delete the names."""
        streams = [self.keys.jobs(lane) for lane in self._lanes]
        return await self._link.script(
            RETIRE,
            [self.keys.control, self.keys.consumers, *streams],
            [k.GROUP, self._lease_ms, names, spare],
        )

    async def sweep(self) -> int:
        """Retire whoever is dead, so that names don't pile up; gives how many leases that released."""
        await self._refresh_lanes()  # the notice of a lane may have been trimmed before it was read
        return await self.retire("?", spare=self.consumer)

    async def settle(self, lease: Lease, num_tokens: int) -> None:
        """Have a lane pay for a job that nobody commits: one that was cancelled, or is a dead letter."""
        owed = lease.charged - num_tokens
        await self._link.command("HINCRBYFLOAT", self.keys.deficits, lease.job_id.lane, owed)

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


def _commit_args(ending: Ending) -> list[Argument]:
    lease = ending.lease
    head: list[Argument] = [lease.job_id.entry, lease.deliveries, lease.charged, ending.num_tokens]
    tail: list[Argument] = [ending.tokens_id, ending.tokens, ending.terminal_id, ending.terminal]
    if ending.batch is not None:
        counter = k.COMPLETED if ending.completed else k.FAILED
        tail += [counter, "" if ending.row is None else ending.row]
    return [*head, ending.result_ttl_ms, ending.num_before, *tail]


def _lease(lane: str, taken: Sequence[Any], now_ms: int) -> Lease:
    """A lease of one of the claim script's entries."""
    _, raw_entry, deliveries, charged, failures, flat = taken
    fields, entry = dict(zip(flat[::2], flat[1::2], strict=True)), _text(raw_entry)
    nonce = fields.get(_NONCE, b"").decode("ascii", "replace")
    job_id = JobId(lane, entry, nonce if k.is_nonce(nonce) else None)
    return Lease(
        job_id=job_id,
        key=str(job_id),
        deliveries=deliveries,
        job=fields.get(_JOB),
        charged=charged,
        num_failures=failures,
        waited_ms=max(now_ms - int(entry.partition("-")[0]), 0),
        claimed_at=time.monotonic(),
        serial=next(_serials),
    )


def _named(flat: Sequence[bytes]) -> dict[str, bytes]:
    """Field, value, field, value … by name."""
    return {_text(name): value for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _by_lane(items: Sequence[T], lease_of: Callable[[T], Lease]) -> Iterator[tuple[str, Sequence[T]]]:
    """A lane's items together, some at a time, each lane's in their order."""
    lanes: dict[str, list[T]] = {}
    for item in items:
        lanes.setdefault(lease_of(item).job_id.lane, []).append(item)
    for lane, of_lane in lanes.items():
        for start in range(0, len(of_lane), _BATCH):
            yield lane, of_lane[start : start + _BATCH]


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
