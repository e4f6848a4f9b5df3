"""What a decoder is made of, as data: one decoder reads it, and a family is a way to fill it in."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

from msgspec import Struct

from kernels.activation import Activation
from kernels.attention import AttentionShape

RopeKind = Literal["default", "linear", "llama3", "yarn", "longrope"]
Wiring = Literal["pre-norm", "post-norm", "sandwich", "parallel"]
MlpKind = Literal["gated", "plain", "moe"]
NormKind = Literal["rms", "layer"]


class RopeSpec(Struct, frozen=True, kw_only=True):
    """Rotary positions; the fields after `rotary_dim` belong to the kinds that name them."""

    kind: RopeKind
    theta: float
    rotary_dim: int
    """How many dimensions of a head turn, from the first on; even."""
    factor: float = 1.0
    """linear, llama3, yarn: how far the window was stretched."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    """llama3, yarn: the window before stretching."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    """yarn: between how many turns over the original window it interpolates, and whether whole pairs only."""
    divisors: tuple[float, ...] = ()
    """longrope: what each pair's frequency is divided by, the short ones: those of the original window."""
    attention_factor: float = 1.0
    """yarn, longrope: multiplies cosines and sines."""


class Grouped(Struct, frozen=True, kw_only=True):
    """Rows of a fused query, key and value matrix that come group by group: the queries of a KV head, its
    key, its value. With one query each this is the [heads, 3, head_dim] of GPT-NeoX and BLOOM."""

    num_kv_heads: int
    queries_per_kv_head: int
    head_dim: int


Source = tuple[str, tuple[int, ...]]
"""A checkpoint tensor: its name, with `{i}` for the layer, and the shape that it must have."""

Split = Literal["rows", "transposed"] | Grouped


class Param(Struct, frozen=True, kw_only=True):
    """One parameter of the decoder and the checkpoint tensors that make it up, first rows first."""

    name: str
    """The decoder's name for it, such as `qkv`."""
    shape: tuple[int, ...]
    """As the decoder reads it. Rows of all sources follow each other in it."""
    sources: tuple[Source, ...]
    alternatives: tuple[tuple[Source, ...], ...] = ()
    """Other tensors that checkpoints hold instead of `sources`."""
    split: Split = "rows"
    """How the sources lie: as they are needed, as [in, out], or with queries, keys and values mixed."""
    offset: float = 0.0
    """Added to what was read: Gemma's norms store w and multiply with 1 + w."""
    float32: bool = False
    """Kept in float32 in every precision, as norms are."""

    def spellings(self, layer: int) -> Iterator[tuple[Source, ...]]:
        """The sources of a layer, then their alternatives."""
        for sources in (self.sources, *self.alternatives):
            yield tuple((name.replace("{i}", str(layer)), shape) for name, shape in sources)


class LayerSpec(Struct, frozen=True, kw_only=True):
    """One block."""

    attention: AttentionShape
    rope: RopeSpec | None
    """None: this layer turns nothing."""
    mlp: MlpKind
    params: tuple[Param, ...]
    """Which norms are among them says how the block is wired, together with `DecoderSpec.parallel`:
    `attention_norm` and `mlp_norm` are applied before, `attention_post_norm` and `mlp_post_norm` after."""


class MoeSpec(Struct, frozen=True, kw_only=True):
    """How tokens find their experts."""

    num_experts: int
    top_k: int
    renormalize: bool
    """Whether the weights of the chosen experts are made to sum to 1."""


class DecoderSpec(Struct, frozen=True, kw_only=True):
    """One model."""

    architecture: str
    """The config's name for it, for messages."""
    vocab_size: int
    hidden_size: int
    norm: NormKind
    norm_eps: float
    activation: Activation
    max_position_embeddings: int
    """The window that the model was made for, tokens."""
    layers: tuple[LayerSpec, ...]
    outer_params: tuple[Param, ...]
    """Those that are there once: embedding, final norm, and learned positions or the embedding's own norm
    where there are any."""
    lm_head: Param
    tied: bool
    """Whether the embedding is also the output matrix: then `lm_head` is not read."""
    parallel: bool = False
    """Attention and MLP of a block read the same input, or each a norm of it."""
    moe: MoeSpec | None = None
    qk_norm: Literal["none", "head", "projection"] = "none"
    """What of queries and keys is normed before they turn: nothing, each head, or all heads together."""
    embedding_multiplier: float = 1.0
    """Rounded to the type of the activations, as Gemma does it."""
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    logit_soft_cap: float = 0.0
    """c: logits become c · tanh(logits / c); 0: they stay."""
    optional_prefix: str = ""
    """Checkpoint names may lack this: some of the hub's were saved from the model without its head."""
    ignored_tensors: tuple[str, ...] = ()
    """Patterns of checkpoint tensors that say nothing the spec does not."""
    window_reason: str = ""
    """Why the window ends where it does, if the config promises more."""

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_kv_heads(self) -> int:
        """The same in all layers."""
        return self.layers[0].attention.num_kv_heads

    @property
    def head_dim(self) -> int:
        """The same in all layers."""
        return self.layers[0].attention.head_dim

    @property
    def wiring(self) -> Wiring:
        names = {param.name for param in self.layers[0].params}
        if self.parallel:
            return "parallel"
        if "attention_norm" not in names:
            return "post-norm"
        return "sandwich" if "attention_post_norm" in names else "pre-norm"

    @property
    def params(self) -> Iterator[tuple[Param, int]]:
        """Every parameter that is read, with its layer."""
        yield from ((param, 0) for param in self.outer_params)
        if not self.tied:
            yield self.lm_head, 0
        for i, layer in enumerate(self.layers):
            yield from ((param, i) for param in layer.params)

    @property
    def num_parameters(self) -> int:
        return sum(prod(param.shape) for param, _ in self.params)
