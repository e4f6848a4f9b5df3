"""What every batch's life needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from penstock.client import Client
from penstock.keys import Keys
from penstock.link import Link
from producer.gateway.batches.objects import BatchObject
from producer.gateway.batches.store import BatchStore
from producer.gateway.files.store import FileStore
from producer.gateway.served import Served

OnEnd: TypeAlias = Callable[[str, BatchObject], Awaitable[None]]
"""Told a tenant and a batch of its that has ended: at least once, twice where a gateway dies just then."""


@dataclass(frozen=True, slots=True)
class Works:
    """Where batches lie, and what they go through."""

    batches: BatchStore
    files: FileStore
    client: Client
    link: Link
    keys: Keys
    served: Served
    on_end: OnEnd
    lease_s: float = 6.0
    """A gateway that dies is replaced after so long."""
    window: int = 2048
    """Rows of one batch that are in the queue at most."""
