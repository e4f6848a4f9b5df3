"""What is made of logits, in C++: a row is one thread's.

See kernels/cpu/native/logits.cpp, sampling.cpp and logprob.cpp.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.native.structs import LOGPROBS, SAMPLE
from kernels.logprob import TopLogprobs
from kernels.mask import TokenMasks
from kernels.sample import SamplingTensors

_Pointer = ctypes.c_void_p
_Int64 = ctypes.c_int64


@dataclass(frozen=True, slots=True)
class Logits:
    """Operations on logits by a library."""

    native: ctypes.CDLL

    def argmax(self, logits: Tensor) -> Tensor:
        """See `kernels.argmax.argmax`."""
        rows, vocab_size = logits.shape
        tokens = torch.empty(rows, dtype=torch.int64)
        self.native.penstock_argmax(
            _Pointer(logits.data_ptr()),
            *(_Int64(logits.stride(0)), _Int64(rows), _Int64(vocab_size)),
            _Pointer(tokens.data_ptr()),
        )
        return tokens

    def uniform(self, seeds: Tensor, output_indices: Tensor, samples: Tensor) -> Tensor:
        """See `kernels.philox.uniform`."""
        uniforms = torch.empty(seeds.shape[0], dtype=torch.float32)
        self.native.penstock_uniform(
            *(_Pointer(x.data_ptr()) for x in (seeds, output_indices, samples, uniforms)),
            _Int64(seeds.shape[0]),
        )
        return uniforms

    def sample(self, logits: Tensor, uniforms: Tensor, params: SamplingTensors) -> Tensor:
        """See `kernels.sample.sample`."""
        tokens = torch.empty(logits.shape[0], dtype=torch.int64)
        parts = (logits, uniforms, params.temperature, params.top_k, params.top_p, params.min_p, tokens)
        self.native.penstock_sample(
            SAMPLE.pack(*(part.data_ptr() for part in parts), logits.stride(0), *logits.shape)
        )
        return tokens

    def apply_bitmask(self, logits: Tensor, masks: TokenMasks) -> None:
        """See `kernels.mask.apply_bitmask`."""
        bits = masks.bits.contiguous()
        self.native.penstock_mask(
            *(_Pointer(logits.data_ptr()), _Int64(logits.shape[1])),
            *(_Pointer(masks.index.data_ptr()), _Pointer(bits.data_ptr()), _Int64(bits.shape[0])),
        )

    def top_logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> TopLogprobs:
        """See `kernels.logprob.top_logprobs`."""
        rows = logits.shape[0]
        chosen, ranks = torch.empty(rows, dtype=torch.float32), torch.empty(rows, dtype=torch.int64)
        top_ids = torch.empty((rows, num_top), dtype=torch.int64)
        top = torch.empty((rows, num_top), dtype=torch.float32)
        parts = (logits, token_ids, chosen, ranks, top_ids, top)
        self.native.penstock_logprobs(
            LOGPROBS.pack(*(part.data_ptr() for part in parts), logits.stride(0), *logits.shape, num_top)
        )
        return TopLogprobs(chosen=chosen, ranks=ranks, top_ids=top_ids, top=top)
