"""The twin of every operation in plain torch: written to be read, and to be compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.attention import AttentionMetadata, AttentionPlan, AttentionShape
from kernels.linear import LinearWeight
from kernels.logprob import TopLogprobs
from kernels.mask import BITS_PER_WORD, TokenMasks
from kernels.opset import OpSet
from kernels.penalty import SeenTokens
from kernels.philox import MASK, MULTIPLIERS, ROUNDS, WEYL
from kernels.sample import SamplingTensors


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.norm.rms_norm`."""
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.norm.add_rms_norm`."""
    residual += x
    return rms_norm(residual, weight, eps)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.rotary.rotary`."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """See `kernels.activation.silu_and_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def pack_linear(weight: Tensor, bias: Tensor | None) -> LinearWeight:
    """See `kernels.linear.pack_linear`."""
    out_features, in_features = weight.shape
    return LinearWeight(weight, bias, in_features, out_features, weight.dtype, weight.device)


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """See `kernels.linear.linear`."""
    return torch.nn.functional.linear(x, weight.data, weight.bias)


def store_kv(keys: Tensor, values: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See `kernels.attention.store_kv`."""
    k_cache.flatten(0, 1)[slot_mapping] = keys
    v_cache.flatten(0, 1)[slot_mapping] = values


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """Nothing but the metadata."""

    metadata: AttentionMetadata


def plan_attention(metadata: AttentionMetadata, shape: AttentionShape) -> AttentionPlan:
    """See `kernels.attention.plan_attention`."""
    return ReferencePlan(metadata)


def attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan, out: Tensor) -> None:
    """See `kernels.attention.attention`: one sequence after the other."""
    metadata = plan.metadata
    bounds = metadata.cu_seqlens_q.tolist()
    group = q.shape[1] // k_cache.shape[2]
    for b, context_len in enumerate(metadata.context_lens.tolist()):
        start, end = bounds[b], bounds[b + 1]
        num_blocks = -(-context_len // metadata.block_size)
        table = metadata.block_tables[b, :num_blocks].long()
        keys = k_cache[table].flatten(0, 1)[:context_len].repeat_interleave(group, dim=1)
        values = v_cache[table].flatten(0, 1)[:context_len].repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q[start:end], keys) / math.sqrt(q.shape[2])
        positions = torch.arange(context_len, device=q.device)
        future = positions[None, :] > positions[context_len - (end - start) :, None]
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        out[start:end] = torch.einsum("hqk,khd->qhd", weights, values)


def philox(key: Tensor, counter: Tensor) -> Tensor:
    """See `kernels.philox.philox`. Products wrap modulo 2⁶⁴, so a shift and a mask give the high word."""
    k0, k1 = key.unbind(1)
    c0, c1, c2, c3 = counter.unbind(1)
    for _ in range(ROUNDS):
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        high0, high1 = (product0 >> 32) & MASK, (product1 >> 32) & MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, product1 & MASK, high0 ^ c3 ^ k1, product0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return torch.stack((c0, c1, c2, c3), dim=1)


def sample(logits: Tensor, uniforms: Tensor, params: SamplingTensors) -> Tensor:
    """See `kernels.sample.sample`: row by row, with a full sort."""
    tokens = [_sample_row(row, i, uniforms, params) for i, row in enumerate(logits)]
    return torch.stack(tokens)


def _sample_row(logits: Tensor, i: int, uniforms: Tensor, params: SamplingTensors) -> Tensor:
    logits = logits / params.temperature[i]
    weights = torch.exp(logits - logits.max()).double()
    kept = logits >= logits.max() + torch.log(params.min_p[i])
    top_k = int(params.top_k[i])
    if 0 < top_k < logits.shape[0]:
        kept &= logits >= logits.sort(descending=True).values[top_k - 1]
    if params.top_p[i] < 1:
        ordered, order = torch.where(kept, weights, 0.0).sort(descending=True)
        total = ordered.cumsum(0)
        # The first token that is reached is kept too; a product that underflows keeps the first.
        last = int((total < params.top_p[i].double() * total[-1]).sum())
        kept &= logits >= logits[order[last]]
    cdf = torch.where(kept, weights, 0.0).cumsum(0)
    return (cdf <= uniforms[i].double() * cdf[-1]).sum()


def apply_bitmask(logits: Tensor, masks: TokenMasks) -> None:
    """See `kernels.mask.apply_bitmask`: token by token's word and bit."""
    tokens = torch.arange(logits.shape[1], device=logits.device)
    words = masks.bits[:, tokens // BITS_PER_WORD]
    allowed = (words >> (tokens % BITS_PER_WORD)) & 1
    logits[masks.index] = logits[masks.index].masked_fill(allowed == 0, -math.inf)


def apply_penalties(logits: Tensor, seen: SeenTokens) -> None:
    """See `kernels.penalty.apply_penalties`: pair by pair."""
    for i, place in enumerate(seen.index.tolist()):
        row, token = divmod(place, logits.shape[1])
        logit = logits[row, token]
        logit = logit / seen.repetition[i] if logit > 0 else logit * seen.repetition[i]
        count = seen.output_counts[i]
        logit = logit - seen.frequency[i] * count
        logits[row, token] = logit - seen.presence[i] if count > 0 else logit


def top_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> TopLogprobs:
    """See `kernels.logprob.top_logprobs`: with a full sort, which keeps the order of equal logits."""
    logprobs = logits.double().log_softmax(1).float()
    order = logits.sort(dim=1, descending=True, stable=True).indices
    top_ids = order[:, :num_top]
    return TopLogprobs(
        chosen=logprobs.gather(1, token_ids[:, None])[:, 0],
        ranks=(order == token_ids[:, None]).int().argmax(1) + 1,
        top_ids=top_ids,
        top=logprobs.gather(1, top_ids),
    )


def make_op_set() -> OpSet:
    """Every operation in its plainest form."""
    return OpSet(
        name="reference",
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        rotary=rotary,
        silu_and_mul=silu_and_mul,
        pack_linear=pack_linear,
        linear=linear,
        store_kv=store_kv,
        plan_attention=plan_attention,
        attention=attention,
        philox=philox,
        sample=sample,
        apply_bitmask=apply_bitmask,
        apply_penalties=apply_penalties,
        top_logprobs=top_logprobs,
    )
