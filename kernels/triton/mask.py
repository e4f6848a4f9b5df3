"""See `kernels.mask`. Logits are only written, and only where a token is masked: at most 4·V bytes a row,
besides V / 8 bytes of mask."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.mask import TokenMasks

BLOCK = 2048
"""Tokens of a program."""
NUM_WARPS = 4


def apply_bitmask(logits: Tensor, masks: TokenMasks) -> None:
    """See `kernels.mask.apply_bitmask`."""
    num_masks, vocab_size = masks.index.shape[0], logits.shape[1]
    if num_masks > 0 and vocab_size > 0:
        grid = (num_masks, triton.cdiv(vocab_size, BLOCK))
        _mask_kernel[grid](
            logits,
            masks.index,
            masks.bits,
            vocab_size,
            masks.bits.stride(0),
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
        )


@triton.jit(do_not_specialize_on_alignment=["index"])
def _mask_kernel(logits, index, bits, vocab_size, bits_stride, BLOCK: tl.constexpr):
    mask = tl.program_id(0)
    row = tl.load(index + mask)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < vocab_size
    words = tl.load(bits + mask.to(tl.int64) * bits_stride + tokens // 32, mask=inside, other=-1)
    masked = ((words >> (tokens % 32)) & 1) == 0
    tl.store(logits + row * vocab_size + tokens, float("-inf"), mask=inside & masked)
