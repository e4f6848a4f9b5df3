"""From a config to a spec: variants, positions, windows, and in which words the rest is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.errors import ModelError, NoSpec, UnsupportedModel
from engine.models.families import FAMILIES, spec_of
from engine.models.rope import alibi_slopes, inverse_frequencies, rope_tables
from engine.models.spec import DecoderSpec
from tests.engine import tiny_models

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}


def config_of(family: str, **changes: Any) -> Any:
    """The tiny model's config, changed."""
    tiny = tiny_models.FAMILIES[family]
    config = type(tiny)(**{**tiny.to_dict(), **changes})
    config.architectures = [next(n for n, f in FAMILIES.items() if f.model_type == config.model_type)]
    return config


def spec(family: str, **changes: Any) -> DecoderSpec:
    return spec_of(config_of(family, **changes))


def test_every_family_has_a_tiny_model() -> None:
    tested = {config.model_type for config in tiny_models.FAMILIES.values()}
    assert tested == {family.model_type for family in FAMILIES.values()}


def test_an_architecture_without_a_spec_is_told_apart_from_a_variant_that_is_refused() -> None:
    config = hf.GPTJConfig(n_embd=8, n_layer=1, n_head=1)
    config.architectures = ["GPTJForCausalLM"]
    with pytest.raises(
        NoSpec, match="architecture GPTJForCausalLM is not supported; supported are LlamaForCausalLM, Mistral"
    ):
        spec_of(config)
    with pytest.raises(UnsupportedModel) as caught:
        spec("llama", hidden_act="tanh")
    assert not isinstance(caught.value, NoSpec)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_config_without_architectures_goes_by_its_model_type(family: str) -> None:
    config = config_of(family)
    named = spec_of(config)
    config.architectures = None
    assert spec_of(config) == named


def test_neither_architectures_nor_a_known_model_type() -> None:
    with pytest.raises(NoSpec, match=r"architecture none \(model_type 'gptj'\) is not supported"):
        spec_of(hf.GPTJConfig())


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"hidden_act": "tanh"}, "LlamaForCausalLM with hidden_act 'tanh' .*supported are 'silu'"),
        ("llama", {"is_causal": False}, "attention that is not causal"),
        ("gemma3", {"use_bidirectional_attention": True}, "Gemma3ForCausalLM with bidirectional attention"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attention soft caps"),
        (
            "llama",
            {"num_key_value_heads": 3, "head_dim": 12},
            "4 attention heads, which 3 key-value heads do not divide",
        ),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized weights"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
            "rope type 'dynamic' is not supported; supported are 'default', 'linear', 'llama3', 'yarn'",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial rotary positions",
        ),
        (
            "gpt-neox",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.2}},
            "3 rotary dimensions of 16 is not supported: an even number is needed",
        ),
        ("gpt2", {"add_cross_attention": True}, "GPT2LMHeadModel with cross attention"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply residual connection post"),
        ("falcon-40b", {"parallel_attn": False}, "new decoder architecture but not parallel attn"),
        ("falcon-7b", {"num_ln_in_parallel_attn": 2}, "two norms in parallel attn"),
    ],
)
def test_variants_are_refused_in_words(family: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        spec(family, **changes)


def test_layers_of_a_kind_that_nobody_knows_are_refused() -> None:
    config = config_of("qwen2")
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(UnsupportedModel, match="a layer of type 'chunked_attention'"):
        spec_of(config)


def test_another_model_type_under_a_known_architecture_is_refused() -> None:
    config = config_of("mistral")
    config.architectures = ["LlamaForCausalLM"]
    with pytest.raises(UnsupportedModel, match=r"model_type 'mistral' \(supported: 'llama'\)"):
        spec_of(config)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "linear", "rope_theta": 1e4}, "needs a number 'factor', found None"),
        ({**LLAMA3, "factor": "8"}, "rope type 'llama3' needs a number 'factor', found '8'"),
        (
            {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64},
            "needs a list 'short_factor' of 6 numbers, found None",
        ),
    ],
)
def test_a_rope_without_its_numbers_is_an_invalid_config(rope: dict[str, Any], words: str) -> None:
    config = config_of("llama")
    config.rope_parameters = rope
    with pytest.raises(ModelError, match=f"config.json is invalid: .*{words}") as caught:
        spec_of(config)
    assert not isinstance(caught.value, UnsupportedModel)


def test_a_config_without_a_field_is_invalid() -> None:
    config = SimpleNamespace(architectures=["LlamaForCausalLM"], model_type="llama")
    with pytest.raises(ModelError, match=r"config.json is invalid: .*hidden_size"):
        spec_of(config)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 5e5},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        LLAMA3,
        YARN,
        {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
        {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
        {**YARN, "attention_factor": 1.3},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_frequencies_equal_transformers(rope: dict[str, Any]) -> None:
    config = hf.LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    config.architectures = ["LlamaForCausalLM"]
    theirs: Any = LlamaRotaryEmbedding(config)
    mine = spec_of(config).layers[0].rope
    assert mine is not None
    torch.testing.assert_close(inverse_frequencies(mine), theirs.inv_freq, rtol=1e-6, atol=0)
    assert mine.attention_factor == pytest.approx(theirs.attention_scaling)
    cos, sin = theirs(torch.zeros(1), torch.arange(50)[None])
    for table, other in zip(rope_tables(mine, 50, torch.device("cpu")), (cos, sin), strict=True):
        torch.testing.assert_close(table, other[0, :, :64], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", [{}, {"factor": 8.0}, {"attention_factor": 1.2}])
def test_longrope_takes_the_short_factors_and_ends_at_the_original_window(given: dict[str, Any]) -> None:
    factors = [1.0 + i / 10 for i in range(24)]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, **given}
    config: Any = hf.Phi3Config(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        rope_parameters={**rope, "short_factor": factors, "long_factor": [2 * f for f in factors]},
    )
    config.architectures = ["Phi3ForCausalLM"]
    found = spec_of(config)
    inv_freq, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
    mine = found.layers[0].rope
    assert mine is not None
    torch.testing.assert_close(inverse_frequencies(mine), inv_freq, rtol=1e-6, atol=0)
    assert mine.attention_factor == pytest.approx(attention_factor)
    assert found.max_position_embeddings == 4096
    assert "up to 131072, would need longrope's long factors" in found.window_reason


def test_yarn_widens_the_window() -> None:
    assert spec("llama-yarn").max_position_embeddings == 160  # 40 x 4, as the config says
    config = config_of("qwen2", max_position_embeddings=32768, rope_parameters=YARN)
    assert spec_of(config).max_position_embeddings == 131072


@pytest.mark.parametrize("num_heads", [1, 2, 6, 8, 12, 71, 112])
def test_slopes_equal_transformers(num_heads: int) -> None:
    theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), num_heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(torch.tensor(alibi_slopes(num_heads)), theirs, rtol=1e-5, atol=0)


def test_windows_are_those_of_each_layer() -> None:
    windows = {
        family: [layer.attention.window for layer in spec(family).layers]
        for family in ("llama", "mistral", "qwen2", "qwen2-windows", "gemma2", "gemma3", "mixtral")
    }
    sliding = tiny_models.SLIDING
    assert windows == {
        "llama": [0, 0],
        "mistral": [sliding, sliding],
        "qwen2": [0, 0],
        "qwen2-windows": [0, sliding],
        "gemma2": [sliding, 0],
        "gemma3": [sliding, 0, sliding],
        "mixtral": [sliding, sliding],
    }
    assert [layer.attention.window for layer in spec("qwen2", max_window_layers=0).layers] == [0, 0]
    as_wide = spec("mistral", sliding_window=tiny_models.WINDOW)
    assert [layer.attention.window for layer in as_wide.layers] == [0, 0]


def test_layers_turn_by_themselves() -> None:
    thetas = [layer.rope.theta for layer in spec("gemma3").layers if layer.rope]
    assert thetas == [50.0, 5000.0, 50.0]
    assert [layer.rope is None for layer in spec("smollm3").layers] == [False, True, False]


def test_experts_stand_only_in_sparse_layers() -> None:
    assert [layer.mlp for layer in spec("qwen3-moe").layers] == ["moe", "gated", "moe"]
    config = config_of("qwen3-moe", mlp_only_layers=None, decoder_sparse_step=2)
    assert [layer.mlp for layer in spec_of(config).layers] == ["gated", "moe", "gated"]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_parameters_are_counted_as_transformers_counts_them(family: str) -> None:
    theirs = sum(p.numel() for p in tiny_models.tiny_transformers_model(family).parameters())
    assert spec(family).num_parameters == theirs
