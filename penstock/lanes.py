"""Lanes: what waits in each, and how they are served."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from penstock.keys import DEFAULT_LANE, GROUP, WHOLE_QUEUE, Keys
from penstock.link import Link
from penstock.scripts import CONFIGURE

LANE_PAUSED: Final = "its lane is paused"
QUEUE_PAUSED: Final = "the queue is paused"


class LaneSettings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a lane is served. Under the lane `*`, `max_jobs` and `paused` of the whole queue."""

    weight: Annotated[float, Meta(ge=0.01, le=1000)] = 1.0
    """Share of the tokens where several lanes wait, in proportion to the others' weights."""
    max_jobs: Annotated[int, Meta(ge=0, le=10**12)] | None = None  # scripts write larger ones as 1e+14
    """An enqueue that would leave more outstanding jobs is refused; by default as the queue is set."""
    paused: bool = False
    """Consumers take nothing from it. What runs goes on, and jobs can be enqueued."""


class Lane(Struct, frozen=True, kw_only=True):
    """One lane as it is now."""

    name: str
    settings: LaneSettings
    queued: int
    """Jobs that wait for their first consumer."""
    leased: int
    """Jobs that a consumer has, or that wait for another one."""
    cost: float | None
    """Tokens that its jobs cost on average, prompt and output; None before any has ended."""


_settings_decoder = msgspec.json.Decoder(LaneSettings)


async def read_lanes(link: Link, keys: Keys) -> tuple[LaneSettings, list[Lane]]:
    """The whole queue's settings, and the declared lanes by name.

    Raises:
        ServerError: the server cannot be asked.
    """
    fields: list[bytes] = await link.command("HGETALL", keys.lanes)
    settings = {
        name.decode(errors="replace"): decode_settings(data)
        for name, data in zip(fields[::2], fields[1::2], strict=True)
    }
    queue = settings.pop(WHOLE_QUEUE, LaneSettings())
    settings.setdefault(DEFAULT_LANE, LaneSettings())
    return queue, [await _read_lane(link, keys, name, settings[name]) for name in sorted(settings)]


async def configure(link: Link, keys: Keys, lane: str, settings: dict[str, Any]) -> LaneSettings:
    """Set some of a lane's settings, or of the queue's with `*` as the lane; None as a value removes one.

    Raises:
        ValueError: a setting is unknown, or its value out of range.
        ServerError: the server cannot be asked.
    """
    known = LaneSettings.__struct_fields__
    if unknown := settings.keys() - set(known):
        raise ValueError(f"a lane has no setting {min(unknown)!r}; it has {', '.join(known)}")
    try:
        given = {name: value for name, value in settings.items() if value is not None}
        msgspec.convert(given, LaneSettings)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    args: list[str] = [lane]
    for name, value in settings.items():
        args += [name, msgspec.json.encode(value).decode()]
    return _settings_decoder.decode(await link.script(CONFIGURE, [keys.lanes, keys.control], args))


async def paused_words(link: Link, keys: Keys, lane: str) -> str | None:
    """That the queue or the lane is paused, in words; None where neither is.

    Raises:
        ServerError: the server cannot be asked.
    """
    found: list[bytes | None] = await link.command("HMGET", keys.lanes, WHOLE_QUEUE, lane)
    queue_paused, lane_paused = (data is not None and decode_settings(data).paused for data in found)
    return QUEUE_PAUSED if queue_paused else LANE_PAUSED if lane_paused else None


async def _read_lane(link: Link, keys: Keys, name: str, settings: LaneSettings) -> Lane:
    stream = keys.jobs(name)
    length = int(await link.command("XLEN", stream))
    groups: list[list[Any]] = await link.command("XINFO", "GROUPS", stream) if length else []
    infos = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in groups]
    leased = sum(int(info[b"pending"]) for info in infos if info[b"name"] == GROUP.encode())
    cost = await link.command("HGET", keys.deficits, f"{name}:cost")
    return Lane(
        name=name,
        settings=settings,
        queued=max(length - leased, 0),
        leased=leased,
        cost=None if cost is None else float(cost),
    )


def decode_settings(data: bytes) -> LaneSettings:
    """A lane's settings as they lie in the hash; the defaults where they can't be read."""
    try:
        return _settings_decoder.decode(data)
    except msgspec.DecodeError:
        return LaneSettings()  # by hand, and wrong: the claim script takes what it can of it
