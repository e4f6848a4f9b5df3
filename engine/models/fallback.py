"""Models of transformers, run by its own code with our attention, cache and linear layers.

For architectures that no spec describes. Slower than the decoder, as everything but attention and linear
layers is transformers' own; and not of the exact class, as norms, activations and experts are torch's. Seen
in fp32 on the processor: the logits of dense families (OLMo, Phi, Cohere, GLM, OPT) were the same bits alone,
in a batch of 8 and in chunks; those of families with experts (OLMoE, Qwen2-MoE, GraniteMoE) differed in the
last bits, by up to 7e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.errors import EngineError, UnsupportedModel
from engine.models.fallback_attention import PAGED, AttentionRefused, Layers, PagedStep
from engine.models.fallback_config import FallbackSizes, fallback_sizes
from engine.models.fallback_linear import own_memory, pack_linears
from engine.models.fallback_probe import (
    TOLERANCES,
    compare,
    discover,
    error_of,
    prompts_of,
    run_decoder,
    switch_attention,
)
from engine.models.fallback_weights import load_whole
from engine.models.model import KVCache
from kernels.attention import AttentionPlan
from kernels.opset import OpSet

HEAD_FACTORS: Final = ("logit_scale", "logits_scaling", "lm_head_multiplier")
"""Fields by which families multiply or divide their logits: Cohere, Granite, Falcon-H1."""


@dataclass(frozen=True, slots=True)
class Head:
    """From hidden states to logits: cap · tanh(scale · lm_head(hidden) / cap)."""

    scale: float = 1.0
    soft_cap: float = 0.0

    def apply(self, logits: Tensor) -> Tensor:
        """logits: [R, vocab_size] of the output layer alone. Returns float32."""
        logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.soft_cap:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits


class FallbackModel:
    """See `engine.models.model.Model`."""

    def __init__(self, whole: Any, ops: OpSet, sizes: FallbackSizes, layers: Layers, head: Head) -> None:
        """whole: the model in transformers' own class, its linear layers packed."""
        self.ops = ops
        self.dtype: torch.dtype = whole.dtype
        self.device: torch.device = whole.device
        self.is_recordable = False  # transformers' code may ask the device for what it computes
        self.sizes = sizes
        self.vocab_size = sizes.vocab_size
        self.hidden_size = sizes.hidden_size
        self.num_layers = sizes.num_layers
        self.attention_shapes = layers.shapes
        self._layers = layers
        self._decoder = whole.get_decoder()
        self._lm_head = whole.get_output_embeddings()
        self.head = head

    def forward(
        self, token_ids: Tensor, positions: Tensor, cache: KVCache, plans: Sequence[AttentionPlan]
    ) -> Tensor:
        """See `Model.forward`."""
        step = PagedStep(self.ops, cache, plans, self._layers)
        return run_decoder(self._decoder, token_ids[None], positions[None], step)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self.head.apply(self._lm_head(hidden))


def load_fallback(
    folder: Path, hf_config: Any, config: EngineConfig, ops: OpSet, on_phase: Callable[[str], None]
) -> FallbackModel:
    """Loads the folder's model and proves that it gives the logits that transformers gives.

    Raises UnsupportedModel, WeightsError or ModelError.
    """
    sizes = fallback_sizes(hf_config)
    on_phase(f"loading weights of {sizes.architecture} by transformers")
    whole = load_whole(folder, hf_config, config).to(config.device)
    on_phase(f"checking {sizes.architecture} against transformers' own attention")
    try:
        with torch.inference_mode():
            return _prove(whole, ops, sizes)
    except EngineError:
        raise
    except AttentionRefused as error:
        raise UnsupportedModel(f"architecture {sizes.architecture} is not supported: it {error}") from error
    except Exception as error:  # whatever its code trips over when its attention is another
        raise UnsupportedModel(
            f"architecture {sizes.architecture} is not supported: it fails with our attention: {error!r}"
        ) from error


def _prove(whole: Any, ops: OpSet, sizes: FallbackSizes) -> FallbackModel:
    """Exchanges what is exchanged, and compares before and after; see `engine.models.fallback_probe`."""
    prompts = prompts_of(sizes.vocab_size, sizes.max_position_embeddings)
    runs = [_run_eagerly(whole, prompt) for prompt in prompts]
    head = _find_head(whole, *runs[0])
    pack_linears(whole, ops)
    own_memory(whole)
    layers = discover(whole, sizes.num_layers)
    found = {
        "KV heads": (layers.shapes[0].num_kv_heads, sizes.num_kv_heads),
        "channels per head": (layers.shapes[0].head_dim, sizes.head_dim),
        "logits": (runs[0][1].shape[1], sizes.vocab_size),
        "channels": (runs[0][0].shape[1], sizes.hidden_size),
    }
    for what, (is_, named) in found.items():
        if is_ != named:
            raise UnsupportedModel(
                f"architecture {sizes.architecture} is not supported: it has {is_} {what}, "
                f"where its config says {named}"
            )
    switch_attention(whole, PAGED)
    model = FallbackModel(whole, ops, sizes, layers, head)
    compare(whole, model, [logits for _, logits in runs], prompts)
    return model


def _run_eagerly(whole: Any, prompt: list[int]) -> tuple[Tensor, Tensor]:
    """The model as transformers runs it. Returns last hidden states and logits [tokens, …] of the prompt."""
    seen: list[Tensor] = []

    def look(module: Any, inputs: Any, output: Any) -> None:
        seen.append(output.last_hidden_state)

    hook = whole.get_decoder().register_forward_hook(look)
    try:
        token_ids = torch.tensor([prompt], device=whole.device)
        logits = whole(input_ids=token_ids, use_cache=False).logits
    finally:
        hook.remove()
    return seen[0][0], logits[0].float()


def _find_head(whole: Any, hidden: Tensor, logits: Tensor) -> Head:
    """What the model does to its output layer's logits, of what the known fields of its config may mean."""
    config, output_layer = whole.config, whole.get_output_embeddings()
    if output_layer is None:
        raise AttentionRefused("has no output layer of its own")
    plain = output_layer(hidden)
    factors = [getattr(config, name, None) for name in HEAD_FACTORS]
    scales = [1.0, *(s for factor in factors if factor for s in (float(factor), 1.0 / float(factor)))]
    caps = {0.0, float(getattr(config, "final_logit_softcapping", None) or 0.0)}
    heads = [Head(scale, cap) for scale in scales for cap in sorted(caps)]
    errors = [error_of(head.apply(plain), logits, plain.dtype) for head in heads]
    best = min(range(len(heads)), key=errors.__getitem__)
    if not errors[best] <= TOLERANCES[plain.dtype]:
        raise AttentionRefused(
            "makes its logits of its hidden states in a way that no known field of its config describes"
        )
    return heads[best]
