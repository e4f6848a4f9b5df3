"""Small sets of records that a gateway reads all the time and a person changes now and then: keys, webhooks.

They are kept in a file of the gateway's folder, or in a hash on the server where several gateways share them.
Either way a change is seen by running gateways within a second.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import msgspec

from penstock.errors import ServerError
from penstock.link import Link
from producer.gateway.errors import Unavailable

FRESH_S: Final = 1.0
"""How old what is known of the server's records may be."""

Change = Callable[[dict[str, msgspec.Raw]], object]


class Records(Protocol):
    """Records by id, each JSON."""

    async def read(self) -> Mapping[str, bytes | msgspec.Raw]:
        """All of them; the very same object as long as nothing changed.

        Raises:
            Unavailable: they can't be read, or are gone.
            ServerError: the server can't be asked.
        """
        ...

    async def put(self, name: str, data: bytes) -> None:
        """Write one.

        Raises:
            Unavailable: it can't be.
            ServerError: the server can't be asked.
        """
        ...

    async def remove(self, name: str) -> bool:
        """Remove one; whether it was there."""
        ...


class FileRecords:
    """Records in a JSON file that its owner alone can read, replaced whole and read again when it changed.

    Beside it lies a lock, from its first record on: where `guarded`, a file that is gone while its lock is
    there has been lost, which is not the same as never having been.
    """

    def __init__(self, path: Path, *, guarded: bool = False) -> None:
        self._path = path
        self._lock = path.with_suffix(".lock")
        self._guarded = guarded
        self._known: dict[str, msgspec.Raw] = {}
        self._version: tuple[int, int, int] | None = None

    async def read(self) -> Mapping[str, msgspec.Raw]:
        """See `Records.read`."""
        return self._read()

    async def put(self, name: str, data: bytes) -> None:
        """See `Records.put`."""
        self._change(lambda records: records.update({name: msgspec.Raw(data)}))

    async def remove(self, name: str) -> bool:
        """See `Records.remove`."""
        was_there = name in self._read()
        self._change(lambda records: records.pop(name, None))
        return was_there

    def _read(self, *, anew: bool = False) -> dict[str, msgspec.Raw]:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._known, self._version = ({} if self._known else self._known), None
            if self._guarded and not anew and self._lock.exists():
                raise Unavailable(
                    f"{self._path.name} is gone from the gateway's folder, so nobody is let in; create keys "
                    f"again, or remove {self._lock.name} as well to begin anew",
                    code="keys_lost",
                ) from None
            return self._known
        except OSError as error:
            raise self._unreadable(error) from None
        version = (found.st_mtime_ns, found.st_ino, found.st_size)
        if version != self._version:
            try:
                self._known = msgspec.json.decode(self._path.read_bytes(), type=dict[str, msgspec.Raw])
            except (OSError, ValueError, msgspec.DecodeError) as error:
                raise self._unreadable(error) from None
            self._version = version
        return self._known

    def _unreadable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"the gateway can't read {self._path.name}, and lets nobody in until it can: {error}",
            code="keys_unreadable",
        )

    def _change(self, change: Change) -> None:
        try:
            self._change_locked(change)
        except OSError as error:
            raise Unavailable(f"{self._path} can't be written: {error.strerror}") from None

    def _change_locked(self, change: Change) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self._lock, "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            records = dict(self._read(anew=True))
            change(records)
            self._replace(msgspec.json.format(msgspec.json.encode(records), indent=1))

    def _replace(self, data: bytes) -> None:
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)


class ServerRecords:
    """Records in a hash on the server.

    A server that was flushed has none, as one that never had any. So that the two are not taken for each
    other, `marker`, a file of the gateway's folder, remembers that there were some.
    """

    def __init__(self, link: Link, key: str, marker: Path | None = None) -> None:
        self._link = link
        self._key = key
        self._marker = marker
        self._asking = asyncio.Lock()
        self._known: dict[str, bytes] = {}
        self._at = -FRESH_S
        self._why_not: ServerError | Unavailable | None = None
        """What the last question ended with; all who waited for its answer are told, none asks anew."""

    async def read(self) -> Mapping[str, bytes]:
        """See `Records.read`."""
        async with self._asking:
            if time.monotonic() - self._at >= FRESH_S:
                self._why_not = await self._ask()
                self._at = time.monotonic()
        if self._why_not is not None:
            raise self._why_not.with_traceback(None)
        return self._known

    async def _ask(self) -> ServerError | Unavailable | None:
        try:
            fields: list[bytes] = await self._link.command("HGETALL", self._key)
            found = {name.decode(): data for name, data in zip(fields[::2], fields[1::2], strict=True)}
            self._known = self._known if found == self._known else found
            self._check_there()
        except (ServerError, Unavailable) as error:
            return error
        return None

    async def put(self, name: str, data: bytes) -> None:
        """See `Records.put`."""
        self._remember()
        await self._link.command("HSET", self._key, name, data)
        self._at = -FRESH_S

    async def remove(self, name: str) -> bool:
        """See `Records.remove`."""
        self._at = -FRESH_S
        return bool(await self._link.command("HDEL", self._key, name))

    def _check_there(self) -> None:
        if self._marker is None:
            return
        if self._known:
            self._remember()
        elif self._marker.exists():
            raise Unavailable(
                "the server has lost the gateway's keys (a flush, or another server?), so nobody is let in; "
                f"create keys again, or remove {self._marker.name} from the gateway's folder to begin anew",
                code="keys_lost",
            )

    def _remember(self) -> None:
        if self._marker is not None and not self._marker.exists():
            self._marker.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._marker.touch(mode=0o600)
