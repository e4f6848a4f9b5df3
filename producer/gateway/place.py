"""Where a gateway's keys and webhooks are, for verbs that change them beside gateways that run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from msgspec import Struct

from producer.errors import NoServer
from producer.gateway.settings import GatewaySettings
from producer.where import Where, find_server

Kept = Literal["file", "redis"]


class Place(Struct, frozen=True):
    """What the caller named."""

    where: Where
    folder: Path | None
    kept: Kept

    def settings(self) -> GatewaySettings:
        """A gateway's there; without a server where they are in files and none runs.

        Raises:
            NoServer: they are on the server, and none is named or runs.
        """
        folder = (self.folder or self.where.folder / "gateway").expanduser().absolute()
        try:
            url = find_server(self.where)
        except NoServer:
            if self.kept == "redis":
                raise
            url = ""
        return GatewaySettings(redis=url, folder=folder, keys=self.kept)
