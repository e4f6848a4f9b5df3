"""What weights cost while they are read, and dummy ones."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from engine.models.checkpoint import Checkpoint
from engine.models.decoder import Decoder
from engine.models.families import spec_of
from engine.models.folder import read_config
from engine.models.model import Model
from engine.models.spec import DecoderSpec, Param
from engine.models.weights import DummyWeights, Scratch
from kernels.cpu import make_op_set, native
from kernels.linear import pack_linear
from tests.engine.paged import all_logits, load
from tests.engine.tiny_models import FAMILIES, random_prompts

PROMPT = random_prompts(1, longest=9, seed=4)[0]


@pytest.mark.parametrize("library", [native.load(), None], ids=["native", "torch"])
def test_one_raw_tensor_at_a_time_is_in_memory(
    library: ctypes.CDLL | None, tiny_model: Callable[[str], Path]
) -> None:
    """Each may be a gigabyte, and the op set has packed what came before into copies of its own."""
    folder = tiny_model("llama")
    checkpoint = Checkpoint(folder)
    spec = checkpoint.fit(spec_of(read_config(folder)))
    raw: list[tuple[str, weakref.ref[torch.Tensor]]] = []
    alive: list[set[str]] = []
    lent: set[Scratch] = set()

    class Watched:
        dtype = torch.float32
        device = torch.device("cpu")

        def read(self, param: Param, layer: int = 0) -> torch.Tensor:
            return self._watch(param, layer, checkpoint.read(param, layer))

        def lend(self, param: Param, layer: int, scratch: Scratch) -> torch.Tensor:
            lent.add(scratch)
            return self._watch(param, layer, checkpoint.lend(param, layer, scratch))

        def _watch(self, param: Param, layer: int, tensor: torch.Tensor) -> torch.Tensor:
            alive.append({name for name, tensor in raw if tensor() is not None})
            if not param.float32 and param.name != "embedding":
                raw.append((f"{param.name} {layer}", weakref.ref(tensor)))
            return tensor

    with torch.inference_mode():
        Decoder(spec, make_op_set(library), Watched(), 8)
    assert len(raw) == 1 + 4 * 2
    assert max(map(len, alive)) == 0, alive
    assert len(lent) == (0 if library is None else 2), "one for the vocabulary's, one for the layers'"


_MEASURE = """
import sys, msgspec, torch
from pathlib import Path
from engine.config import EngineConfig
from engine.models.checkpoint import Checkpoint
from engine.models.load import load_decoder
from engine.models.spec import DecoderSpec
from kernels.opset import load_op_set

def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])

folder, how = Path(sys.argv[1]), sys.argv[2]
spec = msgspec.json.decode(sys.stdin.read(), type=DecoderSpec)
torch.set_num_threads(1)
load_op_set("cpu")
config = EngineConfig(model=str(folder), ops="cpu", device="cpu", precision=how)
before = resident("VmRSS")
if how == "auto":
    checkpoint = Checkpoint(folder, torch.bfloat16)
    spec = checkpoint.fit(spec)
    kept = [checkpoint.read(param, layer) for param, layer in spec.params]
else:
    kept = load_decoder(folder, spec, config, 64, lambda phase: None)
print(resident("VmHWM") - before, resident("VmRSS") - before)
"""
_ALLOCATOR = 8 * 2**20


def measure(folder: Path, spec: DecoderSpec, how: str) -> tuple[int, int]:
    """Bytes that a process of its own takes at most to load a folder, and afterwards. Pages of files count.

    how: a precision, for a decoder; "auto": every parameter is read into bfloat16 and kept."""
    out = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(folder), how],
        check=True,
        capture_output=True,
        text=True,
        input=msgspec.json.encode(spec).decode(),
    )
    peak, left = map(int, out.stdout.split())
    return peak, left


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_weights_and_one_tensor_of_a_file(tmp_path: Path) -> None:
    spec = wide_spec(tied=False)
    largest = save_wide_model(spec, tmp_path)
    peak, _ = measure(tmp_path, spec, "auto")
    weights = 2 * spec.num_parameters + 2 * 1024 * 13  # norms take four bytes each
    assert largest == 4 * 8192 * 1024
    assert weights < peak < weights + largest + _ALLOCATOR, f"{peak} bytes for {weights} of weights"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("precision", "itemsize"), [("int8", 1), ("bf16", 2), ("fp16", 2), ("fp32", 4)])
def test_a_tied_model_takes_its_weights_once(precision: str, itemsize: int, tmp_path: Path) -> None:
    """Also at the peak: what is largest is read first, and the raw layers are small beside it."""
    spec = wide_spec(tied=True)
    save_wide_model(spec, tmp_path)
    peak, left = measure(tmp_path, spec, precision)
    packed = (1 if native.load() else 2) * itemsize * 8192 * 1024  # plain torch packs a copy of the embedding
    weights = packed + itemsize * (spec.num_parameters - 8192 * 1024)
    if native.load() is None and precision == "int8":
        weights *= 2  # bfloat16 computes instead
    assert left < weights + _ALLOCATOR, f"{left} bytes for {weights} of weights"
    raw = 4 * 4096 * 1024  # gate and up of a layer, as they are in the file
    assert peak < max(weights + raw, packed + 4 * 8192 * 1024) + _ALLOCATOR


def wide_spec(*, tied: bool) -> DecoderSpec:
    """Large enough that its weights show among what a process takes."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=tied,
    )
    config.architectures = ["LlamaForCausalLM"]
    return spec_of(config)


def save_wide_model(spec: DecoderSpec, folder: Path) -> int:
    """Float32, a file for each layer. Returns the bytes of the largest tensor."""
    dummy = DummyWeights(torch.float32)
    largest = 0
    weight_map: dict[str, str] = {}
    outer = [*spec.outer_params, *([] if spec.tied else [spec.lm_head])]
    for shard, params in enumerate([*(layer.params for layer in spec.layers), outer]):
        tensors = {
            name.replace("{i}", str(shard)): part.contiguous()
            for param in params
            for (name, _), part in zip(
                param.sources, dummy.read(param, shard).split([s[0] for _, s in param.sources]), strict=True
            )
        }
        largest = max(largest, *(t.numel() * t.element_size() for t in tensors.values()))
        save_file(tensors, folder / f"part-{shard}.safetensors")
        weight_map |= dict.fromkeys(tensors, f"part-{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return largest


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("found", [torch.float32, torch.bfloat16, torch.float16])
def test_types_are_changed_while_packing_as_torch_changes_them(
    stored: torch.dtype, found: torch.dtype
) -> None:
    """Nearest, ties to even, subnormal numbers and infinities too."""
    weight = torch.randint(-(2**15), 2**15, (64, 1024), dtype=torch.int16).view(torch.float16)
    weight = weight.nan_to_num(nan=1.0, posinf=float("inf"), neginf=float("-inf")).to(found)
    weight[:, ::3] *= 1 + torch.rand(64, 342).to(found) / 128
    weight[:, 1::3] /= 3
    ops = make_op_set(native.load(), stored)
    packed = pack_linear(ops, weight, None)
    ids = torch.arange(64)
    if ops.rows is not None:
        assert torch.equal(ops.rows(packed, ids), weight.to(stored).float())
    else:
        assert packed.dtype == found


def dummy(folder: Path, **settings: Any) -> Model:
    return load(folder, load_format="dummy", **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_dummy_weights_run_from_the_config_alone(
    family: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copy(tiny_model(family) / "config.json", tmp_path)
    model = dummy(tmp_path, precision="fp16")
    logits = all_logits(model, PROMPT)
    assert logits.isfinite().all()
    assert logits.std() > 1e-3
    assert torch.equal(all_logits(dummy(tmp_path, precision="fp16"), PROMPT), logits)


def test_dummy_weights_differ_by_parameter_and_layer() -> None:
    weights = DummyWeights(torch.float32)
    matrix = Param(name="qkv", shape=(2000, 1000), sources=(("x", (2000, 1000)),))
    first = weights.read(matrix, 0)
    assert len({tuple(row[:4].tolist()) for row in first}) == 2000
    assert not torch.equal(first, weights.read(matrix, 1))
    assert first.mean().abs() < 0.01
    assert first.var() == pytest.approx(1 / 1000, rel=0.05)
    norm = weights.read(Param(name="mlp_norm", shape=(50,), sources=(("x", (50,)),), float32=True))
    assert ((norm > 0.85) & (norm < 1.15)).all()
