"""What every route needs, made once and handed down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from litestar.di import NamedDependency

from penstock.client import Client
from penstock.keys import Keys
from penstock.link import Link
from producer.gateway.access import Door
from producer.gateway.meter import Meter
from producer.gateway.served import Served
from producer.gateway.settings import GatewaySettings


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
    meter: Meter
    """What callers have under way, against their limits."""


GatewayHere: TypeAlias = NamedDependency[Gateway]
"""As routes ask for it."""
