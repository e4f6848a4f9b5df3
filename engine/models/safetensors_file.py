"""One safetensors file, read tensor by tensor into memory that is there already.

Not mapped: the pages of a mapped file count as the process's own memory until it lets go of them, so that
loading would take the weights' size twice. The format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Final

import torch
from msgspec import Struct
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import WeightsError

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Floating point, as safetensors names it: all that is read."""


class TensorHeader(Struct, frozen=True):
    """What a file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it, such as `BF16`."""


class SafetensorsFile:
    """A file whose header is read."""

    def __init__(self, path: Path) -> None:
        """Raises WeightsError."""
        try:
            with safe_open(
                path, framework="pt"
            ):  # checks the header, and that the file is as long as it says
                pass
            with path.open("rb") as file:
                header, self._data = read_header(file)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path.name} cannot be read as safetensors: {error}") from error
        self._path = path
        self._offsets: dict[str, int] = {}
        self.headers: dict[str, TensorHeader] = {}
        for name, tensor in json.loads(header).items():
            if name != "__metadata__":
                self.headers[name] = TensorHeader(tuple(tensor["shape"]), tensor["dtype"])
                self._offsets[name] = tensor["data_offsets"][0]

    def read(self, name: str, out: Tensor) -> None:
        """Reads a tensor of one of `DTYPES`. out: contiguous, on the host, of its type and size; any shape.

        Raises WeightsError where the file has become shorter, or its disk fails.
        """
        array: Any = out.view(-1).view(torch.uint8).numpy()  # a buffer: its stubs say so for Python 3.12 only
        rest = memoryview(array)
        position = self._data + self._offsets[name]
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(position)
                while rest:
                    count = file.readinto(rest)
                    if not count:
                        raise WeightsError(f"{self._path.name} ends within {name}: it was cut off")
                    rest = rest[count:]
        except OSError as error:
            raise WeightsError(f"{self._path.name} cannot be read: {error}") from error


def read_header(file: Any) -> tuple[bytes, int]:
    """The header of a binary file's tensors, as JSON, and where what it describes begins."""
    (size,) = struct.unpack("<Q", file.read(8))
    return file.read(size), 8 + size
