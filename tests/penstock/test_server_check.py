"""Servers that keep our promises, and servers that do not, each told why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from penstock import ServerReport, ServerUnavailable, ServerUnsuitable, check_server
from penstock.server import Finding, Severity, _check_role, _check_version, _identity  # pyright: ignore - its rules
from tests.conftest import Server

MakeServer = Callable[..., Server]


async def report(server: Server, url: str | None = None) -> ServerReport:
    async with Redis.from_url(url or server.url, protocol=2) as redis:
        return await check_server(redis)


def severities(report: ServerReport) -> dict[str, Severity]:
    return {finding.topic: finding.severity for finding in report.findings}


async def test_a_good_server_has_no_findings(make_server: MakeServer) -> None:
    found = await report(make_server(aof=True))
    assert found.findings == []
    assert found.suitable
    assert found.kind in ("valkey", "redis")
    found.require_suitable()


@pytest.mark.parametrize(
    ("policy", "maxmemory", "severity", "words"),
    [
        ("allkeys-lru", "100mb", "refuse", "deletes whole lanes of jobs"),
        ("volatile-ttl", "100mb", "refuse", "deletes results that nobody has read"),
        ("allkeys-lru", "0", "warn", "should maxmemory ever be set"),
    ],
)
async def test_evicting_policies(
    make_server: MakeServer, policy: str, maxmemory: str, severity: Severity, words: str
) -> None:
    server = make_server("--maxmemory-policy", policy, "--maxmemory", maxmemory, aof=True)
    found = await report(server)
    assert [(finding.topic, finding.severity) for finding in found.findings] == [("eviction", severity)]
    assert words in found.findings[0].words
    assert found.suitable == (severity == "warn")
    if severity == "refuse":
        with pytest.raises(ServerUnsuitable, match="Set maxmemory-policy to noeviction"):
            found.require_suitable()


async def test_persistence(make_server: MakeServer) -> None:
    off = await report(make_server())
    assert severities(off) == {"persistence": "warn"}
    assert "a restart of the server loses all jobs and results" in off.findings[0].words
    lax = await report(make_server("--appendfsync", "no", aof=True))
    assert "may lose half a minute" in lax.findings[0].words


async def test_what_an_acl_hides_is_unknown(make_server: MakeServer) -> None:
    server = make_server(aof=True)
    with server.client() as plain:
        plain.execute_command("ACL", "SETUSER", "narrow", "on", ">pw", "~*", "+@all", "-config")
        plain.execute_command("ACL", "SETUSER", "blind", "on", ">pw", "~*", "+@all", "-config", "-info")
    narrow = await report(server, server.url.replace("unix://", "unix://narrow:pw@"))
    assert severities(narrow) == {"persistence": "warn"}
    assert "CONFIG GET is denied to this user, so appendfsync is unknown" in narrow.findings[0].words
    blind = await report(server, server.url.replace("unix://", "unix://blind:pw@"))
    assert severities(blind) == {"acl": "warn"}
    assert blind.kind == "other"


async def test_a_server_that_is_not_there() -> None:
    async with Redis.from_url("redis://127.0.0.1:1", retry=None) as redis:
        with pytest.raises(ServerUnavailable):
            await check_server(redis)


@pytest.mark.parametrize(
    ("info", "kind", "refused"),
    [
        ({"redis_version": "6.0.16"}, "redis", True),
        ({"redis_version": "6.2.0"}, "redis", False),
        ({"redis_version": "8.4.0"}, "redis", False),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.5"}, "valkey", True),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, "valkey", False),
        ({"redis_version": "7.2.4", "valkey_version": "10.0.0"}, "valkey", False),
        ({"redis_version": "7.2.0", "dragonfly_version": "df-v1.30"}, "other", False),
        ({}, "other", False),
    ],
)
def test_versions(info: dict[str, str], kind: str, refused: bool) -> None:
    found_kind, version = _identity(info)
    assert found_kind == kind
    findings = _check_version(found_kind, version)
    assert any(finding.severity == "refuse" for finding in findings) == refused
    assert bool(findings) == (refused or kind == "other")


def test_replicas_are_refused() -> None:
    assert [finding.severity for finding in _check_role({"role": "slave"})] == ["refuse"]
    assert [finding.severity for finding in _check_role({"role": "master", "cluster_enabled": "1"})] == [
        "warn"
    ]
    assert _check_role({"role": "master"}) == []


def test_every_reason_is_given() -> None:
    findings = [
        Finding("refuse", "a", "One."),
        Finding("warn", "b", "Two."),
        Finding("refuse", "c", "Three."),
    ]
    with pytest.raises(ServerUnsuitable, match=r"^One\. Three\.$"):
        ServerReport(kind="redis", version="1", findings=findings).require_suitable()
