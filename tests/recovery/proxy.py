"""A TCP proxy between clients and a real server, that makes trouble when it is told to.

It speaks just enough RESP2 to know whole commands and whole replies, runs in a thread of its own, and is
steered by plain method calls from any other. Nothing happens by chance or by time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from penstock import scripts

SCRIPTS = {
    known.encode(): script.name
    for script in vars(scripts).values()
    if isinstance(script, scripts.Script)
    for known in (script.sha, script.source)
}
"""Names of our scripts, by digest and by source."""

Fate = Literal["drop", "cut"]


@dataclass
class Rule:
    """What is to become of some calls: of those with one of these names, `count` after the first `skip`."""

    names: tuple[str, ...]
    count: int
    """0 for all."""
    skip: int = 0
    fate: Fate | None = None
    """`drop`: carried out, the connection closed before the reply; `cut`: in the middle of it."""
    error: bytes = b""
    """An error reply, given instead of asking the server."""
    hits: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    """Set when `count` calls have met it."""

    def takes(self, name: str) -> bool:
        """Whether this call meets it; counts it, if so."""
        if self.done.is_set() or name not in self.names:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.hits += 1
        if self.hits == self.count:
            self.done.set()
        return True


def name_of(command: list[bytes]) -> str:
    """A script's own name, in lower case; any other command's, in upper case."""
    name = command[0].upper()
    if name in (b"EVALSHA", b"EVAL"):
        return SCRIPTS.get(command[1], name.decode())
    return name.decode()


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, list[bytes]]:
    """Read one whole command or reply: its bytes, and where it is a flat array of strings, those."""
    head = await reader.readuntil(b"\r\n")
    kind, number = head[:1], head[1:-2]
    if kind == b"$" and int(number) >= 0:
        body = await reader.readexactly(int(number) + 2)
        return head + body, [body[:-2]]
    parts, items = [head], list[bytes]()
    for _ in range(int(number) if kind == b"*" else 0):
        part, inner = await read_frame(reader)
        parts.append(part)
        items += inner
    return b"".join(parts), items


class _Traffic:
    """What is under way on one connection."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.calls: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        """Name, and the error reply that it is given without asking the server."""
        self.replies: asyncio.Queue[bytes] = asyncio.Queue()
        """Those of the server; an empty one is the connection's end."""


class Proxy:
    """Use as a context manager; `url` stays the same whatever becomes of the server behind it."""

    def __init__(self, target: str) -> None:
        """Stand before the server at the URL `target`."""
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._rules: list[Rule] = []
        self._deaf = False
        self._generation = 0  # connections made before the last half-open spell stay deaf
        self._port = 0
        self.latency_s = 0.0
        """Time by which each reply is held back."""
        self.errors: set[str] = set()
        """Codes of the error replies that the server has given so far."""

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://127.0.0.1:{self._port}/0"

    # Steering

    def drop_reply(self, name: str, skip: int = 0) -> Rule:
        """Have one call carried out by the server, and close its connection before the reply."""
        return self._add(Rule((name,), 1, skip, fate="drop"))

    def cut_reply(self, name: str, skip: int = 0) -> Rule:
        """Close one call's connection in the middle of the reply."""
        return self._add(Rule((name,), 1, skip, fate="cut"))

    def inject(self, error: str, *names: str, count: int = 0) -> Rule:
        """Answer calls with an error, for example `LOADING …`: `count` of them, or all until `cease`."""
        return self._add(Rule(names, count, error=f"-{error}\r\n".encode()))

    def cease(self) -> None:
        """Forget every rule, and end the latency."""
        self._rules = []
        self.latency_s = 0.0

    def switch(self, target: str) -> None:
        """Lead new connections to another server, as a name does in DNS; those to the former one stay."""
        self._target = target

    def half_open(self) -> None:
        """Swallow everything and answer nothing, on connections that are there and on new ones."""
        self._generation += 1
        self._deaf = True

    def heal(self) -> None:
        """End of half-open: new connections are served. Those from before stay as they are, open and deaf."""
        self._deaf = False

    def refuse(self) -> None:
        """Close every connection and the port."""
        self._run(self._shut())

    def listen(self) -> None:
        """Serve, again after `refuse`."""
        self._run(self._open())

    def _add(self, rule: Rule) -> Rule:
        self._rules = [*self._rules, rule]
        return rule

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    # Serving

    def __enter__(self) -> Self:
        self._thread.start()
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._close_all()

    async def _end(self) -> None:
        await self._shut()
        # Connections may still be on their way through asyncio; `_accept` closes them.
        while rest := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(rest)

    async def _close_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if self._server is None or task is None:
            writer.transport.abort()
            return
        self._tasks.add(task)
        self._writers.add(writer)
        # A cancelled handler would be reported as an error of the server.
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await self._serve(reader, writer)
        self._tasks.discard(task)
        self._writers.discard(writer)
        writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.startswith("unix://"):
            return await asyncio.open_unix_connection(self._target.removeprefix("unix://"))
        host, _, port = self._target.removeprefix("redis://").partition("/")[0].partition(":")
        return await asyncio.open_connection(host, int(port))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._deaf:
            await reader.read(-1)
            return
        upstream, to_server = await self._connect()
        traffic = _Traffic(self._generation)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._ask(reader, to_server, traffic))
                tasks.create_task(self._answer(writer, traffic))
                tasks.create_task(self._listen_to(upstream, traffic))
        except* (OSError, EOFError):
            pass
        finally:
            to_server.transport.abort()

    async def _ask(
        self, reader: asyncio.StreamReader, to_server: asyncio.StreamWriter, traffic: _Traffic
    ) -> None:
        """Pass commands on, and note in which order their replies are due."""
        while True:
            frame, command = await read_frame(reader)
            if traffic.generation != self._generation:
                continue
            name = name_of(command)
            error = next((rule.error for rule in self._rules if rule.error and rule.takes(name)), b"")
            if not error:
                to_server.write(frame)
                await to_server.drain()
            traffic.calls.put_nowait((name, error))

    async def _listen_to(self, upstream: asyncio.StreamReader, traffic: _Traffic) -> None:
        """Collect replies. The server's end is one as well: it shows even where no reply is due."""
        with contextlib.suppress(OSError, EOFError):
            while True:
                traffic.replies.put_nowait((await read_frame(upstream))[0])
        traffic.replies.put_nowait(b"")
        traffic.calls.put_nowait(("", b""))

    async def _answer(self, writer: asyncio.StreamWriter, traffic: _Traffic) -> None:
        """Pass replies on, each in its turn.

        Raises:
            EOFError: the connection is to end here.
        """
        while True:
            name, reply = await traffic.calls.get()
            reply = reply or await traffic.replies.get()
            await asyncio.sleep(self.latency_s)
            if traffic.generation != self._generation:
                await asyncio.Event().wait()
            if reply.startswith(b"-"):
                self.errors.add(reply[1:].split()[0].decode())
            # A script that the server does not know yet was not carried out: that reply is not the one meant.
            meant = [rule for rule in self._rules if rule.fate and not reply.startswith(b"-NOSCRIPT")]
            fate = next((rule.fate for rule in meant if rule.takes(name)), None)
            if not reply or fate == "drop":
                raise EOFError
            writer.write(reply[: len(reply) // 2] if fate == "cut" else reply)
            await writer.drain()
            if fate == "cut":
                raise EOFError
