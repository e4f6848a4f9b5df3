"""How many of an output's tokens are reasoning, told by the tokens that mark it."""

from __future__ import annotations

from collections.abc import Sequence

from consumer.token_logprobs import TokenTexts


def num_reasoning_tokens(output: Sequence[int], markers: tuple[int, int], *, opened: bool) -> int:
    """Tokens up to and with the end marker; all of them where reasoning was begun and never ended.

    Args:
        output: the tokens of one output.
        markers: the start marker's token and the end marker's.
        opened: whether the output begins inside.
    """
    start, end = markers
    if end in output:
        return output.index(end) + 1
    return len(output) if opened or start in output else 0


def opens_reasoning(
    prompt: Sequence[int], markers: tuple[int, int], texts: TokenTexts, *, continued: bool
) -> bool:
    """Whether the prompt ends inside reasoning: behind its last marker, a start, is nothing but blank text.

    Where the prompt is `continued`, the end of it is the model's own, and may be the beginning of a thought.
    """
    for token_id in reversed(prompt):
        if token_id in markers:
            return token_id == markers[0]
        if not continued and texts[token_id].strip():
            return False
    return False
