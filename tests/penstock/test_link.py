"""What becomes of calls when connections break, fall silent, or are answered with errors."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from penstock.errors import PenstockError, ServerError, ServerFull, ServerUnavailable
from penstock.link import Link
from penstock.pool import REPLY_TIMEOUT_S, open_pool
from penstock.refusals import in_our_words
from tests.conftest import Server
from tests.recovery.proxy import Proxy

MakeServer = Callable[..., Server]
FOREVER = ("XREAD", "BLOCK", 60_000, "STREAMS", "nothing", "0-0")


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def link(proxy: Proxy) -> AsyncIterator[Link]:
    """Through the proxy, and impatient."""
    link = Link(proxy.url, reply_timeout_s=0.5)
    yield link
    await link.aclose()


async def warm_up(link: Link, connections: int = 8) -> None:
    """Leave so many idle connections in the pool."""
    await asyncio.gather(*(link.command("PING") for _ in range(connections)))


def test_nothing_is_repeated_and_silence_is_bounded() -> None:
    kwargs = open_pool("redis://host:1/0", REPLY_TIMEOUT_S).connection_kwargs
    assert kwargs["retry"].get_retries() == 0
    assert kwargs["socket_timeout"] == REPLY_TIMEOUT_S
    assert kwargs["socket_connect_timeout"] == 5
    assert kwargs["health_check_interval"] == 0
    assert kwargs["socket_keepalive"] is True
    assert kwargs["socket_keepalive_options"][socket.TCP_KEEPCNT] == 3
    assert "socket_keepalive" not in open_pool("unix:///s", REPLY_TIMEOUT_S).connection_kwargs


@pytest.mark.parametrize(("given", "held"), [("0.5", 0.5), ("60", REPLY_TIMEOUT_S), ("0", REPLY_TIMEOUT_S)])
def test_a_url_may_shorten_the_silence(given: str, held: float) -> None:
    pool = open_pool(f"redis://host:1/0?socket_timeout={given}", REPLY_TIMEOUT_S)
    assert pool.connection_kwargs["socket_timeout"] == held


def test_a_given_client_brings_no_timeouts_and_retries_of_its_own() -> None:
    kwargs = open_pool(Redis(socket_timeout=1, socket_keepalive=False), REPLY_TIMEOUT_S).connection_kwargs
    assert kwargs["socket_timeout"] == REPLY_TIMEOUT_S
    assert kwargs["retry"].get_retries() == 0
    assert kwargs["socket_keepalive"] is True


async def test_keepalive_reaches_the_socket(link: Link) -> None:
    async with link.connection() as connection:
        writer = connection._writer  # pyright: ignore - where redis-py keeps it
        assert writer is not None
        sock = writer.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


async def test_a_read_may_block_longer_than_a_reply_may_take(link: Link) -> None:
    assert await link.blocking("XREAD", "BLOCK", 800, "STREAMS", "nothing", "0-0") is None


async def test_a_blocking_read_has_an_end_all_the_same(proxy: Proxy, link: Link) -> None:
    await warm_up(link, 1)
    proxy.half_open()
    with pytest.raises(ServerUnavailable, match="a blocking read is not answered"):
        await link.blocking("XREAD", "BLOCK", 100, "STREAMS", "nothing", "0-0")


async def test_a_restart_costs_the_calls_under_way_and_none_after(make_server: MakeServer) -> None:
    server = make_server(tcp=True)
    link = Link(server.url)
    await warm_up(link)
    server.kill()
    server.start()  # all in one stretch: the loop does not see the connections end
    with pytest.raises(ServerUnavailable):
        await link.command("PING")
    for _ in range(10):
        await warm_up(link)
    await link.aclose()


async def test_one_timeout_and_not_one_for_each_idle_connection(proxy: Proxy, link: Link) -> None:
    await warm_up(link)
    proxy.half_open()
    with pytest.raises(ServerUnavailable, match="Timeout reading"):
        await link.command("PING")
    proxy.heal()  # the former connections stay dead
    for _ in range(10):
        await warm_up(link)


async def test_a_server_that_accepts_and_says_nothing(proxy: Proxy, link: Link) -> None:
    proxy.half_open()
    with pytest.raises(ServerUnavailable, match="nothing was sent"):
        await link.command("PING")


@pytest.mark.parametrize("idle", [1, 0], ids=["in a call", "at connecting"])
async def test_silence_ends_the_blocking_reads_beside_it(proxy: Proxy, link: Link, idle: int) -> None:
    reading = asyncio.create_task(link.blocking(*FOREVER))
    await asyncio.sleep(0.1)
    await warm_up(link, idle)
    proxy.half_open()
    with pytest.raises(ServerUnavailable):
        await link.command("PING")
    with pytest.raises(ServerUnavailable):
        await asyncio.wait_for(reading, 20)


async def test_a_cancelled_call_leaves_the_pool_alone(server: Server, redis_url: str) -> None:
    link = Link(redis_url)
    await warm_up(link)
    with server.client() as plain:
        reading = asyncio.create_task(link.blocking(*FOREVER))
        await asyncio.sleep(0.1)
        before = plain.info("stats")["total_connections_received"]
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        for _ in range(3):
            await warm_up(link)
        made = plain.info("stats")["total_connections_received"] - before
    assert made == 1, "the call's own connection, and no other"
    await link.aclose()


async def test_a_primary_that_becomes_a_replica_wakes_its_readers_for_now(make_server: MakeServer) -> None:
    server = make_server()
    link = Link(server.url)
    reading = asyncio.create_task(link.blocking(*FOREVER))
    with server.client() as plain:
        while not plain.info("clients")["blocked_clients"]:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.01)
        plain.replicaof("127.0.0.1", "1")
    with pytest.raises(ServerUnavailable, match="UNBLOCKED"):
        await reading
    await link.aclose()


async def test_a_demoted_server_is_left_for_the_one_that_its_name_leads_to(
    proxy: Proxy, link: Link, make_server: MakeServer
) -> None:
    former, latter = make_server(), make_server()
    with former.client() as plain:
        plain.replicaof("127.0.0.1", "1")
    proxy.switch(former.url)
    await warm_up(link)
    reading = asyncio.create_task(link.blocking(*FOREVER))
    await asyncio.sleep(0.1)
    proxy.switch(latter.url)
    with pytest.raises(ServerUnavailable, match="read only replica"):
        await link.command("SET", "x", 1)
    with pytest.raises(ServerUnavailable):
        await asyncio.wait_for(reading, 20)
    await asyncio.gather(*(link.command("SET", "x", 1) for _ in range(8)))


@pytest.mark.parametrize(
    ("reply", "ours"),
    [
        (ReadOnlyError("You can't write against a read only replica."), ServerUnavailable),
        (ResponseError("user_script:9: READONLY You can't write against …"), ServerUnavailable),
        (ResponseError("BUSY Valkey is busy running a script."), ServerUnavailable),
        (ResponseError("MISCONF Errors writing to the AOF file"), ServerUnavailable),
        (ResponseError("NOREPLICAS Not enough good replicas to write."), ServerUnavailable),
        (ResponseError("BUSYGROUP Consumer Group name already exists"), ServerError),
        (ResponseError("WRONGTYPE Operation against a key"), ServerError),
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), ServerFull),
        (ResponseError("user_script:9: OOM command not allowed when used …"), ServerFull),
    ],
)
def test_which_refusals_pass(reply: ResponseError, ours: type[PenstockError]) -> None:
    assert type(in_our_words(reply)) is ours
