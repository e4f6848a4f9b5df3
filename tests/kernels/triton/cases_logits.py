"""What the small operations on logits are tested and compiled with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from kernels.mask import TokenMasks
from kernels.penalty import SeenTokens
from kernels.triton.argmax import argmax
from kernels.triton.logprob import top_logprobs
from kernels.triton.mask import apply_bitmask
from kernels.triton.penalty import apply_penalties
from kernels.triton.philox import philox, uniform
from tests.kernels.triton.device import DEVICE

VOCAB_SIZES = [1, 63, 1000, 4097]
if DEVICE == "cuda":
    VOCAB_SIZES += [20_011, 151_936]


def seen_of(num_rows: int, vocab_size: int, seed: int) -> SeenTokens:
    """A third of all pairs, with every kind of penalty."""
    generator = torch.Generator().manual_seed(seed)
    num_pairs = -(-num_rows * vocab_size // 3)
    return SeenTokens(
        index=torch.randperm(num_rows * vocab_size, generator=generator)[:num_pairs].to(DEVICE),
        output_counts=torch.randint(0, 5, (num_pairs,), generator=generator).float().to(DEVICE),
        repetition=(torch.rand(num_pairs, generator=generator) + 0.5).to(DEVICE),
        frequency=(torch.rand(num_pairs, generator=generator) * 4 - 2).to(DEVICE),
        presence=(torch.rand(num_pairs, generator=generator) * 4 - 2).to(DEVICE),
    )


def masks_of(index: list[int], vocab_size: int, seed: int) -> TokenMasks:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(index), -(-vocab_size // 32))
    bits = torch.randint(-(2**31), 2**31, shape, generator=generator).int()
    return TokenMasks(torch.tensor(index, dtype=torch.int64, device=DEVICE), bits.to(DEVICE))


def _compile_argmax(vocab_size: int) -> None:
    argmax(torch.zeros(3, vocab_size))


def _compile_logprob(vocab_size: int) -> None:
    top_logprobs(torch.zeros(3, vocab_size), torch.zeros(3, dtype=torch.int64), 5)


def _compile_mask() -> None:
    bits = torch.zeros(3, 4748, dtype=torch.int32)
    apply_bitmask(torch.zeros(3, 151_936), TokenMasks(torch.arange(3), bits))


def _compile_penalty() -> None:
    floats = torch.zeros(3)
    apply_penalties(torch.zeros(3, 151_936), SeenTokens(torch.arange(3), floats, floats, floats, floats))


def _compile_philox() -> None:
    philox(torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64))
    uniform(torch.arange(3), torch.arange(3), torch.arange(3))


COMPILED: list[tuple[str, Callable[[], None]]] = [
    *((f"argmax-{size}", partial(_compile_argmax, size)) for size in (151_936, 63)),
    *((f"top_logprobs-{size}", partial(_compile_logprob, size)) for size in (151_936, 262_143)),
    ("mask", _compile_mask),
    ("penalty", _compile_penalty),
    ("philox", _compile_philox),
]
