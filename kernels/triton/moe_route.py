"""Which experts a token goes to: softmax and choice in one launch. See `kernels.moe.route`."""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportCallIssue=false
# pyright: reportArgumentType=false
# Parameters of a kernel are values of Triton's without a useful type; launch options are none of them.

from __future__ import annotations

from typing import Final

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE: Final = 512
"""Logits of a program: 4 of each thread of 4 warps."""


def route(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """See `kernels.moe.route`. Chosen by the logits, whose order is that of the probabilities."""
    num_tokens, num_experts = router_logits.shape
    weights = torch.empty(num_tokens, top_k, dtype=torch.float32, device=router_logits.device)
    ids = torch.empty(num_tokens, top_k, dtype=torch.int64, device=router_logits.device)
    if num_tokens > 0:
        experts = 1 << (num_experts - 1).bit_length()
        rows = max(1, TILE // experts)
        _route_kernel[(triton.cdiv(num_tokens, rows),)](
            router_logits,
            weights,
            ids,
            num_tokens,
            num_experts,
            router_logits.stride(0),
            TOP_K=top_k,
            RENORMALIZE=renormalize,
            ROWS=rows,
            EXPERTS=experts,
            CHOICES=1 << (top_k - 1).bit_length(),
        )
    return weights, ids


@triton.jit(do_not_specialize=["num_tokens"])
def _route_kernel(
    logits,
    weights,
    ids,
    num_tokens,
    num_experts,
    stride,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    EXPERTS: tl.constexpr,
    CHOICES: tl.constexpr,
):
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    experts = tl.arange(0, EXPERTS)[None, :]
    inside = (rows < num_tokens)[:, None] & (experts < num_experts)
    x = tl.load(logits + rows[:, None] * stride + experts, mask=inside, other=-float("inf")).to(tl.float32)
    # NaN is chosen last, so that ids are good ones whatever the logits; it shows in the weights.
    order = tl.where(x != x, -float("inf"), x)
    greatest = tl.max(order, axis=1)
    total = tl.sum(tl.where(inside, tl.exp(x - greatest[:, None]), 0.0), axis=1)
    left = inside
    choices = tl.arange(0, CHOICES)[None, :]
    chosen = tl.zeros((ROWS, CHOICES), tl.int32)
    probabilities = tl.zeros((ROWS, CHOICES), tl.float32)
    for i in tl.static_range(TOP_K):
        best = tl.max(tl.where(left, order, -float("inf")), axis=1)
        expert = tl.min(tl.where(left & (order == best[:, None]), experts, EXPERTS), axis=1)
        left = left & (experts != expert[:, None])
        chosen = tl.where(choices == i, expert[:, None], chosen)
        probabilities = tl.where(choices == i, (tl.exp(best - greatest) / total)[:, None], probabilities)
    if RENORMALIZE:
        probabilities = probabilities / tl.sum(probabilities, axis=1)[:, None]
    at = rows[:, None] * TOP_K + choices
    stored = (rows < num_tokens)[:, None] & (choices < TOP_K)
    tl.store(weights + at, probabilities, mask=stored)
    tl.store(ids + at, chosen.to(tl.int64), mask=stored)
