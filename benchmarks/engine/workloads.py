"""Workloads as data: token ids and output lengths, drawn from fixed seeds, the same for every system."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

NANO_VLLM_OUTPUT_TOKENS = 133_966
"""What nano-vllm's bench.py says of its own workload."""


@dataclass(frozen=True)
class Job:
    """One prompt, and how many tokens are to follow it: the end token is ignored."""

    prompt_token_ids: list[int]
    max_tokens: int


@dataclass(frozen=True)
class Workload:
    """Jobs that all arrive at once."""

    name: str
    jobs: list[Job]
    temperature: float
    shared_prefix: int = 0
    """So many tokens are the same at the start of every prompt."""

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(job.prompt_token_ids) for job in self.jobs)

    @property
    def num_output_tokens(self) -> int:
        return sum(job.max_tokens for job in self.jobs)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and its output."""
        return max(len(job.prompt_token_ids) + job.max_tokens for job in self.jobs)

    def save(self, path: Path) -> None:
        """As JSON, for a system that runs in a process of its own."""
        path.write_text(json.dumps(asdict(self)))


def load_workload(path: Path) -> Workload:
    """What `Workload.save` wrote."""
    fields = json.loads(path.read_text())
    return Workload(**{**fields, "jobs": [Job(**job) for job in fields["jobs"]]})


def nano_vllm() -> Workload:
    """The workload of nano-vllm's bench.py, drawn in its order: all prompts, then all output lengths."""
    rng = Random(0)
    prompts = [[rng.randint(0, 10000) for _ in range(rng.randint(100, 1024))] for _ in range(256)]
    jobs = [Job(prompt, rng.randint(100, 1024)) for prompt in prompts]
    workload = Workload("nano-vllm", jobs, temperature=0.6)
    assert workload.num_output_tokens == NANO_VLLM_OUTPUT_TOKENS, workload.num_output_tokens
    return workload


def peers() -> Workload:
    """32 prompts of uniform 32 to 256 tokens with outputs of uniform 16 to 128: the ranges of the comparison
    of peers on processors. Of its draw only the sum of the outputs is known, 2,567 tokens; the seed gives the
    same, and the mean prompt, 140, that stands for it where a peer takes only one length."""
    rng = Random(1358)
    lengths = [(rng.randint(32, 256), rng.randint(16, 128)) for _ in range(32)]
    jobs = [Job(_ids(rng, length), max_tokens) for length, max_tokens in lengths]
    return Workload("peers", jobs, temperature=0.0)


def shared_prefix() -> Workload:
    """64 questions behind one system prompt of 1,000 tokens."""
    rng = Random(1)
    system = _ids(rng, 1000)
    jobs = [Job(system + _ids(rng, rng.randint(16, 64)), 64) for _ in range(64)]
    return Workload("shared-prefix", jobs, temperature=0.6, shared_prefix=1000)


def uniform(name: str, count: int, prompt: int, output: int) -> Workload:
    """`count` prompts of one length with outputs of one length."""
    rng = Random(2)
    return Workload(name, [Job(_ids(rng, prompt), output) for _ in range(count)], temperature=0.0)


def _ids(rng: Random, count: int) -> list[int]:
    return [rng.randrange(10000) for _ in range(count)]


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "nano-vllm": nano_vllm,
    "prefill-heavy": lambda: uniform("prefill-heavy", 64, 512, 16),
    "shared-prefix": shared_prefix,
    "small-batch-1": lambda: uniform("small-batch-1", 1, 64, 256),
    "small-batch-8": lambda: uniform("small-batch-8", 8, 64, 256),
    "decode-heavy": lambda: uniform("decode-heavy", 64, 32, 256),
    "peers": peers,
    "tiny": lambda: uniform("tiny", 6, 20, 8),
}


def make_workload(name: str, vocab_size: int) -> Workload:
    """The workload of that name; ids beyond a small vocabulary wrap around."""
    workload = WORKLOADS[name]()
    jobs = [Job([i % vocab_size for i in job.prompt_token_ids], job.max_tokens) for job in workload.jobs]
    return Workload(workload.name, jobs, workload.temperature, workload.shared_prefix)
