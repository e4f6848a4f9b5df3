"""Attention of the transformers fallback: the function that transformers' models call instead of their own.

transformers hands a layer's queries, keys and values to the function registered under the name in the
model's config, with whatever keywords the model's `forward` was given. One of ours, `STEP_KEYWORD`, carries
the step: caches, plans, and which layer attends how. Nothing else is shared between models, so that several
can live in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import torch
from torch import Tensor, nn

from engine.models.model import KVCache
from kernels.attention import AttentionPlan, AttentionShape, attention, store_kv
from kernels.opset import OpSet

PAGED: Final = "penstock_paged"
"""The implementation's name in transformers. No mask function has this name: transformers builds no mask."""
DESCRIBING: Final = "penstock_describing"
"""The same, with a mask function that says which mask the model asks for; see `describe_mask`."""
STEP_KEYWORD: Final = "penstock_step"
UNKNOWN_MASK: Final = -1

HARMLESS: Final = frozenset(
    {
        "attention_mask",
        "cache_position",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""Keywords that say nothing of what attention computes: what the layers pass on from one to the next."""


class AttentionRefused(Exception):
    """A layer asks for something that paged attention does not do; its text completes "it …"."""


class AttentionStep(Protocol):
    """What `paged_attention` hands a layer's call to: a step's caches, or the probe's notes."""

    def attend(self, call: AttentionCall) -> Tensor:
        """Returns [T, heads, head_dim], contiguous."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One layer's call. T tokens of the whole batch, packed."""

    layer: int
    q: Tensor
    """[T, heads, head_dim]; keys and values alike with their heads. Rows may be strided."""
    keys: Tensor
    values: Tensor
    shape: AttentionShape
    mask: Tensor | None
    """What the model's mask function returned."""


@dataclass(frozen=True, slots=True)
class Layers:
    """How the layers attend, as found at load."""

    shapes: tuple[AttentionShape, ...]
    """The different ones."""
    shape_indices: tuple[int, ...]
    """Of each layer: which of `shapes` it has."""
    called: tuple[AttentionShape, ...]
    """Of each layer: the shape as its call alone tells it."""


@dataclass(frozen=True, slots=True)
class PagedStep:
    """A step over the paged cache."""

    ops: OpSet
    cache: KVCache
    plans: Sequence[AttentionPlan]
    layers: Layers

    def attend(self, call: AttentionCall) -> Tensor:
        """Stores keys and values, then attends over the paged context."""
        if call.shape != self.layers.called[call.layer] or call.mask is not None:
            raise AttentionRefused(f"calls attention in layer {call.layer} otherwise than when it was loaded")
        plan = self.plans[self.layers.shape_indices[call.layer]]
        cache = self.cache[call.layer]
        store_kv(self.ops, call.keys, call.values, cache, plan.metadata.slot_mapping)
        out = torch.empty_like(call.q, memory_format=torch.contiguous_format)
        attention(self.ops, call.q, cache, plan, out)
        return out


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [1, heads, T, head_dim], key and value [1, kv_heads, T,
    head_dim]. Returns [1, T, heads, head_dim] and no attention weights. Raises AttentionRefused.
    """
    step = cast(AttentionStep | None, keywords.pop(STEP_KEYWORD, None))
    if step is None:
        raise AttentionRefused("does not hand keywords on to its attention")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise AttentionRefused("has attention layers without a number (layer_idx)")
    shape = _shape_of(module, query, key, value, keywords)
    q, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
    out = step.attend(AttentionCall(layer, q, keys, values, shape, attention_mask))
    return out[None], None


def _shape_of(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, keywords: dict[str, Any]
) -> AttentionShape:
    """How a call attends; takes what it understands out of `keywords` and refuses the rest."""
    if query.ndim != 4 or query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise AttentionRefused(
            f"attends from {list(query.shape)} to {list(key.shape)}, which is no packed self-attention"
        )
    if value.shape != key.shape or key.shape[3] != query.shape[3]:
        raise AttentionRefused(
            f"has heads of different widths: {query.shape[3]} of queries, {key.shape[3]} of keys, "
            f"{value.shape[3]} of values"
        )
    if query.shape[1] % key.shape[1]:
        raise AttentionRefused(
            f"has {query.shape[1]} heads, which {key.shape[1]} key-value heads do not divide"
        )
    causal = keywords.pop("is_causal", None)
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise AttentionRefused("has attention that is not causal")
    scale = keywords.pop("scaling", None)
    window = keywords.pop("sliding_window", None)
    soft_cap = keywords.pop("softcap", None)
    keywords.pop("dropout", None)  # models are in eval mode, where it is 0
    unknown = [
        name
        for name, given in keywords.items()
        if given is not None and given is not False and name not in HARMLESS
    ]
    if unknown:
        raise AttentionRefused(
            f"gives its attention {', '.join(sorted(unknown))}, which paged attention knows nothing of"
        )
    return AttentionShape(
        num_heads=query.shape[1],
        num_kv_heads=key.shape[1],
        head_dim=query.shape[3],
        scale=query.shape[3] ** -0.5 if scale is None else float(scale),
        window=int(window or 0),
        soft_cap=float(soft_cap or 0.0),
    )


def describe_mask(mask_function: Any, local_size: int | None = None, **_: Any) -> Tensor:
    """transformers' mask interface: [1, 1, 1, 1] int64, the window of the mask that the model asks for, 0 for
    all that came before, UNKNOWN_MASK for one that is neither.

    `mask_function(batch, head, query, key)` says whether a query sees a key. It is asked at two far
    positions, as blocks of fixed places (chunked attention) look like a window at one.
    """
    first = 3 * (local_size or 1024) + 1
    windows = {_window_at(mask_function, first + i) for i in range(2)}
    window = windows.pop() if len(windows) == 1 else UNKNOWN_MASK
    return torch.full((1, 1, 1, 1), window)


def _window_at(mask_function: Any, query: int) -> int:
    zero = torch.tensor(0)
    keys = torch.arange(query + 2)
    try:
        seen = torch.as_tensor(mask_function(zero, zero, torch.tensor(query), keys)).expand(keys.shape)
    except (IndexError, RuntimeError, TypeError):  # it looks something up in the inputs
        return UNKNOWN_MASK
    window = int(seen.sum())
    if window == 0 or not seen[query + 1 - window : query + 1].all():
        return UNKNOWN_MASK
    return 0 if window == query + 1 else window


def register() -> None:
    """Makes the two names known to transformers. May be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PAGED, paged_attention)
    AttentionInterface.register(DESCRIBING, paged_attention)
    AttentionMaskInterface.register(DESCRIBING, describe_mask)
