"""Which operations are timed at which sizes, as data; what they move follows from the sizes alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.engine.shapes import LLAMA_31_8B, QWEN3_06B, QWEN3_8B, ModelShape
from benchmarks.kernels import cost
from benchmarks.kernels.cost import Cost

BATCHES = (1, 64, 256)
PREFILLS = (2048, 8192)
CONTEXTS = (512, 4096)
EXPERTS = {"hidden": 2048, "inner": 768, "num_experts": 128, "top_k": 8}
"""Of Qwen3-30B-A3B."""
FEW_EXPERTS = {"hidden": 64, "inner": 32, "num_experts": 4, "top_k": 2}
PENALIZED = 1000
"""Tokens that a row has seen."""


@dataclass(frozen=True)
class Case:
    """One operation at one size."""

    op: str
    """Its function, also the name of what makes its inputs."""
    file: str
    """The operation's file in kernels/, whose tests it stands on."""
    shape: str
    """The model's name."""
    size: str
    """In words: `batch 64, context 512, fp8 KV`."""
    sizes: dict[str, Any] = field(hash=False)
    cost: Cost = field(hash=False)
    rank: int = 1
    """0 comes first where time is short."""

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.size}"


def all_cases(
    shapes: tuple[ModelShape, ...] = (QWEN3_06B, LLAMA_31_8B, QWEN3_8B),
    batches: tuple[int, ...] = BATCHES,
    prefills: tuple[int, ...] = PREFILLS,
    contexts: tuple[int, ...] = CONTEXTS,
    e: int = 2,
    cache_bytes: tuple[int, ...] = (2, 1),
    experts: dict[str, int] = EXPERTS,
) -> list[Case]:
    """Every case, most important first: attention and norms of decodes, then the rest."""
    cases: list[Case] = []
    for shape in shapes:
        tokens = [(f"batch {batch}", batch, batch >= 64) for batch in batches]
        tokens += [(f"prefill {count}", count, False) for count in prefills]
        for words, count, is_first in tokens:
            cases += _per_token(shape, words, count, e, cache_bytes, rank=0 if is_first else 1)
        for cache_e in cache_bytes:
            cases += _decode_attention(shape, batches, contexts, e, cache_e)
            cases += _prefill_attention(shape, prefills, e, cache_e)
        for batch in batches:
            cases += _sampling(shape, batch)
    cases += _once(shapes[0], (*batches, prefills[0]), e, cache_bytes[0], experts)
    return sorted(cases, key=lambda case: case.rank)


def _per_token(
    s: ModelShape, words: str, tokens: int, e: int, cache_bytes: tuple[int, ...], rank: int
) -> Iterator[Case]:
    sizes = {"rows": tokens, "width": s.hidden_size}
    norm = cost.elementwise(tokens, s.hidden_size, e, 4)
    yield Case("add_rms_norm", "norm", s.name, words, sizes, norm, rank)
    gate = cost.elementwise(tokens, s.intermediate_size, e, 3)
    yield Case(
        "act_and_mul", "activation", s.name, words, {"rows": tokens, "width": s.intermediate_size}, gate, rank
    )
    for cache_e in cache_bytes:
        heads = _heads(s, cache_e)
        moved = cost.rotate_and_store(tokens, s.num_heads, s.num_kv_heads, s.head_dim, e, cache_e)
        lengths = [(tokens, tokens)] if words.startswith("prefill") else [(1, 1)] * tokens
        sizes = {"lengths": lengths, **heads, "head_norm": s.head_norm}
        yield Case("rotate_and_store", "qkv", s.name, f"{words}, {_cache(cache_e, e)} KV", sizes, moved, rank)
    for layer, k, n in _products(s):
        found = cost.linear(tokens, k, n, e)
        yield Case(
            "linear", "linear", s.name, f"{layer}, {words}", {"rows": tokens, "k": k, "n": n}, found, rank + 1
        )


def _products(s: ModelShape) -> Iterator[tuple[str, int, int]]:
    yield "qkv", s.hidden_size, s.q_size + 2 * s.kv_size
    yield "out", s.q_size, s.hidden_size
    yield "gate_up", s.hidden_size, 2 * s.intermediate_size
    yield "down", s.intermediate_size, s.hidden_size


def _decode_attention(
    s: ModelShape, batches: tuple[int, ...], contexts: tuple[int, ...], e: int, cache_e: int
) -> Iterator[Case]:
    for batch in batches:
        for context in contexts:
            lengths = [(1, context)] * batch
            words = f"batch {batch}, context {context}, {_cache(cache_e, e)} KV"
            yield _attention(s, lengths, words, e, cache_e, rank=0 if batch >= 64 else 1)


def _prefill_attention(s: ModelShape, prefills: tuple[int, ...], e: int, cache_e: int) -> Iterator[Case]:
    for tokens in prefills:
        yield _attention(s, [(tokens, tokens)], f"prefill {tokens}, {_cache(cache_e, e)} KV", e, cache_e, 1)


def _attention(
    s: ModelShape, lengths: list[tuple[int, int]], words: str, e: int, cache_e: int, rank: int
) -> Case:
    found = cost.attention(lengths, s.num_heads, s.num_kv_heads, s.head_dim, e, cache_e)
    sizes = {"lengths": lengths, **_heads(s, cache_e)}
    return Case("attention", "attention", s.name, words, sizes, found, rank)


def _sampling(s: ModelShape, batch: int) -> Iterator[Case]:
    words, sizes = f"batch {batch}", {"rows": batch, "vocab": s.vocab_size}
    rank = 0 if batch >= 64 and s.name == QWEN3_06B.name else 2
    lm_head = cost.linear(batch, s.hidden_size, s.vocab_size, 2)
    sides = {"rows": batch, "k": s.hidden_size, "n": s.vocab_size}
    yield Case("linear", "linear", s.name, f"lm_head, {words}", sides, lm_head, rank + 1)
    read = cost.logits_read(batch, s.vocab_size)
    yield Case("argmax", "argmax", s.name, words, sizes, read, rank)
    yield Case("sample", "sample", s.name, f"{words}, temperature", {**sizes, "filters": False}, read, rank)
    yield Case("sample", "sample", s.name, f"{words}, top_k top_p", {**sizes, "filters": True}, read, rank)
    yield Case("top_logprobs", "logprob", s.name, words, sizes, read, rank + 1)
    yield Case(
        "apply_bitmask", "mask", s.name, words, sizes, cost.apply_bitmask(batch, s.vocab_size), rank + 1
    )
    seen = cost.apply_penalties(batch * PENALIZED)
    yield Case("apply_penalties", "penalty", s.name, words, sizes, seen, rank + 1)


def _once(
    s: ModelShape, counts: tuple[int, ...], e: int, cache_e: int, experts: dict[str, int]
) -> Iterator[Case]:
    """Operations that these models lack or that take their time elsewhere, at one model's sizes."""
    model = "qwen3-30b-a3b" if experts is EXPERTS else s.name
    for tokens in counts:
        words, sizes = f"{tokens} tokens", {"rows": tokens, "width": s.hidden_size}
        for op, tensors in (("rms_norm", 2), ("layer_norm", 2), ("add_layer_norm", 4)):
            found = cost.elementwise(tokens, s.hidden_size, e, tensors)
            yield Case(op, "norm", s.name, words, sizes, found, 3)
        found = cost.elementwise(tokens, s.intermediate_size, e, 2)
        sides = {"rows": tokens, "width": s.intermediate_size}
        yield Case("activate", "activation", s.name, words, sides, found, 3)
        turned = (s.num_heads + s.num_kv_heads) * s.head_dim
        found = Cost(cost.elementwise(tokens, turned, e, 2).num_bytes + tokens * s.head_dim * 4)
        heads = {"tokens": tokens, **_heads(s, cache_e)}
        yield Case("rotary", "rotary", s.name, words, heads, found, 3)
        found = cost.store_kv(tokens, s.num_kv_heads, s.head_dim, e, cache_e)
        yield Case("store_kv", "qkv", s.name, words, heads, found, 3)
        found = cost.moe(tokens, **experts, e=e)
        yield Case("moe", "moe", model, words, {"tokens": tokens, **experts}, found, 2)
        found = cost.route(tokens, experts["num_experts"], experts["top_k"], e)
        yield Case("route", "moe", model, words, {"tokens": tokens, **experts}, found, 3)
        yield Case("uniform", "philox", s.name, words, {"rows": tokens}, cost.uniform(tokens), 3)


def _heads(s: ModelShape, cache_e: int) -> dict[str, Any]:
    return {
        "num_heads": s.num_heads,
        "num_kv_heads": s.num_kv_heads,
        "head_dim": s.head_dim,
        "is_fp8": cache_e == 1,
    }


def _cache(cache_e: int, e: int) -> str:
    return "fp8" if cache_e == 1 else {2: "16-bit", 4: "fp32"}[e]
