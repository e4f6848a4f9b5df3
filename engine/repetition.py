"""Repetition detection: whether an output has come to repeat itself."""

from __future__ import annotations

from collections.abc import Sequence

from engine.request import RepetitionDetection


def is_repeating(token_ids: Sequence[int], start: int, repetition: RepetitionDetection) -> bool:
    """Whether the tokens from `start` on end in one stretch, `min_count` times over.

    Stretches of every size from `min_pattern_size` (0 counts as 1) to `max_pattern_size` are tried; a
    `max_pattern_size` of 0 or a `min_count` below 2 finds nothing. As vLLM has it:
    vllm.v1.core.sched.utils.check_sequence_repetition.
    """
    num_tokens = len(token_ids) - start
    count = repetition.min_count
    if count < 2:
        return False
    for size in range(max(1, repetition.min_pattern_size), repetition.max_pattern_size + 1):
        if size * count > num_tokens:
            return False
        # Most sizes fail at their first comparison. A tail repeats with period `size` where each token
        # equals the one `size` before it.
        if token_ids[-1 - size] == token_ids[-1] and _has_period(token_ids, size, size * (count - 1)):
            return True
    return False


def _has_period(token_ids: Sequence[int], period: int, num_compared: int) -> bool:
    """Whether each of the last `num_compared` tokens equals the one `period` before it."""
    end = len(token_ids)
    return all(token_ids[i] == token_ids[i - period] for i in range(end - 1, end - 1 - num_compared, -1))
