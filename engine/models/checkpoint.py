"""A model folder's weight files: what they hold, and reading them straight into fused parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from engine.errors import WeightsError
from engine.models.safetensors_file import DTYPES, SafetensorsFile, TensorHeader, read_header
from engine.models.spec import DecoderSpec, Grouped, Param, Source
from engine.models.weights import CPU, Scratch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PROBE_BYTES = 1024


class Checkpoint:
    """The safetensors files of a folder: one file, or several with an index."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> None:
        self.folder = folder
        self.dtype = dtype
        self.device = device
        self.headers: dict[str, TensorHeader] = {}
        self._files: dict[str, SafetensorsFile] = {}
        self._sources: dict[tuple[str, int], tuple[Source, ...]] = {}
        self._raw = Scratch()
        for path in _weight_files(folder):
            file = SafetensorsFile(path)
            self.headers |= file.headers
            self._files |= dict.fromkeys(file.headers, file)

    def fit(self, spec: DecoderSpec) -> DecoderSpec:
        """Finds every parameter's tensors. Returns the spec, untied if the output matrix differs from the
        embedding: transformers does not tie two that differ, whatever the config says.

        Raises WeightsError unless the files hold exactly what the spec asks for, in the right shapes.
        """
        if spec.tied:
            embedding, lm_head = _found(spec.outer_params[0], spec, self.headers, 0), None
            if _is_there(spec.lm_head, spec, self.headers):
                lm_head = _found(spec.lm_head, spec, self.headers, 0)
            if lm_head is not None and not self._same(lm_head[0][0], embedding[0][0]):
                spec = msgspec.structs.replace(spec, tied=False)
        self._sources = find_sources(spec, self.headers, f"the weights in {self.folder}")
        return spec

    def read(self, param: Param, layer: int = 0) -> Tensor:
        """Reads the sources, one at a time, into one new tensor. `fit` must have found them."""
        out = torch.empty(
            param.shape, dtype=torch.float32 if param.float32 else self.dtype, device=self.device
        )
        return self._fill(param, layer, out)

    def lend(self, param: Param, layer: int, scratch: Scratch) -> Tensor:
        """See `Weights.lend`."""
        dtypes = {self.headers[name].dtype for name, _ in self._sources[param.name, layer]}
        dtype = DTYPES[dtypes.pop()] if len(dtypes) == 1 else self.dtype
        if dtype == torch.float64:  # nobody packs it
            dtype = self.dtype
        return self._fill(param, layer, scratch.lend(param.shape, dtype))

    def _fill(self, param: Param, layer: int, out: Tensor) -> Tensor:
        start = 0
        for name, shape in self._sources[param.name, layer]:
            match param.split:
                case "rows":
                    self._copy(name, out.view(-1, *shape[1:])[start : start + shape[0]])
                    start += shape[0]
                case "transposed":
                    out[start : start + shape[1]] = self._tensor(name).t()
                    start += shape[1]
                case Grouped():
                    _ungroup(self._tensor(name), param.split, out)
        return out.add_(param.offset) if param.offset else out

    def _copy(self, name: str, out: Tensor) -> None:
        """out: contiguous, of the tensor's shape; of its type too, it is read without a detour."""
        if out.device == CPU and out.dtype == DTYPES[self.headers[name].dtype]:
            self._files[name].read(name, out)
        else:
            out.copy_(self._tensor(name))

    def _tensor(self, name: str) -> Tensor:
        """A tensor as it is in its file, valid until the next one is read."""
        header = self.headers[name]
        tensor = self._raw.lend(header.shape, DTYPES[header.dtype])
        self._files[name].read(name, tensor)
        return tensor

    def _same(self, one: str, other: str) -> bool:
        """Whether two tensors are alike to the byte."""
        if self.headers[one] != self.headers[other]:
            return False
        a = self._tensor(one).clone()
        return torch.equal(a.view(torch.uint8), self._tensor(other).view(torch.uint8))


def find_sources(
    spec: DecoderSpec, headers: Mapping[str, TensorHeader], where: str
) -> dict[tuple[str, int], tuple[Source, ...]]:
    """The tensors that make up each parameter, by its name and layer, under the names that are there.

    Raises WeightsError unless `headers` are exactly those that the spec asks for, in the right shapes.
    """
    sources = {(param.name, layer): _found(param, spec, headers, layer) for param, layer in spec.params}
    expected = dict(source for group in sources.values() for source in group)
    problems = [
        problem
        for name, shape in expected.items()
        if (problem := _problem(name, shape, headers.get(name))) is not None
    ]
    ignored = list(spec.ignored_tensors)
    if spec.tied:
        ignored += [name for group in spec.lm_head.spellings(0) for name, _ in group]
    unknown = [
        name
        for name in headers
        if name not in expected and not any(fnmatchcase(name, pattern) for pattern in ignored)
    ]
    problems += [f"{name}: the spec of this architecture has no such tensor" for name in unknown]
    if problems:
        shown = "; ".join(problems[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(f"{where} do not fit {spec.architecture}: {shown}{more}")
    return sources


def _found(
    param: Param, spec: DecoderSpec, headers: Mapping[str, TensorHeader], layer: int
) -> tuple[Source, ...]:
    """The first spelling whose first tensor is there; if none is, the first."""
    spellings = list(param.spellings(layer))
    if spec.optional_prefix:
        spellings += [
            tuple((name.removeprefix(spec.optional_prefix), shape) for name, shape in spelling)
            for spelling in spellings
        ]
    for spelling in spellings:
        if spelling[0][0] in headers:
            return spelling
    return spellings[0]


def _is_there(param: Param, spec: DecoderSpec, headers: Mapping[str, TensorHeader]) -> bool:
    return all(name in headers for name, _ in _found(param, spec, headers, 0))


def _problem(name: str, shape: tuple[int, ...], found: TensorHeader | None) -> str | None:
    if found is None:
        return f"{name}: expected shape {list(shape)}, found no such tensor"
    if found.shape != shape:
        return f"{name}: expected shape {list(shape)}, found {list(found.shape)}"
    if found.dtype not in DTYPES:
        return f"{name}: expected floating point, found {found.dtype}"
    return None


def _ungroup(tensor: Tensor, grouped: Grouped, out: Tensor) -> None:
    """tensor: rows group by group, see `Grouped`; out: the same rows, all queries, all keys, all values."""
    per_group = grouped.queries_per_kv_head
    groups = tensor.view(grouped.num_kv_heads, per_group + 2, grouped.head_dim, *tensor.shape[1:])
    q_rows = grouped.num_kv_heads * per_group * grouped.head_dim
    kv_rows = grouped.num_kv_heads * grouped.head_dim
    queries, keys, values = out.split([q_rows, kv_rows, kv_rows])
    queries.view(groups[:, :per_group].shape).copy_(groups[:, :per_group])
    keys.view(groups[:, per_group].shape).copy_(groups[:, per_group])
    values.view(groups[:, per_group].shape).copy_(groups[:, per_group + 1])


def fingerprint(folder: Path, precision: str, *, dummy: bool = False) -> str:
    """A short name for what computes: config, weights, precision. Equal fingerprints may continue each
    other's output, so an edited config or a fine-tune of the same shape must differ.

    Hashing gigabytes would take longer than loading them. So it hashes the config, and of every weight file
    name, size and header (names, types, shapes, offsets), and 1 KiB from the middle of every tensor. Dummy
    weights follow from the config.
    """
    digest = hashlib.sha256(f"penstock 2 {precision}\n".encode())
    digest.update((folder / "config.json").read_bytes())
    if dummy:
        return hashlib.sha256(b"dummy" + digest.digest()).hexdigest()[:16]
    for path in _weight_files(folder):
        digest.update(f"\n{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            header, data = read_header(file)
            digest.update(header)
            tensors = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
            for _, tensor in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
                begin, end = tensor["data_offsets"]
                file.seek(data + max(begin, (begin + end - _PROBE_BYTES) // 2))
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
