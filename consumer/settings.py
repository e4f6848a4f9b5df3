"""The consumer's settings, from command-line flags."""

from __future__ import annotations

import argparse
import ast
import inspect
import socket
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

from consumer.markers import ReasoningFormatFlag, ToolFormatFlag
from engine.config import EngineConfig
from penstock.keys import DEFAULT_SHARD
from penstock.telemetry.logs import LogFormat


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one consumer behaves. Times are in the unit that the name ends with."""

    engine: EngineConfig
    redis: str = "redis://127.0.0.1:6379/0"
    shard: Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{1,64}$")] = DEFAULT_SHARD
    served_model_name: str = ""
    """The model's name to clients; by default the hub id, or the folder's name."""
    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_.-]{0,128}$")] = ""
    """A stable name (a StatefulSet's pod, say): a start takes over what an earlier process of it left."""
    lease_s: Annotated[float, Meta(ge=0.5, le=86_400)] = 30.0
    """A lease not renewed for this long may be taken by any consumer; renewed at a third of it."""
    grace_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    """How long a drain waits for running jobs before it releases them."""
    result_ttl_s: Annotated[int, Meta(ge=1)] = 86_400
    lookahead: Annotated[int, Meta(ge=0)] = 8
    """Jobs claimed beyond the sequences that run, so that the engine never waits for the queue."""
    coalesce_ms: Annotated[int, Meta(ge=0)] = 50
    """Least time between two `tokens` events of a streamed job."""
    checkpoint_tokens: Annotated[int, Meta(ge=1)] = 128
    """A job that does not stream publishes a checkpoint whenever it has this many new tokens: whoever
    takes it after a death goes on from there."""
    checkpoint_s: Annotated[float, Meta(gt=0, le=86_400)] = 2.0
    """The same whenever this time has passed, whichever comes first."""
    max_engine_deaths: Annotated[int, Meta(ge=2)] = 5
    """A job that was in the engine at this many unexplained deaths fails, found to be the cause or not."""
    engine_timeout_s: Annotated[float, Meta(gt=0, le=86_400)] = 600.0
    """An engine that has work and reports nothing for this long hangs: it is killed, and another is started.
    No limit while it loads. Between steps it reports at least every second, within a step never: this has to
    be longer than any step takes, and a prefill of a big model on a processor may take minutes."""
    max_attempts: Annotated[int, Meta(ge=1, le=100)] = 3
    """How often a job may fail in a way that is worth another try, unless it says so itself."""
    retry_delay_s: Annotated[float, Meta(ge=0, le=86_400)] = 1.0
    """Longest delay after a job's first failed attempt; it doubles with each, up to a lease."""

    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Serve Prometheus metrics at /metrics of this port; 0 serves none."""
    metrics_host: str = "127.0.0.1"
    """On this address."""
    log_format: LogFormat = "auto"
    """`json`: one object per line. By default as the variable PENSTOCK_LOG_FORMAT says, else text."""

    tool_format: ToolFormatFlag = "auto"
    """How the model writes tool calls, for those who read them; by default as its chat template tells."""
    reasoning_format: ReasoningFormatFlag = "auto"
    """How it marks reasoning: `think` by <think>, `mistral` by [THINK]; by default as its template tells."""

    @property
    def lease_ms(self) -> int:
        """Lease in milliseconds, as the scripts take it."""
        return int(self.lease_s * 1000)

    @property
    def model_name(self) -> str:
        """The model's name in heartbeats and results, and the one that jobs may ask for."""
        model = self.engine.model
        return self.served_model_name or (Path(model).resolve().name if Path(model).is_dir() else model)

    @property
    def stable_name(self) -> str:
        """The part of the consumer's name that outlives the process."""
        return self.name or socket.gethostname().split(".")[0]


def parse_settings(argv: Sequence[str]) -> Settings:
    """Read settings from flags; prints usage and exits with status 2 where a flag is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m consumer", description="Take jobs from Redis and answer them with the engine."
    )
    for struct, skip in ((Settings, {"engine"}), (EngineConfig, set[str]())):
        docs = _field_docs(struct)
        for field in msgspec.structs.fields(struct):
            if field.name in skip:
                continue
            flag = "--" + field.name.replace("_", "-")
            required = field.default is msgspec.NODEFAULT
            default = None if required else field.default
            words = f"{docs.get(field.name, '')} " + ("(required)" if required else f"(default: {default!r})")
            choices = get_args(field.type) if get_origin(field.type) is Literal else None
            parser.add_argument(
                flag, required=required, default=default, choices=choices, help=words.replace("%", "%%")
            )
    values = vars(parser.parse_args(argv))
    engine_fields = {field.name for field in msgspec.structs.fields(EngineConfig)}
    engine = {name: value for name, value in values.items() if name in engine_fields}
    rest = {name: value for name, value in values.items() if name not in engine_fields}
    try:
        return msgspec.convert({**rest, "engine": engine}, Settings, strict=False)
    except msgspec.ValidationError as error:
        words, _, path = str(error).partition(" - at `$.")
        flag = path.rstrip("`").rpartition(".")[2].replace("_", "-")
        parser.error(f"--{flag}: {words}" if flag else words)


def _field_docs(struct: type[Struct]) -> dict[str, str]:
    """By field, the docstring below it."""
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in pairwise(definition.body):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                docs[name] = words
            case _:
                pass
    return docs
