"""Sampling parameters by row, and one batched draw for the rows of a step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.batch import NO_TOKEN
from engine.request import RequestParams
from kernels.opset import OpSet
from kernels.philox import uniform
from kernels.sample import SamplingTensors, sample

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM: dividing by them would overflow."""


class Sampler:
    """Owns the parameters of every row; a row is set when a sequence starts and then only read."""

    def __init__(self, ops: OpSet, num_rows: int) -> None:
        self._ops = ops
        self._greedy = np.ones(num_rows, dtype=np.bool_)
        self._temperature = np.ones(num_rows, dtype=np.float32)
        self._top_p = np.ones(num_rows, dtype=np.float32)
        self._top_k = np.zeros(num_rows, dtype=np.int64)
        self._min_p = np.zeros(num_rows, dtype=np.float32)
        self._seeds = np.zeros(num_rows, dtype=np.int64)
        self._samples = np.zeros(num_rows, dtype=np.int64)
        self._output_indices = np.zeros(num_rows, dtype=np.int64)

    def set_row(self, row: int, params: RequestParams, num_output_tokens: int) -> None:
        """A sequence starts in a row; its next draw is that of output token `num_output_tokens`."""
        self._greedy[row] = params.temperature < GREEDY_BELOW
        self._temperature[row] = 1.0 if params.temperature < GREEDY_BELOW else params.temperature
        self._top_p[row] = params.top_p
        self._top_k[row] = params.top_k
        self._min_p[row] = params.min_p
        self._seeds[row] = params.seed - (1 << 64) if params.seed >= 1 << 63 else params.seed
        self._samples[row] = params.sample
        self._output_indices[row] = num_output_tokens

    def sample(self, logits: Tensor, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        """One token for each of `rows`, whose logits are [R, V] in the same order. Returns [R] int64.

        A row whose best logit is not finite has NO_TOKEN: the model overflowed on it.
        """
        best, tokens = logits.max(1)
        greedy = self._greedy[rows]
        if not greedy.any():
            tokens = self._draw(logits, rows)
        elif not greedy.all():
            drawn = torch.from_numpy(np.flatnonzero(~greedy))
            tokens[drawn] = self._draw(logits[drawn], rows[~greedy])
        self._output_indices[rows] += 1
        return tokens.masked_fill_(~best.isfinite(), NO_TOKEN)

    def _draw(self, logits: Tensor, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
        top_k, top_p, min_p = self._top_k[rows], self._top_p[rows], self._min_p[rows]
        params = SamplingTensors(
            temperature=torch.from_numpy(self._temperature[rows]),
            top_k=torch.from_numpy(top_k),
            top_p=torch.from_numpy(top_p),
            min_p=torch.from_numpy(min_p),
            any_top_k=bool(top_k.any()),
            any_top_p=bool((top_p < 1).any()),
            any_min_p=bool(min_p.any()),
        )
        uniforms = uniform(
            self._ops,
            torch.from_numpy(self._seeds[rows]),
            torch.from_numpy(self._output_indices[rows]),
            torch.from_numpy(self._samples[rows]),
        )
        return sample(self._ops, logits, uniforms, params)
