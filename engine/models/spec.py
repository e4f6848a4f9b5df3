"""What a decoder is made of, as data: one decoder reads it, and a family is a way to fill it in."""

from __future__ import annotations

from math import prod
from typing import Literal

from msgspec import Struct

RopeKind = Literal["default", "linear", "llama3"]


class RopeSpec(Struct, frozen=True, kw_only=True):
    """Rotary positions; the fields after `theta` belong to the kinds that name them."""

    kind: RopeKind
    theta: float
    factor: float = 1.0
    """linear, llama3: how far the window was stretched."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    """llama3: the window before stretching."""


class Param(Struct, frozen=True, kw_only=True):
    """One parameter of the decoder and the checkpoint tensors that make it up, first rows first."""

    name: str
    """The decoder's name for it, such as `qkv`."""
    sources: tuple[tuple[str, tuple[int, ...]], ...]
    """Checkpoint names, with `{i}` for the layer, and the shape that each must have."""

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.sources[0][1]
        return (sum(shape[0] for _, shape in self.sources), *first[1:])


class DecoderSpec(Struct, frozen=True, kw_only=True):
    """One model."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_position_embeddings: int
    """The window that the model was made for, tokens."""
    rope: RopeSpec
    qk_norm: bool
    """Whether each query and key head is normed before it is turned."""
    layer_params: tuple[Param, ...]
    outer_params: tuple[Param, ...]
    """Those that are there once: embedding, final norm, output. Without `lm_head`, the embedding is also the
    output matrix."""
    ignored_tensors: tuple[str, ...] = ()
    """Patterns of checkpoint tensors that say nothing the spec does not."""

    @property
    def num_parameters(self) -> int:
        of_a_layer = sum(prod(param.shape) for param in self.layer_params)
        return self.num_layers * of_a_layer + sum(prod(param.shape) for param in self.outer_params)
