"""Angles of rotary positions, as tables of cosines and sines."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.models.spec import RopeSpec


def inverse_frequencies(rope: RopeSpec) -> Tensor:
    """[rotary_dim / 2] float32: the angle that one position adds to each pair."""
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim
    wavelengths = rope.theta**exponents
    match rope.kind:
        case "default":
            return 1.0 / wavelengths
        case "linear":
            return 1.0 / wavelengths / rope.factor
        case "llama3":
            return _llama3(1.0 / wavelengths, rope)
        case "yarn":
            return _yarn(1.0 / wavelengths, rope)
        case "longrope":
            return 1.0 / (torch.tensor(rope.divisors, dtype=torch.float32) * wavelengths)


def _llama3(plain: Tensor, rope: RopeSpec) -> Tensor:
    """Llama 3.1's stretching (Meta, `apply_scaling` in llama-models): wavelengths that fit the original
    window high_freq_factor times stay, those that fit it less than low_freq_factor times grow by `factor`,
    and between the two it is interpolated linearly in how often they fit."""
    wavelengths = 2 * math.pi / plain
    fits = rope.original_max_position_embeddings / wavelengths
    smooth = (fits - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return (1 - smooth) * plain / rope.factor + smooth * plain


def _yarn(plain: Tensor, rope: RopeSpec) -> Tensor:
    """YaRN's "NTK by parts" (Peng et al. 2023, section 3.2): pairs that turn beta_fast times and more over
    the original window stay, those that turn beta_slow times and less grow by `factor`, and between the two
    it is interpolated linearly in the pair's number."""

    def pair_that_turns(times: float) -> float:
        over_window = rope.original_max_position_embeddings / (times * 2 * math.pi)
        return rope.rotary_dim * math.log(over_window) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001
    pairs = torch.arange(rope.rotary_dim // 2, dtype=torch.float32)
    stretched = ((pairs - low) / (high - low)).clamp(0.0, 1.0)
    return plain / rope.factor * stretched + plain * (1 - stretched)


def rope_tables(rope: RopeSpec, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [num_positions, rotary_dim / 2] float32, computed on the host: the same on
    every device."""
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = torch.outer(positions, inverse_frequencies(rope))
    tables = (angles.cos() * rope.attention_factor, angles.sin() * rope.attention_factor)
    return tables[0].to(device), tables[1].to(device)


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Press et al., "Train Short, Test Long", 2022: a geometric sequence of slopes; for a number between two
    powers of two, those of the lower one, then every second of the higher one."""
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / lower) for i in range(lower)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / lower) for i in range(num_heads - lower)]
    return tuple(slopes)
