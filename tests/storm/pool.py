"""The jobs of a storm: a few hundred different ones, drawn again and again, each with one right answer.

Greedy or seeded, so that an answer does not depend on the job's id; in fp32 on the CPU's exact ops, so that
it does not depend on who shares the batch either.
"""

from __future__ import annotations

import random
from typing import Any, Final, Literal

from msgspec import Struct

from penstock.messages import Completion, Job, SamplingParams

Kind = Literal["short", "long", "samples", "plain"]

COUNTS: Final[dict[Kind, int]] = {"short": 120, "long": 60, "samples": 40, "plain": 40}
THINGS: Final = ("water", "a river", "the sea", "a mill", "rain", "ice", "a dam", "a lake")


class Spec(Struct, frozen=True):
    """One of the pool's jobs."""

    kind: Kind
    """`short`: a few tokens. `long`: streamed. `samples`: several, streamed. `plain`: long, not streamed."""
    job: Job


class Question(Struct, frozen=True):
    """A job and its answer in an undisturbed run."""

    spec: Spec
    answer: list[Completion]


def make_pool(seed: int) -> list[Spec]:
    """The same jobs for the same seed."""
    rng = random.Random(seed)
    return [Spec(kind, _job(kind, rng)) for kind, count in COUNTS.items() for _ in range(count)]


def _job(kind: Kind, rng: random.Random) -> Job:
    params: dict[str, Any]
    match kind:
        case "short":
            prompt = f"What is {rng.randrange(90)} + {rng.randrange(9)}?"
            params = {"max_tokens": rng.randint(2, 16)}
        case "samples":
            prompt = f"Write {rng.randint(2, 9)} words about {rng.choice(THINGS)}:"
            params = {"max_tokens": rng.randint(20, 60), "n": rng.randint(2, 4), "ignore_eos": True}
        case "long" | "plain":
            prompt = f"Tell me about {rng.choice(THINGS)}, number {rng.randrange(1000)}."
            params = {"max_tokens": rng.randint(200, 400), "ignore_eos": True}
    if kind != "short" or rng.random() < 0.5:
        params |= {"temperature": 1.0, "top_p": 0.95, "seed": rng.getrandbits(40)}
    if rng.random() < 0.2:
        params |= {"logprobs": 1}
    if rng.random() < 0.2:
        params |= {"presence_penalty": 0.5, "repetition_penalty": 1.1}
    return Job(
        prompt=prompt,
        stream=kind in ("long", "samples"),
        return_token_ids=True,
        sampling_params=SamplingParams(**params),
    )
