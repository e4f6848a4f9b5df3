"""Causal attention over a paged KV cache: prefill chunks and decodes in one packed batch.

The cache of a layer is two tensors [block, slot, kv_head, head_dim]. Token p of sequence b lives in block
`block_tables[b, p // block_size]`, slot `p % block_size`; block 0 belongs to nobody and fills unused entries.
Where an op set's `reads_past_context` says so, slots of a table's blocks past its context are read, with
weight 0, and so must be finite. Queries are packed: sequence b owns rows `cu_seqlens_q[b]` to
`cu_seqlens_q[b + 1]`, the last tokens of its context.
Vaswani et al. 2017 for attention, Kwon et al. 2023 (PagedAttention) for the tables.

A cache is of the model's dtype, or of 8 bits with a scale for each token's head: a stored vector x is
x / scale rounded to the nearest, ties to even, with scale = max|x| / the greatest number that the type holds
(1 where x is 0). float8_e4m3fn holds 448: Micikevicius et al., "FP8 Formats for Deep Learning", 2022. Of int8
±127 are used; it has nothing for what is not finite: there the scale is not finite, and what is read is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor

from kernels.checks import check, check_contiguous, check_float

if TYPE_CHECKING:
    from kernels.opset import OpSet


FP8: Final = torch.float8_e4m3fn
GREATEST: Final = {FP8: 448.0, torch.int8: 127.0}
"""What each type of 8 bits holds."""


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values of one layer."""

    keys: Tensor
    """[blocks, block_size, kv_heads, D] contiguous, of the activations' dtype, 8 bits, or another that the op
    set takes with it. Within a block an op set may have an order of its own, see `OpSet.stores_by_head`."""
    values: Tensor
    """Likewise."""
    key_scales: Tensor | None = None
    """[blocks, block_size, kv_heads] float32 contiguous: of a cache of 8 bits, what each stored key is
    multiplied by. Ordered within a block as keys are."""
    value_scales: Tensor | None = None
    """Likewise."""

    def scale_pointers(self) -> tuple[int, int]:
        """Where the scales begin; 0 where there are none."""
        if self.key_scales is None or self.value_scales is None:
            return 0, 0
        return self.key_scales.data_ptr(), self.value_scales.data_ptr()


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """What one step's attention needs to know, the same for every layer. B sequences, T query tokens."""

    cu_seqlens_q: Tensor
    """[B + 1] int32: where each sequence's queries begin and end."""
    context_lens: Tensor
    """[B] int32: tokens in the cache with those of this step."""
    block_tables: Tensor
    """[B, W] int32: W blocks are enough for the longest context, rounded up to 16 tokens."""
    slot_mapping: Tensor
    """[T] int64: where each token's key and value go, block · block_size + slot."""
    block_size: int
    max_query_len: int
    """No sequence has more query tokens: known to the host, so that a launch waits for no device."""
    max_context_len: int
    """No context is longer. Bounds, not maxima: a step whose launches are recorded has those of its later
    replays."""
    num_decodes: int = 0
    """So many sequences at the front have one query each; what comes after may have one, too. An op set may
    go another way with them."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """How one layer attends: layers of one shape share a step's plan."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """What q · k is multiplied by, 1 / sqrt(head_dim) in most families."""
    window: int = 0
    """A query sees its own key and the window - 1 before it; 0: all before it."""
    soft_cap: float = 0.0
    """Scores s become soft_cap · tanh(s / soft_cap), Gemma 2; 0: they stay."""
    alibi_slopes: tuple[float, ...] = ()
    """Of each query head: slope · (key position - query position) is added to a scaled score. Press, Smith
    and Lewis, "Train Short, Test Long", 2021. Empty: nothing is added."""


class AttentionPlan(Protocol):
    """What an op set derives from the metadata, once per step."""

    @property
    def metadata(self) -> AttentionMetadata: ...

    @property
    def shape(self) -> AttentionShape: ...


def plan_attention(ops: OpSet, metadata: AttentionMetadata, shape: AttentionShape) -> AttentionPlan:
    """Prepares a step: everything about it that is the same for every layer of this shape."""
    batch = metadata.context_lens.shape[0]
    device = metadata.context_lens.device
    check("cu_seqlens_q", metadata.cu_seqlens_q, (batch + 1,), torch.int32, device)
    check("context_lens", metadata.context_lens, (batch,), torch.int32, device)
    check("block_tables", metadata.block_tables, (batch, None), torch.int32, device)
    check("slot_mapping", metadata.slot_mapping, (None,), torch.int64, device)
    assert shape.num_heads % shape.num_kv_heads == 0, "query heads are no multiple of the KV heads"
    assert shape.window >= 0, f"window {shape.window}"
    assert shape.soft_cap >= 0, f"soft_cap {shape.soft_cap}"
    assert len(shape.alibi_slopes) in (0, shape.num_heads), "alibi_slopes: not one for each query head"
    return ops.plan_attention(metadata, shape)


def store_kv(ops: OpSet, keys: Tensor, values: Tensor, cache: LayerCache, slot_mapping: Tensor) -> None:
    """Writes keys and values [T, kv_heads, D] (rows may be strided) to their slots in the cache."""
    num_tokens, num_kv_heads, head_dim = keys.shape
    check_float("keys", keys)
    for name, x in (("keys", keys), ("values", values)):
        check(name, x, (num_tokens, num_kv_heads, head_dim), keys.dtype, keys.device)
    check_cache(cache, (None, None, num_kv_heads, head_dim), keys)
    check("slot_mapping", slot_mapping, (num_tokens,), torch.int64, keys.device)
    ops.store_kv(keys, values, cache, slot_mapping)


def in_8_bits(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x: [..., D]. Returns it as a cache of this type has it, and what that is to be multiplied by, [...]
    float32."""
    greatest = x.float().abs().amax(-1)
    # By a tensor: a device multiplies with the reciprocal of a number of the host, which rounds otherwise.
    scale = greatest / torch.full_like(greatest, GREATEST[dtype])
    if dtype == FP8:  # which has NaN
        scale = torch.where(greatest > 0, scale, 1.0)
        return (x.float() / scale[..., None]).to(FP8), scale
    scale = torch.where(greatest == 0, 1.0, scale)
    return (x.float() / scale[..., None]).nan_to_num(0.0, 0.0, 0.0).round().to(dtype), scale


def attention(ops: OpSet, q: Tensor, cache: LayerCache, plan: AttentionPlan, out: Tensor) -> None:
    """softmax(scores) · v for every query over its own context, up to its own position.

    Scores are q · kᵀ, scaled, then capped, then with the slopes added, then masked, as the plan's shape says.
    q, out: [T, heads, D]; out contiguous and written whole, with 0 where a sequence has one query and
    no context. The cache already holds this step's keys and values.
    """
    shape, num_tokens = plan.shape, plan.metadata.slot_mapping.shape[0]
    check("q", q, (num_tokens, shape.num_heads, shape.head_dim), q.dtype, q.device)
    check_float("q", q)
    check("out", out, tuple(q.shape), q.dtype, q.device)
    check_contiguous("out", out)
    check_cache(cache, (None, plan.metadata.block_size, shape.num_kv_heads, shape.head_dim), q)
    ops.attention(q, cache, plan, out)


def check_cache(cache: LayerCache, shape: tuple[int | None, ...], like: Tensor) -> None:
    """Asserts that keys and values have this shape and the device of `like`, are floating point of one type,
    and have scales if that has 8 bits."""
    is_scaled = cache.keys.dtype in GREATEST
    if not is_scaled:
        check_float("cache.keys", cache.keys)
    parts = (("keys", cache.keys, cache.key_scales), ("values", cache.values, cache.value_scales))
    for name, stored, scales in parts:
        check(f"cache.{name}", stored, shape, cache.keys.dtype, like.device)
        check_contiguous(f"cache.{name}", stored)
        assert (scales is not None) == is_scaled, f"cache.{name}: scales belong to 8 bits, which have them"
        if scales is not None:
            check(f"scales of {name}", scales, tuple(stored.shape[:3]), torch.float32, like.device)
            check_contiguous(f"scales of {name}", scales)
