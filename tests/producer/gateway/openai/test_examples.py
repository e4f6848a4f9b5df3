"""What examples/clients show for the gateway, run as it stands; and the model that comes with penstock."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

from openai import AsyncOpenAI

from consumer.consumer import Consumer
from consumer.settings import Settings
from engine.config import EngineConfig
from tests.producer.gateway.openai.talking import MODEL, Talk
from tests.producer.gateway.running import serving

ROOT = Path(__file__).parents[4]
CLIENTS = ROOT / "examples" / "clients"


async def said(*command: str) -> tuple[str, str]:
    """What a program writes, once it has ended well."""
    program = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await program.communicate()
    assert program.returncode == 0, err.decode()
    return out.decode(), err.decode()


async def test_the_python_client(talk: Talk) -> None:
    out, err = await said(sys.executable, str(CLIENTS / "openai_client.py"), talk.url, "Hello")
    assert out == "Hello there, friend."
    assert "43 tokens" in err


async def test_curl(talk: Talk) -> None:
    out, _ = await said("bash", str(CLIENTS / "openai_client.sh"), talk.url, MODEL, "Hello")
    data = [line.removeprefix("data: ") for line in out.splitlines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    texts = [json.loads(one)["choices"][0]["delta"].get("content") or "" for one in data]
    assert "".join(texts) == "Hello there, friend."


async def test_the_model_that_comes_with_penstock_answers(redis_url: str, tmp_path: Path) -> None:
    engine = EngineConfig(model=str(ROOT / "examples" / "models" / "tiny"), max_num_seqs=4)
    consumer = Consumer(Settings(engine=engine, redis=redis_url))
    running = asyncio.create_task(consumer.run())
    try:
        async with (
            serving(redis_url, tmp_path) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            # Put in before the model is loaded: the job waits for it.
            found = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "What is 12 + 30?"}], temperature=0
            )
            assert "42" in (found.choices[0].message.content or "")
            _, readme = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
            out, _ = await said(sys.executable, "-c", readme.replace("http://127.0.0.1:8000", url))
            assert "42" in out
            models = [model.id async for model in client.models.list()]
            assert models == ["tiny"]
    finally:
        consumer.stop()
        await asyncio.wait_for(running, 30)
