"""See `kernels.sample`: no sort of the vocabulary, and no noise for each of its tokens.

1. One read of the logits gives each chunk's greatest and its mass, relative to that; where any row filters,
   each group's greatest too (`kernels.triton.chunk`).
2. Rows whose filters leave few tokens are drawn from those groups that can hold them
   (`kernels.triton.candidate`); for others a search over the row finds the bound, and each chunk's mass
   above it (`kernels.triton.bound`). Rows without filters leave both at once.
3. The chunks' masses give the chunk that holds the draw, a second look into that chunk the token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.sample import SamplingTensors
from kernels.triton.bound import find_bounds
from kernels.triton.candidate import Filters, draw_candidates
from kernels.triton.chunk import draw, measure_chunks


def sample(logits: Tensor, uniforms: Tensor, params: SamplingTensors) -> Tensor:
    """See `kernels.sample.sample`."""
    num_rows = logits.shape[0]
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return out
    filtered = params.any_top_k or params.any_top_p or params.any_min_p
    chunks = measure_chunks(logits, params.temperature, with_groups=filtered)
    bounds = None
    if filtered:
        # torch's logarithm, as the reference has it: a bound must not be off by a bit.
        filters = Filters(params.temperature, params.top_k, params.top_p, params.min_p.log())
        bounds = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
        draw_candidates(logits, uniforms, filters, chunks, bounds, out)
        find_bounds(logits, filters, chunks, bounds)
    draw(logits, uniforms, params.temperature, chunks, bounds, out)
    return out
