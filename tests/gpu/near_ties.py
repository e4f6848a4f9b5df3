"""When two correct implementations may choose different tokens: where the reference's logits all but tie.

Tokens are checked one by one, each given the tokens before it, so that one near-tie does not excuse what
follows it: the chosen token's logit may be below the greatest by no more than `epsilon`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

FP32_TIE = 1e-4
"""Of the logits' standard deviation: what two orders of summation in float32 may differ by, with a margin."""
HALF_MARGIN = 3.0
"""Times transformers' own greatest error in the half precision: two errors of its size may add up."""
ROUTED_TIE = 0.1
ROUTED_SHARE = 0.1
"""Where experts are routed, rounding may pick another one, and a token's logits are then off by half of the
spread, transformers' too: so many tokens may be farther than this below the best (of the spread)."""
FP8_TIE = 0.25
FP8_MEAN = 0.02
"""Of the spread: with keys and values of three bits of mantissa, the worst choice and the mean one."""


@dataclass(frozen=True)
class Choice:
    """How far the chosen tokens of one output are below the best ones."""

    gaps: Tensor
    """[outputs] float32, at least 0; 0 where the best was chosen."""
    spread: float
    """Of the logits: the mean distance from the greatest to the median one."""
    deviation: float
    """Of the logits."""


def choices(logits: Tensor, token_ids: list[int]) -> Choice:
    """logits: [outputs, V], the reference's."""
    index = logits.new_tensor(token_ids).long()[:, None]
    best = logits.amax(1)
    gaps = best - logits.gather(1, index)[:, 0]
    spread = float((best - logits.median(1).values).mean())
    return Choice(gaps, spread, float(logits.std()))


def check_choices(choice: Choice, epsilon: float, where: str) -> None:
    """Fails at the first token that no near-tie excuses, and where an epsilon would excuse nearly any."""
    assert epsilon < choice.spread / 2, f"{where}: an epsilon of {epsilon} excuses anything"
    worst = float(choice.gaps.max())
    position = int(choice.gaps.argmax())
    assert worst <= epsilon, (
        f"{where}, output {position}: chosen {worst:.4g} below the best, {epsilon:.4g} is allowed"
    )
