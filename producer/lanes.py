"""The verbs about lanes: show and set them, pause and resume."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.client import Client
from penstock.enqueue import MAX_LANE_JOBS
from penstock.keys import check_lane
from penstock.lanes import Lane, LaneSettings
from producer.errors import UsageError
from producer.where import Where, find_server

_HEAD = ("LANE", "WEIGHT", "QUEUED", "LEASED", "LIMIT", "TOKENS/JOB", "")


def run_show(where: Where, *, as_json: bool) -> int:
    """Print every lane, and what is set for the whole queue."""

    async def ask(url: str) -> tuple[LaneSettings, list[Lane]]:
        async with Client(url) as client:
            return await client.queue_settings(), await client.lanes()

    queue, lanes = asyncio.run(ask(find_server(where)))
    if as_json:
        print(_as_json(queue, lanes))
        return 0
    for line in _table([_HEAD, *(_row(lane, queue) for lane in lanes)]):
        print(line)
    if queue.paused:
        print(f"\nThe whole queue is paused; penstock resume{where.flag} lets it go on.")
    return 0


def run_set(
    where: Where,
    lane: str | None,
    weight: float | None,
    max_jobs: str | None,
    *,
    whole_queue: bool,
) -> int:
    """Set what was given, and print what holds now."""
    if (lane is not None) == whole_queue:
        raise UsageError("name one lane, or give --whole-queue")
    if weight is None and max_jobs is None:
        raise UsageError("nothing to set; give --weight or --max-jobs")
    if whole_queue and weight is not None:
        raise UsageError("--weight is of a lane; the whole queue has none")
    settings: dict[str, Any] = {} if weight is None else {"weight": weight}
    if max_jobs is not None:
        settings["max_jobs"] = _limit_of(max_jobs)
    is_new, now = _change(where, lane, settings)
    print(f"{_called(lane)}: {_in_words(now, lane)}{_if_new(is_new)}")
    return 0


def run_pause(where: Where, lane: str | None, *, paused: bool) -> int:
    """Pause or resume a lane, or the whole queue."""
    is_new, _ = _change(where, lane, {"paused": True if paused else None})
    flags = where.flag + ("" if lane is None else f" --lane {lane}")
    if paused:
        words = f"paused; what runs goes on, what is queued waits for penstock resume{flags}"
    else:
        words = "resumed"
    print(f"{_called(lane)}: {words}{_if_new(is_new)}")
    return 0


def _change(where: Where, lane: str | None, settings: dict[str, Any]) -> tuple[bool, LaneSettings]:
    """Whether the lane is declared by this, and its settings."""

    async def ask(url: str) -> tuple[bool, LaneSettings]:
        async with Client(url) as client:
            known = {known.name for known in await client.lanes()}
            return lane is not None and lane not in known, await client.set_lane(lane, **settings)

    try:
        if lane is not None:
            check_lane(lane)
        return asyncio.run(ask(find_server(where)))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _limit_of(text: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"--max-jobs is {text!r}; it must be a number, 0 or more, or `none`")
    return int(text)


def _called(lane: str | None) -> str:
    return "the whole queue" if lane is None else f"lane {lane}"


def _if_new(is_new: bool) -> str:
    return " (a new lane)" if is_new else ""


def _in_words(settings: LaneSettings, lane: str | None) -> str:
    paused = ", paused" if settings.paused else ""
    if lane is None:
        limit = _limit(LaneSettings(), settings)
        return f"limit {limit:,} a lane, where it has none of its own{paused}"
    limit = "no limit of its own" if settings.max_jobs is None else f"limit {settings.max_jobs:,}"
    return f"weight {settings.weight:g}, {limit}{paused}"


def _row(lane: Lane, queue: LaneSettings) -> tuple[str, ...]:
    limit = _limit(lane.settings, queue)
    return (
        lane.name,
        f"{lane.settings.weight:g}",
        f"{lane.queued:,}",
        f"{lane.leased:,}",
        f"{limit:,}",
        "-" if lane.cost is None else f"{lane.cost:,.0f}",
        "paused" if lane.settings.paused else "",
    )


def _limit(lane: LaneSettings, queue: LaneSettings) -> int:
    given = (lane.max_jobs, queue.max_jobs, MAX_LANE_JOBS)
    return next(limit for limit in given if limit is not None)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side: words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in (0, len(widths) - 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _as_json(queue: LaneSettings, lanes: Sequence[Lane]) -> str:
    def described(settings: LaneSettings) -> dict[str, Any]:
        return {"max_jobs": settings.max_jobs, "paused": settings.paused}

    entries = [
        {
            "lane": lane.name,
            "weight": lane.settings.weight,
            "queued": lane.queued,
            "leased": lane.leased,
            "cost": lane.cost,
            "limit": _limit(lane.settings, queue),
            **described(lane.settings),
        }
        for lane in lanes
    ]
    return msgspec.json.encode({"queue": described(queue), "lanes": entries}).decode()
