"""The application: routes, the door before them, and what lives as long as they do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ControllerRouterHandler

from penstock.client import Client
from penstock.keys import Keys
from penstock.link import Link
from producer.gateway import health
from producer.gateway.access import Access, Door, OpenDoor
from producer.gateway.gateway import Gateway
from producer.gateway.meter import NoMeter
from producer.gateway.openai import models
from producer.gateway.replies import HANDLERS
from producer.gateway.served import Served
from producer.gateway.settings import GatewaySettings

ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    health.live,
    health.ready,
    models.list_models,
    models.get_model,
)


def make_app(settings: GatewaySettings) -> Litestar:
    """An application that opens its connections when it starts."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None]:
        async with open_gateway(settings) as gateway:
            app.state.gateway = gateway
            yield

    return Litestar(
        route_handlers=ROUTES,
        lifespan=[lifespan],
        dependencies={"gateway": Provide(_gateway, sync_to_thread=False)},
        middleware=[Access()],
        exception_handlers=HANDLERS,
        request_max_body_size=settings.max_body_bytes,
        cors_config=CORSConfig(allow_origins=list(settings.cors_origins)) if settings.cors_origins else None,
        openapi_config=_openapi(),
        debug=False,
    )


@asynccontextmanager
async def open_gateway(settings: GatewaySettings) -> AsyncGenerator[Gateway]:
    """Everything that routes need, closed at the end."""
    keys = Keys(settings.shard)
    link = Link(settings.redis)
    try:
        async with Client(settings.redis, settings.shard) as client:
            yield Gateway(
                settings=settings,
                client=client,
                link=link,
                keys=keys,
                door=_door(settings),
                served=Served(link, keys),
                meter=NoMeter(),
            )
    finally:
        await link.aclose()


def _gateway(state: State) -> Gateway:
    return state.gateway


def _door(settings: GatewaySettings) -> Door:
    return OpenDoor()


def _openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="penstock",
        version="1",
        description="Batch inference over Redis streams, by OpenAI's API and penstock's own.",
        path="/schema",
        security=[{"key": []}],
        components=Components(
            security_schemes={"key": SecurityScheme(type="http", scheme="bearer")},
        ),
        use_handler_docstrings=True,
    )
