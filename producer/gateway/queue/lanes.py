"""Lanes: how much waits in each, and how they are served; and the same of the whole queue."""

from __future__ import annotations

from typing import Annotated, Literal

from litestar import get, patch, post
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, Meta, Struct, UnsetType

from penstock.keys import check_lane
from penstock.lanes import Lane, LaneSettings
from producer.gateway.access import OPERATOR
from producer.gateway.errors import BadRequest
from producer.gateway.gateway import CallersRequest, Gateway, GatewayHere

Weight = Annotated[float, Meta(ge=0.01, le=1000)]
MaxJobs = Annotated[int, Meta(ge=0, le=10**12)]


class LaneReply(Struct, frozen=True, kw_only=True):
    """One lane as it is now."""

    name: str
    object: Literal["penstock.lane"] = "penstock.lane"
    weight: float
    """Its share of the tokens where several lanes wait, in proportion to the others' weights."""
    max_jobs: int | None
    """Outstanding jobs beyond which a submit is refused; null: as the queue is set."""
    paused: bool
    queued: int
    leased: int
    cost: float | None
    """Tokens that its jobs cost on average; null before any has ended."""


class LaneList(Struct, frozen=True, kw_only=True):
    """Lanes by name."""

    data: list[LaneReply]
    object: Literal["list"] = "list"


class QueueReply(Struct, frozen=True, kw_only=True):
    """What is set for the whole queue."""

    object: Literal["penstock.queue"] = "penstock.queue"
    max_jobs: int | None
    paused: bool


class LaneChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be set; null takes a setting back."""

    weight: Weight | UnsetType | None = UNSET
    max_jobs: MaxJobs | UnsetType | None = UNSET


class QueueChange(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be set; null takes it back."""

    max_jobs: MaxJobs | UnsetType | None = UNSET


@get("/v1/penstock/lanes", summary="List lanes", tags=["lanes"])
async def list_lanes(request: CallersRequest, gateway: GatewayHere) -> LaneList:
    """Every lane to operators, to others their own."""
    caller = request.auth
    lanes = await gateway.client.lanes()
    return LaneList(data=[_reply(lane) for lane in lanes if caller.is_operator or lane.name == caller.lane])


@patch("/v1/penstock/lanes/{lane:str}", opt=OPERATOR, summary="Set a lane", tags=["lanes"])
async def set_lane(gateway: GatewayHere, lane: FromPath[str], data: JSONBody[LaneChange]) -> LaneReply:
    """Set how a lane is served; a lane that does not exist yet is declared."""
    given = {"weight": data.weight, "max_jobs": data.max_jobs}
    name = _checked(lane)
    await gateway.client.set_lane(name, **{key: value for key, value in given.items() if value is not UNSET})  # pyright: ignore[reportArgumentType] - the unset are left out
    return await _lane(gateway, name)


@post(
    "/v1/penstock/lanes/{lane:str}/pause",
    opt=OPERATOR,
    status_code=200,
    summary="Pause a lane",
    tags=["lanes"],
)
async def pause_lane(gateway: GatewayHere, lane: FromPath[str]) -> LaneReply:
    """Consumers take nothing more from it; what runs goes on, and jobs can be submitted."""
    await gateway.client.pause(_checked(lane))
    return await _lane(gateway, lane)


@post(
    "/v1/penstock/lanes/{lane:str}/resume",
    opt=OPERATOR,
    status_code=200,
    summary="Resume a lane",
    tags=["lanes"],
)
async def resume_lane(gateway: GatewayHere, lane: FromPath[str]) -> LaneReply:
    """Undo a pause."""
    await gateway.client.resume(_checked(lane))
    return await _lane(gateway, lane)


@get("/v1/penstock/queue", opt=OPERATOR, summary="Settings of the queue", tags=["lanes"])
async def get_queue(gateway: GatewayHere) -> QueueReply:
    """What holds for lanes that have no setting of their own, and whether all of it is paused."""
    return _queue(await gateway.client.queue_settings())


@patch("/v1/penstock/queue", opt=OPERATOR, summary="Set the queue", tags=["lanes"])
async def set_queue(gateway: GatewayHere, data: JSONBody[QueueChange]) -> QueueReply:
    """Set the limit of lanes that have none of their own."""
    given = {} if isinstance(data.max_jobs, UnsetType) else {"max_jobs": data.max_jobs}
    return _queue(await gateway.client.set_lane(None, **given))


@post("/v1/penstock/queue/pause", opt=OPERATOR, status_code=200, summary="Pause the queue", tags=["lanes"])
async def pause_queue(gateway: GatewayHere) -> QueueReply:
    """Consumers take nothing more; what runs goes on, and jobs can be submitted."""
    await gateway.client.pause()
    return _queue(await gateway.client.queue_settings())


@post("/v1/penstock/queue/resume", opt=OPERATOR, status_code=200, summary="Resume the queue", tags=["lanes"])
async def resume_queue(gateway: GatewayHere) -> QueueReply:
    """Undo a pause of the whole queue; a lane's own stays."""
    await gateway.client.resume()
    return _queue(await gateway.client.queue_settings())


def _checked(lane: str) -> str:
    try:
        return check_lane(lane)
    except ValueError as error:
        raise BadRequest(str(error), param="lane", code="invalid_value") from None


async def _lane(gateway: Gateway, name: str) -> LaneReply:
    return next(_reply(lane) for lane in await gateway.client.lanes() if lane.name == name)


def _reply(lane: Lane) -> LaneReply:
    return LaneReply(
        name=lane.name,
        weight=lane.settings.weight,
        max_jobs=lane.settings.max_jobs,
        paused=lane.settings.paused,
        queued=lane.queued,
        leased=lane.leased,
        cost=lane.cost,
    )


def _queue(settings: LaneSettings) -> QueueReply:
    return QueueReply(max_jobs=settings.max_jobs, paused=settings.paused)


ROUTES = (
    list_lanes,
    set_lane,
    pause_lane,
    resume_lane,
    get_queue,
    set_queue,
    pause_queue,
    resume_queue,
)
