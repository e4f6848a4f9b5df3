"""OpenAI's JavaScript client drives the gateway: `make test-js`, which needs node, npm and the network once.

No part of the default tests, so its name does not begin with `test_`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.producer.gateway.openai.talking import talking

HERE = Path(__file__).parent
EXAMPLES = Path(__file__).parents[4] / "examples" / "clients"
CALL = 'I look.\n<tool_call>\n{"name": "look", "arguments": {"place": "Bonn"}}\n</tool_call>'


@pytest.fixture(scope="session")
def installed() -> Path:
    """A folder with the client in it, kept between runs."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: OPENAI'S JAVASCRIPT CLIENT WAS NOT TRIED")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "penstock-tests" / "javascript"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "check.mjs"):
        shutil.copy(HERE / name, folder / name)
    for example in EXAMPLES.glob("openai_*.mjs"):
        shutil.copy(example, folder)
    return folder


async def run(folder: Path, *command: str) -> str:
    """What a program says, once it has ended well."""
    program = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await program.communicate()
    assert program.returncode == 0, said.decode()
    return said.decode()


async def test_a_chat_a_stream_calls_completions_embeddings_errors_and_a_batch(
    installed: Path, redis_url: str, tmp_path: Path
) -> None:
    await run(installed, "npm", "install", "--no-audit", "--no-fund", "--silent")
    async with talking(redis_url, tmp_path, {"says": CALL, "step_s": 0.002}) as talk:
        assert await run(installed, "node", "check.mjs", talk.url) == "all holds\n"


async def test_the_examples(installed: Path, redis_url: str, tmp_path: Path) -> None:
    await run(installed, "npm", "install", "--no-audit", "--no-fund", "--silent")
    async with talking(redis_url, tmp_path, {"says": "Hello there", "step_s": 0.002}) as talk:
        assert await run(installed, "node", "openai_client.mjs", talk.url, "Hi") == "Hello there\n"
        said = await run(installed, "node", "openai_batch.mjs", talk.url, "Hi", "Hi again")
        assert sorted(said.splitlines())[-2:] == ["request-0 Hello there", "request-1 Hello there"]
