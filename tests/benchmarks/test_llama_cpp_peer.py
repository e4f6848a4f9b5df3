"""llama.cpp as a peer: its file, its command line, and what it says."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.engine.gguf_file import GGUFTensor, encoded, write_gguf
from benchmarks.engine.llama_cpp_model import metadata, write_model
from benchmarks.engine.llama_cpp_peer import arguments_of, measured_of, parse, program_at
from benchmarks.engine.shapes import SHAPES, write_folder
from benchmarks.engine.workloads import WORKLOADS, make_workload
from engine.models.weights import DummyWeights

SAID = (
    "0.00.011.206 W load: adding 512 dummy tokens\n"
    '{"n_kv_max": 1536, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, '
    '"n_gpu_layers": -1, "n_threads": 2, "n_threads_batch": 2, "pp": 20, "tg": 8, "pl": 6, "n_kv": 168, '
    '"t_pp": 0.001969, "speed_pp": 60944.640625, "t_tg": 0.032359, "speed_tg": 1483.358521, '
    '"t": 0.034328, "speed": 4893.964355}\n\n'
)
"""Of a run with -npp 20 -ntg 8 -npl 6 --output-format jsonl."""


class Reader:
    """Reads a GGUF file as its format says, apart from what writes it."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.at = 0
        assert self.data[:4] == b"GGUF"
        self.at = 4
        version, num_tensors, num_keys = self.unpack("<IQQ")
        assert version == 3
        self.metadata = {self.string(): self.value() for _ in range(num_keys)}
        infos = [self.info() for _ in range(num_tensors)]
        start = -(-self.at // 32) * 32
        self.tensors = {name: (dims, kind, start + offset) for name, dims, kind, offset in infos}

    def unpack(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return found

    def string(self) -> str:
        (size,) = self.unpack("<Q")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def value(self) -> Any:
        (kind,) = self.unpack("<I")
        return self.string() if kind == 8 else self.unpack({4: "<I", 6: "<f"}[kind])[0]

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string()
        (count,) = self.unpack("<I")
        dims = self.unpack(f"<{count}Q")
        return (name, dims, *self.unpack("<IQ"))

    def halves(self, name: str) -> torch.Tensor:
        """A float16 tensor, as torch has it."""
        dims, kind, offset = self.tensors[name]
        assert kind == 1
        assert offset % 32 == 0
        part = torch.frombuffer(
            bytearray(self.data), dtype=torch.float16, offset=offset, count=dims[0] * dims[1]
        )
        return part.view(dims[::-1])


def test_a_file_has_what_was_written(tmp_path: Path) -> None:
    matrix = torch.arange(96.0).view(3, 32)
    tensors = [
        GGUFTensor("odd", (5,), "F32", lambda: torch.ones(5)),
        GGUFTensor("matrix", (3, 32), "F16", lambda: matrix),
    ]
    write_gguf(tmp_path / "file", {"name": "x", "count": 7, "share": 0.5}, tensors)
    found = Reader(tmp_path / "file")
    assert found.metadata == {"name": "x", "count": 7, "share": 0.5}
    assert found.tensors["odd"][:2] == ((5,), 0)
    assert torch.equal(found.halves("matrix"), matrix.half())


def test_blocks_of_eight_bits_are_within_half_a_step() -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    x[2, 32:] = 0
    data = torch.frombuffer(bytearray(encoded(x, "Q8_0")), dtype=torch.uint8).view(-1, 34)
    scales = data[:, :2].contiguous().view(torch.float16).float()
    back = (data[:, 2:].contiguous().view(torch.int8) * scales).view(4, 64)
    step = x.view(-1, 32).abs().amax(1).view(4, 2).repeat_interleave(32, 1) / 127
    assert ((back - x).abs() <= 0.51 * step + 127 * step * 2**-11).all()
    assert len(encoded(x, "Q8_0")) == GGUFTensor("x", (4, 64), "Q8_0", lambda: x).num_bytes


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_a_model_has_our_weights_under_its_names(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    folder = write_folder(shape, tmp_path / name)
    write_model(shape, folder, "F16", tmp_path / "model.gguf")
    found = Reader(tmp_path / "model.gguf")
    assert found.metadata == pytest.approx(metadata(shape, "F16"))
    matrices = [dims for dims, _, _ in found.tensors.values() if len(dims) == 2]
    assert sum(dims[0] * dims[1] for dims in matrices) == shape.num_params
    values = found.halves("blk.1.attn_v.weight")
    assert values.shape == (shape.kv_size, shape.hidden_size)
    assert values.std().item() == pytest.approx(shape.hidden_size**-0.5, rel=0.1)
    # Rows of a head's two halves alternate where llama.cpp turns neighbours, and lie as they are elsewhere.
    queries = found.halves("blk.0.attn_q.weight").view(shape.num_heads, -1, shape.hidden_size)
    whole = _read(shape.name, tmp_path / name)[: shape.q_size].half().view_as(queries)
    half = shape.head_dim // 2
    assert torch.equal(queries[:, 0], whole[:, 0])
    assert torch.equal(queries[:, 1], whole[:, half if shape.model_type == "llama" else 1])


def _read(name: str, folder: Path) -> torch.Tensor:
    from engine.loading import describe
    from engine.models.folder import read_config
    from engine.models.spec import DecoderSpec

    spec = describe(read_config(folder))
    assert isinstance(spec, DecoderSpec)
    (qkv,) = [param for param in spec.layers[0].params if param.name == "qkv"]
    return DummyWeights(torch.float32).read(qkv, 0)


def test_what_it_says_becomes_a_row() -> None:
    workload = make_workload("tiny", 512)
    arguments = arguments_of(workload)
    found = measured_of(workload, arguments, parse(SAID))
    assert found.seconds == pytest.approx(0.034328)
    assert (found.prompt_tokens, found.output_tokens) == (120, 48)
    assert found.exact
    with pytest.raises(ValueError, match="failed to load"):
        parse("error: failed to load model\n")


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_become_lengths_that_are_marked_unless_exact(name: str) -> None:
    workload = make_workload(name, 32_000)
    arguments = arguments_of(workload)
    assert arguments.exact == (name not in ("nano-vllm", "shared-prefix", "peers"))
    assert arguments.count * arguments.output == pytest.approx(workload.num_output_tokens, rel=0.01)
    assert arguments.count * arguments.prompt == pytest.approx(workload.num_prompt_tokens, rel=0.01)
    command = arguments.command("program", Path("model"), 2)
    assert ("-pps" in command) == arguments.shared == (name == "shared-prefix")
    context = int(command[command.index("-c") + 1])
    assert context >= arguments.count * arguments.output + arguments.prompt


def test_a_place_without_the_program_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="llama-batched-bench"):
        program_at(str(tmp_path))
    program = tmp_path / "llama-batched-bench"
    program.touch()
    assert program_at(str(tmp_path)) == program_at(str(program)) == str(program)
