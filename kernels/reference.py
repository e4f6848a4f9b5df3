"""The twin of every operation in plain torch: written to be read, and to be compared with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activation import Activation
from kernels.attention import AttentionMetadata, AttentionPlan, AttentionShape, LayerCache, in_8_bits
from kernels.linear import LinearWeight
from kernels.logprob import TopLogprobs
from kernels.mask import BITS_PER_WORD, TokenMasks
from kernels.moe import ExpertWeights
from kernels.opset import OpSet
from kernels.penalty import SeenTokens
from kernels.philox import MASK, MULTIPLIERS, ROUNDS, WEYL, uniform_of_words
from kernels.qkv import HeadNorm, Parts, Turn, by_parts
from kernels.sample import SamplingTensors


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.norm.rms_norm`."""
    wide = x.float()
    return (wide / torch.sqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.norm.add_rms_norm`."""
    residual += x
    return rms_norm(residual, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `kernels.norm.layer_norm`."""
    wide = x.float()
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * weight
    return (normed if bias is None else normed + bias).to(x.dtype)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `kernels.norm.add_layer_norm`."""
    residual += x
    return layer_norm(residual, weight, bias, eps)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.rotary.rotary`."""
    half = cos.shape[1]
    first, second, rest = x.float().split((half, half, x.shape[2] - 2 * half), dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x.dtype)


def act_and_mul(gate_up: Tensor, activation: Activation) -> Tensor:
    """See `kernels.activation.act_and_mul`."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (_activate(gate, activation) * up).to(gate_up.dtype)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """See `kernels.activation.activate`."""
    return _activate(x.float(), activation).to(x.dtype)


def _activate(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case "silu":
            return torch.nn.functional.silu(x)
        case "gelu":
            return torch.nn.functional.gelu(x)
        case "gelu_tanh":
            return torch.nn.functional.gelu(x, approximate="tanh")
        case "relu":
            return torch.nn.functional.relu(x)


def pack_linear(weight: Tensor, bias: Tensor | None) -> LinearWeight:
    """See `kernels.linear.pack_linear`."""
    out_features, in_features = weight.shape
    return LinearWeight(weight, bias, in_features, out_features, weight.dtype, weight.device)


def linear(x: Tensor, weight: LinearWeight) -> Tensor:
    """See `kernels.linear.linear`."""
    assert isinstance(weight.data, Tensor), "this weight was packed by another op set"
    return torch.nn.functional.linear(x, weight.data, weight.bias)


def pack_experts(gate_up: Tensor, down: Tensor, activation: Activation) -> ExpertWeights:
    """See `kernels.moe.pack_experts`: views of the two tensors."""
    return ExpertWeights(
        gate_up=tuple(pack_linear(weight, None) for weight in gate_up),
        down=tuple(pack_linear(weight, None) for weight in down),
        activation=activation,
        num_experts=gate_up.shape[0],
        hidden_size=gate_up.shape[2],
        dtype=gate_up.dtype,
        device=gate_up.device,
    )


def route(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """See `kernels.moe.route`. `topk` promises no order of equals, a stable sort does."""
    ordered = router_logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)
    weights, ids = ordered.values[:, :top_k], ordered.indices[:, :top_k]
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, ids


def moe(x: Tensor, weights: Tensor, ids: Tensor, experts: ExpertWeights) -> Tensor:
    """See `kernels.moe.moe`: every expert computes every token, with weight 0 where it was not picked."""
    dense = torch.zeros(x.shape[0], experts.num_experts, device=x.device).scatter_(1, ids, weights)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert, (gate_up, down) in enumerate(zip(experts.gate_up, experts.down, strict=True)):
        hidden = act_and_mul(linear(x, gate_up), experts.activation)
        out += dense[:, expert, None] * linear(hidden, down).float()
    return out.to(x.dtype)


def store_kv(keys: Tensor, values: Tensor, cache: LayerCache, slot_mapping: Tensor) -> None:
    """See `kernels.attention.store_kv`."""
    parts = ((keys, cache.keys, cache.key_scales), (values, cache.values, cache.value_scales))
    for x, stored, scales in parts:
        if scales is not None:
            x, scale = in_8_bits(x, stored.dtype)
            scales.flatten(0, 1)[slot_mapping] = scale
        # By bytes: not every build of torch moves FP8.
        stored.view(torch.uint8).flatten(0, 1)[slot_mapping] = (
            x.contiguous().to(stored.dtype).view(torch.uint8)
        )


_PARTS = Parts(rms_norm, rotary, store_kv)


def rotate_and_store(
    qkv: Tensor, norm: HeadNorm | None, turn: Turn | None, plan: AttentionPlan, cache: LayerCache
) -> Tensor:
    """See `kernels.qkv.rotate_and_store`."""
    return by_parts(_PARTS, qkv, norm, turn, plan, cache)


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """Nothing but what it was made of."""

    metadata: AttentionMetadata
    shape: AttentionShape


def plan_attention(metadata: AttentionMetadata, shape: AttentionShape) -> AttentionPlan:
    """See `kernels.attention.plan_attention`."""
    return ReferencePlan(metadata, shape)


def attention(q: Tensor, cache: LayerCache, plan: AttentionPlan, out: Tensor) -> None:
    """See `kernels.attention.attention`: one sequence after the other."""
    metadata, shape = plan.metadata, plan.shape
    bounds = metadata.cu_seqlens_q.tolist()
    group = shape.num_heads // shape.num_kv_heads
    for b, context_len in enumerate(metadata.context_lens.tolist()):
        start, end = bounds[b], bounds[b + 1]
        if context_len == 0:
            out[start:end] = 0
            continue
        num_blocks = -(-context_len // metadata.block_size)
        table = metadata.block_tables[b, :num_blocks].long()
        keys = _read(cache.keys, cache.key_scales, table, context_len).repeat_interleave(group, dim=1)
        values = _read(cache.values, cache.value_scales, table, context_len).repeat_interleave(group, dim=1)
        positions = torch.arange(context_len, device=q.device)
        distances = positions[None, :] - positions[context_len - (end - start) :, None]
        scores = torch.einsum("qhd,khd->hqk", q[start:end].float(), keys) * shape.scale
        weights = _mask(scores, distances, shape).softmax(-1)
        out[start:end] = torch.einsum("hqk,khd->qhd", weights, values)


def _read(stored: Tensor, scales: Tensor | None, table: Tensor, context_len: int) -> Tensor:
    """The context's keys or values, [context_len, kv_heads, D] float32."""
    of_blocks = stored.view(torch.uint8)[table].view(stored.dtype)
    x = of_blocks.flatten(0, 1)[:context_len].float()
    return x if scales is None else x * scales[table].flatten(0, 1)[:context_len, :, None]


def _mask(scores: Tensor, distances: Tensor, shape: AttentionShape) -> Tensor:
    """scores: [heads, queries, keys]; distances: [queries, keys], key position - query position."""
    if shape.soft_cap:
        scores = shape.soft_cap * torch.tanh(scores / shape.soft_cap)
    if shape.alibi_slopes:
        scores = scores + torch.tensor(shape.alibi_slopes, device=scores.device)[:, None, None] * distances
    hidden = distances > 0
    if shape.window:
        hidden = hidden | (distances <= -shape.window)
    return scores.masked_fill(hidden, -math.inf)


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


def uniform(seeds: Tensor, output_indices: Tensor, samples: Tensor) -> Tensor:
    """See `kernels.philox.uniform`."""
    return uniform_of_words(philox, seeds, output_indices, samples)


def argmax(logits: Tensor) -> Tensor:
    """See `kernels.argmax.argmax`."""
    vocab_size = logits.shape[1]
    greatest = (logits == logits.amax(1, keepdim=True)) | logits.isnan()
    return torch.where(greatest, torch.arange(vocab_size, device=logits.device), vocab_size).amin(1)


def sample(logits: Tensor, uniforms: Tensor, params: SamplingTensors) -> Tensor:
    """See `kernels.sample.sample`: row by row, with a full sort."""
    tokens = [_sample_row(row, i, uniforms, params) for i, row in enumerate(logits)]
    return torch.stack(tokens)


def _sample_row(logits: Tensor, i: int, uniforms: Tensor, params: SamplingTensors) -> Tensor:
    logits = (logits - logits.max()) / params.temperature[i]
    # What has no distance from its row's greatest, which is not finite, counts as the greatest.
    logits = torch.where(logits.isnan(), 0.0, logits)
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
        layer_norm=layer_norm,
        add_layer_norm=add_layer_norm,
        rotary=rotary,
        act_and_mul=act_and_mul,
        activate=activate,
        pack_linear=pack_linear,
        linear=linear,
        pack_experts=pack_experts,
        route=route,
        moe=moe,
        store_kv=store_kv,
        rotate_and_store=rotate_and_store,
        plan_attention=plan_attention,
        attention=attention,
        philox=philox,
        uniform=uniform,
        argmax=argmax,
        sample=sample,
        apply_bitmask=apply_bitmask,
        apply_penalties=apply_penalties,
        top_logprobs=top_logprobs,
    )
