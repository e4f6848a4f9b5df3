"""Angles of rotary positions, as tables of cosines and sines."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.models.spec import RopeSpec


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Tensor:
    """[head_dim / 2] float32: the angle that one position adds to each pair."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    plain = 1.0 / (rope.theta**exponents)
    match rope.kind:
        case "default":
            return plain
        case "linear":
            return plain / rope.factor
        case "llama3":
            return _llama3(plain, rope)


def _llama3(plain: Tensor, rope: RopeSpec) -> Tensor:
    """Llama 3.1's stretching (Meta, `apply_scaling` in llama-models): wavelengths that fit the original
    window high_freq_factor times stay, those that fit it less than low_freq_factor times grow by `factor`,
    and between the two it is interpolated linearly in how often they fit."""
    wavelengths = 2 * math.pi / plain
    fits = rope.original_max_position_embeddings / wavelengths
    smooth = (fits - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * plain / rope.factor + smooth * plain


def rope_tables(rope: RopeSpec, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [num_positions, head_dim / 2] float32."""
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(rope, head_dim))
    return angles.cos(), angles.sin()
