"""Consumers that are alive. For operators."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from litestar import get
from msgspec import Struct

from producer.gateway.access import OPERATOR
from producer.gateway.gateway import GatewayHere


class ConsumerReply(Struct, frozen=True, kw_only=True):
    """One consumer, as it said of itself last."""

    name: str
    object: Literal["penstock.consumer"] = "penstock.consumer"
    model: str
    phase: str
    """`ready`, `draining`, or what the engine does before it is ready."""
    num_running: int
    max_num_seqs: int
    heartbeat: dict[str, Any]
    """All that it says of itself, see docs/wire.md."""


class ConsumerList(Struct, frozen=True, kw_only=True):
    """Consumers by name."""

    data: list[ConsumerReply]
    object: Literal["list"] = "list"


@get("/v1/penstock/consumers", opt=OPERATOR, summary="List consumers", tags=["consumers"])
async def list_consumers(gateway: GatewayHere) -> ConsumerList:
    """Those that are alive."""
    found = sorted((await gateway.served.consumers()).items())
    return ConsumerList(
        data=[
            ConsumerReply(
                name=name,
                model=beat.model,
                phase=beat.phase,
                num_running=beat.num_running,
                max_num_seqs=beat.max_num_seqs,
                heartbeat=msgspec.to_builtins(beat),
            )
            for name, beat in found
        ]
    )


ROUTES = (list_consumers,)
