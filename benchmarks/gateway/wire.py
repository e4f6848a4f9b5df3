"""HTTP/1.1 by hand: a client that costs next to nothing, so that what is measured is the other side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit


class Connection:
    """One connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host

    @classmethod
    async def open(cls, url: str) -> Connection:
        """Connect to a gateway."""
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=2**20)
        return cls(reader, writer, parts.netloc)

    async def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The body of a reply that is not streamed."""
        length = await self._send(method, path, body)
        assert length is not None, f"{path} streams its reply"
        return await self._reader.readexactly(length)

    async def lines(self, method: str, path: str, body: bytes = b"") -> AsyncGenerator[bytes]:
        """The lines of a reply that is streamed."""
        length = await self._send(method, path, body)
        assert length is None, f"{path} does not stream its reply"
        rest = b""
        while size := int(await self._reader.readline(), 16):
            rest += await self._reader.readexactly(size)
            await self._reader.readline()
            *whole, rest = rest.split(b"\n")
            for line in whole:
                yield line
        await self._reader.readline()

    def close(self) -> None:
        """End the connection."""
        self._writer.close()

    async def _send(self, method: str, path: str, body: bytes) -> int | None:
        """The length of the reply's body; None where it is streamed."""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._writer.write(head.encode() + b"\r\n" + body)
        status = int((await self._reader.readline()).split(b" ")[1])
        length: int | None = None
        while (line := await self._reader.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if status >= 400:
            text = b"" if length is None else await self._reader.readexactly(length)
            raise RuntimeError(f"{method} {path}: {status} {text.decode()}")
        return length
