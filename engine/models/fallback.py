"""Models of transformers, run by its own code with our attention, cache and linear layers.

For architectures that no spec describes. Slower than the decoder, as everything but attention and linear
layers is transformers' own; and not of the exact class: that a row's tokens are the same in any batch is only
promised of our own operations, see docs/architecture.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.errors import EngineError, ModelError, UnsupportedModel, WeightsError
from engine.models.checkpoint import Checkpoint
from engine.models.fallback_attention import PAGED, AttentionRefused, Layers, PagedStep, register
from engine.models.fallback_config import FallbackSizes, fallback_class, fallback_sizes
from engine.models.fallback_linear import pack_linears
from engine.models.fallback_probe import (
    TOLERANCES,
    compare,
    discover,
    prompts_of,
    relative_error,
    run_decoder,
    switch_attention,
)
from engine.models.model import KVCache
from kernels.attention import AttentionPlan, AttentionShape
from kernels.opset import OpSet

DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        self.sizes = sizes
        self.vocab_size = sizes.vocab_size
        self.hidden_size = sizes.hidden_size
        self.num_layers = sizes.num_layers
        self.attention_shapes = layers.shapes
        self._layers = layers
        self._decoder = whole.get_decoder()
        self._lm_head = whole.get_output_embeddings()
        self._head = head

    def forward(
        self, token_ids: Tensor, positions: Tensor, cache: KVCache, plans: Sequence[AttentionPlan]
    ) -> Tensor:
        """See `Model.forward`."""
        step = PagedStep(self.ops, cache, plans, self._layers)
        return run_decoder(self._decoder, token_ids[None], positions[None], step)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._head.apply(self._lm_head(hidden))


def load_fallback(
    folder: Path, hf_config: Any, config: EngineConfig, ops: OpSet, on_phase: Callable[[str], None]
) -> FallbackModel:
    """Loads the folder's model and proves that it gives the logits that transformers gives.

    Raises UnsupportedModel, WeightsError or ModelError.
    """
    sizes = fallback_sizes(hf_config)
    register()
    on_phase(f"loading weights of {sizes.architecture} by transformers")
    whole = _load(folder, hf_config, config)
    whole.eval().requires_grad_(False)
    on_phase(f"checking {sizes.architecture} against transformers' own attention")
    try:
        with torch.inference_mode():
            return _prove(whole, ops, sizes, on_phase)
    except EngineError:
        raise
    except AttentionRefused as error:
        raise UnsupportedModel(f"architecture {sizes.architecture} is not supported: it {error}") from error
    except Exception as error:  # whatever its code trips over when its attention is another
        raise UnsupportedModel(
            f"architecture {sizes.architecture} is not supported: it fails with our attention: {error!r}"
        ) from error


def _prove(whole: Any, ops: OpSet, sizes: FallbackSizes, on_phase: Callable[[str], None]) -> FallbackModel:
    prompts = prompts_of(sizes.vocab_size, sizes.max_position_embeddings)
    expected: list[Tensor] = []
    for prompt in prompts:
        hidden, logits = _run_eagerly(whole, prompt)
        head = _find_head(whole, hidden, logits)
        expected.append(logits)
    pack_linears(whole, ops, lambda path: on_phase(f"packing {path}"))
    layers = discover(whole, whole.get_decoder(), sizes.num_layers)
    shape = layers.shapes[0]
    if (shape.num_kv_heads, shape.head_dim) != (sizes.num_kv_heads, sizes.head_dim):
        raise UnsupportedModel(
            f"architecture {sizes.architecture} is not supported: it has {shape.num_kv_heads} KV heads of "
            f"{shape.head_dim}, where its config says {sizes.num_kv_heads} of {sizes.head_dim}"
        )
    switch_attention(whole, PAGED)
    model = FallbackModel(whole, ops, sizes, layers, head)
    compare(whole, model, expected, prompts)
    return model


def _load(folder: Path, hf_config: Any, config: EngineConfig) -> Any:
    """The model with transformers' own attention, in the configured precision."""
    from transformers import AutoModelForCausalLM

    model_class = fallback_class(hf_config)
    hf_config = copy.deepcopy(hf_config)
    dtype = DTYPES[config.precision]
    try:
        if config.load_format == "dummy":
            return AutoModelForCausalLM.from_config(hf_config, dtype=dtype, attn_implementation="eager")
        Checkpoint(folder)  # says in words what is missing or no safetensors
        whole, loading = model_class.from_pretrained(
            folder,
            config=hf_config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except EngineError:
        raise
    except Exception as error:  # transformers raises many types
        raise ModelError(f"transformers cannot load {folder}: {error}") from error
    problems = [
        f"{len(found)} {what} ({', '.join(sorted(map(str, found))[:3])}{' …' if len(found) > 3 else ''})"
        for what, found in (
            ("missing", loading["missing_keys"]),
            ("of the wrong shape", loading["mismatched_keys"]),
            ("that the model has no place for", loading["unexpected_keys"]),
        )
        if found
    ]
    if problems:
        raise WeightsError(f"the weights in {folder} do not fit {model_class.__name__}: {'; '.join(problems)}")
    return whole


def _run_eagerly(whole: Any, prompt: list[int]) -> tuple[Tensor, Tensor]:
    """The model as transformers runs it. Returns last hidden states and logits [tokens, …] of the prompt."""
    seen: list[Tensor] = []
    hook = whole.get_decoder().register_forward_hook(lambda *call: seen.append(call[2].last_hidden_state))
    try:
        token_ids = torch.tensor([prompt])
        logits = whole(input_ids=token_ids, use_cache=False).logits
    finally:
        hook.remove()
    return seen[0][0], logits[0].float()


def _find_head(whole: Any, hidden: Tensor, logits: Tensor) -> Head:
    """What the model does to its output layer's logits, of what the known fields of its config may mean."""
    config, plain = whole.config, whole.get_output_embeddings()(hidden)
    factors = [getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "lm_head_multiplier")]
    scales = [1.0, *(s for factor in factors if factor for s in (float(factor), 1.0 / float(factor)))]
    width = getattr(config, "dim_model_base", None)
    if width:
        scales.append(width / config.hidden_size)
    caps = {0.0, float(getattr(config, "final_logit_softcapping", None) or 0.0)}
    heads = [Head(scale, cap) for scale in scales for cap in sorted(caps)]
    errors = [float(relative_error(head.apply(plain), logits).max()) for head in heads]
    best = min(range(len(heads)), key=errors.__getitem__)
    if not errors[best] <= TOLERANCES[plain.dtype]:
        raise UnsupportedModel(
            f"architecture {type(whole).__name__} is not supported: it makes its logits of its hidden states "
            "in a way that no known field of its config describes"
        )
    return heads[best]
