"""Mixture of experts: each expert computes the rows that picked it, by the op set's own linear layers.

A row's result does not depend on how many rows its expert has, as those layers promise, nor on how many
threads add up: each expert adds to a row once, and experts take turns in order of id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activation import Activation
from kernels.cpu.linear import PackLinear, RunLinear
from kernels.moe import ExpertWeights


@dataclass(frozen=True, slots=True)
class CpuExperts:
    """Experts over one pair of linear operations and the activation between them."""

    pack_linear: PackLinear
    linear: RunLinear
    act_and_mul: Callable[[Tensor, Activation], Tensor]

    def pack(self, gate_up: Tensor, down: Tensor, activation: Activation) -> ExpertWeights:
        """See `kernels.moe.pack_experts`."""
        return ExpertWeights(
            gate_up=tuple(self.pack_linear(weight, None) for weight in gate_up),
            down=tuple(self.pack_linear(weight, None) for weight in down),
            activation=activation,
            num_experts=gate_up.shape[0],
            hidden_size=gate_up.shape[2],
            dtype=gate_up.dtype,
            device=gate_up.device,
        )

    def run(self, x: Tensor, weights: Tensor, ids: Tensor, experts: ExpertWeights) -> Tensor:
        """See `kernels.moe.moe`."""
        order = ids.flatten().argsort(stable=True)
        rows = order // ids.shape[1]
        weights = weights.flatten()[order, None]
        counts = ids.flatten().bincount(minlength=experts.num_experts).tolist()
        out = torch.zeros(x.shape)
        end = 0
        for expert, count in enumerate(counts):
            start, end = end, end + count
            if count > 0:
                picked = rows[start:end]
                hidden = self.linear(x[picked], experts.gate_up[expert])
                hidden = self.linear(self.act_and_mul(hidden, experts.activation), experts.down[expert])
                out.index_add_(0, picked, hidden.float() * weights[start:end])
        return out.to(x.dtype)


def route(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """See `kernels.moe.route`. The sum is a cumsum, whose order no batch changes."""
    ordered = router_logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    weights, ids = ordered.values[:, :top_k], ordered.indices[:, :top_k].contiguous()
    if renormalize:
        return weights / weights.cumsum(-1)[:, -1:], ids
    return weights.contiguous(), ids
