"""A decode step of the host's runner, recorded once and replayed: what engine/graphs.py is to a device's.

The smaller the batch, the more of a step's time goes to Python between its operations. A recorded step is one
call, on as many rows as there are, without padding, as a row costs time here. A recording holds addresses, so
all that changes from step to step is copied to where it reads it.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from engine.inputs import StepArrays
from engine.models.model import KVCache, Model
from engine.rows import Ints32
from kernels.attention import AttentionMetadata, plan_attention
from kernels.opset import Recorded

log = logging.getLogger(__name__)


class DecodeRecording:
    """Steps of one token of each row."""

    def __init__(self, model: Model, cache: KVCache, tables: Ints32, block_size: int) -> None:
        """tables: as those of the runner's rows. Model and cache stay as long as this does."""
        self._model = model
        self._cache = cache
        self._block_size = block_size
        size = len(tables)
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
        self._recorded: Recorded | None = None
        self.seconds: dict[str, float] | None = None
        """Where there is one, what each operation of a replayed step takes is added to it."""

    @property
    def is_made(self) -> bool:
        """Whether steps are replayed."""
        return self._recorded is not None and self._recorded.replay is not None

    def takes(self, arrays: StepArrays) -> bool:
        """Whether a step can be run here."""
        return arrays.decodes_only and (self._recorded is None or self._recorded.replay is not None)

    def run(self, arrays: StepArrays, tables: Ints32, width: int) -> Tensor:
        """Runs a step. Returns hidden states [B, hidden_size], good until the next one.

        tables: by row; width: entries of a table that the longest context needs.
        """
        size = len(arrays.rows)
        given = (arrays.token_ids, arrays.positions, arrays.slots, arrays.ends)
        for array, values in zip(self._arrays, given, strict=True):
            array[:size] = values
        self._table_array[:size, :width] = tables[arrays.rows, :width]
        if self._recorded is None:
            return self._record(size)
        assert self._recorded.replay is not None, "a step that was not to be taken"
        return self._recorded.replay(size, self.seconds)

    def _record(self, size: int) -> Tensor:
        record = self._model.ops.record
        assert record is not None, "an op set that records nothing"
        self._recorded = record(lambda: self._forward(size), size, len(self._token_ids))
        if self._recorded.replay is None:
            reason = self._recorded.reason
            log.debug("decode steps are not recorded, and run one operation at a time: %s", reason)
        return self._recorded.result

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
