"""Reading weights: shards, types, layouts, what is wrong with them in words, and how much memory it takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import ModelError, UnsupportedModel, WeightsError
from engine.models.checkpoint import Checkpoint, fingerprint
from engine.models.families import spec_of
from engine.models.folder import read_config
from engine.models.spec import DecoderSpec
from engine.request import Request
from tests.engine.paged import all_logits, greedy_tokens, load
from tests.engine.run import engine_of, greedy, run, tokens_of
from tests.engine.tiny_models import FAMILIES, generate, random_prompts, save_tiny_model

PROMPTS = random_prompts(3, longest=9, seed=4)
SINGLE = "model.safetensors"
LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def copy(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a family's folder, to be spoiled."""
    return lambda family: Path(shutil.copytree(tiny_model(family), tmp_path / family))


@pytest.fixture
def folder(copy: Callable[[str], Path]) -> Path:
    return copy("llama")


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def rename(folder: Path, name_of: Callable[[str], str]) -> None:
    edit_weights(
        folder,
        lambda tensors: [tensors.update({name_of(name): tensors.pop(name)}) for name in list(tensors)],
    )


def tokens(folder: Path) -> list[list[int]]:
    return greedy_tokens(load(folder), PROMPTS, 6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "bloom"])
def test_shards_are_read_as_one(family: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    model = AutoModelForCausalLM.from_pretrained(tiny_model(family))
    model.save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    prompt = PROMPTS[0]
    assert torch.equal(all_logits(load(sharded), prompt), all_logits(load(tiny_model(family)), prompt))


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="40KB")
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(WeightsError, match=f"names files that are not there: {lost.name}"):
        load(sharded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_every_type_are_computed_with_in_fp32(dtype: torch.dtype, folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()}))
    edit_config(folder, dtype=str(dtype).removeprefix("torch."))
    model = load(folder)
    assert model.dtype == torch.float32
    assert greedy_tokens(model, PROMPTS, 6) == generate(folder, PROMPTS, 6)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_keeps_norms_in_fp32(precision: str, dtype: torch.dtype, folder: Path) -> None:
    spec = spec_of(read_config(folder))
    checkpoint = Checkpoint(folder, dtype)
    checkpoint.fit(spec)
    types = {param.name: checkpoint.read(param, layer).dtype for param, layer in spec.params}
    norms = {"attention_norm", "mlp_norm", "final_norm"}
    assert {name for name, found in types.items() if found == torch.float32} == norms
    assert {found for name, found in types.items() if name not in norms} == {dtype}
    assert load(folder, precision=precision, ops="reference").dtype == dtype


def test_missing_and_misshapen_tensors_are_named(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.self_attn.k_proj.weight"]
        tensors["model.norm.weight"] = torch.ones(7)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(88, 48, dtype=torch.int32)

    edit_weights(folder, spoil)
    with pytest.raises(WeightsError, match=r"the weights in .* do not fit LlamaForCausalLM: ") as caught:
        load(folder)
    text = str(caught.value)
    assert "k_proj.weight: expected shape [24, 48], found no such tensor" in text
    assert "model.norm.weight: expected shape [48], found [7]" in text
    assert "up_proj.weight: expected floating point, found I32" in text


def test_tensors_that_the_spec_would_leave_out_are_refused(folder: Path) -> None:
    bias = "model.layers.0.self_attn.q_proj.bias"
    edit_weights(folder, lambda tensors: tensors.update({bias: torch.ones(48)}))
    with pytest.raises(WeightsError, match=f"{bias}: the spec of this architecture has no such tensor"):
        load(folder)


def test_many_problems_are_counted(folder: Path) -> None:
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".0." in name])
    with pytest.raises(WeightsError, match="and 4 more"):
        load(folder)


@pytest.mark.parametrize(
    ("family", "buffer"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "transformer.h.1.attn.bias"),
        ("gpt-neox", "gpt_neox.layers.1.attention.masked_bias"),
    ],
)
def test_buffers_of_old_checkpoints_are_ignored(
    family: str, buffer: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(family)
    whole = tokens(folder)
    edit_weights(folder, lambda tensors: tensors.update({buffer: torch.zeros(6)}))
    assert tokens(folder) == whole


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_names_may_lack_the_prefix(family: str, copy: Callable[[str], Path]) -> None:
    """gpt2 and bloom on the hub were saved from the model without its head."""
    folder = copy(family)
    whole = tokens(folder)
    rename(folder, lambda name: name.removeprefix("transformer."))
    assert tokens(folder) == whole


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe"])
def test_experts_may_be_stacked_in_the_file(family: str, copy: Callable[[str], Path]) -> None:
    """As transformers holds them in memory, and saves them where it doesn't undo it."""
    folder = copy(family)
    whole = tokens(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    stacked = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in stacked)
    save_file(stacked, folder / SINGLE, metadata={"format": "pt"})
    assert tokens(folder) == whole


def test_a_missing_expert_is_named(copy: Callable[[str], Path]) -> None:
    folder = copy("mixtral")
    lost = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    edit_weights(folder, lambda tensors: tensors.pop(lost))
    with pytest.raises(WeightsError, match=rf"{lost}: expected shape \[88, 48\], found no such tensor"):
        load(folder)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("family", "embedding"), [("llama", EMBEDDING), ("gpt2", "transformer.wte.weight")])
def test_an_output_matrix_that_differs_is_read_though_the_config_ties_it(
    family: str, embedding: str, same: bool, copy: Callable[[str], Path]
) -> None:
    folder = copy(family)
    edit_config(folder, tie_word_embeddings=True)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[LM_HEAD] = tensors[embedding].clone() if same else tensors[embedding].flip(1).clone()

    edit_weights(folder, edit)
    assert tokens(folder) == generate(folder, PROMPTS, 6)
    spec = spec_of(read_config(folder))
    assert spec.tied
    assert Checkpoint(folder).fit(spec).tied == same


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"weights as \.bin \(pickle\)"):
        load(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / SINGLE).unlink()
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor"):
        load(folder)


def test_a_cut_off_file_is_named(folder: Path) -> None:
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read as safetensors"):
        load(folder)


def test_a_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        load(folder)


def test_a_config_unknown_to_transformers_is_named(folder: Path) -> None:
    edit_config(folder, architectures=["NovelForCausalLM"], model_type="novel")
    with pytest.raises(
        UnsupportedModel, match=r"architecture NovelForCausalLM .* supported are LlamaForCausalLM"
    ):
        load(folder)


def test_old_rope_fields_are_understood(folder: Path) -> None:
    """Checkpoints on the hub have rope_theta and rope_scaling, which AutoConfig brings to one form."""
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    scaling = {"rope_type": "linear", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 77.0, "rope_scaling": scaling}))
    rope = spec_of(AutoConfig.from_pretrained(folder)).layers[0].rope
    assert rope is not None
    assert (rope.kind, rope.theta, rope.factor) == ("linear", 77.0, 2.0)


def test_fingerprint_tells_models_apart(folder: Path) -> None:
    before = fingerprint(folder, "fp32")
    assert fingerprint(folder, "fp32") == before
    assert fingerprint(folder, "int8") != before
    # A fine-tune: the same names and shapes, other numbers.
    edit_weights(folder, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"].mul_(1.01))
    tuned = fingerprint(folder, "fp32")
    assert tuned != before
    edit_config(folder, rms_norm_eps=1e-4)
    assert fingerprint(folder, "fp32") not in (before, tuned)


def test_fingerprint_of_dummy_weights_needs_no_files(folder: Path) -> None:
    whole = fingerprint(folder, "fp32")
    with_weights = fingerprint(folder, "fp32", dummy=True)
    (folder / SINGLE).unlink()
    alone = fingerprint(folder, "fp32", dummy=True)
    assert alone == with_weights
    assert alone not in (whole, fingerprint(folder, "bf16", dummy=True))
    edit_config(folder, rms_norm_eps=1e-4)
    assert fingerprint(folder, "fp32", dummy=True) != alone


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_file_is_read_once(family: str, tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model(family)
    checkpoint = Checkpoint(folder)
    spec: DecoderSpec = checkpoint.fit(spec_of(read_config(folder)))
    read = [name for sources in checkpoint._sources.values() for name, _ in sources]
    with safe_open(folder / SINGLE, framework="pt") as file:
        stored = set(file.keys())
    assert len(read) == len(set(read))
    assert set(read) == stored
    assert sum(tensor.numel() for tensor in load_file(folder / SINGLE).values()) == spec.num_parameters


def test_heads_too_wide_for_the_kernels_in_cpp_are_computed_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wide = {**FAMILIES["qwen3"].to_dict(), "head_dim": 320}
    monkeypatch.setitem(FAMILIES, "wide", type(FAMILIES["qwen3"])(**wide))
    folder = save_tiny_model("wide", tmp_path)
    prompts = random_prompts(4, longest=30)
    requests = [
        Request(request_id=str(i), prompt_token_ids=prompt, params=greedy(8))
        for i, prompt in enumerate(prompts)
    ]
    outputs = run(engine_of(folder, ops="cpu"), requests)
    assert [tokens_of(outputs[str(i)]) for i in range(4)] == generate(folder, prompts, 8)
    assert "heads have 320 channels, and the C++ kernels take 256" in caplog.text
