"""Who asks: what a key stands for."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from penstock.keys import DEFAULT_LANE

EVERYBODY = "default"
"""The tenant of requests without a key, where none is needed."""


class Limits(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a key may ask for. None is no limit."""

    requests_per_minute: Annotated[int, Meta(ge=1)] | None = None
    queued_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Tokens of prompts and of outputs yet to come, estimated, in jobs that have not ended."""


class Caller(Struct, frozen=True, kw_only=True):
    """One tenant at the door. A tenant sees its own files, batches and jobs alone."""

    tenant: str = EVERYBODY
    key_id: str = ""
    """Of the key that was shown; empty where none is needed."""
    lane: str = DEFAULT_LANE
    limits: Limits = Limits()
    is_operator: bool = False
    """May see and change what belongs to the whole queue: lanes, dead letters, consumers, the page."""
