"""The verbs as a person uses them: a gateway as a process, keys, webhooks, and the gateway beside `up`."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import httpx
import msgspec
import pytest
from redis import Redis

from penstock import SyncClient
from producer.cli import app
from producer.errors import UsageError
from producer.gateway import installed
from producer.gateway.flags import GatewayFlags, settings_beside, settings_of
from producer.gateway.settings import GatewaySettings
from producer.where import Where
from tests.producer.conftest import Program, until

CERTIFICATES = Path(__file__).parent / "certificates"


def url_in(process: subprocess.Popen[str], said: list[str] | None = None) -> str:
    """Where a gateway says that it is; adds to `said` what it said before."""
    assert process.stderr is not None
    for line in process.stderr:
        if said is not None:
            said.append(line)
        if match := re.search(r"https?://[\d.]+:\d+", line):
            return match[0]
    raise AssertionError("the gateway did not start")


def test_every_setting_is_a_flag_and_a_variable() -> None:
    settings = {field.name for field in msgspec.structs.fields(GatewaySettings)} - {"redis", "folder"}
    assert set(GatewayFlags.__dataclass_fields__) == settings
    made = settings_of(vars(GatewayFlags()), Where(redis="redis://h"), "redis://h", Path("/f"))
    assert made == GatewaySettings(redis="redis://h", folder=Path("/f"))


def test_settings_out_of_range_are_told_by_their_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    where = Where(data=Path("/data"))
    named = r"--max-body-bytes: Expected `int` >= 1024; the variable is PENSTOCK_GATEWAY_MAX_BODY_BYTES"
    with pytest.raises(UsageError, match=named):
        settings_of({"max_body_bytes": 1}, where, "redis://h")
    with pytest.raises(UsageError, match="TLS needs both"):
        settings_of({"tls_certificate": Path("c")}, where, "redis://h")
    monkeypatch.setenv("PENSTOCK_GATEWAY_PORT", "8123")
    monkeypatch.setenv("PENSTOCK_GATEWAY_CORS_ORIGINS", "https://a https://b")
    monkeypatch.setenv("PENSTOCK_GATEWAY_STRICT_BATCHES", "true")
    made = settings_of(settings_beside(), where, "redis://h")
    assert (made.port, made.cors_origins, made.strict_batches) == (8123, ("https://a", "https://b"), True)
    assert made.folder == Path("/data/gateway")
    assert settings_of(settings_beside(9000), where, "redis://h").port == 9000


def test_a_key_made_by_the_cli_opens_a_gateway_and_revoked_closes_it(
    program: Program, redis_url: str
) -> None:
    where = ("--redis", redis_url, "--folder", program.folder / "gateway")
    limits = (
        "--requests-per-minute",
        "600",
        "--queued-tokens",
        "1000",
        "--expires",
        "90d",
        "--note",
        "a note",
    )
    made = program.call("keys", "create", "--tenant", "alice", "--weight", "3", *limits, *where)
    assert made.status == 0, made
    key = made.out.strip()
    assert re.fullmatch(r"psk_[\w-]{43}", key)
    assert key not in made.err
    listed = program.call("keys", "list", *where)
    for words in ("alice", "lane alice", "600 requests/min", "1000 queued tokens", "expires", "(a note)"):
        assert words in listed.out
    described = json.loads(program.call("keys", "list", "--json", *where).out)
    assert (described["tenant"], described["state"]) == ("alice", "good")
    assert "digest" not in described
    with SyncClient(redis_url) as client:
        assert {lane.name: lane.settings.weight for lane in client.lanes()} == {"alice": 3.0, "standard": 1.0}
    gateway = program.start("gateway", "--port", "0", *where)
    with httpx.Client(base_url=url_in(gateway), headers={"Authorization": f"Bearer {key}"}) as http:
        assert http.get("/v1/models").status_code == 200
        revoked = program.call("keys", "revoke", described["id"], *where)
        assert "running gateways refuse it within a second or two" in revoked.out
        until(lambda: http.get("/v1/models").status_code == 401, 20)
    assert program.call("keys", "revoke", "key_nobody", *where).status == 1
    gateway.send_signal(signal.SIGTERM)
    _, err = gateway.communicate(timeout=20)
    assert gateway.returncode == 0, err
    assert "draining" in err
    assert "psk_" not in err


def test_keys_on_the_server(program: Program, redis_url: str) -> None:
    where = ("--redis", redis_url, "--folder", program.folder / "gateway", "--keys", "redis")
    heavy = program.call("keys", "create", "--tenant", "ops", "--weight", "0", *where)
    assert (heavy.status, "--weight: Expected `float` >= 0.01" in heavy.err) == (1, True)
    assert program.call("keys", "list", *where).out == "no keys\n"
    assert program.call("keys", "create", "--tenant", "ops", "--operator", *where).status == 0
    assert "operator" in program.call("keys", "list", *where).out
    assert (program.folder / "gateway" / "keys-in-redis").exists()
    assert not (program.folder / "gateway" / "keys.json").exists()
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
    lost = program.call("keys", "list", *where)
    assert (lost.status, "lost the gateway's keys" in lost.err) == (1, True)
    assert program.call("keys", "create", "--tenant", "ops", *where).status == 0  # begins again
    assert program.call("keys", "list", *where).status == 0


def test_keys_need_no_server(program: Program) -> None:
    assert program.call("keys", "create", "--tenant", "alice").status == 0
    assert (program.data / "gateway" / "keys.json").exists()
    weighed = program.call("keys", "create", "--tenant", "alice", "--weight", "2")
    assert (weighed.status, "--weight is set on the server, and none runs" in weighed.err) == (1, True)
    for flags, words in [
        (("--tenant", "a b"), "is not a tenant's name"),
        (("--tenant", "alice", "--lane", "Not One"), "is not a lane name"),
        (("--tenant", "alice", "--expires", "soon"), "is not a period"),
        (("--tenant", "Alice", "--lane", "alice"), "there is a tenant 'alice' already"),
        (("--tenant", "alice", "--expires", "999999999w"), "36500d are the longest"),
        (
            ("--tenant", "alice", "--folder", "/dev/null/x"),
            "/dev/null/x/keys.json can't be written",
        ),
        (("--tenant", "alice", "--requests-per-minute", "0"), "it must be 1 or more"),
        (("--tenant", "alice", "--keys", "redis"), "no penstock server runs on"),
    ]:
        refused = program.call("keys", "create", *flags)
        assert (refused.status, words in " ".join(refused.err.split())) == (1, True), refused


def test_webhooks_by_the_cli(program: Program, redis_url: str) -> None:
    where = ("--redis", redis_url, "--folder", program.folder / "gateway")
    hook = ("--tenant", "alice", "--url", "https://example.org/hooks")
    made = program.call("webhooks", "create", *hook, "--events", "job.failed,batch.completed", *where)
    assert made.out.startswith("whsec_")
    listed = json.loads(program.call("webhooks", "list", "--json", *where).out)
    assert listed["events"] == ["job.failed", "batch.completed"]
    assert "secret" not in listed
    assert "https://example.org/hooks" in program.call("webhooks", "list", *where).out
    wrong = program.call("webhooks", "create", *hook, "--events", "job.began", *where)
    assert (wrong.status, "Invalid enum value 'job.began'" in wrong.err) == (1, True)
    assert program.call("webhooks", "deliveries", "--redis", redis_url).out == "none is under way\n"
    given_up = program.call("webhooks", "deliveries", "--given-up", "--redis", redis_url)
    assert given_up.out == "none was given up in the last week\n"
    assert program.call("webhooks", "delete", listed["id"], *where).out == "deleted\n"
    assert program.call("webhooks", "delete", listed["id"], *where).status == 1


def test_openness_is_warned_of(program: Program, redis_url: str) -> None:
    where = ("--redis", redis_url, "--folder", program.folder / "gateway")
    gateway = program.start("gateway", "--port", "0", "--host", "0.0.0.0", "--auth", "off", *where)
    said: list[str] = []
    url = url_in(gateway, said).replace("0.0.0.0", "127.0.0.1")
    assert any(
        "WARNING" in line and "whoever can reach 0.0.0.0 may use this gateway" in line for line in said
    )
    assert httpx.get(f"{url}/v1/models").status_code == 200
    gateway.terminate()
    gateway.communicate(timeout=20)
    closed = program.start("gateway", "--port", "0", "--host", "0.0.0.0", *where)
    assert httpx.get(f"{url_in(closed).replace('0.0.0.0', '127.0.0.1')}/v1/models").status_code == 401
    closed.terminate()
    closed.communicate(timeout=20)


def test_a_taken_port_is_told(program: Program, redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = program.run("gateway", "--redis", redis_url, "--port", port)
    assert refused.status == 1
    assert f"the gateway can't listen on 127.0.0.1:{port}" in refused.err
    assert "Traceback" not in refused.err


def test_what_can_not_be_started_is_told_in_a_line(program: Program, redis_url: str) -> None:
    certificate, key = CERTIFICATES / "localhost.pem", CERTIFICATES / "localhost.key"
    cases: list[tuple[tuple[object, ...], str]] = [
        (
            ("--tls-certificate", "none.pem", "--tls-key", key),
            "--tls-certificate: none.pem can't be read",
        ),
        (("--tls-certificate", certificate, "--tls-key", certificate), f"TLS can't use {certificate} with"),
        (("--storage", "nowhere://x"), "files can't be kept at nowhere://x: Protocol not known"),
        (("--folder", "/dev/null/x"), "files can't be kept at file:///dev/null/x/files: Not a directory"),
    ]
    for flags, words in cases:
        refused = program.call("gateway", "--redis", redis_url, "--port", "0", *flags)
        assert (refused.status, words in " ".join(refused.err.split())) == (1, True), refused
        assert "Traceback" not in refused.err


def test_a_gateway_that_can_not_be_started_leaves_the_consumer_alone(program: Program) -> None:
    up = program.start("up", env={"PENSTOCK_GATEWAY_STORAGE": "nowhere://x"})
    assert up.stderr is not None
    lines: list[str] = []
    for line in up.stderr:
        lines.append(line)
        if "try      penstock submit" in line:
            break
    assert "penstock: no gateway: files can't be kept at nowhere://x" in "".join(lines)
    assert "Traceback" not in "".join(lines)
    up.terminate()
    assert up.wait(30) == 0


def test_tls(program: Program, redis_url: str) -> None:
    certificate, key = CERTIFICATES / "localhost.pem", CERTIFICATES / "localhost.key"
    tls = ("--tls-certificate", certificate, "--tls-key", key)
    gateway = program.start("gateway", "--redis", redis_url, "--port", "0", *tls)
    url = url_in(gateway)
    assert url.startswith("https://")
    trust = ssl.create_default_context(cafile=str(certificate))
    assert httpx.get(f"{url}/health", verify=trust).json()["ok"] is True
    with pytest.raises(httpx.HTTPError):
        httpx.get(url.replace("https", "http") + "/health")
    gateway.terminate()
    gateway.communicate(timeout=20)


def test_up_has_a_gateway_on_the_next_free_port(program: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = program.start("up", "--gateway-port", port)
        assert up.stderr is not None
        lines: list[str] = []
        for line in up.stderr:
            lines.append(line)
            if "has a page, and OpenAI's API under /v1" in line:
                break
    said = "".join(lines)
    assert f"port {port} is taken; --gateway-port names another" in said
    url = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert url is not None
    assert not url[0].endswith(f":{port}")
    with httpx.Client(base_url=url[0], timeout=20) as http:
        until(lambda: http.get("/health/ready").status_code == 200)
        job = http.post("/v1/penstock/jobs", json={"prompt": "hello"}).json()["id"]
        answered = http.get(f"/v1/penstock/jobs/{job}", params={"wait": 10}).json()
        assert answered["result"]["outputs"][0]["text"] == "HELLO"
    up.terminate()
    assert up.wait(30) == 0


def test_up_without_one(program: Program) -> None:
    up = program.start("up", "--no-gateway")
    assert up.stderr is not None
    lines: list[str] = []
    for line in up.stderr:
        lines.append(line)
        if "try      penstock submit" in line:
            break
    assert "gateway" not in "".join(lines)
    up.terminate()
    up.communicate(timeout=30)


def test_a_missing_extra_is_a_clear_message(
    program: Program, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "NEEDED", ("litestar", "no_such_module"))
    refused = program.call("gateway", "--redis", redis_url)
    assert refused.status == 1
    assert "the gateway is not installed (no_such_module missing)" in refused.err
    assert "pip install 'penstock[gateway]'" in refused.err


def test_doctor_knows_of_it(program: Program) -> None:
    report = " ".join(program.call("doctor").out.split())
    assert "the gateway litestar" in report
    assert "gateway's keys none: on a loopback address everybody may use it" in report
    program.call("keys", "create", "--tenant", "alice")
    assert "gateway's keys there are some" in " ".join(program.call("doctor").out.split())


def test_help_names_every_flag(program: Program) -> None:
    text = program.call("gateway", "--help").out
    for name in GatewayFlags.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
    assert app["gateway"] is not None


def test_a_gateway_waits_for_a_server_that_is_away(program: Program) -> None:
    """Which is said by its probe, and to whoever asks for more."""
    gateway = program.start("gateway", "--redis", "redis://127.0.0.1:1", "--port", "0")
    url = url_in(gateway)
    began = time.monotonic()
    ready = httpx.get(f"{url}/health/ready", timeout=30)
    assert (ready.status_code, "can't be reached" in ready.json()["reasons"][0]) == (503, True)
    reply = httpx.get(f"{url}/v1/models", timeout=30)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "queue_unavailable")
    assert time.monotonic() - began < 25
    gateway.terminate()
    _, err = gateway.communicate(timeout=20)
    assert gateway.returncode == 0, err
