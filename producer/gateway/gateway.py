"""What every route needs, made once and handed down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from litestar import Request
from litestar.di import NamedDependency

from penstock.client import Client
from penstock.keys import Keys
from penstock.link import Link
from producer.gateway.access import Door
from producer.gateway.batches.dispatcher import Dispatcher
from producer.gateway.batches.works import Works
from producer.gateway.caller import Caller
from producer.gateway.depths import QueueDepths
from producer.gateway.handles import JobHandles
from producer.gateway.meter import Meter
from producer.gateway.openai.abandoned import Abandoned
from producer.gateway.page.board import Board
from producer.gateway.served import Served
from producer.gateway.settings import GatewaySettings
from producer.gateway.webhooks.endpoints import Webhooks
from producer.gateway.webhooks.events import Events


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that lives as long as the application does. Routes get it as the dependency `gateway`."""

    settings: GatewaySettings
    client: Client
    """For jobs."""
    link: Link
    """For what the client has no words for."""
    keys: Keys
    door: Door
    """Lets callers in."""
    served: Served
    """What the queue serves now."""
    depths: QueueDepths
    """What it holds now."""
    meter: Meter
    """What callers have under way, against their limits."""
    handles: JobHandles
    """Which jobs are whose."""
    events: Events
    """Tells tenants of ends, by webhook."""
    webhooks: Webhooks
    """Where they want to be told."""
    works: Works
    """Files and batches, and what batches go through."""
    dispatcher: Dispatcher
    """Drives batches."""
    abandoned: Abandoned
    """Streams whose readers went away."""
    board: Board
    """The live page."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway drains: streams that can be resumed end."""


CallersRequest: TypeAlias = Request[Any, Caller, Any]
"""A request that passed the door: `auth` says who asks."""

GatewayHere: TypeAlias = NamedDependency[Gateway]
"""As routes ask for it."""
