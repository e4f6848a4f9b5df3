"""How a model writes what is not plain text: calls of tools, and what it thinks before it answers."""

from __future__ import annotations

from msgspec import Struct

from penstock.messages import Heartbeat, ReasoningMarkers


class Dialect(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of one model. The default is a model that writes plain text alone."""

    tool_format: str | None = None
    """A name of `parsers.FORMATS`."""
    reasoning: ReasoningMarkers | None = None

    @classmethod
    def of(cls, beat: Heartbeat | None) -> Dialect | None:
        """As the model's consumer says; None where there is none to say it."""
        if beat is None:
            return None
        return cls(tool_format=beat.tool_format, reasoning=beat.reasoning)
