"""Whether the gateway lives, and whether a job that it took would be answered."""

from __future__ import annotations

from litestar import Response, get
from litestar.openapi import ResponseSpec
from msgspec import Struct

from penstock.errors import ServerError
from penstock.presence import in_words
from producer.gateway.access import PUBLIC
from producer.gateway.gateway import GatewayHere


class Health(Struct, frozen=True, kw_only=True):
    """An answer to a probe."""

    ok: bool
    reasons: list[str] = []
    """Why not, in words."""


@get(["/health", "/health/live"], opt=PUBLIC, summary="Is the gateway alive?")
async def live() -> Health:
    """It is where it answers."""
    return Health(ok=True)


@get(
    "/health/ready",
    opt=PUBLIC,
    summary="Would a job be answered?",
    raises=[],
    responses={503: ResponseSpec(Health, description="No, and why", generate_examples=False)},
)
async def ready(gateway: GatewayHere) -> Response[Health]:
    """Whether the server can be reached, a consumer is alive, and a model is loaded: 200 or 503."""
    try:
        why = in_words(await gateway.served.consumers())
    except ServerError as error:
        why = f"the queue can't be reached: {error}"
    if why is None:
        return Response(Health(ok=True))
    return Response(Health(ok=False, reasons=[why]), status_code=503)
