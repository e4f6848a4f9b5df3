"""Whether a server can keep what penstock promises, in words for the person who runs it."""

from __future__ import annotations

import re
from typing import Any, Literal

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from penstock.errors import ServerError, ServerUnavailable, ServerUnsuitable
from penstock.link import Link

OLDEST_REDIS = (6, 2)
OLDEST_VALKEY = (8, 0)

Severity = Literal["refuse", "warn"]
Kind = Literal["redis", "valkey", "other"]


class Finding(Struct, frozen=True):
    """One thing that is not as it should be."""

    severity: Severity
    """`refuse`: promises would be broken; `warn`: they hold less than they could, or it cannot be known."""
    topic: str
    words: str


class ServerReport(Struct, frozen=True, kw_only=True):
    """What a server is, and what is wrong with it."""

    kind: Kind
    version: str
    findings: list[Finding]

    @property
    def suitable(self) -> bool:
        """Whether nothing is a reason to refuse."""
        return all(finding.severity != "refuse" for finding in self.findings)

    def require_suitable(self) -> None:
        """Do nothing for a suitable server.

        Raises:
            ServerUnsuitable: with every reason to refuse.
        """
        reasons = [finding.words for finding in self.findings if finding.severity == "refuse"]
        if reasons:
            raise ServerUnsuitable(" ".join(reasons))


async def check_server(server: str | Redis) -> ServerReport:
    """Ask a server what it is and how it is set up.

    Args:
        server: a URL, or a client of redis-py's asyncio kind whose connection settings are copied.

    Raises:
        ServerUnavailable: it cannot be reached, or still loads its data.
        ServerError: it refuses the credentials.
    """
    link = Link(server)
    try:
        return await _check(link)
    finally:
        await link.aclose()


async def _check(link: Link) -> ServerReport:
    info = await _info(link)
    if info is None:
        words = "INFO is denied to this user, so version and settings are unknown; allow +info."
        return ServerReport(kind="other", version="unknown", findings=[Finding("warn", "acl", words)])
    kind, version = _identity(info)
    findings = [
        *_check_version(kind, version),
        *_check_role(info),
        *_check_eviction(info),
        *await _check_persistence(link, info),
    ]
    return ServerReport(kind=kind, version=version, findings=findings)


async def _ask(link: Link, *args: str) -> Any:
    """Run a command; None where the server refuses it for good (an ACL, a renamed command)."""
    try:
        return await link.command(*args)
    except ServerUnavailable:
        raise
    except ServerError as error:
        if isinstance(error.__cause__, ResponseError):
            return None
        raise


async def _info(link: Link) -> dict[str, str] | None:
    reply: bytes | None = await _ask(link, "INFO")
    if reply is None:
        return None
    lines = reply.decode(errors="replace").splitlines()
    return {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}


def _identity(info: dict[str, str]) -> tuple[Kind, str]:
    if "valkey_version" in info:
        return "valkey", info["valkey_version"]
    version = info.get("redis_version", "unknown")
    foreign = any(key.startswith(("dragonfly", "keydb", "kvrocks", "garnet")) for key in info)
    return ("other" if foreign or version == "unknown" else "redis"), version


def _check_version(kind: Kind, version: str) -> list[Finding]:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if kind == "other":
        words = f"This is neither Redis nor Valkey (version {version}); penstock is not tested with it."
        return [Finding("warn", "version", words)]
    name, oldest = ("Valkey", OLDEST_VALKEY) if kind == "valkey" else ("Redis", OLDEST_REDIS)
    if numbers >= oldest:
        return []
    wanted = ".".join(map(str, oldest))
    return [Finding("refuse", "version", f"{name} {version} is too old; penstock needs {wanted} or newer.")]


def _check_role(info: dict[str, str]) -> list[Finding]:
    findings: list[Finding] = []
    if info.get("role") in ("slave", "replica"):
        words = "This server is a replica and takes no writes; name its primary."
        findings.append(Finding("refuse", "role", words))
    if info.get("cluster_enabled") == "1":
        words = (
            "This is a node of a cluster; penstock speaks to one node, so name the one that holds the "
            "queue's slot, and expect an outage when the slot moves."
        )
        findings.append(Finding("warn", "cluster", words))
    return findings


def _check_eviction(info: dict[str, str]) -> list[Finding]:
    """An evicting policy only matters once there is a limit: without one, nothing is ever evicted.

    Then it breaks the promises: allkeys-* drops whole lanes, volatile-* drops results before they are read.
    Without a limit it is one CONFIG SET away from doing so, which is worth a warning and not a refusal:
    a server as it comes out of many packages and clouds is set up like that.
    """
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return []
    if policy == "unknown":
        return [Finding("warn", "eviction", "The server does not say what it does when its memory is full.")]
    fix = "Set maxmemory-policy to noeviction."
    if int(info.get("maxmemory", "0") or 0) == 0:
        words = f"maxmemory-policy is {policy}: should maxmemory ever be set, jobs or results vanish. {fix}"
        return [Finding("warn", "eviction", words)]
    what = "whole lanes of jobs" if policy.startswith("allkeys") else "results that nobody has read"
    words = f"maxmemory-policy is {policy}: a full server deletes {what} without a word. {fix}"
    return [Finding("refuse", "eviction", words)]


async def _check_persistence(link: Link, info: dict[str, str]) -> list[Finding]:
    enabled = info.get("aof_enabled")
    if enabled is None:
        words = "The server does not say whether it keeps an append-only file."
        return [Finding("warn", "persistence", words)]
    if enabled != "1":
        words = (
            "appendonly is off: a restart of the server loses all jobs and results since its last snapshot, "
            "if it makes any. Set appendonly to yes."
        )
        return [Finding("warn", "persistence", words)]
    reply: list[bytes] | None = await _ask(link, "CONFIG", "GET", "appendfsync")
    if reply is None:
        words = (
            "CONFIG GET is denied to this user, so appendfsync is unknown: with everysec, a crash may lose "
            "about the last second; with no, half a minute."
        )
        return [Finding("warn", "persistence", words)]
    if reply[1:] == [b"no"]:
        words = "appendfsync is no: a crash may lose half a minute. Set it to everysec or always."
        return [Finding("warn", "persistence", words)]
    return []
