"""Trouble between a consumer or a client and its server: survived, told once, and nobody's tokens changed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from penstock.client import Client
from penstock.errors import JobLost, ServerFull, ServerUnavailable
from penstock.keys import GROUP
from producer.answers import Output, RunState
from producer.run import Plan, Run
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.consumer.scripted_engine import logged
from tests.producer.test_run import Words
from tests.recovery.crowd import BEGINS, ENDS, LANE, NUM_TOKENS, Crowd, LoggedConsumer, until
from tests.recovery.proxy import Proxy

CONSUMERS_SCRIPTS = ("claim", "renew", "publish", "commit", "beat")


@pytest.fixture
def start() -> Iterator[Callable[..., LoggedConsumer]]:
    """Start consumer processes with the scripted engine; none outlives the test."""
    started: list[LoggedConsumer] = []

    def start(url: str, model: Path, **settings: Any) -> LoggedConsumer:
        argv = ("-m", "tests.recovery.scripted_consumer", url, str(model))
        started.append(LoggedConsumer(*argv, json.dumps({"max_num_seqs": 8, **settings})))
        return started[-1]

    yield start
    for process in started:
        process.clean_up()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Slow enough that trouble comes in mid-run."""
    return save_model(tmp_path / "scripted", {"step_s": 0.01, "log": str(tmp_path / "requests.log")})


@pytest.fixture
def proxy(server: Server, redis_url: str) -> Iterator[Proxy]:
    """Stands before the session's server, which is empty."""
    with Proxy(redis_url) as proxy:
        yield proxy


@pytest_asyncio.fixture
async def crowd(proxy: Proxy) -> AsyncIterator[Crowd]:
    """Behind the proxy as well."""
    async with Client(f"{proxy.url}?socket_timeout=1") as client:
        crowd = Crowd(client)
        yield crowd
        await crowd.abandon()


@pytest.mark.parametrize("name", ["claim", "renew", "publish", "commit"])
@pytest.mark.parametrize("fate", ["drop", "cut"])
async def test_a_lost_reply(
    server: Server,
    proxy: Proxy,
    crowd: Crowd,
    model: Path,
    start: Callable[..., LoggedConsumer],
    name: str,
    fate: str,
) -> None:
    """The call was carried out, and the consumer can't know: repeats change nothing, and nothing is lost."""
    lose = proxy.drop_reply if fate == "drop" else proxy.cut_reply
    rule = lose(name, skip=0 if name in ("claim", "renew") else 1)
    await crowd.join(16, num_tokens=80 if name == "renew" else NUM_TOKENS)  # many renewals long
    consumer = start(proxy.url, model, lease_s=0.9 if name == "renew" else 30)
    await crowd.check(server)
    await until(rule.done.is_set, "the reply was never asked for")
    await until(lambda: consumer.said(ENDS), "the end of the trouble is not told")
    runs = [request_id for request_id, _ in logged(model.parent / "requests.log", "request")]
    if name == "claim":
        assert any(run.endswith("/2") for run in runs), (
            "what was claimed unheard is given back, and not left to its lease"
        )
    elif name != "renew":
        assert (consumer.said(BEGINS), consumer.said(ENDS)) == (1, 1)
        assert len(runs) == 16, "no job ran twice"


async def test_a_lost_enqueue_reply_is_told_and_the_job_not_repeated(server: Server, proxy: Proxy) -> None:
    async with Client(proxy.url) as client:
        await client.submit("x")
        proxy.drop_reply("enqueue")
        with pytest.raises(ServerUnavailable, match="may or may not have been carried out"):
            await client.submit("y")
        with server.client() as plain:
            assert plain.xlen(LANE) == 2


async def test_a_flush_in_mid_run(
    server: Server, proxy: Proxy, crowd: Crowd, model: Path, start: Callable[..., LoggedConsumer]
) -> None:
    await crowd.join(8, "short", num_tokens=2)
    await crowd.join(8, "long", num_tokens=400)
    consumer = start(proxy.url, model, lease_s=0.9)
    await until(lambda: crowd.num_ended == 8, "the short jobs")
    with server.client() as plain:
        plain.flushall()
        lost = [task for task in crowd.following.values() if not task.done()]
        async with asyncio.timeout(20):
            outcomes = await asyncio.gather(*lost, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [JobLost] * 8
        crowd.following.clear()
        await crowd.join(8, "after")
        await crowd.check(server)
        assert [group["name"] for group in plain.xinfo_groups(LANE)] == [GROUP.encode()]
    aborted = [ids for ids, _ in logged(model.parent / "requests.log", "abort")]
    assert len({run for ids in aborted for run in ids}) == 8, "nobody computes what nobody can read"
    assert consumer.process.poll() is None


async def test_a_restart_that_loads_for_a_while(
    make_server: Callable[..., Server], model: Path, start: Callable[..., LoggedConsumer]
) -> None:
    slowly = ("--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024")
    server = make_server(*slowly, "--appendfsync", "always", aof=True)
    with Proxy(server.url) as proxy, server.client() as plain:
        for n in range(150):
            plain.set(f"ballast {n}", bytes(range(256)) * 16)
        plain.bgrewriteaof()
        await until(lambda: not plain.info("persistence")["aof_rewrite_in_progress"], "the rewrite")
        async with Client(f"{proxy.url}?socket_timeout=1") as client:
            crowd = Crowd(client)
            await crowd.join(24)
            consumer = start(proxy.url, model, lease_s=3)
            await until(lambda: crowd.num_ended > 2, "the first jobs")
            server.kill()
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            await until(lambda: "LOADING" in proxy.errors, "nobody met the server while it was loading")
            await starting
            await crowd.check(server)
            await until(lambda: consumer.said(ENDS), "the end of the trouble is not told")
            assert consumer.said(BEGINS) == consumer.said(ENDS)


async def test_failover_to_a_replica(
    make_server: Callable[..., Server], model: Path, start: Callable[..., LoggedConsumer]
) -> None:
    former = make_server("--repl-diskless-sync-delay", "0", tcp=True)
    latter = make_server("--replicaof", "127.0.0.1", port_of(former), tcp=True)
    with Proxy(former.url) as proxy, former.client() as old, latter.client() as new:
        await until(lambda: new.info("replication")["master_link_status"] == "up", "the replica")
        async with Client(f"{proxy.url}?socket_timeout=1") as client:
            crowd = Crowd(client)
            await crowd.join(32)
            consumer = start(proxy.url, model, lease_s=3)
            await until(lambda: crowd.num_ended > 2, "the first jobs")
            old.set("everything before this", "is on the replica")
            assert old.wait(1, 10_000) == 1
            new.replicaof("NO", "ONE")
            old.replicaof("127.0.0.1", port_of(latter))
            await until(lambda: "READONLY" in proxy.errors, "nobody met the former primary")
            await until(lambda: consumer.said(BEGINS), "the trouble is not told")
            proxy.switch(latter.url)
            await crowd.check(latter)
            await until(lambda: consumer.said(ENDS) == consumer.said(BEGINS), "its end is not told")
            with contextlib.suppress(ServerUnavailable):  # over a connection that idled since before
                await client.submit("refused by the former primary")
            await client.submit("and on it goes")


def port_of(server: Server) -> str:
    return server.url.rsplit(":", 1)[1].removesuffix("/0")


async def test_a_full_server(
    make_server: Callable[..., Server], model: Path, start: Callable[..., LoggedConsumer]
) -> None:
    server = make_server()
    with Proxy(server.url) as proxy, server.client() as plain:
        async with Client(proxy.url) as client:
            crowd = Crowd(client)
            await crowd.join(24)
            consumer = start(proxy.url, model)
            await until(lambda: crowd.num_ended > 2, "the first jobs")
            plain.config_set("maxmemory", "1mb")
            with pytest.raises(ServerFull):
                await client.submit("one too many")
            await crowd.check(server)
            plain.config_set("maxmemory", "0")
            await crowd.join(8, "after")
            await crowd.check(server)
            assert consumer.process.poll() is None


async def test_error_replies(
    server: Server, proxy: Proxy, crowd: Crowd, model: Path, start: Callable[..., LoggedConsumer]
) -> None:
    consumer = start(proxy.url, model, lease_s=1.5)
    for error in (
        "LOADING Valkey is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "BUSY Valkey is busy running a script.",
        "MISCONF Errors writing to the AOF file: No space left on device",
        "OOM command not allowed when used memory > 'maxmemory'.",
    ):
        told = consumer.said(BEGINS)
        rule = proxy.inject(error, *CONSUMERS_SCRIPTS, count=5)
        await crowd.join(8, error.split()[0])
        await crowd.check(server)
        await until(rule.done.is_set, error)
        await until(lambda: consumer.said(ENDS) == consumer.said(BEGINS), f"the end of {error}")
        assert consumer.said(BEGINS) > told, error
    assert consumer.process.poll() is None


async def test_late_replies(
    server: Server, proxy: Proxy, crowd: Crowd, model: Path, start: Callable[..., LoggedConsumer]
) -> None:
    await crowd.join(4, "first")
    consumer = start(proxy.url, model)
    await crowd.check(server)
    proxy.latency_s = 0.3
    await crowd.join(16, "late")
    await crowd.check(server)
    assert not consumer.said(BEGINS), "slow is not broken"


async def test_a_half_open_connection(
    server: Server, proxy: Proxy, crowd: Crowd, model: Path, start: Callable[..., LoggedConsumer]
) -> None:
    """Nothing says that the other end is gone: silence has to be noticed, in a third of the lease."""
    consumer = start(proxy.url, model, lease_s=3)
    await crowd.join(32)
    await until(lambda: crowd.num_ended > 2, "the first jobs")
    proxy.half_open()
    await until(lambda: consumer.said(BEGINS + "Timeout reading"), "the silence is not told")
    proxy.heal()
    await crowd.check(server)
    await until(lambda: consumer.said(ENDS) == consumer.said(BEGINS), "the end of the silence is not told")
    # One call each of events, leases and claims may have been under way, each with a time limit of its own.
    assert consumer.said(BEGINS) <= 3


async def test_a_closed_port(
    server: Server, proxy: Proxy, crowd: Crowd, model: Path, start: Callable[..., LoggedConsumer]
) -> None:
    consumer = start(proxy.url, model, lease_s=3)
    await crowd.join(32)
    await until(lambda: crowd.num_ended > 2, "the first jobs")
    proxy.refuse()
    await until(lambda: consumer.said(BEGINS), "the trouble is not told")
    proxy.listen()
    await crowd.check(server)
    await until(lambda: consumer.said(ENDS), "the end of the trouble is not told")
    assert (consumer.said(BEGINS), consumer.said(ENDS)) == (1, 1)


async def test_a_dataset_run_in_all_of_it(
    server: Server, proxy: Proxy, model: Path, tmp_path: Path, start: Callable[..., LoggedConsumer]
) -> None:
    plan = Plan(tmp_path / "in.jsonl", tmp_path / "out.jsonl", 32, "standard")
    row = {"sampling_params": {"max_tokens": 4}}
    plan.input.write_text("".join(json.dumps({"prompt": f"row {n}", **row}) + "\n" for n in range(200)))
    start(proxy.url, model, lease_s=1.5)
    proxy.drop_reply("enqueue", skip=1)
    proxy.cut_reply("XREAD", skip=40)
    proxy.inject("READONLY You can't write against a read only replica.", "enqueue", "XTRIM", count=2)
    with Output(plan.output) as output:
        state = RunState(input="", batch="", lane=plan.lane)
        running = asyncio.create_task(
            Run(plan, f"{proxy.url}?socket_timeout=1", output, state, 200, Words()).finish()
        )
        for trouble, end in ((proxy.refuse, proxy.listen), (proxy.half_open, proxy.heal)):
            answers = output.tally.rows
            await until(lambda answers=answers: output.tally.rows > answers + 30, "answers")
            trouble()
            await asyncio.sleep(0.2)
            end()
        await asyncio.wait_for(running, 40)
        assert output.tally.answered == 200
    rows = [json.loads(line)["row"] for line in plan.output.read_text().splitlines()]
    assert sorted(rows) == list(range(200))
    with server.client() as plain:
        assert plain.xlen(LANE) == 0
