"""What the engine has done since this consumer was started, over the lives of all its processes.

Counted for every step, wanted or not, so each number is an integer that is added up and no more.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from engine.messages import Step

_SUMMED: Final = (
    "num_prompt_tokens",
    "num_cached_tokens",
    "num_preemptions",
    "num_steps",
    "num_computed_tokens",
    "busy_us",
)
"""Fields of a step that count from the start of the engine process."""


class EngineCounts:
    """Numbers of the engine: those of the moment, and sums that never go back."""

    def __init__(self) -> None:
        self.num_running = 0
        """Sequences."""
        self.num_waiting = 0
        """Sequences that the engine has and cannot run yet."""
        self.num_free_blocks: int | None = None
        """None before the first step of an engine process."""
        self.num_generation_tokens = 0
        """Tokens of outputs that were received."""
        self.num_prompt_tokens = 0
        """Of sequences that started, those that the prefix cache had included."""
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.num_steps = 0
        self.num_computed_tokens = 0
        """Tokens that went through the model, of prompts and outputs."""
        self.busy_us = 0
        """Microseconds spent in steps."""
        self.num_deaths = 0
        self._seen = dict.fromkeys(_SUMMED, 0)

    def take(self, step: Step) -> None:
        """Add what a step says."""
        self.num_running = step.num_running
        self.num_waiting = step.num_waiting
        self.num_free_blocks = step.num_free_blocks
        self.num_generation_tokens += sum([len(output.token_ids) for output in step.outputs])
        seen = self._seen
        for name in _SUMMED:
            value = getattr(step, name)
            if value != seen[name]:
                setattr(self, name, getattr(self, name) + value - seen[name])
                seen[name] = value

    def engine_died(self) -> None:
        """The next step is of another process, which counts from 0."""
        self.num_deaths += 1
        self.num_running = self.num_waiting = 0
        self.num_free_blocks = None
        self._seen = dict.fromkeys(_SUMMED, 0)

    def kv_usage(self, num_blocks: int) -> float:
        """The part of the cache's blocks that sequences hold, from 0 to 1."""
        if self.num_free_blocks is None or not num_blocks:
            return 0.0
        return min(max(1 - self.num_free_blocks / num_blocks, 0.0), 1.0)


class Moment(Struct, frozen=True, kw_only=True):
    """What a consumer is at, when it is asked."""

    counts: EngineCounts
    num_leases: int
    ready: bool
    num_blocks: int
    max_num_seqs: int
