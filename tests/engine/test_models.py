"""Loading: what is read, and in which words the rest is refused."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.errors import ModelError, ModelNotFound, UnsupportedModel, WeightsError
from engine.models.checkpoint import Checkpoint, fingerprint
from engine.models.decoder import Decoder
from engine.models.families import LM_HEAD, spec_of
from engine.models.folder import read_config, resolve_folder
from engine.models.rope import inverse_frequencies
from engine.models.spec import Param
from engine.request import Request
from kernels.opset import load_op_set
from tests.engine.run import engine_of, greedy, run, tokens_of
from tests.engine.tiny_models import generate, random_prompts

PROMPTS = random_prompts(3, longest=9, seed=4)
SINGLE = "model.safetensors"


@pytest.fixture
def folder(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a Llama folder, to be spoiled."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def greedy_tokens(folder: Path) -> list[list[int]]:
    engine = engine_of(folder)
    requests = [
        Request(request_id=str(i), prompt_token_ids=prompt, params=greedy(6))
        for i, prompt in enumerate(PROMPTS)
    ]
    outputs = run(engine, requests)
    return [tokens_of(outputs[str(i)]) for i in range(len(PROMPTS))]


def test_shards_are_read_as_one(folder: Path, tmp_path: Path) -> None:
    whole = greedy_tokens(folder)
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="40KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert greedy_tokens(sharded) == whole


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="40KB")
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(WeightsError, match=f"names files that are not there: {lost.name}"):
        engine_of(sharded)


def test_bf16_weights_are_computed_with_in_fp32(folder: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(torch.bfloat16)

    edit_weights(folder, halve)
    edit_config(folder, dtype="bfloat16")
    assert greedy_tokens(folder) == generate(folder, PROMPTS, 6)


def test_missing_and_misshapen_tensors_are_named(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.self_attn.k_proj.weight"]
        tensors["model.norm.weight"] = torch.ones(7)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(88, 48, dtype=torch.int32)

    edit_weights(folder, spoil)
    with pytest.raises(WeightsError) as caught:
        engine_of(folder)
    text = str(caught.value)
    assert "k_proj.weight: expected shape [24, 48], found no such tensor" in text
    assert "model.norm.weight: expected shape [48], found [7]" in text
    assert "up_proj.weight: expected floating point, found I32" in text


def test_tensors_that_the_spec_would_leave_out_are_refused(folder: Path) -> None:
    bias = "model.layers.0.self_attn.q_proj.bias"
    edit_weights(folder, lambda tensors: tensors.update({bias: torch.ones(48)}))
    with pytest.raises(WeightsError, match=f"{bias}: the spec of this architecture has no such tensor"):
        engine_of(folder)


def test_many_problems_are_counted(folder: Path) -> None:
    edit_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".0." in name])
    with pytest.raises(WeightsError, match="and 4 more"):
        engine_of(folder)


def test_stored_inverse_frequencies_are_ignored(folder: Path) -> None:
    whole = greedy_tokens(folder)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(6)}))
    assert greedy_tokens(folder) == whole


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"weights as \.bin \(pickle\)"):
        engine_of(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / SINGLE).unlink()
    with pytest.raises(WeightsError, match=r"neither model\.safetensors nor"):
        engine_of(folder)


def test_a_cut_off_file_is_named(folder: Path) -> None:
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read as safetensors"):
        engine_of(folder)


def test_an_unknown_architecture_is_named_with_what_there_is(tmp_path: Path) -> None:
    config = GPT2Config(n_embd=8, n_layer=1, n_head=1)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModel,
        match="architecture GPT2LMHeadModel is not supported; supported are LlamaForCausalLM",
    ):
        engine_of(tmp_path)


def test_a_config_unknown_to_transformers_is_named(folder: Path) -> None:
    edit_config(folder, architectures=["NovelForCausalLM"], model_type="novel")
    with pytest.raises(
        UnsupportedModel, match=r"architecture NovelForCausalLM .* supported are LlamaForCausalLM"
    ):
        engine_of(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"is_causal": False}, "attention that is not causal"),
        (
            {"num_key_value_heads": 3, "head_dim": 12},
            "4 attention heads, which 3 key-value heads do not divide",
        ),
        ({"model_type": "mistral", "sliding_window": 8}, r"model_type 'mistral' \(supported: 'llama'\)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized weights"),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rope type 'yarn' is not supported; supported are 'default', 'linear' and 'llama3'",
        ),
    ],
)
def test_variants_are_refused_in_words(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(UnsupportedModel, match=words):
        spec_of(read_config(folder))


def test_sliding_window_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("qwen2"), tmp_path / "model"))
    edit_config(folder, use_sliding_window=True, sliding_window=8, max_window_layers=0, layer_types=None)
    with pytest.raises(UnsupportedModel, match="sliding window attention"):
        spec_of(read_config(folder))


def test_a_sliding_window_that_no_layer_has_is_fine(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model("qwen2"), tmp_path / "model"))
    edit_config(folder, use_sliding_window=True, sliding_window=8, max_window_layers=28, layer_types=None)
    assert greedy_tokens(folder) == generate(folder, PROMPTS, 6)


@pytest.mark.parametrize("same", [True, False])
def test_an_output_matrix_that_differs_is_read_though_the_config_ties_it(same: bool, folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    if same:
        edit_weights(
            folder, lambda tensors: tensors.update({LM_HEAD: tensors["model.embed_tokens.weight"].clone()})
        )
    assert greedy_tokens(folder) == generate(folder, PROMPTS, 6)


def test_a_rope_without_its_numbers_is_an_invalid_config(folder: Path) -> None:
    edit_config(folder, rope_parameters={"rope_type": "linear", "rope_theta": 1e4})
    with pytest.raises(ModelError, match=r"config\.json is invalid: .*factor") as caught:
        engine_of(folder)
    assert not isinstance(caught.value, UnsupportedModel)
    config = LlamaConfig()
    config.architectures = ["LlamaForCausalLM"]
    config.rope_parameters = {"rope_type": "llama3", "rope_theta": 1e4, "factor": "8"}
    with pytest.raises(ModelError, match=r"rope type 'llama3' needs a number 'factor', found '8'"):
        spec_of(config)


def test_the_raw_output_matrix_is_gone_before_the_layers_are_read(folder: Path) -> None:
    """It may be a gigabyte, and the op set has packed it into a copy of its own."""
    spec = spec_of(read_config(folder))
    checkpoint = Checkpoint(folder)
    raw: list[weakref.ref[torch.Tensor]] = []

    class Watched:
        def read(self, param: Param, layer: int = 0) -> torch.Tensor:
            tensor = checkpoint.read(param, layer)
            if param.name == "lm_head":
                raw.append(weakref.ref(tensor))
            return tensor

    alive: list[bool] = []
    with torch.inference_mode():
        Decoder(spec, load_op_set("cpu"), Watched(), 8, lambda layer: alive.append(raw[0]() is not None))
    assert alive == [False, False]


def test_a_config_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        engine_of(folder)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 5e5},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_inverse_frequencies_equal_transformers(rope: dict[str, Any]) -> None:
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope)
    config.architectures = ["LlamaForCausalLM"]
    expected = LlamaRotaryEmbedding(config).inv_freq
    torch.testing.assert_close(inverse_frequencies(spec_of(config).rope, 128), expected, rtol=1e-6, atol=0)


def test_old_rope_fields_are_understood(folder: Path) -> None:
    """Checkpoints on the hub have rope_theta and rope_scaling, which AutoConfig brings to one form."""
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    scaling = {"rope_type": "linear", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 77.0, "rope_scaling": scaling}))
    rope = spec_of(AutoConfig.from_pretrained(folder)).rope
    assert (rope.kind, rope.theta, rope.factor) == ("linear", 77.0, 2.0)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        resolve_folder(str(tmp_path))
    with pytest.raises(ModelNotFound, match="there is no folder"):
        resolve_folder(str(tmp_path / "nowhere"))
    with pytest.raises(ModelNotFound, match="there is no folder just-a-name"):
        resolve_folder("just-a-name")
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFound, match="is a file"):
        resolve_folder(str(tmp_path / "file"))


def test_hub_offline_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"not in the local hub cache.*HF_HUB_OFFLINE"):
        resolve_folder("penstock-tests/no-such-model")


WANTED = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "merges.txt",
    "chat_template.jinja",
]
UNWANTED = [
    "pytorch_model.bin",
    "tokenizer_pkl.bin",
    "weights.pth",
    "tokenizer.py",
    "modeling_custom.py",
    "model.gguf",
    "consolidated.safetensors",
    "consolidated.00.pth",
    "original/consolidated.00.pth",
    "onnx/x.safetensors",
    "onnx/config.json",
    "model.fp16.safetensors",
    "model.fp16-00001-of-00002.safetensors",
    "model-00001-of-00002.fp16.safetensors",
]


def test_hub_models_are_fetched_without_pickles_code_or_copies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def fetching(repo_id: str, **patterns: list[str]) -> str:
        asked.update(repo_id=repo_id, patterns=patterns)
        return str(tmp_path)

    (tmp_path / SINGLE).touch()
    phases: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetching)
    assert resolve_folder("owner/name", phases.append) == tmp_path
    assert phases == ["downloading owner/name"]
    assert asked["repo_id"] == "owner/name"
    assert list(filter_repo_objects(WANTED + UNWANTED, **asked["patterns"])) == WANTED


def test_a_hub_model_without_safetensors_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo_id, **patterns: str(tmp_path))
    with pytest.raises(WeightsError, match=r"owner/name .*no weights as \.safetensors; \.bin \(pickle\)"):
        resolve_folder("owner/name")


class ReadTimeout(Exception):
    """Like httpx's errors, whose package has been renamed: no OSError, and often without a text."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError("refused", response=MagicMock()), "owner/name is gated: accept its terms"),
        (RepositoryNotFoundError("refused", response=MagicMock()), "that you may see"),
        (OSError("disk full"), "could not be downloaded from the hub: disk full .*HF_TOKEN"),
        (ReadTimeout("no route"), "could not be downloaded from the hub: no route .*local folder"),
        (ReadTimeout(), "could not be downloaded from the hub: ReadTimeout"),
        (RuntimeError("Data processing error: CAS service error"), "CAS service error"),  # Xet's
    ],
    ids=lambda value: type(value).__name__,
)
def test_hub_models_that_are_not_handed_out(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refusing(repo_id: str, **patterns: list[str]) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refusing)
    with pytest.raises(ModelNotFound, match=words):
        resolve_folder("owner/name")


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
