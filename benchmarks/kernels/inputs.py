"""Random inputs of an operation at a case's sizes, as calls that are ready to be timed.

Each maker gives one call with inputs of its own; scales are such that values stay finite however often a call
that works in place is repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.cases import PENALIZED
from kernels.activation import act_and_mul, activate
from kernels.argmax import argmax
from kernels.attention import (
    FP8,
    AttentionMetadata,
    AttentionPlan,
    AttentionShape,
    LayerCache,
    attention,
    plan_attention,
    store_kv,
)
from kernels.linear import linear, pack_linear
from kernels.logprob import top_logprobs
from kernels.mask import TokenMasks, apply_bitmask
from kernels.moe import moe, pack_experts, route
from kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from kernels.opset import OpSet
from kernels.penalty import SeenTokens, apply_penalties
from kernels.philox import uniform
from kernels.qkv import HeadNorm, Turn, rotate_and_store
from kernels.rotary import rotary
from kernels.sample import SamplingTensors, sample

BLOCK_SIZE = 16
EPS = 1e-6
Call = Callable[[], object]


class Inputs:
    """Makes calls of one op set on one device in one dtype."""

    def __init__(self, ops: OpSet, device: torch.device, dtype: torch.dtype) -> None:
        self.ops, self.device, self.dtype = ops, device, dtype

    def make(self, op: str, sizes: dict[str, Any]) -> Call:
        """A call of this operation on new random inputs."""
        return getattr(self, f"_{op}")(**sizes)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def _ones(self, *shape: int) -> Tensor:
        return 1 + 0.1 * torch.randn(shape, device=self.device)

    def _rms_norm(self, rows: int, width: int) -> Call:
        x, weight = self._randn(rows, width), self._ones(width)
        return lambda: rms_norm(self.ops, x, weight, EPS)

    def _add_rms_norm(self, rows: int, width: int) -> Call:
        x, residual, weight = self._randn(rows, width), self._randn(rows, width), self._ones(width)
        return lambda: add_rms_norm(self.ops, x, residual, weight, EPS)

    def _layer_norm(self, rows: int, width: int) -> Call:
        x, weight = self._randn(rows, width), self._ones(width)
        return lambda: layer_norm(self.ops, x, weight, None, EPS)

    def _add_layer_norm(self, rows: int, width: int) -> Call:
        x, residual, weight = self._randn(rows, width), self._randn(rows, width), self._ones(width)
        return lambda: add_layer_norm(self.ops, x, residual, weight, None, EPS)

    def _act_and_mul(self, rows: int, width: int) -> Call:
        gate_up = self._randn(rows, 2 * width)
        return lambda: act_and_mul(self.ops, gate_up, "silu")

    def _activate(self, rows: int, width: int) -> Call:
        x = self._randn(rows, width)
        return lambda: activate(self.ops, x, "gelu")

    def _linear(self, rows: int, k: int, n: int) -> Call:
        x, weight = self._randn(rows, k), pack_linear(self.ops, self._randn(n, k), None)
        return lambda: linear(self.ops, x, weight)

    def _rotary(self, tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, is_fp8: bool) -> Call:
        x = self._randn(tokens, num_heads + num_kv_heads, head_dim)
        turn = self._turn(tokens, head_dim)
        return lambda: rotary(self.ops, x, turn.cos, turn.sin)

    def _store_kv(self, tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, is_fp8: bool) -> Call:
        keys, values = (self._randn(tokens, num_kv_heads, head_dim) for _ in range(2))
        cache = self._cache(-(-tokens // BLOCK_SIZE) + 1, num_kv_heads, head_dim, is_fp8)
        slots = torch.randperm(tokens, device=self.device) + BLOCK_SIZE
        return lambda: store_kv(self.ops, keys, values, cache, slots)

    def _rotate_and_store(
        self,
        lengths: list[tuple[int, int]],
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        is_fp8: bool,
        head_norm: bool,
    ) -> Call:
        plan, cache = self._paged(lengths, num_heads, num_kv_heads, head_dim, is_fp8)
        tokens = plan.metadata.slot_mapping.shape[0]
        qkv = self._randn(tokens, (num_heads + 2 * num_kv_heads) * head_dim)
        weight = self._ones(num_heads + num_kv_heads, head_dim)
        norm = HeadNorm(weight, EPS) if head_norm else None
        turn = self._turn(tokens, head_dim)
        return lambda: rotate_and_store(self.ops, qkv, norm, turn, plan, cache)

    def _attention(
        self,
        lengths: list[tuple[int, int]],
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        is_fp8: bool,
    ) -> Call:
        plan, cache = self._paged(lengths, num_heads, num_kv_heads, head_dim, is_fp8)
        q = self._randn(sum(count for count, _ in lengths), num_heads, head_dim)
        out = torch.empty_like(q)
        return lambda: attention(self.ops, q, cache, plan, out)

    def _argmax(self, rows: int, vocab: int) -> Call:
        logits = self._logits(rows, vocab)
        return lambda: argmax(self.ops, logits)

    def _sample(self, rows: int, vocab: int, filters: bool) -> Call:
        logits, draws = self._logits(rows, vocab), torch.rand(rows, device=self.device)
        params = SamplingTensors(
            temperature=torch.full((rows,), 0.6, device=self.device),
            top_k=torch.full((rows,), 50 if filters else 0, device=self.device, dtype=torch.int64),
            top_p=torch.full((rows,), 0.95 if filters else 1.0, device=self.device),
            min_p=torch.zeros(rows, device=self.device),
            any_top_k=filters,
            any_top_p=filters,
            any_min_p=False,
        )
        return lambda: sample(self.ops, logits, draws, params)

    def _top_logprobs(self, rows: int, vocab: int) -> Call:
        logits = self._logits(rows, vocab)
        ids = torch.randint(vocab, (rows,), device=self.device)
        return lambda: top_logprobs(self.ops, logits, ids, 5)

    def _apply_bitmask(self, rows: int, vocab: int) -> Call:
        words = -(-vocab // 32)
        bits = torch.randint(-(2**31), 2**31 - 1, (rows, words), device=self.device, dtype=torch.int32)
        masks = TokenMasks(torch.arange(rows, device=self.device), bits)
        logits = self._logits(rows, vocab)
        return lambda: apply_bitmask(self.ops, logits, masks)

    def _apply_penalties(self, rows: int, vocab: int) -> Call:
        seen_per_row = min(PENALIZED, vocab)
        tokens = torch.rand(rows, vocab, device=self.device).topk(seen_per_row).indices
        index = (tokens + torch.arange(rows, device=self.device)[:, None] * vocab).flatten()
        ones = torch.ones(index.shape[0], device=self.device)
        seen = SeenTokens(index, ones, ones.clone(), ones * 1e-3, ones * 1e-3)
        logits = self._logits(rows, vocab)
        return lambda: apply_penalties(self.ops, logits, seen)

    def _moe(self, tokens: int, hidden: int, inner: int, num_experts: int, top_k: int) -> Call:
        gate_up = self._randn(num_experts, 2 * inner, hidden) / hidden**0.5
        down = self._randn(num_experts, hidden, inner) / inner**0.5
        experts = pack_experts(self.ops, gate_up, down, "silu")
        x = self._randn(tokens, hidden)
        weights, ids = route(self.ops, self._randn(tokens, num_experts), top_k, True)
        return lambda: moe(self.ops, x, weights, ids, experts)

    def _route(self, tokens: int, hidden: int, inner: int, num_experts: int, top_k: int) -> Call:
        logits = self._randn(tokens, num_experts)
        return lambda: route(self.ops, logits, top_k, True)

    def _uniform(self, rows: int) -> Call:
        seeds, indices = (torch.randint(2**62, (rows,), device=self.device) for _ in range(2))
        samples = torch.zeros_like(seeds)
        return lambda: uniform(self.ops, seeds, indices & 0xFFFF, samples)

    def _logits(self, rows: int, vocab: int) -> Tensor:
        return 3 * torch.randn(rows, vocab, device=self.device)

    def _turn(self, tokens: int, head_dim: int) -> Turn:
        angles = torch.rand(tokens, head_dim // 2, device=self.device) * 6.0
        return Turn(angles.cos(), angles.sin())

    def _cache(self, num_blocks: int, num_kv_heads: int, head_dim: int, is_fp8: bool) -> LayerCache:
        shape = (num_blocks, BLOCK_SIZE, num_kv_heads, head_dim)
        if not is_fp8:
            return LayerCache(self._randn(*shape), self._randn(*shape))
        keys, values = (torch.randn(shape, device=self.device).clamp(-400, 400).to(FP8) for _ in range(2))
        scales = [0.5 + torch.rand(shape[:3], device=self.device) for _ in range(2)]
        return LayerCache(keys, values, *scales)

    def _paged(
        self,
        lengths: list[tuple[int, int]],
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        is_fp8: bool,
    ) -> tuple[AttentionPlan, LayerCache]:
        """Sequences whose blocks lie scattered, as in a cache that has been used for a while."""
        device = self.device
        contexts = torch.tensor([context for _, context in lengths])
        counts = torch.tensor([count for count, _ in lengths])
        width = -(-(-(-int(contexts.max()) // 16) * 16) // BLOCK_SIZE)
        num_blocks = int((-(-contexts // BLOCK_SIZE)).sum())
        free = (torch.randperm(num_blocks) + 1).int()
        used = torch.arange(width) < (-(-contexts // BLOCK_SIZE))[:, None]
        tables = torch.zeros(len(lengths), width, dtype=torch.int32)
        tables[used] = free
        rows = torch.repeat_interleave(torch.arange(len(lengths)), counts)
        bounds = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
        positions = torch.arange(len(rows)) - bounds[rows] + (contexts - counts)[rows]
        slots = tables[rows, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
        metadata = AttentionMetadata(
            cu_seqlens_q=bounds.int().to(device),
            context_lens=contexts.int().to(device),
            block_tables=tables.to(device),
            slot_mapping=slots.to(device),
            block_size=BLOCK_SIZE,
            max_query_len=int(counts.max()),
            max_context_len=int(contexts.max()),
        )
        shape = AttentionShape(num_heads, num_kv_heads, head_dim, head_dim**-0.5)
        cache = self._cache(num_blocks + 1, num_kv_heads, head_dim, is_fp8)
        return plan_attention(self.ops, metadata, shape), cache
