"""Many random requests through one engine, with aborts: does host memory stay flat? `make soak` runs 100,000.

`python -m tests.engine.soak --requests N` prints memory every tenth of the way and fails if it has grown.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from msgspec import Struct

from engine.engine import Engine
from tests.engine.random_requests import random_request
from tests.engine.run import engine_of
from tests.engine.tiny_models import save_wordy_model

PAGE_BYTES = 4096
SETTINGS: dict[str, Any] = {
    "num_blocks": 150,
    "block_size": 8,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 48,
}
"""Few sequences and tokens a step: the libraries below keep one kernel for each shape that they have seen, up
to a thousand, and would still be filling that cache half-way."""
MAX_GROWTH_BYTES = 4 * 1024**2
"""From the second tenth on, and MAX_GROWTH_PER_REQUEST beside it: allocators take memory in steps."""
MAX_GROWTH_PER_REQUEST = 80
MAX_GROWTH_OBJECTS = 2000


class Reading(Struct):
    """Memory at one point."""

    num_requests: int
    rss_bytes: int
    num_objects: int


def read(num_requests: int) -> Reading:
    """What the process holds now."""
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    return Reading(num_requests, resident, len(gc.get_objects()))


def soak(engine: Engine, num_requests: int) -> list[Reading]:
    """Runs them with a few dozen waiting at any time; every ninth is aborted. A reading for each tenth."""
    rng = random.Random(0)
    readings: list[Reading] = []
    live: set[str] = set()
    sent = 0
    while sent < num_requests or engine.has_work:
        while sent < num_requests and engine.scheduler.num_waiting < 40:
            request = random_request(sent, engine.vocab_size, longest_prompt=24, max_tokens=8)
            engine.add([request])
            live.add(request.request_id)
            sent += 1
            if sent % 9 == 0:
                engine.abort([victim := rng.choice(sorted(live)[-60:])])
                live.discard(victim)
            if sent % (num_requests // 10) == 0:
                readings.append(read(sent))
        for output in engine.step():
            if output.finish_reason or output.error:
                live.discard(output.request_id)
    engine.scheduler.check_integrity()
    assert engine.scheduler.blocks.num_free == engine.sizes.num_blocks, "blocks are lost"
    assert engine.scheduler.num_running == engine.scheduler.num_waiting == 0
    return readings


def growth(readings: list[Reading]) -> tuple[int, int]:
    """Bytes and objects more at the end than after the second tenth."""
    start, end = readings[1], readings[-1]
    return end.rss_bytes - start.rss_bytes, end.num_objects - start.num_objects


def has_grown(readings: list[Reading]) -> bool:
    """Whether that is more than allocators explain."""
    bytes_more, objects_more = growth(readings)
    allowed = MAX_GROWTH_BYTES + MAX_GROWTH_PER_REQUEST * readings[-1].num_requests
    return bytes_more > allowed or objects_more > MAX_GROWTH_OBJECTS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_of(save_wordy_model(Path(folder)), **SETTINGS)
        readings = soak(engine, args.requests)
    for reading in readings:
        print(
            f"{reading.num_requests:8d} requests {reading.rss_bytes / 2**20:8.1f} MiB {reading.num_objects}"
        )
    bytes_more, objects_more = growth(readings)
    print(f"growth: {bytes_more / 2**20:.1f} MiB, {objects_more} objects")
    return int(has_grown(readings))


if __name__ == "__main__":
    sys.exit(main())
