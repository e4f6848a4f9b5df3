"""See `kernels.argmax`. One read of the logits: the greatest of each chunk, then the greatest of those.

A logit and its id are one integer (see `order`), so "the first of the greatest" is a maximum of integers,
which comes out the same in whatever order it is taken.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.weight import CHUNK, order

NUM_WARPS = 4


def argmax(logits: Tensor) -> Tensor:
    """See `kernels.argmax.argmax`."""
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows > 0:
        num_chunks = -(-vocab_size // CHUNK)
        best = torch.empty((num_rows, num_chunks), dtype=torch.int64, device=logits.device)
        _chunks_kernel[(num_rows, num_chunks)](
            logits, best, vocab_size, logits.stride(0), CHUNK=CHUNK, num_warps=NUM_WARPS
        )
        _rows_kernel[(num_rows,)](
            best, out, num_chunks, CHUNKS=triton.next_power_of_2(num_chunks), num_warps=1
        )
    return out


@triton.jit
def _chunks_kernel(logits, best, vocab_size, stride, CHUNK: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = tokens < vocab_size
    x = tl.load(logits + row * stride + tokens, mask=inside, other=float("-inf"))
    of_tokens = (order(x).to(tl.int64) << 32) | (0x7FFFFFFF - tokens).to(tl.int64)
    tl.store(best + row * tl.num_programs(1) + chunk, tl.max(of_tokens))


@triton.jit
def _rows_kernel(best, out, num_chunks, CHUNKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, CHUNKS)
    least = -9223372036854775808
    of_chunks = tl.load(best + row * num_chunks + chunks, mask=chunks < num_chunks, other=least)
    tl.store(out + row, 0x7FFFFFFF - (tl.max(of_chunks) & 0xFFFFFFFF))
