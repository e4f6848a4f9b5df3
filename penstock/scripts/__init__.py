"""Server-side scripts: one .lua file per state change, each atomic.

Plain EVALSHA with EVAL on NOSCRIPT: no Functions and no shebang, so that Redis 6.2, Redis 7 and Valkey all
run them. Each file's head documents its KEYS, ARGV and reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any, Final, cast

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from penstock.command import Argument


class Script(Struct, frozen=True):
    """A script's source and its SHA-1, by which the server knows it."""

    name: str
    source: str
    sha: str

    @classmethod
    def load(cls, *names: str) -> Script:
        """Read the last of `names`, NAME.lua, from this package, and the others, its preludes, before it."""
        folder = files("penstock.scripts")
        source = "".join(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8") for name in names)
        return cls(names[-1], source, hashlib.sha1(source.encode()).hexdigest())

    async def run(self, redis: Redis, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Run on the server: by digest, or by source where the server has not seen it yet."""
        execute = cast("Callable[..., Awaitable[Any]]", redis.execute_command)  # untyped in redis-py
        try:
            return await execute("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await execute("EVAL", self.source, len(keys), *keys, *args)


ENQUEUE: Final = Script.load("enqueue")
CANCEL: Final = Script.load("entry", "cancel")
STATUS: Final = Script.load("entry", "status")
CONFIGURE: Final = Script.load("configure")
REQUEUE: Final = Script.load("requeue")
CLAIM: Final = Script.load("entry", "claim")
RENEW: Final = Script.load("token", "renew")
PUBLISH: Final = Script.load("token", "publish")
COMMIT: Final = Script.load("token", "ending", "commit")
FAIL: Final = Script.load("token", "ending", "fail")
RELEASE: Final = Script.load("token", "release")
RETIRE: Final = Script.load("retire")
BEAT: Final = Script.load("beat")
RATE: Final = Script.load("rate")
HOLD: Final = Script.load("hold")
KEEP: Final = Script.load("keep")
LET_GO: Final = Script.load("let_go")
DUE: Final = Script.load("due")
