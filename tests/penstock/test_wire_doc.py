"""docs/wire.md names everything there is, its commands run, and the schemas are those of the types."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from redis.asyncio import Redis

from penstock import keys, schema
from penstock.attempts import Attempt
from penstock.keys import Keys
from penstock.lanes import LaneSettings
from penstock.messages import (
    ERROR_TYPES,
    Completion,
    Done,
    Error,
    Failed,
    FunctionCall,
    FunctionDefinition,
    Heartbeat,
    Job,
    Message,
    PoolingParams,
    ReasoningMarkers,
    RepetitionDetection,
    SamplingParams,
    Score,
    StructuredOutputs,
    TextPart,
    TokenLogprob,
    Tokens,
    Tool,
    ToolCall,
    TopLogprob,
    Usage,
    encode_event,
    encode_job,
)
from tests.penstock.support import Worker, done
from tests.penstock.test_messages import BAD_JOBS, GOLDEN_EVENTS, GOLDEN_JOBS

DOCS = Path(__file__).parents[2] / "docs"
WIRE = (DOCS / "wire.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", WIRE, flags=re.DOTALL)
QUOTED = set(re.findall(r"`([^`]+)`", PROSE)) | set(re.findall(r'"(\w+)"', WIRE))


@pytest.mark.parametrize("name", sorted(schema.schemas()))
def test_schemas_are_up_to_date(name: str) -> None:
    text = (DOCS / "schemas" / name).read_text(encoding="utf-8")
    assert text == schema.schemas()[name], "run `python -m penstock.schema`"


def test_every_key_is_documented() -> None:
    names = Keys("SHARD")
    made = [names.jobs("LANE"), names.result("JOB_ID"), names.batch("ID"), names.batch_done("ID")]
    made += [names.lanes, names.deficits, names.attempts, names.dead, names.idempotency("KEY")]
    made += [names.gateway_keys, names.gateway_webhooks, names.gateway_secret, names.gateway_watched]
    made += [names.gateway_rate("KEY_ID"), names.gateway_held("KEY_ID"), names.gateway_held_tokens("KEY_ID")]
    made += [names.gateway_due, names.gateway_undelivered, names.gateway_delivery("ID")]
    made += [names.gateway_batches("KEY_ID"), Keys("SHARD", "FOLDER").gateway_due]
    for key in [*made, names.control, names.consumers]:
        assert key in QUOTED


def test_every_field_and_group_is_documented() -> None:
    constants = {
        name: value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)
    }
    assert {"JOB", "NONCE", "EVENT", "JOB_ID", "ROW", "CANCEL", "LANE", "TOTAL", "CURSOR"} <= set(constants)
    for value in constants.values():
        assert any(value in quoted.replace(",", " ").split() for quoted in QUOTED), value


@pytest.mark.parametrize(
    "struct",
    [
        *(Job, SamplingParams, StructuredOutputs, RepetitionDetection, PoolingParams, Message, Heartbeat),
        *(LaneSettings, Attempt, ReasoningMarkers),
        *(Tool, FunctionDefinition, ToolCall, FunctionCall, TextPart),
        *(Tokens, Done, Failed, Completion, TokenLogprob, TopLogprob, Score, Usage, Error),
    ],
)
def test_every_field_of_every_message_is_documented(struct: type[msgspec.Struct]) -> None:
    words = {word for quoted in QUOTED for word in re.findall(r"\w+", quoted)}
    for field in msgspec.structs.fields(struct):
        assert field.encode_name in words, field.encode_name


def test_every_error_type_is_documented() -> None:
    for name, words in ERROR_TYPES.items():
        assert f"| `{name}` | {words} |" in WIRE


def test_every_script_is_documented() -> None:
    folder = Path(keys.__file__).parent / "scripts"
    for script in folder.glob("*.lua"):
        assert script.stem in QUOTED or script.name in QUOTED, script.name


async def test_the_commands_run(redis: Redis, worker: Worker) -> None:
    blocks = re.findall(r"```redis\n(.*?)```", WIRE, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith('"')]
    assert len(lines) == 4
    entry = (await redis.execute_command(*shlex.split(lines[0]))).decode()
    assert await worker.claim() == [f"standard.{entry}"]
    await worker.commit(f"standard.{entry}", done("Hi"))
    [(_, events)] = await redis.execute_command(*shlex.split(lines[1].replace("1763820000000-0", entry)))
    assert events == [(b"1-1", {b"event": encode_event(done("Hi"))})]
    await redis.hset(Keys().batch("nightly"), "total", "0")
    await redis.xadd(Keys().batch_done("nightly"), {"job_id": "x", "row": "", "event": "{}"})
    assert len((await redis.execute_command(*shlex.split(lines[2])))[0][1]) == 1
    assert await redis.execute_command(*shlex.split(lines[3])) == [b"0", None, None]


def validator(name: str) -> jsonschema.Draft202012Validator:
    loaded: dict[str, Any] = json.loads((DOCS / "schemas" / name).read_text())
    jsonschema.Draft202012Validator.check_schema(loaded)
    return jsonschema.Draft202012Validator(loaded)


def test_the_schemas_accept_what_we_write() -> None:
    jobs, events = validator("job.schema.json"), validator("event.schema.json")
    for _, job in GOLDEN_JOBS:
        jobs.validate(json.loads(encode_job(job)))
    jobs.validate({"prompt": None, "messages": [{"role": "user", "content": "x"}]})
    for data, _ in GOLDEN_EVENTS:
        events.validate(json.loads(data))


# What a schema cannot see: that bytes are not JSON, or are too many, or nest too deeply, or how one value
# bounds another.
BEYOND = {"not JSON", "nothing", "cut off", "NaN", "infinity", "10 MB of text", "invalid UTF-8", "nesting"}
BEYOND |= {"between two fields"}


@pytest.mark.parametrize(
    "data", [bad[1] for bad in BAD_JOBS if bad[0] not in BEYOND and b"\\ud800" not in bad[1]]
)
def test_the_job_schema_refuses_what_we_refuse(data: bytes) -> None:
    assert not validator("job.schema.json").is_valid(json.loads(data))
