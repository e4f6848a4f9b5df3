"""Repetition detection: whether an output has come to repeat itself."""

from __future__ import annotations

from engine.request import RepetitionDetection


def is_repeating(token_ids: list[int], start: int, repetition: RepetitionDetection) -> bool:
    """Whether the tokens from `start` on end in one stretch, `min_count` times over.

    Stretches of every size from `min_pattern_size` (0 counts as 1) to `max_pattern_size` are tried; a
    `max_pattern_size` of 0 or a `min_count` below 2 finds nothing. As vLLM has it:
    vllm.v1.core.sched.utils.check_sequence_repetition.
    """
    count = repetition.min_count
    if count < 2:
        return False
    size = max(1, repetition.min_pattern_size)
    max_size = min(repetition.max_pattern_size, (len(token_ids) - start) // count)
    if size > max_size:
        return False
    last = token_ids[-1]
    before = token_ids[-1 - max_size : -1]
    before.reverse()
    while True:
        try:  # a tail repeats with period `size` only if the token that far before the last is the same
            size = before.index(last, size - 1) + 1
        except ValueError:
            return False
        if _has_period(token_ids, size, size * (count - 1)):
            return True
        size += 1


def _has_period(token_ids: list[int], period: int, num_compared: int) -> bool:
    """Whether each of the last `num_compared` tokens equals the one `period` before it."""
    end = len(token_ids)
    return all(token_ids[i] == token_ids[i - period] for i in range(end - 1, end - 1 - num_compared, -1))
