"""Linear layers of a transformers model, exchanged for those of the op set, and the memory of the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kernels.linear import LinearWeight, linear, pack_linear
from kernels.opset import OpSet


class PackedLinear(nn.Module):
    """x [..., in_features] → [..., out_features], by `kernels.linear`."""

    def __init__(self, ops: OpSet, weight: LinearWeight) -> None:
        super().__init__()
        self.ops = ops
        self.packed = weight
        # Some models ask a weight for its type or device. One that computes with it finds no elements.
        self.weight = torch.empty(0, dtype=weight.dtype, device=weight.device)
        self.bias = None
        self.in_features = weight.in_features
        self.out_features = weight.out_features

    def forward(self, x: Tensor) -> Tensor:
        """As torch.nn.Linear's, without a gradient."""
        rows = x.reshape(-1, self.in_features).contiguous()
        if rows.shape[0] == 0:  # an expert that no token chose
            return x.new_empty((*x.shape[:-1], self.out_features))
        return linear(self.ops, rows, self.packed).view(*x.shape[:-1], self.out_features)


def pack_linears(model: nn.Module, ops: OpSet) -> int:
    """Replaces every plain linear layer, one after the other, so that no more than one weight is there twice.

    Plain are torch's Linear and GPT-2's Conv1D (the same with its weight transposed), themselves and not a
    subclass, whose `forward` could do anything; and without hooks. A weight that a linear layer shares with
    something else (tied embeddings) stays where it is, and the packed one is another copy. Experts that are
    kept as one parameter stay as they are. Returns how many layers were replaced.
    """
    packed: dict[int, PackedLinear] = {}
    kept: list[Any] = []  # ids are only unique among living objects
    modules: list[tuple[str, Any]] = list(model.named_modules(remove_duplicate=False))
    for path, module in modules:
        if id(module) not in packed:
            if not _is_plain(module):
                continue
            packed[id(module)] = PackedLinear(ops, _pack(module, ops))
            module._parameters.clear()  # frees the weight, whoever still holds the module
            kept.append(module)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, packed[id(module)])
    return len(packed)


def own_memory(model: nn.Module) -> None:
    """Copies what is left of the parameters out of the mapped files, so that these can be closed: as long as
    one tensor lies in a file, all of its pages may stay in memory, those of the packed weights too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _is_plain(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) in (nn.Linear, Conv1D) and not hooked and "weight" in module._parameters


def _pack(module: Any, ops: OpSet) -> LinearWeight:
    weight: Tensor = module.weight.detach()
    bias: Tensor | None = None if module.bias is None else module.bias.detach()
    return pack_linear(ops, (weight if isinstance(module, nn.Linear) else weight.t()).contiguous(), bias)
