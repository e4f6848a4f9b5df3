"""Decode steps recorded once and replayed: CUDA graphs.

A step of decodes launches some ten kernels a layer, each of a few microseconds: at small batches the host is
slower to launch them than the device to run them. A graph is launched at once. It holds fixed shapes and
addresses, so there is one for each batch size of a ladder; a batch is padded to the next size with rows whose
one token lies in the null block, and everything about a step is copied to where the graph reads it. Contexts
may grow to the window: attention reads their lengths from the device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from engine.inputs import StepArrays
from engine.rows import Ints
from engine.transfer import Array, pack, unpack

log = logging.getLogger(__name__)

_STEP: Final = 16
"""From 8 on there is a graph for every multiple of this, so that padding stays under a fifth."""
_NO_SOURCE: Final = -1


def ladder(max_num_seqs: int) -> list[int]:
    """The sizes that are recorded: 1, 2, 4, 8, then multiples of 16 up to the greatest batch."""
    sizes = [size for size in (1, 2, 4, 8) if size <= max_num_seqs]
    sizes += range(_STEP, max_num_seqs + 1, _STEP)
    return sizes if sizes[-1] == max_num_seqs else [*sizes, max_num_seqs]


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """What a decode step of B rows reads, on the device."""

    token_ids: Tensor
    """[B] int64; see `sources`."""
    sources: Tensor
    """[B] int64: the row whose last sampled token takes the place of the token id, or -1."""
    positions: Tensor
    """[B] int64."""
    slots: Tensor
    """[B] int64."""
    rows: Tensor
    """[B] int64: of the block tables."""
    context_lens: Tensor
    """[B] int32."""


def decode_arrays(arrays: StepArrays, sources: Ints, size: int, null_row: int) -> list[Array]:
    """`DecodeInputs` of a step of decodes as arrays, padded to `size` rows that belong to nobody."""
    missing = size - len(arrays.rows)

    def padded(values: Ints, filler: int) -> Ints:
        return np.concatenate((values, np.full(missing, filler, dtype=np.int64))) if missing else values

    return [
        padded(arrays.token_ids, 0),
        padded(sources, _NO_SOURCE),
        padded(arrays.positions, 0),
        padded(arrays.slots, 0),
        padded(arrays.rows, null_row),
        padded(arrays.ends, 1).astype(np.int32),
    ]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """One size."""

    packed: Tensor
    """Where the inputs lie, as bytes."""
    replay: Callable[[], None]
    hidden: Tensor
    """[size, hidden_size]: what the model returned, and returns anew with every replay."""


class DecodeGraphs:
    """Graphs of `run` for the sizes of a ladder. Where there is no CUDA the same buffers and padding are
    used, and `run` is called again."""

    def __init__(
        self, run: Callable[[DecodeInputs], Tensor], max_num_seqs: int, device: torch.device
    ) -> None:
        """run: from a step's inputs to hidden states. It waits for nothing and allocates only what torch's
        allocator gives it. Rows' tables have one row more, for padding: number `max_num_seqs`."""
        self._run = run
        self._null_row = max_num_seqs
        self._device = device
        self._sizes = ladder(max_num_seqs)
        self._recorded: dict[int, _Recorded] = {}

    def record(self) -> None:
        """Records every size, the greatest first, so that the others find their memory in its pool.

        Raises RuntimeError where something in a step cannot be recorded.
        """
        pool: Any = None
        stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            pool = torch.cuda.graph_pool_handle()
            stream = torch.cuda.Stream(self._device)  # one for all: cuBLAS keeps a workspace for each
        for size in reversed(self._sizes):
            self._recorded[size] = self._record(size, pool, stream)
        log.info("recorded decode steps of %s sequences", ", ".join(map(str, self._sizes)))

    def replay(self, arrays: StepArrays, sources: Ints) -> Tensor:
        """Runs a step of decodes. Returns hidden states [B, hidden_size], good until the next replay."""
        num_rows = len(arrays.rows)
        size = next(size for size in self._sizes if size >= num_rows)
        recorded = self._recorded[size]
        inputs = decode_arrays(arrays, sources, size, self._null_row)
        recorded.packed.copy_(pack(inputs, pinned=self._device.type == "cuda"), non_blocking=True)
        recorded.replay()
        return recorded.hidden[:num_rows]

    def _record(self, size: int, pool: Any, stream: torch.cuda.Stream | None) -> _Recorded:
        nobody = StepArrays(*(np.zeros(0, dtype=np.int64),) * 8)
        arrays = decode_arrays(nobody, nobody.rows, size, self._null_row)
        packed = pack(arrays, pinned=False).to(self._device)
        inputs = DecodeInputs(*unpack(packed, arrays))
        if stream is None:
            return self._repeat(packed, inputs)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):  # compiles kernels, and makes handles and workspaces
            self._run(inputs)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            hidden = self._run(inputs)
        return _Recorded(packed, graph.replay, hidden)

    def _repeat(self, packed: Tensor, inputs: DecodeInputs) -> _Recorded:
        hidden = self._run(inputs).clone()

        def replay() -> None:
            hidden.copy_(self._run(inputs))

        return _Recorded(packed, replay, hidden)
