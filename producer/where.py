"""Which server a verb talks to: the one that is named, else the embedded one of a data folder."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from producer import embedded
from producer.errors import NoServer, UsageError

_SCHEMES: Final = ("redis://", "rediss://", "unix://")


class Where(Struct, frozen=True):
    """What the caller named: a Redis or Valkey URL, or a data folder, or nothing."""

    redis: str | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.redis is not None and self.data is not None:
            raise UsageError("a server is named (--redis or PENSTOCK_REDIS) and a data folder too; use one")
        if self.redis is not None and not self.redis.startswith(_SCHEMES):
            raise UsageError(f"{self.redis!r} is not a server's URL; one looks like redis://localhost:6379")
        if self.redis is not None:
            try:
                _ = urlsplit(self.redis).port
            except ValueError as error:
                raise UsageError(f"{self.redis!r} is not a server's URL: {error}") from None

    @property
    def flag(self) -> str:
        """The flag that names the same server again, for a command that a message proposes."""
        if self.redis is not None:
            return f" --redis {quote(self.redis)}"
        return f" --data {quote(str(self.data))}" if self.data is not None else ""

    @property
    def folder(self) -> Path:
        """The data folder of the embedded server."""
        return self.data if self.data is not None else default_folder()


def default_folder() -> Path:
    """`$XDG_DATA_HOME/penstock`, or its usual place."""
    home = os.environ.get("XDG_DATA_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "share"
    return base / "penstock"


def short(path: Path) -> str:
    """A path for a person: relative where it lies below the current folder, `~` for the home folder."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_absolute() and path.is_relative_to(base) and path != base:
            return f"{prefix}{path.relative_to(base)}"
    return str(path)


def find_server(where: Where) -> str:
    """URL of the server for a verb that starts none.

    Raises:
        NoServer: none is named, and none runs on the data folder.
    """
    url = where.redis or embedded.find(where.folder)
    if url is None:
        raise NoServer(
            f"no penstock server runs on {where.folder}; start one with `penstock up`, "
            "or name one with --redis URL"
        )
    return url


@contextmanager
def open_server(where: Where) -> Generator[embedded.EmbeddedServer | None]:
    """Use the embedded server for as long as the context lasts; None where a server is named."""
    if where.redis is not None:
        yield None
        return
    with embedded.use(where.folder) as server:
        yield server
