"""Flags that several verbs share, or that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Group, Parameter

from producer.where import Where

SERVER: Final = Group("Server", sort_key=11)
SAMPLING: Final = Group("Sampling (what is not given is the model's own default)", sort_key=12)


@Parameter(name="*", group=SERVER)
@dataclass(frozen=True, kw_only=True)
class ServerFlags:
    """Which server."""

    redis: Annotated[str | None, Parameter(env_var="PENSTOCK_REDIS")] = None
    """URL of a Redis or Valkey; by default penstock's own, embedded one."""
    data: Annotated[str | None, Parameter(env_var="PENSTOCK_DATA")] = None
    """Data folder of the embedded server; by default ~/.local/share/penstock."""

    @property
    def where(self) -> Where:
        """As the rest of the package takes it; an empty variable, as compose files make them, is none."""
        return Where(self.redis or None, Path(self.data) if self.data else None)


@Parameter(name="*", group=SAMPLING)
@dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How tokens are chosen."""

    max_tokens: int | None = None
    """Most tokens to generate."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    """Keep the likeliest tokens up to this mass."""
    top_k: int | None = None
    """Keep the k likeliest tokens."""
    min_p: float | None = None
    """Drop tokens less likely than this fraction of the likeliest."""
    seed: int | None = None
    """The same seed gives the same draws."""
    stop: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()
    """End before this text; may be given several times."""

    def given(self) -> dict[str, Any]:
        """Fields of SamplingParams that were set."""
        values = {**vars(self), "stop": list(self.stop) or None}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ReplyFlags:
    """How an answer is waited for and printed."""

    stream: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    """Print the text as it comes."""
    wait: Annotated[bool, Parameter(name="--wait", negative="--no-wait", show_default=False)] = True
    """Wait for the answer; with --no-wait, print the job's id and return."""
    json: Annotated[bool, Parameter(negative=(), show_default=False)] = False
    """Print events as JSON instead of text."""
    timeout: float | None = None
    """Seconds to wait for the answer; the job goes on after that."""
