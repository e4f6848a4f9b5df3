"""What `up`, `run` and `demo` share: a server that stays up, a consumer beside the work, an orderly stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Callable, Container, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

from penstock.errors import ServerError
from penstock.installed import refuse_clash
from penstock.keys import Keys
from penstock.link import Link
from penstock.messages import Heartbeat
from penstock.presence import alive_consumers
from penstock.server import check_server
from producer.consumer_process import Supervisor, any_alive, command, take_slot
from producer.embedded import EmbeddedServer
from producer.errors import UsageError
from producer.shipped import default_model
from producer.where import Where, open_server

Say = Callable[[str], None]

_WATCH_S: Final = 1.0


class Site:
    """A server that is in use, and the consumer that is to run beside it, if one is."""

    def __init__(self, url: str, server: EmbeddedServer | None, supervisor: Supervisor | None) -> None:
        self.url = url
        self.server = server
        self.supervisor = supervisor
        self.own = ""
        """How the name of its consumer begins, where that is known."""


@contextmanager
def open_site(
    where: Where, consumer: Sequence[str] | None, say: Say, *, share: bool = False, log: str | None = None
) -> Generator[Site]:
    """Use a server, the embedded one if none is named, and prepare a consumer for it.

    Args:
        consumer: the consumer's flags; None for no consumer.
        share: prepare none where one runs on the data folder already.
        log: name of the file in the data folder that takes the consumer's output; None for the terminal.

    Raises:
        ServerError: the embedded server does not start.
        InstallationError: another distribution is in the way.
    """
    refuse_clash()
    with open_server(where) as server:
        if server is None:
            assert where.redis is not None
            own = consumer is not None
            yield Site(
                where.redis, None, Supervisor(command(where.redis, consumer or ()), say) if own else None
            )
        elif consumer is None or (share and any_alive(server.folder)):
            yield Site(server.url, server, None)
        else:
            slot = take_slot(server.folder)
            try:
                flags = consumer if "--name" in consumer else ("--name", slot.name, *consumer)
                place = server.folder / log if log is not None else None
                site = Site(server.url, server, Supervisor(command(server.url, flags), say, slot, place))
                named = any(flag.split("=")[0] == "--name" for flag in consumer)
                site.own = "" if named else f"{slot.name}."
                yield site
            finally:
                slot.close()


class Stop:
    """Ctrl-C and SIGTERM: the first asks for an orderly stop, the next one insists."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()

    def press(self) -> None:
        """Ask, or insist."""
        if self.asked.is_set():
            self.insisted.set()
        self.asked.set()

    @contextmanager
    def listening(self) -> Generator[Stop]:
        """Take the signals over for a while."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self.press)
        try:
            yield self
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


async def first_of(*work: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> None:
    """Return when one of them has ended, raising what it raised; those given as coroutines are ended too."""
    own = [asyncio.ensure_future(one) for one in work if not isinstance(one, asyncio.Task)]
    tasks = [*own, *(one for one in work if isinstance(one, asyncio.Task))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)


@asynccontextmanager
async def consumer_beside(site: Site, stop: Stop, say: Say) -> AsyncGenerator[asyncio.Task[int] | None]:
    """Keep server and consumer running while the context lasts; drain the consumer at its end."""
    upkeep = asyncio.create_task(_keep_up(site.server, say)) if site.server is not None else None
    consumer = asyncio.create_task(site.supervisor.run()) if site.supervisor is not None else None
    try:
        yield consumer
    finally:
        if consumer is not None and site.supervisor is not None:
            site.supervisor.drain()
            # What it raises is for the body, which awaits it too; here it only has to end.
            with suppress(Exception):
                await first_of(consumer, stop.insisted.wait())
            site.supervisor.kill()
            await asyncio.gather(consumer, return_exceptions=True)
        if upkeep is not None:
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)


async def require_suitable(url: str, say: Say) -> str:
    """Check the server, tell its warnings, and give its kind and version.

    Raises:
        ServerUnsuitable: it can't keep what penstock promises.
        ServerUnavailable: it can't be reached.
    """
    async with Redis.from_url(url) as redis:
        report = await check_server(redis)
    report.require_suitable()
    for finding in report.findings:
        say(f"warning: {finding.words}")
    return f"{report.kind.capitalize()} {report.version}"


async def refuse_other_model(url: str, model: str) -> None:
    """Make sure that rows meant for a model are not answered by another.

    Raises:
        UsageError: a consumer that is alive serves another model.
    """
    name = _name_of(model)
    for consumer, beat in (await consumers_of(url)).items():
        if beat.model != name:
            raise UsageError(
                f"--model is {name}, and consumer {consumer} serves {beat.model} on this server; "
                "leave --model out to use that, or name another server or data folder"
            )


def _name_of(model: str) -> str:
    """The model's name as consumers say it in their heartbeats."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


async def consumers_of(url: str) -> dict[str, Heartbeat]:
    """The consumers that are alive on a server."""
    link = Link(url)
    try:
        return await alive_consumers(link, Keys())
    finally:
        await link.aclose()


async def until_ready(url: str, own: str = "", earlier: Container[str] = ()) -> str:
    """Wait until a consumer is ready, named with `own` first and not among the `earlier`; its model."""
    link = Link(url)
    try:
        while True:
            with suppress(ServerError):
                for name, beat in (await alive_consumers(link, Keys())).items():
                    if beat.phase == "ready" and name.startswith(own) and name not in earlier:
                        return beat.model
            await asyncio.sleep(0.2)
    finally:
        await link.aclose()


def model_flags(model: str | None) -> tuple[str, ...]:
    """The consumer's flags for a model, the tiny one by default.

    Raises:
        UsageError: the text names a folder, and there is none.
    """
    if not model:
        return ("--model", str(default_model()))
    if model.startswith((".", "/", "~")):
        folder = Path(model).expanduser().resolve()
        if not (folder / "config.json").is_file():
            raise UsageError(f"{folder} is not a model's folder: it has no config.json")
        return ("--model", str(folder))
    return ("--model", model)


async def _keep_up(server: EmbeddedServer, say: Say) -> None:
    """Start the embedded server again should it die."""
    while True:
        await asyncio.sleep(_WATCH_S)
        try:
            if await asyncio.to_thread(server.ensure):
                say("the server had died; it runs again, with its data")
        except ServerError as error:
            say(f"the server does not start: {error}")
            await asyncio.sleep(10 * _WATCH_S)
