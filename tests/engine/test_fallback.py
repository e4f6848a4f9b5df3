"""Models without a spec: the same tokens as transformers, or a refusal that names the architecture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from engine.config import EngineConfig
from engine.device import resolve
from engine.errors import UnsupportedModel, WeightsError
from engine.models.fallback import FallbackModel, load_fallback
from engine.models.fallback_config import fallback_sizes
from engine.models.fallback_families import KNOWN_TO_BE_REFUSED, KNOWN_TO_WORK
from engine.models.fallback_linear import PackedLinear, pack_linears
from engine.models.fallback_probe import PagedPrompts
from engine.models.folder import transformers_config
from kernels.opset import load_op_set
from tests.engine.fallback_models import SLIDING_WINDOW, VOCAB_SIZE, WINDOW, save_fallback_model, tiny_config

MAX_TOKENS = 12
CPU = torch.device("cpu")
PROMPT_LENS = (70, 3, 29)


def load(folder: Path, **settings: Any) -> FallbackModel:
    """The folder's model with the processor's op set."""
    config = resolve(EngineConfig(model=str(folder), **settings))
    return load_fallback(folder, transformers_config(folder), config, load_op_set("cpu"), lambda phase: None)


def prompts() -> list[list[int]]:
    """The longest is longer than a window and a chunk."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCAB_SIZE, (n,), generator=generator).tolist() for n in PROMPT_LENS]


@torch.inference_mode()
def greedy_paged(model: FallbackModel, of: list[list[int]]) -> list[list[int]]:
    """Greedy tokens of prompts that start one after the other, in chunks, beside each other's decodes."""
    texts = [list(prompt) for prompt in of]
    running = PagedPrompts(model, texts, CPU, WINDOW)
    step = 0
    while True:
        counts: list[int] = []
        for row, text in enumerate(texts):
            left = len(text) - running.computed[row]
            waits = step < row or len(text) == len(of[row]) + MAX_TOKENS
            counts.append(0 if waits else min(left, 31))
        if not any(counts) and step >= len(of):
            return [text[len(prompt) :] for text, prompt in zip(texts, of, strict=True)]
        for row, logits in enumerate(running.step(counts)):
            if counts[row] and running.computed[row] == len(texts[row]):
                texts[row].append(int(logits[-1].argmax()))
        step += 1


@torch.inference_mode()
def generated(folder: Path, of: list[list[int]]) -> list[list[int]]:
    """What transformers says: greedy, fp32, each prompt on its own, without a padded or compiled cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    outputs: list[list[int]] = []
    for prompt in of:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=None,
        )
        outputs.append(out[0, len(prompt) :].tolist())
    return outputs


@pytest.mark.parametrize("architecture", KNOWN_TO_WORK)
def test_greedy_tokens_equal_transformers(architecture: str, tmp_path: Path) -> None:
    folder = save_fallback_model(architecture, tmp_path)
    found, expected = greedy_paged(load(folder), prompts()), generated(folder, prompts())
    for request, (got, want) in enumerate(zip(found, expected, strict=True)):
        assert len(got) == MAX_TOKENS
        for position, (mine, theirs) in enumerate(zip(got, want, strict=True)):
            assert mine == theirs, (
                f"{architecture}, prompt {request} of {PROMPT_LENS[request]} tokens, output {position}: "
                f"token {mine}, transformers says {theirs}"
            )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("architecture", ["CohereForCausalLM", "OlmoeForCausalLM", "PhiForCausalLM"])
def test_half_precision_passes_the_probe(architecture: str, precision: str, tmp_path: Path) -> None:
    model = load(save_fallback_model(architecture, tmp_path), precision=precision)
    assert model.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.inference_mode():
        (logits,) = PagedPrompts(model, [[1, 2, 3]], CPU, 3).step([3])
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("architecture", KNOWN_TO_BE_REFUSED)
def test_what_would_not_work_is_refused_by_name(architecture: str, tmp_path: Path) -> None:
    if architecture == "DogeForCausalLM":  # all others are refused before any weight is read
        save_fallback_model(architecture, tmp_path)
    else:
        tiny_config(architecture).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=rf"architecture {architecture} is not supported: it "):
        load(tmp_path)


def test_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    for architectures, words in (
        (
            ["OlmoForSequenceClassification"],
            "OlmoForSequenceClassification .* transformers would load it as Olmo",
        ),
        (None, r"none \(model_type 'olmo'\)"),
    ):
        config = tiny_config("OlmoForCausalLM")
        config.architectures = architectures
        config.save_pretrained(tmp_path)
        with pytest.raises(UnsupportedModel, match=words):
            fallback_sizes(transformers_config(tmp_path))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"vision_config": {"hidden_size": 8}}, "pictures"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized"),
        ({"max_position_embeddings": 0}, "no window"),
    ],
)
def test_a_config_that_asks_for_more_is_refused(settings: dict[str, Any], words: str) -> None:
    config = tiny_config("OlmoForCausalLM")
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(UnsupportedModel, match=rf"OlmoForCausalLM .*{words}"):
        fallback_sizes(config)


def test_sizes_are_known_before_loading(tmp_path: Path) -> None:
    for architecture in ("CohereForCausalLM", "OPTForCausalLM", "OlmoeForCausalLM", "CTRLLMHeadModel"):
        folder = save_fallback_model(architecture, tmp_path / architecture)
        sizes, model = fallback_sizes(transformers_config(folder)), load(folder)
        whole = AutoModelForCausalLM.from_pretrained(folder)
        assert sizes.num_parameters == sum(parameter.numel() for parameter in whole.parameters())
        assert sizes.max_position_embeddings == WINDOW
        shapes = {(shape.num_kv_heads, shape.head_dim) for shape in model.attention_shapes}
        assert shapes == {(sizes.num_kv_heads, sizes.head_dim)}
        assert (sizes.num_layers, sizes.hidden_size, sizes.vocab_size) == (
            model.num_layers,
            model.hidden_size,
            model.vocab_size,
        )


def test_the_window_ends_where_positions_are_stretched() -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 64,
    }
    config = tiny_config("Phi3ForCausalLM", rope_parameters=rope, original_max_position_embeddings=64)
    assert fallback_sizes(config).max_position_embeddings == 64


def test_layers_of_different_windows_have_different_shapes(tmp_path: Path) -> None:
    model = load(
        save_fallback_model(
            "Cohere2ForCausalLM", tmp_path, layer_types=["sliding_attention", "full_attention"]
        )
    )
    assert [shape.window for shape in model.attention_shapes] == [SLIDING_WINDOW, 0]


def test_scale_and_logit_factors_are_found(tmp_path: Path) -> None:
    model = load(save_fallback_model("GraniteMoeForCausalLM", tmp_path))
    assert [shape.scale for shape in model.attention_shapes] == [0.4]
    assert model.head.scale == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"),
            r"missing .*layers\.1\.mlp\.up_proj",
        ),
        (lambda tensors: tensors.update(extra=torch.ones(2)), r"no place for \(extra\)"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(2)}),
            r"wrong shape \(model\.norm\.weight: expected \[64\], found \[2\]\)",
        ),
    ],
)
def test_weights_must_fit(change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path) -> None:
    folder = save_fallback_model("SeedOssForCausalLM", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=words):
        load(folder)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = save_fallback_model("OlmoForCausalLM", tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pickle"):
        load(folder)


def test_random_weights_in_the_shapes_of_a_config(tmp_path: Path) -> None:
    tiny_config("OlmoForCausalLM").save_pretrained(tmp_path)
    assert load(tmp_path, load_format="dummy").vocab_size == VOCAB_SIZE


def test_an_unused_name_stays_unknown_to_transformers(tmp_path: Path) -> None:
    """Loading changes no model but its own: another one of the same config has its own attention."""
    folder = save_fallback_model("OlmoForCausalLM", tmp_path)
    config = transformers_config(folder)
    before = json.dumps(config.to_dict(), default=str)
    load_fallback(
        folder, config, resolve(EngineConfig(model=str(folder))), load_op_set("cpu"), lambda phase: None
    )
    assert json.dumps(config.to_dict(), default=str) == before
    assert config._attn_implementation != "penstock_paged"


class _Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 16)
        self.plain = nn.Linear(16, 24)
        self.again = self.plain
        self.turned = Conv1D(7, 24)
        self.doubled = _Doubled(7, 16)
        self.hooked = nn.Linear(16, 16)
        self.hooked.register_forward_hook(lambda module, inputs, output: output + 1)
        self.tied = nn.Linear(16, 10, bias=False)
        self.tied.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.turned(self.plain(self.embedding(ids)) + self.again(self.embedding(ids)))
        return self.tied(self.hooked(self.doubled(x)))


def test_only_plain_linear_layers_are_replaced_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    net, ids = _Net(), torch.arange(10).view(2, 5)
    with torch.inference_mode():
        before = net(ids)
        assert pack_linears(net, load_op_set("cpu")) == 3
        torch.testing.assert_close(net(ids), before)
    assert net.plain is net.again
    kinds = {name: type(module) for name, module in net.named_children()}
    assert {name for name, kind in kinds.items() if kind is PackedLinear} == {"plain", "turned", "tied"}
    assert net.embedding.weight.shape == (10, 16)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux lists a process's mapped files")
def test_a_loaded_model_keeps_no_file_mapped(tmp_path: Path) -> None:
    """One tensor that lies in a mapped file keeps all of the file's pages."""
    folder = save_fallback_model("OlmoeForCausalLM", tmp_path)
    model = load(folder)
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert model.num_layers == 2


def test_the_lists_name_classes_of_transformers() -> None:
    for architecture in (*KNOWN_TO_WORK, *KNOWN_TO_BE_REFUSED):
        assert hasattr(transformers, architecture)
    assert not set(KNOWN_TO_WORK) & set(KNOWN_TO_BE_REFUSED)
    assert list(KNOWN_TO_WORK) == sorted(KNOWN_TO_WORK)
