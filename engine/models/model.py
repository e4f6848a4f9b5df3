"""What the runner needs of a model: the native decoder and the transformers fallback both are one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kernels.attention import AttentionPlan, AttentionShape, LayerCache
from kernels.opset import OpSet

KVCache = list[LayerCache]
"""Of each layer."""


class Model(Protocol):
    """Parameters in the layout of one op set, and the two halves of a step."""

    @property
    def ops(self) -> OpSet: ...

    @property
    def dtype(self) -> torch.dtype:
        """Of activations."""
        ...

    @property
    def device(self) -> torch.device: ...

    @property
    def is_recordable(self) -> bool:
        """Whether `forward` launches the same kernels for every step of one shape and waits for none, so that
        it can be recorded in a CUDA graph."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def attention_shapes(self) -> tuple[AttentionShape, ...]:
        """The different ways in which the layers attend. A step's plans are made of these, in this order.
        KV heads and head_dim are the same in all."""
        ...

    def forward(
        self, token_ids: Tensor, positions: Tensor, cache: KVCache, plans: Sequence[AttentionPlan]
    ) -> Tensor:
        """Runs T tokens and writes their keys and values to the cache.

        token_ids, positions: [T] int64, packed as the plans' metadata says. Returns the last hidden states
        after the final norm, [T, hidden_size] in `dtype`.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [R, hidden_size], rows of what `forward` returned. Returns [R, vocab_size] float32."""
        ...
