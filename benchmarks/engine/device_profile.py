"""What a device does during some steps: which kernels, for how long, and how long it waits between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

TOP = 12
NAME_LENGTH = 80


def profile_steps(step: Callable[[], Any], count: int) -> dict[str, Any]:
    """Runs `count` steps under torch's profiler; an empty dict with the reason where it cannot trace.

    Tracing slows the host down, so that the idle share is an upper bound of what it is without.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    try:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as prof:
            for _ in range(count):
                step()
            torch.cuda.synchronize()
        spans = [
            (event.name, float(event.time_range.start), float(event.time_range.end))
            for event in prof.events()
            if event.device_type == torch.autograd.DeviceType.CUDA
        ]
    except Exception as error:  # a profiler that cannot trace costs its own figures, not the others
        return {"error": repr(error)}
    return summarize(spans, count)


def summarize(spans: list[tuple[str, float, float]], count: int) -> dict[str, Any]:
    """Of kernels (name, start, end in microseconds): the longest, and the share of the time without any."""
    if not spans:
        return {"error": "no kernels were traced"}
    totals: Counter[str] = Counter()
    for name, start, end in spans:
        totals[name[:NAME_LENGTH]] += end - start
    share = idle_share((start, end) for _, start, end in spans)
    length = max(end for _, _, end in spans) - min(start for _, start, _ in spans)
    return {
        "steps": count,
        "step_ms": length / count / 1e3,
        "idle_share": share,
        "kernels_per_step": len(spans) / count,
        "kernel_ms_per_step": {name: us / count / 1e3 for name, us in totals.most_common(TOP)},
    }


def idle_share(spans: Iterable[tuple[float, float]]) -> float:
    """The part of the time from the first start to the last end that no span covers."""
    ordered = sorted(spans)
    begin, covered = ordered[0][0], 0.0
    reached = begin
    for start, end in ordered:
        if end > reached:
            covered += end - max(start, reached)
            reached = end
    return 1 - covered / (reached - begin) if reached > begin else 0.0
