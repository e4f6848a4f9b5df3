"""A forward pass recorded once and replayed: every call of the library again, in order, by one call.

Between two operations Python takes as long as a small one of them: some 5 ms of a step of 20 where one
sequence decodes. A recording runs the pass as always and keeps every call with its arguments, which are
addresses and sizes. For that to be all that there is, torch may compute nothing in between, and what a call
writes to must stay where it is: torch is watched meanwhile, and its allocations are given memory of ours. As
every operation goes row by row and that memory has room for more rows, one recording is enough for batches of
every size: a replay says how many rows there are.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from math import prod
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.cpu.calls import Calls, Function
from kernels.cpu.native.structs import CALL
from kernels.opset import Recorded

_LINE: Final = 64
_OPTIONS: Final = {"dtype", "device", "pin_memory"}
"""Of an allocation that is ours to make, if the device is the host."""

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class Arena:
    """A recording's memory, of which every tensor has room for `most_rows` rows. What a tensor leaves when it
    dies is the next one's of its size, as it would be by torch's allocator: a replay writes and reads in the
    same order."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._memory: list[Bytes] = []
        self._free: dict[int, list[Bytes]] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor, at the beginning of its memory."""
        row_bytes = prod(shape[1:]) * dtype.itemsize
        free = self._free.setdefault(row_bytes, [])
        memory = free.pop() if free else self._more(row_bytes * self._most_rows)
        view = memory[:]
        # The tensor's storage holds this view, and nothing else does.
        weakref.finalize(view, free.append, memory).atexit = False
        return torch.from_numpy(view)[: shape[0] * row_bytes].view(dtype).view(shape)

    def _more(self, size: int) -> Bytes:
        memory = np.empty(size + _LINE, dtype=np.uint8)
        start = -memory.ctypes.data % _LINE
        self._memory.append(memory)
        return memory[start : start + size]


class _Watch(TorchDispatchMode):
    """Notes the first operation by which torch computes, or looks at, anything."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leaves out what guards a mode against torch.compile, which would take its import: a second, and
        150 MB."""
        return False

    def __init__(self, rows: int, most_rows: int) -> None:
        super().__init__()
        self.computed = ""
        self._rows = rows
        self.arena = Arena(most_rows)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        shape = _allocated(func, args)
        if shape and shape[0] == self._rows and set(kwargs) <= _OPTIONS and _is_host(kwargs.get("device")):
            like = args[0].dtype if isinstance(args[0], Tensor) else torch.get_default_dtype()
            return self.arena.empty(shape, kwargs.get("dtype") or like)
        result = func(*args, **kwargs)
        if not self.computed and (func._schema.is_mutable or not _is_view(result, args)):
            self.computed = str(func)
        return result


def _allocated(func: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
    """The shape of a new contiguous tensor, where that is all that `func` makes; else an empty one."""
    aten = torch.ops.aten
    if func is aten.empty.memory_format:
        return tuple(args[0])
    if func is aten.empty_like.default and args[0].is_contiguous():
        return tuple(args[0].shape)
    return tuple(args[1]) if func is aten.new_empty.default else ()


def _is_host(device: Any) -> bool:
    return device is None or torch.device(device).type == "cpu"


def _is_view(result: Any, args: tuple[Any, ...]) -> bool:
    """Whether all of a result lies in the memory of what was given."""
    memory = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
    parts: list[Any] = list(result) if isinstance(result, (tuple, list)) else [result]
    return all(isinstance(part, Tensor) and part.untyped_storage().data_ptr() in memory for part in parts)


def record(calls: Calls, run: Callable[[], Tensor], rows: int, most_rows: int) -> Recorded:
    """See `OpSet.record`."""
    assert calls.kept is None, "a recording within a recording"
    watch = _Watch(rows, most_rows)
    calls.kept = made = []
    try:
        with watch:
            result = run()
    finally:
        calls.kept = None
    if watch.computed:
        return Recorded(result, None, f"torch computes {watch.computed} between its operations")
    program = _Program(calls, made, watch.arena, _with_rows(result, most_rows))
    if program.num_others(rows):
        return Recorded(result, None, f"{program.num_others(rows)} operations are not of {rows} rows")
    return Recorded(result, program.replay)


def _with_rows(result: Tensor, rows: int) -> Tensor:
    """A recorded tensor with all rows that there is memory for."""
    assert result.is_contiguous(), "a result with gaps"
    row_size = prod(result.shape[1:])
    flat = result.as_strided((rows, row_size), (row_size, 1), result.storage_offset())
    return flat.view(rows, *result.shape[1:])


class _Program:
    """Calls as the library reads them."""

    def __init__(self, calls: Calls, made: list[tuple[int, bytes]], arena: Arena, result: Tensor) -> None:
        """arena: where what the calls point at lies; result: what they write at last, with all rows."""
        self._arena = arena
        self._library = calls.library
        self._names = [Function(function).name.lower() for function, _ in made]
        self._arguments = [ctypes.create_string_buffer(one, len(one)) for _, one in made]
        self._calls = b"".join(
            CALL.pack(function, ctypes.addressof(arguments))
            for (function, _), arguments in zip(made, self._arguments, strict=True)
        )
        self._count = ctypes.c_int64(len(made))
        self._taken = (ctypes.c_double * len(made))()
        self._result = result

    def num_others(self, rows: int) -> int:
        """Calls that are not of so many rows."""
        return self._library.penstock_other_rows(self._calls, self._count, rows)

    def replay(self, rows: int, seconds: dict[str, float] | None = None) -> Tensor:
        """See `Recorded.replay`."""
        taken = None if seconds is None else self._taken
        status = self._library.penstock_run(self._calls, self._count, rows, taken)
        assert status == 0, "a step that its recording does not suit"
        if seconds is not None:
            for name, one in zip(self._names, self._taken, strict=True):
                seconds[name] = seconds.get(name, 0.0) + one
        return self._result[:rows]
