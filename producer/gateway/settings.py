"""The gateway's settings."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from penstock.telemetry.logs import LogFormat
from producer.errors import UsageError

MIB = 1024**2


class GatewaySettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one gateway behaves. Sizes are in bytes, times in seconds."""

    redis: str
    """URL of the server."""
    folder: Path
    """For what is local to this gateway: keys, and files where `storage` names nothing else."""
    shard: str = "default"
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """0 takes a free one."""
    storage: str = ""
    """Where files and batches lie: a URL as fsspec reads them; empty for `files` in the folder."""
    auth: Literal["keys", "off", "auto"] = "auto"
    """`keys` lets nobody in without one. `auto` is `off` where the host is a loopback address and there are
    no keys, else `keys`."""
    keys: Literal["file", "redis"] = "file"
    """Where the hashes of keys are kept: `keys.json` in the folder, or the server."""
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 8 * MIB
    """Of a request other than an upload."""
    max_file_bytes: Annotated[int, Meta(ge=1024)] = 512 * MIB
    max_wait_s: Annotated[float, Meta(gt=0)] = 3600.0
    """How long a request waits for its answer before it is told 504; its job is then cancelled."""
    resume_grace_s: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """How long a stream whose reader went away can be taken up again before its job is cancelled."""
    strict_batches: bool = False
    """Fail a whole batch for a bad line, as OpenAI does, instead of the line alone."""
    body_timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    """Longest silence in the middle of a request's body; it is then told 408."""
    header_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    """How long a connection may take to send a request's headers."""
    max_header_bytes: Annotated[int, Meta(ge=1024)] = 64 * 1024
    """Of a request's line and headers."""
    keep_alive_s: Annotated[int, Meta(ge=1)] = 60
    """How long a connection without a request stays open."""
    grace_s: Annotated[int, Meta(ge=0)] = 10
    """How long a drain waits for answers that are under way."""
    private_webhooks: bool = False
    """Let webhooks go to private and loopback addresses."""
    metrics_public: bool = False
    """Let everybody read /metrics; else it takes an operator's key, where keys are on."""
    log_format: LogFormat = "auto"
    """`json`: one object per line. By default as the variable PENSTOCK_LOG_FORMAT says, else text."""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    cors_origins: tuple[str, ...] = ()
    """Origins that browsers may call from; none by default."""

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise UsageError("TLS needs both: --tls-certificate and --tls-key")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def storage_url(self) -> str:
        """Where files lie, as fsspec reads it."""
        return self.storage or (self.folder / "files").absolute().as_uri()
