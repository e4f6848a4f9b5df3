"""Numbers of float8_e4m3fn, also by integer arithmetic, as GPUs before sm_89 have no instruction for them.

A byte is 1 sign, 4 exponent (bias 7) and 3 mantissa bits; exponent 0 is subnormal; 0x7F is NaN and there is
no infinity, so 0x7E is 448, the greatest. Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_of(greatest: tl.tensor) -> tl.tensor:
    """What the stored numbers of a vector with this greatest magnitude (float32) are to be multiplied by."""
    return tl.where(greatest == 0, 1.0, tl.div_rn(greatest, 448.0))


@triton.jit
def encode(x: tl.tensor) -> tl.tensor:
    """float32 to bytes, rounded to nearest, ties to even; what is above 448 becomes 448, NaN stays NaN."""
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    magnitude = bits & 0x7FFFFFFF
    # 20 of 23 mantissa bits go: half of the last bit that stays is added, less one where that bit is even,
    # for ties to even; a carry into the exponent is what it should be. Then the bias of 127 becomes 7.
    rounded = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 numbers are multiples of 2^-9, which the last bit of a float32 around 2^14 is worth: the sum
    # rounds them.
    shifted = magnitude.to(tl.float32, bitcast=True) + 16384.0
    subnormal = shifted.to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(magnitude < 0x3C800000, subnormal, tl.minimum(rounded, 0x7E))
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | sign).to(tl.uint8)


@triton.jit
def decode(code: tl.tensor, like: tl.tensor, IS_NATIVE: tl.constexpr) -> tl.tensor:
    """Bytes to the dtype of `like`, float32, bfloat16 or float16, exactly.

    IS_NATIVE: by the instruction that sm_89 and later have, 2 instructions a number for bfloat16 and half a
    one for float16. Otherwise, with 6, exponent and mantissa are moved to where the wider type has its own,
    subnormals too, and a product makes up for the other bias; the code of NaN becomes 480.
    """
    if IS_NATIVE:
        # Through float16, as the compiler's own way to bfloat16 converts one number at a time.
        x = code.to(tl.float8e4nv, bitcast=True).to(tl.float16).to(like.dtype)
    elif like.dtype == tl.float32:
        wide = code.to(tl.uint32)
        bits = ((wide & 0x80) << 24) | ((wide & 0x7F) << 20)
        x = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
    elif like.dtype == tl.bfloat16:
        half = code.to(tl.uint16)
        bits = ((half & 0x80) << 8) | ((half & 0x7F) << 4)
        x = bits.to(tl.bfloat16, bitcast=True) * 1.329227995784916e36  # 2^120
    else:
        half = code.to(tl.uint16)
        bits = ((half & 0x80) << 8) | ((half & 0x7F) << 7)
        x = bits.to(tl.float16, bitcast=True) * 256.0
    return x
