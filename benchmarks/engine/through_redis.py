"""A workload as jobs through the embedded server: a client, the server, a consumer and its engine.

From before the jobs are enqueued to the last result in the client's hands. The consumer is a process of its
own with the settings that the engine alone is given.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.engine.ours import settings_of
from benchmarks.engine.session import Measured, Report, Session
from benchmarks.engine.shapes import SHAPES
from benchmarks.engine.workloads import Workload
from penstock import Client, Job, SamplingParams
from penstock.keys import Keys
from penstock.messages import decode_heartbeat
from producer import embedded
from producer.consumer_process import command

_START_TIMEOUT_S = 300.0
_WARM_UP_JOBS, _WARM_UP_TOKENS = 2, 4
_ROOT = Path(__file__).parents[2]


def run(session: Session, folder: Path, workloads: list[Workload], report: Report, out: Path) -> None:
    """All workloads by one consumer, which is warmed up before each."""
    settings = settings_of(session, folder, max(workload.longest for workload in workloads))
    report.details = {"settings": {name: value for name, value in settings.items() if name != "model"}}
    save_tokenizer(folder, SHAPES[session.model].vocab_size)
    with embedded.use(folder / "data") as server:
        start = time.perf_counter()
        with _consumer(server.url, settings, folder / "consumer.log") as process:
            _wait_ready(server.url, process, folder / "consumer.log")
            report.startup_s = time.perf_counter() - start
            for workload in workloads:
                report.measured.append(asyncio.run(measure(server.url, workload)))
                report.save(out)


async def measure(url: str, workload: Workload) -> Measured:
    """Raises JobFailed, and RuntimeError where tokens are missing."""
    async with Client(url) as client:
        other = [[(i + 1) % 256 for i in job.prompt_token_ids[::-1]] for job in workload.jobs[:_WARM_UP_JOBS]]
        await _answers(client, [_job(ids, _WARM_UP_TOKENS, workload.temperature) for ids in other])
        jobs = [_job(job.prompt_token_ids, job.max_tokens, workload.temperature) for job in workload.jobs]
        begin = time.perf_counter()
        num_tokens = await _answers(client, jobs)
        seconds = time.perf_counter() - begin
    if num_tokens != workload.num_output_tokens:
        raise RuntimeError(f"{num_tokens} output tokens, expected {workload.num_output_tokens}")
    return Measured(workload.name, seconds, workload.num_prompt_tokens, num_tokens)


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """One that knows every id: 256 bytes, then made-up words. Prompts come as ids, answers leave as text."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"Ġw{i}" for i in range(256, vocab_size))]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def flags_of(settings: dict[str, Any]) -> list[str]:
    """Settings of EngineConfig as the consumer takes them."""
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def _job(token_ids: list[int], max_tokens: int, temperature: float) -> Job:
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, ignore_eos=True, seed=0)
    return Job(prompt_token_ids=token_ids, sampling_params=params)


async def _answers(client: Client, jobs: list[Job]) -> int:
    """Output tokens of all of them."""
    ids = await client.submit_many(jobs)
    return sum(done.usage.completion_tokens for done in await asyncio.gather(*map(client.result, ids)))


@contextmanager
def _consumer(url: str, settings: dict[str, Any], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command(url, flags_of(settings)), cwd=_ROOT, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(40)  # longer than the grace that a drain gives
        finally:
            process.kill()
            process.wait()


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    client = redis.Redis.from_url(url, protocol=2)
    try:
        end = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < end and process.poll() is None:
            beats: Any = client.hvals(Keys().consumers)
            if any(decode_heartbeat(beat).phase == "ready" for beat in beats):
                return
            time.sleep(0.02)
    finally:
        client.close()
    raise RuntimeError(f"the consumer did not start:\n{log.read_text(errors='replace')[-1500:]}")
