"""What weights cost while they are read, and dummy ones."""

from __future__ import annotations

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
from engine.models.spec import Param
from engine.models.weights import DummyWeights
from kernels.opset import load_op_set
from tests.engine.paged import all_logits, load
from tests.engine.tiny_models import FAMILIES, random_prompts

PROMPT = random_prompts(1, longest=9, seed=4)[0]


def test_one_raw_tensor_at_a_time_is_in_memory(tiny_model: Callable[[str], Path]) -> None:
    """Each may be a gigabyte, and the op set has packed what came before into copies of its own."""
    folder = tiny_model("llama")
    checkpoint = Checkpoint(folder)
    spec = checkpoint.fit(spec_of(read_config(folder)))
    raw: list[tuple[str, weakref.ref[torch.Tensor]]] = []
    alive: list[set[str]] = []

    class Watched:
        dtype = torch.float32
        device = torch.device("cpu")

        def read(self, param: Param, layer: int = 0) -> torch.Tensor:
            alive.append({name for name, tensor in raw if tensor() is not None})
            tensor = checkpoint.read(param, layer)
            if not param.float32 and param.name != "embedding":
                raw.append((f"{param.name} {layer}", weakref.ref(tensor)))
            return tensor

    with torch.inference_mode():
        Decoder(spec, load_op_set("cpu"), Watched(), 8)
    assert len(raw) == 1 + 4 * 2
    assert max(map(len, alive)) == 0, alive


_MEASURE = """
import sys, msgspec, torch
from pathlib import Path
from engine.models.checkpoint import Checkpoint
from engine.models.spec import DecoderSpec

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

class Peak:
    seen = 0
    def note(self, *_):
        self.seen = max(self.seen, anonymous())

folder, peak = Path(sys.argv[1]), Peak()
checkpoint = Checkpoint(folder, torch.bfloat16)
spec = checkpoint.fit(msgspec.json.decode(sys.stdin.read(), type=DecoderSpec))
readers = checkpoint._readers
class Noting:
    def __init__(self, reader): self.reader = reader
    def get_tensor(self, name):
        tensor = self.reader.get_tensor(name)
        peak.note()
        return tensor
checkpoint._readers = {name: Noting(reader) for name, reader in readers.items()}
before = anonymous()
kept = []
for param, layer in spec.params:
    kept.append(checkpoint.read(param, layer))
    peak.note()
print(peak.seen - before, sum(t.numel() * t.element_size() for t in kept))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_the_weights_and_one_tensor_of_a_file(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=8192,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    config.architectures = ["LlamaForCausalLM"]
    spec = spec_of(config)
    dummy = DummyWeights(torch.float32)  # twice as wide as what it is read into
    largest = 0
    weight_map: dict[str, str] = {}
    for shard, group in enumerate([*spec.layers, None]):
        params = (
            [(p, shard) for p in group.params]
            if group
            else [(p, 0) for p in (*spec.outer_params, spec.lm_head)]
        )
        tensors = {
            name.replace("{i}", str(layer)): part.contiguous()
            for param, layer in params
            for (name, _), part in zip(
                param.sources, dummy.read(param, layer).split([s[0] for _, s in param.sources]), strict=True
            )
        }
        largest = max(largest, *(t.numel() * t.element_size() for t in tensors.values()))
        save_file(tensors, tmp_path / f"part-{shard}.safetensors")
        weight_map |= dict.fromkeys(tensors, f"part-{shard}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    out = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        input=msgspec.json.encode(spec).decode(),
    )
    peak, weights = map(int, out.stdout.split())
    assert weights == 2 * spec.num_parameters + 2 * 1024 * 13  # norms take four bytes each
    assert largest == 4 * 8192 * 1024
    allocator = 8 * 2**20
    assert weights < peak < weights + largest + allocator, f"{peak} bytes for {weights} of weights"


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
