"""What the sampling kernels share: a logit's distance from the best, its weight, and sums of weights.

Weights are whole numbers, exp(distance) in units of 2⁻⁴⁴. Sums of integers are exact in whatever order they
are taken, so a row draws the same token alone and among others, split or whole; a sum over 2¹⁸ tokens stays
below 2⁶³; and as the draw's threshold is below the sum, some token always exceeds it: no rounding reaches a
token of weight 0. What is cut off each weight adds up to at most 2⁻²⁶ of the sum.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
# Parameters of a kernel are values of Triton's without a useful type.

from __future__ import annotations

import triton
import triton.language as tl

CHUNK = 2048
"""Logits of a program that reads rows in parts: four 16-byte loads for every thread of 4 warps. 75 programs
for one row of 151,936 logits, so that a row alone keeps half of an H100 busy."""
GROUP = 64
"""Logits of which the greatest is kept, to find candidates without reading everything again: 256 bytes in a
row, and at most 4,096 groups in a vocabulary of 2¹⁸."""

LEAST = tl.constexpr(-2139095041)
"""`order` of -inf."""
ABSENT = tl.constexpr(-2147483648)
"""Below it."""


@triton.jit
def load_logits(row, tokens, vocab_size):
    """Logits of a row, -inf outside and for NaN, which so has weight 0."""
    x = tl.load(row + tokens, mask=tokens < vocab_size, other=float("-inf"))
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def scale(x, peak, temperature):
    """(x - peak) / temperature, rounded as IEEE 754 says, as the reference has it; -inf where the peak is not
    finite."""
    scaled = tl.div_rn(x - peak, temperature)
    return tl.where(scaled == scaled, scaled, float("-inf"))


@triton.jit
def weigh(scaled):
    """exp(scaled) in units of 2⁻⁴⁴, int64. scaled: 0 or less."""
    return (tl.exp(scaled) * 17592186044416.0).to(tl.int64)


@triton.jit
def order(x):
    """int32 in the order of the float32 x: greater for greater, equal for equal (0.0 and -0.0 too), NaN above
    all and equal to each other."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    # Negative floats grow downwards: all bits but the sign are turned.
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(x == x, bits, 0x7FFFFFFF)


@triton.jit
def portion(total, uniform):
    """⌊total · uniform⌋, exactly, for a uniform of at most 30 bits. total: int64, below 2⁶²."""
    part = (uniform * 1073741824.0).to(tl.int64)
    return (total >> 30) * part + (((total & 0x3FFFFFFF) * part) >> 30)


@triton.jit
def goal_of(top_p, total):
    """The least mass, at least 1, that is top_p of the total or more. float32, int64."""
    goal = tl.ceil(top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
    return tl.maximum(tl.minimum(goal, total), 1)


@triton.jit
def find(keys, measures, low, goal):
    """The greatest key of which, with all above it, the measures add up to the goal.

    keys: [N] int32, none above 0; measures: [N] int64. Those of keys not below `low` add up to the goal.
    """
    high = low * 0 + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        found = tl.sum(tl.where(keys >= middle, measures, 0))
        low = tl.where(found >= goal, middle, low)
        # What reaches the goal exactly leaves nothing between this key and the one that is sought.
        high = tl.where(found == goal, middle + 1, tl.where(found > goal, high, middle))
    return low
