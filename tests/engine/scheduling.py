"""Small schedulers and requests for tests, and a constraint that needs no grammar."""

from __future__ import annotations

from engine.batch import Batch, StepResult
from engine.blocks import BlockManager
from engine.constraint import ConstraintViolated
from engine.request import Output, Request, RequestParams, Sample
from engine.scheduler import Limits, Scheduler

VOCAB_SIZE = 10
EOS, STOP, COMPLETE, FORBIDDEN = 9, 8, 7, 6


class Follower:
    """A constraint that is complete after one token, and violated by another."""

    def __init__(self, seen: list[int] | None = None) -> None:
        self.seen = seen or []

    def accept(self, token_id: int) -> bool:
        if token_id == FORBIDDEN:
            raise ConstraintViolated("forbidden")
        self.seen.append(token_id)
        return token_id == COMPLETE

    def fork(self) -> Follower:
        return Follower(self.seen.copy())


def scheduler_of(
    num_blocks: int = 8,
    block_size: int = 4,
    num_seqs: int = 4,
    budget: int = 16,
    prefix_cache: bool = True,
) -> Scheduler:
    """With a window of 24 tokens, or what fits the cache."""
    limits = Limits(
        max_num_seqs=num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=min(24, num_blocks * block_size),
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(EOS,),
    )
    return Scheduler(limits, BlockManager(num_blocks, block_size, prefix_cache))


def request(
    name: str, prompt: int | list[int], max_tokens: int = 5, samples: int | list[Sample] = 1, **params: object
) -> Request:
    """`prompt`: the tokens, or how many. Prompts of different names share no prefix."""
    if isinstance(prompt, int):
        prompt = [ord(name[0]) % 6] * prompt
    if isinstance(samples, int):
        samples = [Sample(index=i) for i in range(samples)]
    kind = params.pop("kind", "generate")
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        samples=samples,
        kind=kind,
        params=RequestParams(
            max_tokens=max_tokens,
            seed=0,
            stop_token_ids=(STOP,),
            **params,
        ),
    )


def result_of(batch: Batch, token: int = 0) -> StepResult:
    return StepResult(token_ids=[token] * len(batch.sampled_rows))


def step(scheduler: Scheduler, token: int = 0) -> tuple[Batch, list[Output]]:
    """One step, every row of which samples the same token."""
    batch = scheduler.schedule()
    outputs = scheduler.update(batch, result_of(batch, token))
    scheduler.check_integrity()
    return batch, outputs


def finish(scheduler: Scheduler, token: int = 0) -> list[Output]:
    """Steps until nothing is left to do."""
    outputs: list[Output] = []
    while scheduler.has_work:
        batch, more = step(scheduler, token)
        assert batch.rows, "nothing runs, and something is left"
        outputs += more
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks
    return outputs
