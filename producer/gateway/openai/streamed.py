"""What routes have in common whose reply may be streamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from litestar.openapi.spec import OpenAPIMediaType, OpenAPIResponse, OpenAPIType, Operation, Schema
from litestar.params import HeaderParameter

LastEventId: TypeAlias = Annotated[str | None, HeaderParameter(name="Last-Event-ID", max_length=512)]
"""Of the last event of a stream that was cut off."""


@dataclass
class Streamed(Operation):
    """An operation whose reply is JSON, or server-sent events."""

    def __post_init__(self) -> None:
        found = (self.responses or {}).get("200")
        if isinstance(found, OpenAPIResponse) and found.content is not None:
            found.content["text/event-stream"] = OpenAPIMediaType(schema=Schema(type=OpenAPIType.STRING))
