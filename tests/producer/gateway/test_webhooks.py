"""Webhooks: signed as Standard Webhooks wants it, retried, given up, and never to where they must not go."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct
from redis import Redis
from standardwebhooks import Webhook as Verifier

from penstock.client import Client
from penstock.keys import Keys
from penstock.link import Link
from producer.gateway.records import FileRecords
from producer.gateway.settings import GatewaySettings
from producer.gateway.webhooks import deliveries as deliveries_module
from producer.gateway.webhooks import events as events_module
from producer.gateway.webhooks import sender as sender_module
from producer.gateway.webhooks.addresses import AddressRefused, checked_address, is_public
from producer.gateway.webhooks.deliveries import Deliveries, Delivery
from producer.gateway.webhooks.endpoints import EVENT_TYPES, Webhook, Webhooks, webhook_keys
from producer.gateway.webhooks.events import Events
from producer.gateway.webhooks.sender import NotDelivered, Sender
from tests.producer.gateway.running import serving
from tests.producer.gateway.tenants import add_key

WEBHOOKS = "/v1/penstock/webhooks"
JOBS = "/v1/penstock/jobs"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others left behind is looked for more often than once a second."""
    monkeypatch.setattr(events_module, "POLL_S", 0.05)


class Receiver:
    """A tenant's server: keeps what it is sent, and answers as it is told."""

    def __init__(self) -> None:
        self.url = ""
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers = [b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"]
        self.came = asyncio.Condition()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        headers = {name.lower(): value for name, value in headers.items()}
        body = await reader.readexactly(int(headers["content-length"]))
        async with self.came:
            writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
            await writer.drain()
            writer.close()
            self.got.append((headers, body))
            self.came.notify_all()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20), self.came:
            await self.came.wait_for(lambda: len(self.got) >= count)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.answer, "127.0.0.1", 0)
    receiver.url = f"http://localhost:{server.sockets[0].getsockname()[1]}/hooks?x=1"
    try:
        yield receiver
    finally:
        server.close()


def status(code: int) -> bytes:
    return f"HTTP/1.1 {code} Whatever\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()


def event_of(received: tuple[dict[str, str], bytes], secret: str) -> dict[str, Any]:
    """Checked by the reference implementation."""
    headers, body = received
    Verifier(secret).verify(body, headers)
    return json.loads(body)


@pytest.mark.usefixtures("consumer")
async def test_the_end_of_a_job_is_told_to_its_tenant(redis_url: str, tmp_path: Path) -> None:
    alice, _ = await add_key(tmp_path, "alice")
    bob, _ = await add_key(tmp_path, "bob")
    async with (
        receiving() as receiver,
        serving(redis_url, tmp_path, private_webhooks=True) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        made = await client.post(WEBHOOKS, json={"url": receiver.url}, headers=alice)
        assert (made.status_code, made.json()["events"]) == (201, list(EVENT_TYPES))
        secret = made.json()["secret"]
        other = await client.post(
            WEBHOOKS, json={"url": receiver.url, "events": ["batch.failed"]}, headers=bob
        )
        job = {"prompt": "x", "sampling_params": {"max_tokens": 3}}
        silent = (await client.post(JOBS, json=job, headers=alice)).json()["id"]
        await client.post(JOBS, json={**job, "webhook": True}, headers=bob)  # bob asked for batches alone
        told = (await client.post(JOBS, json={**job, "webhook": True}, headers=alice)).json()["id"]
        failing = {"prompt": "x", "sampling_params": {"max_tokens": 3}, "model": "another", "webhook": True}
        failed = (await client.post(JOBS, json=failing, headers=alice)).json()["id"]
        await receiver.until(2)
        await client.get(f"{JOBS}/{silent}", params={"wait": 20}, headers=alice)
        events = [event_of(one, secret) for one in receiver.got]
        assert {(event["type"], event["data"]["id"]) for event in events} == {
            ("job.completed", told),
            ("job.failed", failed),
        }
        for event, (headers, _) in zip(events, receiver.got, strict=True):
            assert set(event) == {"id", "object", "type", "created_at", "data"}
            assert (event["object"], event["id"]) == ("event", headers["webhook-id"])
            assert headers["content-type"] == "application/json"
            assert headers["host"] == receiver.url.split("/")[2]
        listed = (await client.get(WEBHOOKS, headers=alice)).json()["data"]
        assert [one["id"] for one in listed] == [made.json()["id"]]
        assert "secret" not in listed[0]
        foreign = await client.delete(f"{WEBHOOKS}/{other.json()['id']}", headers=alice)
        assert foreign.status_code == 404
        assert (await client.delete(f"{WEBHOOKS}/{listed[0]['id']}", headers=alice)).json()["deleted"] is True
    with Redis.from_url(redis_url) as redis:
        keys = webhook_keys(GatewaySettings(redis=redis_url, folder=tmp_path))
        assert keys.webhooks
        assert redis.exists(keys.gateway_due, keys.gateway_watched) == 0


class EndedBatch(Struct, frozen=True):
    """What a batch's end is told of."""

    id: str
    status: str


@asynccontextmanager
async def telling(redis_url: str, folder: Path, **sender: Any) -> AsyncIterator[tuple[Events, Webhooks]]:
    link = Link(redis_url)
    webhooks = Webhooks(FileRecords(folder / "webhooks.json"))
    try:
        async with (
            Client(redis_url) as client,
            Sender(**{"private": True, **sender}) as sending,
            Events(client, link, Keys(), webhooks, sending) as events,
        ):
            yield events, webhooks
    finally:
        await link.aclose()


async def test_it_is_tried_again_with_the_same_id_and_a_signature_of_its_own(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries_module, "PAUSES_S", (0.01,) * 9)
    async with receiving() as receiver, telling(redis_url, tmp_path) as (events, webhooks):
        hook = await webhooks.create("alice", receiver.url, None)
        redirect = (
            b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        receiver.answers = [status(500), redirect, b"nonsense", status(200)]
        for _ in range(2):  # as by two gateways that both saw the end
            await events.batch_ended("alice", EndedBatch("batch_1", "completed"))
        await receiver.until(4)
        assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
        for one in receiver.got:
            event = event_of(one, hook.secret)
            assert (event["type"], event["data"]) == ("batch.completed", {"id": "batch_1"})
        with Redis.from_url(redis_url) as redis:
            async with asyncio.timeout(10):
                while redis.zcard(Keys().gateway_due):  # noqa: ASYNC110 - it is asked, it tells nobody
                    await asyncio.sleep(0.02)
        assert len(receiver.got) == 4


async def test_it_is_given_up_after_a_day(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 86400 <= sum(deliveries_module.PAUSES_S) < deliveries_module.KEPT_S
    monkeypatch.setattr(deliveries_module, "PAUSES_S", (0.01, 0.01))
    async with receiving() as receiver, telling(redis_url, tmp_path) as (events, webhooks):
        receiver.answers = [status(503)]
        await webhooks.create("alice", receiver.url, ["batch.failed"])
        await events.batch_ended("alice", EndedBatch("batch_1", "failed"))
        await events.batch_ended("alice", EndedBatch("batch_2", "completed"))  # not asked for
        link = Link(redis_url)
        async with asyncio.timeout(10):
            while not (dead := await Deliveries(link, Keys()).list(given_up=True)):  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.02)
        assert (dead[0].event_type, dead[0].attempts, dead[0].error) == ("batch.failed", 3, "it answered 503")
        assert await Deliveries(link, Keys()).list(given_up=False) == []
        receiver.answers = [status(410)]  # gone for good: not tried again
        await events.batch_ended("alice", EndedBatch("batch_3", "failed"))
        async with asyncio.timeout(10):
            while len(dead := await Deliveries(link, Keys()).list(given_up=True)) < 2:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.02)
        assert (dead[0].attempts, dead[0].error) == (1, "it answered 410")
        await link.aclose()
        assert len(receiver.got) == 4


async def test_what_a_dead_gateway_had_taken_is_taken_by_another(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliveries and watched jobs alike."""
    monkeypatch.setattr(deliveries_module, "LEASE_S", 0.05)
    link, keys = Link(redis_url), Keys()
    async with Client(redis_url) as client:
        job = await client.submit("x")
        await client.cancel(job)
    await link.command("ZADD", keys.gateway_watched, 0, f"alice {job}")
    delivery = Delivery(
        id="evt_1.wh", event_id="evt_1", event_type="job.failed", webhook_id="", payload="{}", created_at=0
    )
    async with receiving() as receiver:
        webhooks = Webhooks(FileRecords(tmp_path / "webhooks.json"))
        hook = await webhooks.create("alice", receiver.url, None)
        named = Delivery(
            **{name: getattr(delivery, name) for name in delivery.__struct_fields__} | {"webhook_id": hook.id}
        )
        await Deliveries(link, keys).add(named)
        assert await Deliveries(link, keys).take(5) == [named]  # and dies
        monkeypatch.setattr(deliveries_module, "LEASE_S", 60.0)
        await asyncio.sleep(0.1)  # past its lease
        async with telling(redis_url, tmp_path):
            await receiver.until(2)
        ids = {headers["webhook-id"] for headers, _ in receiver.got}
        assert "evt_1" in ids
        assert len(ids) == 2
    await link.aclose()


def test_a_folder_of_webhooks_has_one_name(tmp_path: Path) -> None:
    def named(folder: Path, **settings: Any) -> str:
        return webhook_keys(GatewaySettings(redis="redis://h", folder=folder, **settings)).webhooks

    assert named(tmp_path / "a") == named(tmp_path / "a") != named(tmp_path / "b")
    assert named(tmp_path / "a", keys="redis") == ""
    (tmp_path / "file").touch()
    assert named(tmp_path / "file" / "c") == named(tmp_path / "file" / "c") != ""  # where none can be kept


@pytest.mark.usefixtures("consumer")
async def test_gateways_with_webhooks_in_different_folders_leave_each_others_alone(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to be told of a tenant's job, and tried again, is told by the gateway that knows to whom."""
    monkeypatch.setattr(deliveries_module, "PAUSES_S", (0.2,) * 9)
    async with (
        receiving() as receiver,
        serving(redis_url, tmp_path / "one", private_webhooks=True),
        serving(redis_url, tmp_path / "two", private_webhooks=True) as url,
        serving(redis_url, tmp_path / "three", private_webhooks=True),
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        assert (await client.post(WEBHOOKS, json={"url": receiver.url})).status_code == 201
        receiver.answers = [status(500)] * 4 + [status(200)]
        job = (await client.post(JOBS, json={"prompt": "x", "webhook": True})).json()["id"]
        await receiver.until(5)
    assert {json.loads(body)["data"]["id"] for _, body in receiver.got} == {job}


PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"),
    *("100.100.100.200", "168.63.129.16", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1"),
    *("::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1", "2001:db8::1", "fec0::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_where_no_webhook_goes(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_addresses_where_one_may_go(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


async def test_every_address_of_a_name_is_checked() -> None:
    async def mixed(host: str, port: int) -> list[str]:
        return ["8.8.8.8", "127.0.0.1"]

    async def none(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(AddressRefused, match=r"h is 127\.0\.0\.1, which is not a public address"):
        await checked_address("h", 80, private=False, by=mixed)
    assert await checked_address("h", 80, private=True, by=mixed) == "8.8.8.8"
    with pytest.raises(AddressRefused, match="can't be resolved"):
        await checked_address("h", 80, private=True, by=none)
    for host in ("localhost", "127.1", "0x7f000001", "2130706433", "0"):
        with pytest.raises(AddressRefused):
            await checked_address(host, 80, private=False)


async def test_names_are_resolved_in_threads_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant's name that takes for ever must not take the threads in which files are read and written."""
    threads: list[str] = []

    def asked(*_: object, **__: object) -> list[Any]:
        threads.append(threading.current_thread().name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    assert await checked_address("h.example", 80, private=False) == "8.8.8.8"
    assert [name.partition("_")[0] for name in threads] == ["resolve"]


async def test_the_connection_is_made_to_the_address_that_was_checked(tmp_path: Path) -> None:
    """A name that leads elsewhere when it is resolved again, or nowhere, is not resolved again."""
    asked: list[str] = []

    async def once(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    async with receiving() as receiver, Sender(private=True, by=once) as sender:
        port = receiver.url.split(":")[2].split("/")[0]
        hook = await Webhooks(FileRecords(tmp_path / "w.json")).create(
            "alice", f"http://nowhere.invalid:{port}/a", None
        )
        await sender.send(hook, _delivery(hook))
        assert asked == ["nowhere.invalid"]
        assert receiver.got[0][0]["host"] == f"nowhere.invalid:{port}"


async def test_private_addresses_are_refused_unless_allowed(tmp_path: Path) -> None:
    async with receiving() as receiver, Sender(private=False) as sender:
        hook = await Webhooks(FileRecords(tmp_path / "w.json")).create("alice", receiver.url, None)
        with pytest.raises(NotDelivered, match="--private-webhooks"):
            await sender.send(hook, _delivery(hook))
        assert receiver.got == []


async def test_a_webhook_that_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        async with Sender(private=True) as sender:
            hook = await Webhooks(FileRecords(tmp_path / "w.json")).create("alice", url, None)
            with pytest.raises(NotDelivered, match=r"did not answer within 0\.2 s"):
                await sender.send(hook, _delivery(hook))


async def test_what_is_no_webhook_is_refused(http: httpx.AsyncClient) -> None:
    for url in (
        "ftp://example.org/x",
        "https://",
        "example.org/hooks",
        "http://a b/",
        "http://[::1",
        "http://x:99999/",
    ):
        refused = await http.post(WEBHOOKS, json={"url": url})
        assert refused.status_code == 400, url
        assert refused.json()["error"]["param"] == "url", url
    for body in (
        {"url": "https://example.org/", "events": ["job.began"]},
        {"url": "https://example.org/", "events": []},
    ):
        assert (await http.post(WEBHOOKS, json=body)).status_code == 400
    for _ in range(20):
        assert (await http.post(WEBHOOKS, json={"url": "https://example.org/"})).status_code == 201
    assert (await http.post(WEBHOOKS, json={"url": "https://example.org/"})).json()["error"][
        "code"
    ] == "too_many"


def _delivery(hook: Webhook) -> Delivery:
    return Delivery(
        id=f"evt_1.{hook.id}",
        event_id="evt_1",
        event_type="job.completed",
        webhook_id=hook.id,
        payload="{}",
        created_at=0,
    )
