"""Endings: why a sequence ends with its last known token, if it does."""

from __future__ import annotations

from engine.repetition import is_repeating
from engine.request import FinishReason
from engine.sequence import Sequence

Ending = tuple[FinishReason | None, int | None]
"""Finish reason, and the end token or stop token, if one ended it."""

GOES_ON: Ending = (None, None)


def ending_of(seq: Sequence) -> Ending:
    """Looks at the last known token, an output token, and shows it to the constraint unless it ends the
    sequence by itself. Raises ConstraintViolated.

    Before `min_tokens` no end token, stop token or repetition ends anything, as vLLM has it; a constraint
    that is complete does, for nothing is left that could follow. So does an end token that it has let
    through, whatever `min_tokens` and `ignore_eos` say.
    """
    params = seq.request.params
    last = seq.token_ids[-1]
    is_long_enough = seq.num_output_tokens >= params.min_tokens
    if is_long_enough and last in seq.end_ids:
        return "stop", last
    if seq.constraint is not None and seq.constraint.accept(last):
        return "stop", last if last in seq.eos_token_ids else None
    if len(seq.token_ids) >= seq.max_num_tokens:
        return "length", None
    if (
        params.repetition is not None
        and is_long_enough
        and is_repeating(seq.token_ids, seq.num_prompt_tokens, params.repetition)
    ):
        return "repetition", None
    return GOES_ON


def ending_of_resumed(seq: Sequence) -> Ending:
    """The same of a sequence with output that an earlier run has produced: the constraint sees all of it.
    Raises ConstraintViolated."""
    if seq.num_output_tokens == 0:
        return GOES_ON
    if seq.constraint is not None:
        for token_id in seq.token_ids[seq.num_prompt_tokens : -1]:
            seq.constraint.accept(token_id)
    return ending_of(seq)
