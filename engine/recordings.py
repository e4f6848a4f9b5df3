"""Decode steps of the processor's runner, recorded once and replayed: what engine/graphs.py is to a device's.

The smaller the batch, the more of a step's time goes to Python between its operations. A recorded step is one
call. There is one recording for every number of rows, without padding, as a row costs time here; each is made
by the first step of its size, which it runs. A recording holds addresses, so all that changes from step to
step is copied to where it reads it.
"""

from __future__ import annotations

import logging
from typing import Final

import torch
from torch import Tensor

from engine.inputs import StepArrays
from engine.models.model import KVCache, Model
from engine.rows import Ints32
from kernels.attention import AttentionMetadata, plan_attention
from kernels.opset import Recorded

log = logging.getLogger(__name__)

_MOST_ROWS: Final = 256
"""Of a step that is recorded: with more, what Python takes is little beside the rest."""


class DecodeRecordings:
    """Steps of one token of each row."""

    def __init__(self, model: Model, cache: KVCache, tables: Ints32, block_size: int) -> None:
        """tables: as those of the runner's rows. Model and cache stay as long as this does."""
        self._model = model
        self._cache = cache
        self._block_size = block_size
        size = min(len(tables), _MOST_ROWS)
        self._token_ids = torch.zeros(size, dtype=torch.int64)
        self._positions = torch.zeros(size, dtype=torch.int64)
        self._slots = torch.zeros(size, dtype=torch.int64)
        self._bounds = torch.arange(size + 1, dtype=torch.int32)
        self._context_lens = torch.zeros(size, dtype=torch.int32)
        self._tables = torch.zeros((size, tables.shape[1]), dtype=torch.int32)
        self._arrays = [
            x.numpy() for x in (self._token_ids, self._positions, self._slots, self._context_lens)
        ]
        self._table_array: Ints32 = self._tables.numpy()
        self._recorded: dict[int, Recorded] = {}
        self._refused = False
        self.seconds: dict[str, float] | None = None
        """Where there is one, what each operation of a replayed step takes is added to it."""

    @property
    def sizes(self) -> list[int]:
        """Of the steps that were recorded."""
        return sorted(self._recorded)

    def takes(self, arrays: StepArrays) -> bool:
        """Whether a step can be run here."""
        return arrays.decodes_only and len(arrays.rows) <= len(self._token_ids) and not self._refused

    def run(self, arrays: StepArrays, tables: Ints32, width: int) -> Tensor:
        """Runs a step. Returns hidden states [B, hidden_size], good until the next one.

        tables: by row; width: entries of a table that the longest context needs.
        """
        size = len(arrays.rows)
        given = (arrays.token_ids, arrays.positions, arrays.slots, arrays.ends)
        for array, values in zip(self._arrays, given, strict=True):
            array[:size] = values
        self._table_array[:size, :width] = tables[arrays.rows, :width]
        recorded = self._recorded.get(size)
        if recorded is None:
            return self._record(size)
        assert recorded.replay is not None, "kept without a way to replay it"
        recorded.replay(self.seconds)
        return recorded.result

    def _record(self, size: int) -> Tensor:
        record = self._model.ops.record
        assert record is not None, "an op set that records nothing"
        recorded = record(lambda: self._forward(size))
        if recorded.replay is None:
            log.debug("decode steps are not recorded, and run one operation at a time: %s", recorded.reason)
            self._refused = True
        else:
            self._recorded[size] = recorded
        return recorded.result

    def _forward(self, size: int) -> Tensor:
        metadata = AttentionMetadata(
            cu_seqlens_q=self._bounds[: size + 1],
            context_lens=self._context_lens[:size],
            block_tables=self._tables[:size],
            slot_mapping=self._slots[:size],
            block_size=self._block_size,
            max_query_len=1,
            max_context_len=self._table_array.shape[1] * self._block_size,
        )
        model = self._model
        plans = [plan_attention(model.ops, metadata, shape) for shape in model.attention_shapes]
        return model.forward(self._token_ids[:size], self._positions[:size], self._cache, plans)
