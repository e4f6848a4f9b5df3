"""Playing the consumer: the scripts that a consumer runs, without a consumer."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from penstock.keys import GROUP, JobId, Keys
from penstock.messages import (
    Completion,
    Done,
    Error,
    Event,
    Failed,
    Heartbeat,
    Tokens,
    Usage,
    encode_error,
    encode_event,
    encode_heartbeat,
)
from penstock.scripts import CLAIM, COMMIT, FAIL, PUBLISH, RELEASE

TTL_MS = 60_000
KEYS = Keys()


def done(text: str = "4", custom_id: str | None = None) -> Done:
    """A plausible end."""
    return Done(
        outputs=[Completion(text=text, finish_reason="stop")],
        usage=Usage(prompt_tokens=5, completion_tokens=1),
        model="tiny",
        custom_id=custom_id,
    )


def tokens(text: str, offset: int) -> Tokens:
    """A plausible stretch of output: one token per character."""
    return Tokens(text=text, token_ids=[ord(letter) for letter in text], text_offset=offset)


class Worker:
    """One consumer's moves, one job at a time."""

    def __init__(self, redis: Redis, name: str = "worker.1") -> None:
        self.redis = redis
        self.name = name
        self.deliveries: dict[str, int] = {}

    async def claim(self, count: int = 1, lane: str = "standard") -> list[str]:
        """Take up to `count` new jobs; gives their ids."""
        keys = [KEYS.lanes, KEYS.deficits, KEYS.attempts, KEYS.jobs(lane)]
        taken, _, _ = await CLAIM.run(self.redis, keys, [GROUP, self.name, 30_000, count, lane, "0-0"])
        ids: list[str] = []
        for _, entry, deliveries, _, _, flat in taken:
            fields: dict[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
            nonce = fields.get(b"nonce")
            job_id = str(JobId(lane, entry.decode(), nonce.decode() if nonce else None))
            self.deliveries[job_id] = deliveries
            ids.append(job_id)
        return ids

    async def publish(self, job_id: str, event_id: str, event: Tokens) -> bool:
        """Append a `tokens` event."""
        parsed = JobId.parse(job_id)
        before = int(event_id.partition("-")[0]) - len(event.token_ids)
        reply = await PUBLISH.run(
            self.redis,
            [KEYS.jobs(parsed.lane), KEYS.result(job_id)],
            [
                *(GROUP, self.name, parsed.entry, self.deliveries[job_id], TTL_MS),
                *(before, event_id, encode_event(event)),
            ],
        )
        return reply == [1]

    async def commit(
        self, job_id: str, event: Event, count: int = 1, batch: str | None = None, row: int | None = None
    ) -> bool:
        """End the job with `event`, `count` tokens having been published."""
        parsed = JobId.parse(job_id)
        lane = KEYS.jobs(parsed.lane)
        keys, as_row = [lane, KEYS.deficits, KEYS.attempts], list[Any]()
        if batch is not None:
            keys += [KEYS.batch(batch), KEYS.batch_done(batch)]
            as_row = ["completed" if isinstance(event, Done) else "failed", "" if row is None else row]
        args: list[Any] = [parsed.entry, self.deliveries[job_id], 1, 1, TTL_MS]
        args += [0, "", "", f"{count}-1", encode_event(event), *as_row]
        head = [GROUP, self.name, parsed.lane, int(batch is not None)]
        return await COMMIT.run(self.redis, [*keys, KEYS.result(job_id)], [*head, *args]) == [1]

    async def release(self, job_id: str, delay_ms: int = 0) -> bool:
        """Give the job back."""
        parsed = JobId.parse(job_id)
        reply = await RELEASE.run(
            self.redis,
            [KEYS.control, KEYS.jobs(parsed.lane)],
            [GROUP, self.name, 30_000, delay_ms, parsed.entry, self.deliveries[job_id]],
        )
        return reply == [1]

    async def fail(self, job_id: str, words: str, delay_ms: int = 0, max_attempts: int = 3) -> bytes:
        """Charge the job with a failed attempt; gives `retry` or `dead`."""
        parsed = JobId.parse(job_id)
        error = Error(type="engine_error", message=words, retryable=True)
        keys = [KEYS.jobs(parsed.lane), KEYS.result(job_id), KEYS.attempts, KEYS.dead]
        args: list[Any] = [parsed.entry, self.deliveries[job_id], 30_000, delay_ms, max_attempts]
        end = ["0-1", encode_event(Failed(error=error)), "", 86_400_000]
        head = [GROUP, self.name]
        return await FAIL.run(self.redis, keys, [*head, *args, encode_error(error), TTL_MS, "", *end])

    async def beat(self, phase: str = "ready") -> None:
        """Say that this consumer is alive."""
        seconds, micros = await self.redis.time()
        now_ms = seconds * 1000 + micros // 1000
        beat = Heartbeat(model="tiny", phase=phase, at_ms=now_ms, interval_ms=60_000)
        await self.redis.hset(KEYS.consumers, self.name, encode_heartbeat(beat))

    async def serve(self, count: int) -> None:
        """Claim and commit until `count` jobs have ended, each with its own id as the text."""
        while count:
            for job_id in await self.claim(100):
                assert await self.commit(job_id, done(job_id))
                count -= 1
