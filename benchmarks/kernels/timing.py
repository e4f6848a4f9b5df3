"""Times of device work: medians, after a warm-up, over more inputs than the cache holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Literal

import torch

Method = Literal["graph", "events", "clock"]

CPU_CACHE_BYTES = 64 * 1024**2
MAX_SETS = 48
GRAPH_BELOW_S = 200e-6
"""Launches of shorter operations would be timed more than the operations themselves."""
GRAPH_CALLS = 48


def num_sets(set_bytes: int, device: torch.device) -> int:
    """How many sets of inputs of this size are more than twice the cache; one is enough where it is."""
    cache = (
        torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else CPU_CACHE_BYTES
    )
    return max(1, min(MAX_SETS, -(-2 * cache // max(1, set_bytes))))


def seconds_of(
    calls: Sequence[Callable[[], object]], device: torch.device, budget_s: float
) -> tuple[float, Method]:
    """The median time of one call, of calls that differ only in their inputs, and how it was got."""
    for call in calls[:2]:
        call()
    if device.type != "cuda":
        return _by_clock(calls, budget_s), "clock"
    torch.cuda.synchronize()
    rough = _by_events(calls, 0.0)
    if rough < GRAPH_BELOW_S:
        try:
            return _by_graph(calls, budget_s), "graph"
        except RuntimeError:  # an operation that cannot be recorded is timed as it is launched
            torch.cuda.synchronize()
    return _by_events(calls, budget_s), "events"


def _by_clock(calls: Sequence[Callable[[], object]], budget_s: float) -> float:
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 1000):
        start = time.perf_counter()
        calls[len(times) % len(calls)]()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _by_events(calls: Sequence[Callable[[], object]], budget_s: float) -> float:
    """Rounds of a few calls each, so that the host runs ahead of the device."""
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < 20 and (len(times) < 5 or time.perf_counter() < end):
        pairs: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        for call in (calls * 4)[:4] if len(calls) < 4 else calls[:8]:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            call()
            last.record()
            pairs.append((first, last))
        torch.cuda.synchronize()
        times += [first.elapsed_time(last) / 1e3 for first, last in pairs]
    return statistics.median(times)


def _by_graph(calls: Sequence[Callable[[], object]], budget_s: float) -> float:
    count = max(GRAPH_CALLS // len(calls), 1) * len(calls)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    for _ in range(2):
        graph.replay()
    times: list[float] = []
    end = time.perf_counter() + budget_s
    while len(times) < 30 and (len(times) < 5 or time.perf_counter() < end):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / 1e3 / count)
    return statistics.median(times)
