"""The probe refuses what would give wrong logits without an error: models that we break on purpose, and
families of transformers that run with another attention and do not use it as it must be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from engine.config import EngineConfig
from engine.device import resolve
from engine.errors import UnsupportedModel
from engine.models import fallback, fallback_attention, fallback_config, fallback_probe
from engine.models.fallback import load_fallback
from engine.models.fallback_attention import UNKNOWN_MASK, Layers, describe_mask
from engine.models.folder import transformers_config
from kernels.attention import AttentionMetadata, AttentionPlan, AttentionShape, plan_attention
from kernels.opset import OpSet, load_op_set
from tests.engine.fallback_models import SLIDING_WINDOW, save_fallback_model

OTHER_LOGITS = "gives other logits with our attention than with transformers' own: computed "


def load(folder: Path, **settings: Any) -> fallback.FallbackModel:
    """The folder's model with the processor's op set."""
    config = resolve(EngineConfig(model=str(folder), **settings))
    return load_fallback(folder, transformers_config(folder), config, load_op_set("cpu"), lambda phase: None)


def change_shapes(monkeypatch: pytest.MonkeyPatch, **fields: float) -> None:
    """Attention computes as if its shapes had other values in these fields."""

    def plan(ops: OpSet, metadata: AttentionMetadata, shape: AttentionShape) -> AttentionPlan:
        return plan_attention(ops, metadata, dataclasses.replace(shape, **fields))

    monkeypatch.setattr(fallback_probe, "plan_attention", plan)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        ("GraniteForCausalLM", {"scale": 0.25}),
        ("MistralForCausalLM", {"window": 0}),
        ("MistralForCausalLM", {"window": SLIDING_WINDOW - 8}),
        ("Gemma2ForCausalLM", {"soft_cap": 0.0}),
    ],
)
def test_attention_that_computes_something_else(
    architecture: str,
    fields: dict[str, float],
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_fallback_model(architecture, tmp_path)
    load(folder, precision=precision)
    change_shapes(monkeypatch, **fields)
    with pytest.raises(UnsupportedModel, match=f"{architecture} .*{OTHER_LOGITS}whole"):
        load(folder, precision=precision)


def test_a_window_that_is_one_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_fallback_model("MistralForCausalLM", tmp_path)
    change_shapes(monkeypatch, window=SLIDING_WINDOW + 1)
    with pytest.raises(UnsupportedModel, match=OTHER_LOGITS):
        load(folder)


def test_a_mask_that_a_family_computes_and_that_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Doge declares support for other attentions and hands them a mask made of its values: dropped, it runs
    on without an error."""
    monkeypatch.setattr(fallback_probe, "_masked_shape", lambda model, call: call.shape)
    attend = fallback_attention.PagedStep.attend

    def without_mask(step: Any, call: Any) -> Tensor:
        return attend(step, dataclasses.replace(call, mask=None))

    monkeypatch.setattr(fallback_attention.PagedStep, "attend", without_mask)
    folder = save_fallback_model("DogeForCausalLM", tmp_path, keep_window_size=8)
    with pytest.raises(UnsupportedModel, match=f"DogeForCausalLM .*{OTHER_LOGITS}whole"):
        load(folder)


@pytest.mark.parametrize(
    "architecture", ["BloomForCausalLM", "MptForCausalLM", "CodeGenForCausalLM", "XGLMForCausalLM"]
)
def test_families_that_ignore_our_attention(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their code takes the keywords, and attends by itself, as if a chunk were all there is."""
    pretend_support(architecture, monkeypatch)
    folder = save_fallback_model(architecture, tmp_path)
    with pytest.raises(UnsupportedModel, match=f"{architecture} .*does not let its attention be exchanged"):
        load(folder)
    shape = AttentionShape(num_heads=4, num_kv_heads=4, head_dim=16, scale=0.25)
    layers = Layers((shape,), (0, 0), (shape, shape))
    monkeypatch.setattr(fallback, "discover", lambda model, num_layers: layers)
    monkeypatch.setattr(fallback, "switch_attention", lambda model, name: None)
    monkeypatch.setattr(fallback_config, "discover", lambda model, num_layers: layers)
    with pytest.raises(UnsupportedModel, match=f"{architecture} .*{OTHER_LOGITS}in chunks"):
        load(folder)


def pretend_support(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if transformers said that these classes worked with any attention, and their configs had windows."""
    model_class = getattr(transformers, architecture)
    monkeypatch.setattr(model_class, "_supports_attention_backend", True)
    monkeypatch.setattr(fallback_config, "_window", lambda config, architecture: 160)


@pytest.mark.parametrize("architecture", ["FalconForCausalLM", "GPTJForCausalLM", "StableLmForCausalLM"])
def test_families_that_only_claim_support(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_support(architecture, monkeypatch)
    settings = {"alibi": True} if architecture == "FalconForCausalLM" else {}
    folder = save_fallback_model(architecture, tmp_path, **settings)
    with pytest.raises(UnsupportedModel, match=rf"{architecture} is not supported: it "):
        load(folder)


def test_a_layer_that_mixes_the_tokens_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right for a prompt that is computed whole, and alone."""
    folder = save_fallback_model("OlmoForCausalLM", tmp_path)
    load_whole = fallback.load_whole

    class Mixing(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + x.cumsum(1)

    def load_mixing(*of: Any) -> Any:
        whole = load_whole(*of)
        whole.model.layers[1].mlp = Mixing(whole.model.layers[1].mlp)
        return whole

    monkeypatch.setattr(fallback, "load_whole", load_mixing)
    with pytest.raises(UnsupportedModel, match=f"{OTHER_LOGITS}in chunks"):
        load(folder)


def test_positions_that_are_counted_instead_of_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_fallback_model("PhiForCausalLM", tmp_path)
    run_decoder = fallback.run_decoder

    def count(decoder: Any, token_ids: Tensor, positions: Tensor, step: Any) -> Tensor:
        return run_decoder(decoder, token_ids, torch.arange(positions.shape[1])[None], step)

    monkeypatch.setattr(fallback, "run_decoder", count)
    with pytest.raises(UnsupportedModel, match=f"{OTHER_LOGITS}in chunks"):
        load(folder)


def test_logits_that_no_field_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_fallback_model("CohereForCausalLM", tmp_path)
    monkeypatch.setattr(fallback, "HEAD_FACTORS", ())
    with pytest.raises(UnsupportedModel, match=r"CohereForCausalLM .* no known field of its config"):
        load(folder)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(4)}, "position_bias"),
        ({"is_causal": False}, "not causal"),
    ],
)
def test_layers_that_ask_for_more(
    keywords: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_fallback_model("OlmoForCausalLM", tmp_path)
    shape_of = fallback_attention._shape_of
    monkeypatch.setattr(
        fallback_attention, "_shape_of", lambda *call: shape_of(*call[:4], call[4] | keywords)
    )
    with pytest.raises(UnsupportedModel, match=f"OlmoForCausalLM is not supported: it .*{words}"):
        load(folder)


def test_a_layer_that_attends_otherwise_than_when_it_was_probed(tmp_path: Path) -> None:
    folder = save_fallback_model("MistralForCausalLM", tmp_path)
    model = load(folder)
    model._decoder.layers[1].self_attn.scaling = 1.0
    with (
        torch.inference_mode(),
        pytest.raises(fallback_attention.AttentionRefused, match="layer 1 otherwise"),
    ):
        fallback_probe.PagedPrompts(model, [[1, 2]], torch.device("cpu"), 2).step([2])


def _chunked(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & (key // 8 == query // 8)


def _looks_up(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & torch.zeros(5, dtype=torch.bool)[key]


@pytest.mark.parametrize(
    ("mask_function", "local_size", "window"),
    [
        (lambda batch, head, query, key: key <= query, None, 0),
        (lambda batch, head, query, key: (key <= query) & (key > query - 8), 8, 8),
        (lambda batch, head, query, key: (key <= query) & (key > query - 8), None, 8),
        (lambda batch, head, query, key: key >= 0, None, UNKNOWN_MASK),
        (lambda batch, head, query, key: (key <= query) & (key % 2 == 0), None, UNKNOWN_MASK),
        (lambda batch, head, query, key: (key <= query) & ((key > query - 8) | (key < 2)), 8, UNKNOWN_MASK),
        (_chunked, 8, UNKNOWN_MASK),
        (_looks_up, None, UNKNOWN_MASK),
    ],
)
def test_masks_are_described(
    mask_function: Callable[..., Tensor], local_size: int | None, window: int
) -> None:
    assert int(describe_mask(mask_function=mask_function, local_size=local_size, q_length=2)) == window
