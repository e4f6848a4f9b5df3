"""A forward pass recorded once and replayed: every call of the library again, in order, by one call.

Between two operations Python takes as long as a small one of them: some 5 ms of a step of 20 where one
sequence decodes. A recording runs the pass as always and keeps every call with its arguments, which are
addresses and sizes. For that to be all that there is, torch may compute nothing in between, and what a call
writes to must stay where it is: torch is watched meanwhile, and its allocations are given memory of ours.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.cpu.calls import Calls, Function
from kernels.cpu.native import CALL
from kernels.opset import Recorded

_LINE: Final = 64
_CHUNK_BYTES: Final = 1 << 20
_OPTIONS: Final = {"dtype", "device", "pin_memory"}
"""Of an allocation that is ours to make, if the device is the host."""

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass
class Chunks:
    """Memory that all recordings of an op set share, since no two of them run at once."""

    chunks: list[Bytes] = field(default_factory=list["Bytes"])


class Arena:
    """Gives one recording its memory. What a tensor leaves when it dies is the next one's of its size, as it
    would be by torch's allocator: a replay writes and reads in the same order."""

    def __init__(self, shared: Chunks) -> None:
        self._shared = shared
        self._used: list[int] = []
        self._free: dict[int, list[tuple[int, int]]] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor."""
        num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        size = -(-max(num_bytes, 1) // _LINE) * _LINE
        free = self._free.setdefault(size, [])
        chunk, offset = free.pop() if free else self._bump(size)
        memory = np.ndarray(size, dtype=np.uint8, buffer=self._shared.chunks[chunk].data, offset=offset)
        # The tensor's storage holds this array, and nothing else does.
        weakref.finalize(memory, free.append, (chunk, offset)).atexit = False
        return torch.from_numpy(memory)[:num_bytes].view(dtype).view(shape)

    def _bump(self, size: int) -> tuple[int, int]:
        chunks = self._shared.chunks
        self._used += [0] * (len(chunks) - len(self._used))
        sizes = enumerate(zip(self._used, chunks, strict=True))
        chunk = next((i for i, (used, memory) in sizes if used + size <= len(memory)), len(chunks))
        if chunk == len(chunks):
            # By powers of two: else one row more would find no room in what a smaller recording left.
            chunks.append(_aligned(max(_CHUNK_BYTES, 1 << (size - 1).bit_length())))
            self._used.append(0)
        self._used[chunk] += size
        return chunk, self._used[chunk] - size


def _aligned(size: int) -> Bytes:
    memory = np.empty(size + _LINE, dtype=np.uint8)
    start = -memory.ctypes.data % _LINE
    return memory[start : start + size]


class _Watch(TorchDispatchMode):
    """Notes the first operation by which torch computes, or looks at, anything."""

    def __init__(self, arena: Arena) -> None:
        super().__init__()
        self.computed = ""
        self._arena = arena

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        shape = _allocated(func, args)
        if shape is not None and set(kwargs) <= _OPTIONS and _is_host(kwargs.get("device")):
            like = args[0].dtype if isinstance(args[0], Tensor) else torch.get_default_dtype()
            return self._arena.empty(tuple(shape), kwargs.get("dtype") or like)
        result = func(*args, **kwargs)
        if not self.computed and (func._schema.is_mutable or not _is_view(result, args)):
            self.computed = str(func)
        return result


def _allocated(func: Any, args: tuple[Any, ...]) -> Iterable[int] | None:
    """The shape of a new contiguous tensor, where that is all that `func` makes."""
    aten = torch.ops.aten
    if func is aten.empty.memory_format:
        return args[0]
    if func is aten.empty_like.default and args[0].is_contiguous():
        return args[0].shape
    return args[1] if func is aten.new_empty.default else None


def _is_host(device: Any) -> bool:
    return device is None or torch.device(device).type == "cpu"


def _is_view(result: Any, args: tuple[Any, ...]) -> bool:
    """Whether all of a result lies in the memory of what was given."""
    memory = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
    parts: list[Any] = list(result) if isinstance(result, (tuple, list)) else [result]
    return all(isinstance(part, Tensor) and part.untyped_storage().data_ptr() in memory for part in parts)


def record(calls: Calls, shared: Chunks, run: Callable[[], Tensor]) -> Recorded:
    """See `OpSet.record`."""
    assert calls.kept is None, "a recording within a recording"
    watch = _Watch(Arena(shared))
    calls.kept = made = []
    try:
        with watch:
            result = run()
    finally:
        calls.kept = None
    if watch.computed:
        return Recorded(result, None, f"torch computes {watch.computed} between its operations")
    return Recorded(result, _replay_of(calls, made, shared))


def _replay_of(
    calls: Calls, made: list[tuple[int, bytes]], memory: Chunks
) -> Callable[[dict[str, float] | None], None]:
    """memory: what the calls point at and nobody else holds."""
    functions = [Function(function).name.lower() for function, _ in made]
    arguments = [ctypes.create_string_buffer(one, len(one)) for _, one in made]
    pointers = [ctypes.addressof(one) for one in arguments]
    program = b"".join(CALL.pack(made[i][0], pointers[i]) for i in range(len(made)))
    count, taken = ctypes.c_int64(len(made)), (ctypes.c_double * len(made))()
    run = calls.library.penstock_run

    def replay(seconds: dict[str, float] | None, held: object = (memory, arguments)) -> None:
        status = run(program, count, None if seconds is None else taken)
        assert status == 0, "a step that its recording does not suit"
        if seconds is not None:
            for function, one in zip(functions, taken, strict=True):
                seconds[function] = seconds.get(function, 0.0) + one

    return replay
