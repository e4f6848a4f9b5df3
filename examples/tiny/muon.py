"""Muon: momentum whose matrix updates are orthogonalised (Jordan et al., 2024)."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(gradients: Tensor) -> Tensor:
    """Push the singular values of a stack of matrices towards 1 by five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradients.mT if gradients.shape[-2] > gradients.shape[-1] else gradients
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if gradients.shape[-2] > gradients.shape[-1] else x


class Muon(torch.optim.Optimizer):
    """Muon in fp32. Matrices of one shape go through Newton-Schulz as one stack, which CPUs need too."""

    def __init__(
        self,
        matrices: list[nn.Parameter],
        pool: Executor,
        lr: float,
        momentum: float = 0.95,
        decay: float = 0.01,
    ) -> None:
        self.pool = pool
        by_shape = defaultdict(list)
        for matrix in matrices:
            by_shape[matrix.shape].append(matrix)
        groups = [{"params": params} for params in by_shape.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "decay": decay})

    def step(self, closure: None = None) -> None:
        for _ in self.pool.map(self._update, self.param_groups):
            pass

    @torch.no_grad()
    def _update(self, group: dict[str, Any]) -> None:
        updates = []
        for matrix in group["params"]:
            state = self.state[matrix]
            if not state:
                state["average"] = torch.zeros_like(matrix)
            average = state["average"].lerp_(matrix.grad, 1 - group["momentum"])
            updates.append(matrix.grad.lerp(average, group["momentum"]))
        rows, columns = group["params"][0].shape
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for matrix, update in zip(group["params"], orthogonalise(torch.stack(updates)), strict=True):
            matrix.mul_(1 - group["lr"] * group["decay"]).sub_(update, alpha=scale)
