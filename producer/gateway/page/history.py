"""The last minutes in numbers, from consumers' heartbeats: what the page's charts are drawn from.

Heartbeats count from a consumer's start on. Their growth between two of them, over the time between them, is
its speed; the growth of seconds over that of jobs is a mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from penstock.messages import Heartbeat

SAMPLE_S: Final = 2.0
"""As often as consumers write heartbeats while tokens come."""
NUM_SAMPLES: Final = 150
HELD_S: Final = 5.0
"""A speed holds until the next heartbeat, or for so long: idle consumers write few."""


class Speed(Struct, frozen=True, kw_only=True):
    """Of one consumer."""

    prompt_tokens_per_s: float = 0.0
    generation_tokens_per_s: float = 0.0


class Sample(Struct, frozen=True, kw_only=True):
    """All consumers together at one moment."""

    prompt_tokens_per_s: float
    generation_tokens_per_s: float
    num_running: int
    num_waiting: int
    """Sequences in engines that wait for room there."""
    e2e_s: float | None = None
    """Mean seconds from enqueue to end of jobs that ended since the sample before; None where none did."""
    queue_s: float | None = None
    """Of these, mean seconds from enqueue to claim."""


class _Seen(Struct, kw_only=True):
    beat: Heartbeat
    at_s: float
    speed: Speed


class History:
    """Samples, oldest first, and each consumer's speed now."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=NUM_SAMPLES)
        self._seen: dict[str, _Seen] = {}

    def speed_of(self, consumer: str) -> Speed:
        """A consumer's speed at the last sample."""
        seen = self._seen.get(consumer)
        return Speed() if seen is None else seen.speed

    def add(self, now_s: float, consumers: Mapping[str, Heartbeat]) -> None:
        """Take a sample at this monotonic moment of the consumers that are alive."""
        for name in self._seen.keys() - consumers.keys():
            del self._seen[name]
        jobs, queue_s, e2e_s = 0, 0.0, 0.0
        for name, beat in consumers.items():
            before = self._seen.get(name)
            if before is None or before.beat.started_ms != beat.started_ms:
                self._seen[name] = _Seen(beat=beat, at_s=now_s, speed=Speed())
            elif beat.at_ms > before.beat.at_ms:
                jobs += beat.jobs_total - before.beat.jobs_total
                queue_s += beat.queue_seconds_total - before.beat.queue_seconds_total
                e2e_s += beat.e2e_seconds_total - before.beat.e2e_seconds_total
                self._seen[name] = _Seen(beat=beat, at_s=now_s, speed=_speed(before.beat, beat))
            elif now_s - before.at_s > HELD_S:
                before.speed = Speed()
        speeds = [seen.speed for seen in self._seen.values()]
        self.samples.append(
            Sample(
                prompt_tokens_per_s=sum(speed.prompt_tokens_per_s for speed in speeds),
                generation_tokens_per_s=sum(speed.generation_tokens_per_s for speed in speeds),
                num_running=sum(beat.num_running for beat in consumers.values()),
                num_waiting=sum(beat.num_waiting for beat in consumers.values()),
                e2e_s=e2e_s / jobs if jobs > 0 else None,
                queue_s=queue_s / jobs if jobs > 0 else None,
            )
        )


def _speed(before: Heartbeat, beat: Heartbeat) -> Speed:
    seconds = (beat.at_ms - before.at_ms) / 1000
    return Speed(
        prompt_tokens_per_s=(beat.prompt_tokens_total - before.prompt_tokens_total) / seconds,
        generation_tokens_per_s=(beat.generation_tokens_total - before.generation_tokens_total) / seconds,
    )
