"""The application: routes, the door before them, and what lives as long as they do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import ControllerRouterHandler

from penstock.client import Client
from penstock.enqueue import EnqueueHook
from penstock.keys import Keys
from penstock.link import Link
from penstock.telemetry.tracing import Tracing
from producer.gateway import health
from producer.gateway.access import Access
from producer.gateway.batches import routes as batch_routes
from producer.gateway.batches.dispatcher import Dispatcher
from producer.gateway.batches.objects import BatchObject
from producer.gateway.batches.store import BatchStore
from producer.gateway.batches.works import OnEnd, Works
from producer.gateway.depths import QueueDepths
from producer.gateway.doors import make_door
from producer.gateway.files import routes as file_routes
from producer.gateway.files.store import FileStore
from producer.gateway.gateway import Gateway
from producer.gateway.handles import JobHandles
from producer.gateway.keys import open_ring
from producer.gateway.meter import ServerMeter
from producer.gateway.openai import chat, completions, embeddings, models
from producer.gateway.openai.abandoned import Abandoned
from producer.gateway.openapi import ApiDescription
from producer.gateway.page import routes as page_routes
from producer.gateway.page.batches import BatchWatch
from producer.gateway.page.board import Board
from producer.gateway.page.history import History
from producer.gateway.page.overview import OverviewReader
from producer.gateway.queue import consumers, dead, events, jobs, lanes
from producer.gateway.replies import HANDLERS
from producer.gateway.served import Served
from producer.gateway.settings import GatewaySettings
from producer.gateway.storage import open_storage
from producer.gateway.telemetry import GatewayTelemetry, metrics_route
from producer.gateway.webhooks import routes as webhook_routes
from producer.gateway.webhooks.endpoints import open_webhooks, webhook_keys
from producer.gateway.webhooks.events import Events
from producer.gateway.webhooks.sender import Sender

ROUTES: Final[tuple[ControllerRouterHandler, ...]] = (
    health.live,
    health.ready,
    models.list_models,
    models.get_model,
    *chat.ROUTES,
    *completions.ROUTES,
    *embeddings.ROUTES,
    *jobs.ROUTES,
    *events.ROUTES,
    *lanes.ROUTES,
    *dead.ROUTES,
    *consumers.ROUTES,
    *webhook_routes.ROUTES,
    *file_routes.ROUTES,
    *batch_routes.ROUTES,
    *page_routes.ROUTES,
)

TOLD_TO_PAGES: Final = (
    *("X-Request-Id", "Location", "Retry-After", "retry-after-ms", "x-should-retry"),
    *("X-Incomplete", "X-Last-Line"),
)
"""Headers of replies that scripts of other origins may read; browsers hide the rest from them."""


def make_app(settings: GatewaySettings, tracing: Tracing | None = None) -> Litestar:
    """An application that opens its connections when it starts. `tracing`: instead of the environment's."""
    telemetry = GatewayTelemetry(tracing)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None]:
        async with open_gateway(settings, telemetry.tracing.enqueue) as gateway:
            app.state.gateway = gateway
            telemetry.open(gateway)
            try:
                yield
            finally:
                await telemetry.aclose()

    described = ApiDescription()
    return Litestar(
        route_handlers=(*ROUTES, metrics_route(public=settings.metrics_public)),
        state=State({"telemetry": telemetry}),
        lifespan=[lifespan],
        dependencies={"gateway": Provide(_gateway, sync_to_thread=False)},
        middleware=[Access()],
        exception_handlers=HANDLERS,
        request_max_body_size=settings.max_body_bytes,
        cors_config=_cors(settings),
        openapi_config=described.config,
        plugins=[described.schemas],
        logging_config=None,  # the program's own
        debug=False,
    )


@asynccontextmanager
async def open_gateway(settings: GatewaySettings, hook: EnqueueHook | None = None) -> AsyncGenerator[Gateway]:
    """Everything that routes need, closed at the end. `hook`: see `Client`."""
    keys = Keys(settings.shard)
    link = Link(settings.redis)
    storage = open_storage(settings.storage_url)
    served, batches, history = Served(link, keys), BatchStore(storage), History()
    depths, watch = QueueDepths(link, keys, served), BatchWatch(batches)
    try:
        async with Client(settings.redis, settings.shard, hook) as client:
            webhooks = open_webhooks(settings, link, keys.gateway_webhooks)
            async with (
                ServerMeter(link, keys) as meter,
                Sender(private=settings.private_webhooks) as sender,
                Events(client, link, webhook_keys(settings), webhooks, sender) as events,
                Dispatcher(
                    Works(
                        batches=batches,
                        files=FileStore(storage),
                        client=client,
                        link=link,
                        keys=keys,
                        served=served,
                        on_end=_both(watch.ended, events.batch_ended),
                    )
                ) as dispatcher,
                Abandoned(client, link, keys, settings.resume_grace_s) as abandoned,
                Board(OverviewReader(link, keys, depths, watch, history), history, served) as board,
            ):
                yield Gateway(
                    settings=settings,
                    client=client,
                    link=link,
                    keys=keys,
                    door=make_door(settings, open_ring(settings, link, keys.gateway_keys)),
                    served=served,
                    depths=depths,
                    meter=meter,
                    handles=JobHandles(link, keys),
                    events=events,
                    webhooks=webhooks,
                    works=dispatcher.works,
                    dispatcher=dispatcher,
                    abandoned=abandoned,
                    board=board,
                )
    finally:
        await link.aclose()


def _cors(settings: GatewaySettings) -> CORSConfig | None:
    if not settings.cors_origins:
        return None
    return CORSConfig(allow_origins=list(settings.cors_origins), expose_headers=list(TOLD_TO_PAGES))


def _both(first: OnEnd, second: OnEnd) -> OnEnd:
    async def tell(tenant: str, batch: BatchObject) -> None:
        await first(tenant, batch)
        await second(tenant, batch)

    return tell


def _gateway(state: State) -> Gateway:
    return state.gateway
