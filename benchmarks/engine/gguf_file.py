"""Writes a GGUF file: metadata, then tensors, one at a time. For llama.cpp, which reads nothing else.

Source of the format: docs/gguf.md of github.com/ggml-org/ggml, version 3. Everything is little-endian. Q8_0
is blocks of 32 values: a scale in float16, the greatest magnitude / 127, and 32 signed bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from torch import Tensor

ALIGNMENT = 32
Q8_BLOCK = 32
TensorType = Literal["F32", "F16", "Q8_0"]
TYPES: dict[TensorType, int] = {"F32": 0, "F16": 1, "Q8_0": 8}
"""As the format numbers them."""
_UINT32, _FLOAT32, _STRING = 4, 6, 8
Value = str | int | float


@dataclass(frozen=True)
class GGUFTensor:
    """What the file is to hold, read when its turn comes."""

    name: str
    shape: tuple[int, ...]
    """As torch has it, the last dimension contiguous; a multiple of 32 for Q8_0."""
    type: TensorType
    read: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        count = prod(self.shape)
        return {"F32": 4 * count, "F16": 2 * count, "Q8_0": count // Q8_BLOCK * (2 + Q8_BLOCK)}[self.type]


def write_gguf(path: Path, metadata: dict[str, Value], tensors: Iterable[GGUFTensor]) -> None:
    """metadata: strings, unsigned integers and float32 numbers."""
    tensors = list(tensors)
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _value(value))
        offset = 0
        for tensor in tensors:
            dims = tensor.shape[::-1]
            file.write(_string(tensor.name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
            file.write(struct.pack("<IQ", TYPES[tensor.type], offset))
            offset += _padded(tensor.num_bytes)
        _pad(file)
        for tensor in tensors:
            file.write(encoded(tensor.read(), tensor.type))
            _pad(file)


def encoded(x: Tensor, kind: TensorType) -> bytes:
    """A tensor's bytes in the file."""
    if kind == "F32":
        return x.float().contiguous().numpy().tobytes()
    if kind == "F16":
        return x.half().contiguous().numpy().tobytes()
    blocks = x.float().reshape(-1, Q8_BLOCK)
    scales = blocks.abs().amax(1, keepdim=True) / 127
    quantized = (blocks / scales.clamp_min(1e-30)).round().to(torch.int8)
    parts = (scales.half().view(torch.uint8).view(-1, 2), quantized.view(torch.uint8))
    return torch.cat(parts, 1).numpy().tobytes()


def _value(value: Value) -> bytes:
    match value:
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_padded(file.tell()) - file.tell()))
