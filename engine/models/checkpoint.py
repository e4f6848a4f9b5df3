"""A model folder's weight files: what they hold, and reading them straight into fused parameters."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import WeightsError
from engine.models.spec import Param

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PROBE_BYTES = 1024


class Weights(Protocol):
    """Where the decoder's parameters come from."""

    def read(self, param: Param, layer: int = 0) -> Tensor:
        """The parameter as float32, contiguous."""
        ...


class Checkpoint:
    """The safetensors files of a folder: one file, or several with an index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _weight_files(folder)
        self._readers: dict[str, Any] = {}
        self._file_of: dict[str, Path] = {}
        for path in self.files:
            try:
                reader: Any = safe_open(path, framework="pt")
                reader = reader.__enter__()
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path.name} cannot be read as safetensors: {error}") from error
            for name in reader.keys():  # noqa: SIM118  a safetensors reader is no mapping
                self._file_of[name] = path
                self._readers[name] = reader

    def same(self, one: str, other: str) -> bool:
        """Whether both tensors are there, alike to the byte."""
        if not (self.has(one) and self.has(other)):
            return False
        a, b = (self._readers[name].get_tensor(name) for name in (one, other))
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._readers

    def require(self, params: Iterable[tuple[Param, int]], ignored: tuple[str, ...]) -> None:
        """Raises WeightsError unless the files hold exactly these parameters, in the right shapes."""
        expected = {name.format(i=layer): shape for param, layer in params for name, shape in param.sources}
        problems = [
            problem for name, shape in expected.items() if (problem := self._problem(name, shape)) is not None
        ]
        unknown = [
            name
            for name in self._file_of
            if name not in expected and not any(fnmatchcase(name, pattern) for pattern in ignored)
        ]
        problems += [f"{name}: the spec of this architecture has no such tensor" for name in unknown]
        if problems:
            shown = "; ".join(problems[:5])
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise WeightsError(f"the weights in {self.folder} do not fit: {shown}{more}")

    def _problem(self, name: str, shape: tuple[int, ...]) -> str | None:
        reader = self._readers.get(name)
        if reader is None:
            return f"{name}: expected shape {list(shape)}, found no such tensor"
        found = reader.get_slice(name)
        if tuple(found.get_shape()) != shape:
            return f"{name}: expected shape {list(shape)}, found {found.get_shape()}"
        if found.get_dtype() not in ("F64", "F32", "F16", "BF16"):
            return f"{name}: expected floating point, found {found.get_dtype()}"
        return None

    def read(self, param: Param, layer: int = 0) -> Tensor:
        """Reads the parts into one new float32 tensor, first rows first."""
        out = torch.empty(param.shape, dtype=torch.float32)
        start = 0
        for name, shape in param.sources:
            source = name.format(i=layer)
            out[start : start + shape[0]] = self._readers[source].get_tensor(source)
            start += shape[0]
        return out


def fingerprint(folder: Path, precision: str) -> str:
    """A short name for what computes: config, weights, precision. Equal fingerprints may continue each
    other's output, so an edited config or a fine-tune of the same shape must differ.

    Hashing gigabytes would take longer than loading them. So it hashes the config, and of every weight file
    name, size and header (names, types, shapes, offsets), and 1 KiB from the middle of every tensor.
    """
    digest = hashlib.sha256(f"penstock 1 {precision}\n".encode())
    digest.update((folder / "config.json").read_bytes())
    for path in _weight_files(folder):
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            (header_size,) = struct.unpack("<Q", file.read(8))
            header = file.read(header_size)
            digest.update(header)
            tensors = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
            for _, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
                begin, end = tensor["data_offsets"]
                file.seek(8 + header_size + max(begin, (begin + end - _PROBE_BYTES) // 2))
                digest.update(file.read(min(_PROBE_BYTES, end - begin)))
    return digest.hexdigest()[:16]


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, in a fixed order. Raises WeightsError if they are not all there."""
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"{INDEX} in {folder} has no readable weight_map: {error!r}") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise WeightsError(f"{INDEX} in {folder} names files that are not there: {', '.join(missing)}")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if any(folder.glob("*.bin")):
        raise WeightsError(
            f"{folder} has weights as .bin (pickle), which can run code when opened and is not read; "
            "save the model with safetensors (model.save_pretrained does)"
        )
    raise WeightsError(f"{folder} has neither {SINGLE} nor {INDEX}")
