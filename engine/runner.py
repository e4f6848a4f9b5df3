"""The runner: turns a batch of plain ints into tensors, runs the model, samples.

It keeps tokens, block tables and progress by row and applies what a batch says has changed, so that a batch
stays small however long its sequences are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batch import Batch, NewRow
from engine.blocks import NULL_BLOCK
from engine.models.decoder import Decoder, KVCache
from engine.sampler import Sampler
from kernels.attention import AttentionMetadata, AttentionPlan, plan_attention

_CONTEXT_STEP = 16
"""Block tables reach to the end of a context that is rounded up to this, as attention pads it."""


@dataclass(frozen=True, slots=True)
class RunnerSizes:
    """How many rows and how long."""

    max_num_seqs: int
    max_model_len: int
    num_blocks: int
    """Without the null block."""
    block_size: int


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The tensors of one step. T tokens, R sampled rows."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64."""
    plan: AttentionPlan
    logit_rows: Tensor
    """[R] int64: the tokens whose logits are needed."""


class Pending:
    """Sampled tokens that may still be on their way to the host."""

    def __init__(self, token_ids: Tensor) -> None:
        self._token_ids = token_ids

    def wait(self) -> list[int]:
        """The tokens, in the order of the rows they were asked for."""
        return self._token_ids.tolist()


class Runner:
    """Runs batches of one model. `forward` and `sample` alternate."""

    def __init__(self, model: Decoder, sizes: RunnerSizes) -> None:
        self.model = model
        self._storage = _new_storage(model, sizes)
        self.cache: KVCache = [(layer[0], layer[1]) for layer in self._storage]
        self._block_size = sizes.block_size
        padded_len = -(-sizes.max_model_len // _CONTEXT_STEP) * _CONTEXT_STEP
        width = -(-padded_len // sizes.block_size)
        self._tokens = np.zeros((sizes.max_num_seqs, sizes.max_model_len), dtype=np.int32)
        self._num_tokens = np.zeros(sizes.max_num_seqs, dtype=np.int64)
        self._num_computed = np.zeros(sizes.max_num_seqs, dtype=np.int64)
        self._tables = np.full((sizes.max_num_seqs, width), NULL_BLOCK, dtype=np.int32)
        self._num_blocks = [0] * sizes.max_num_seqs
        self._sampler = Sampler(model.ops, sizes.max_num_seqs)
        self._logits: Tensor | None = None

    @torch.inference_mode()
    def forward(self, batch: Batch) -> None:
        """Computes the batch's tokens, and the logits of its sampled rows."""
        inputs = self.prepare(batch)
        hidden = self.model.forward(inputs.token_ids, inputs.positions, self.cache, inputs.plan)
        self._logits = self.model.logits(hidden[inputs.logit_rows]) if batch.sampled_rows else None

    @torch.inference_mode()
    def sample(self, rows: list[int]) -> Pending:
        """Draws the next token of the batch's sampled rows, in batch order, and appends it to their rows."""
        if not rows:
            return Pending(torch.empty(0, dtype=torch.int64))
        assert self._logits is not None, "sampled before forward"
        index = np.array(rows, dtype=np.int64)
        token_ids = self._sampler.sample(self._logits, index)
        self._logits = None
        num_tokens = self._num_tokens[index]
        self._tokens[index, num_tokens] = np.maximum(
            token_ids.numpy(), 0
        )  # NO_TOKEN: never read, but in range
        self._num_tokens[index] = num_tokens + 1
        return Pending(token_ids)

    def prepare(self, batch: Batch) -> StepInputs:
        """Applies the batch's changes and gathers what its tokens need."""
        self._apply(batch)
        rows = np.array(batch.rows, dtype=np.int64)
        counts = np.array(batch.num_scheduled_tokens, dtype=np.int64)
        starts = self._num_computed[rows]
        ends = starts + counts
        assert (ends <= self._num_tokens[rows]).all(), "scheduled tokens that the buffer does not hold"
        bounds = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(counts, out=bounds[1:])
        if len(rows) == bounds[-1]:  # decodes only
            token_rows, positions = rows, starts
        else:
            token_rows = np.repeat(rows, counts)
            positions = np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], counts)
        blocks = self._tables[token_rows, positions // self._block_size].astype(np.int64)
        slots = blocks * self._block_size + positions % self._block_size
        self._num_computed[rows] = ends
        padded_len = -(-int(ends.max()) // _CONTEXT_STEP) * _CONTEXT_STEP
        width = -(-padded_len // self._block_size)
        metadata = AttentionMetadata(
            cu_seqlens_q=torch.from_numpy(bounds),
            context_lens=torch.from_numpy(ends.astype(np.int32)),
            block_tables=torch.from_numpy(self._tables[rows, :width]),
            slot_mapping=torch.from_numpy(slots),
            block_size=self._block_size,
        )
        last_tokens = bounds[1:].astype(np.int64) - 1
        if len(batch.sampled_rows) < len(batch.rows):
            last_tokens = last_tokens[np.isin(rows, np.array(batch.sampled_rows, dtype=np.int64))]
        return StepInputs(
            token_ids=torch.from_numpy(self._tokens[token_rows, positions].astype(np.int64)),
            positions=torch.from_numpy(positions),
            plan=plan_attention(self.model.ops, metadata, self.model.attention_shape),
            logit_rows=torch.from_numpy(last_tokens),
        )

    def _apply(self, batch: Batch) -> None:
        for row in batch.retired_rows:
            self._tables[row, : self._num_blocks[row]] = NULL_BLOCK
            self._num_blocks[row] = 0
        for new in batch.new_rows:
            self._start_row(new)
        if batch.appended_blocks:
            # Attention reads past a context's end, with weight 0: what is there must be finite.
            fresh = [block for _, blocks in batch.appended_blocks for block in blocks]
            self._storage.index_fill_(2, torch.tensor(fresh), 0.0)
        for row, blocks in batch.appended_blocks:
            start = self._num_blocks[row]
            end = start + len(blocks)
            self._tables[row, start:end] = blocks
            self._num_blocks[row] = end

    def _start_row(self, new: NewRow) -> None:
        assert self._num_blocks[new.row] == 0, "a row starts with another sequence's blocks"
        num_tokens = len(new.token_ids)
        self._tokens[new.row, :num_tokens] = new.token_ids
        self._num_tokens[new.row] = num_tokens
        self._num_computed[new.row] = new.num_computed_tokens
        self._sampler.set_row(new.row, new.params, new.num_output_tokens)


def _new_storage(model: Decoder, sizes: RunnerSizes) -> Tensor:
    """The KV cache, zeros: [layer, 2, block, slot, kv_head, head_dim]. Nobody writes to the null block."""
    spec = model.spec
    shape = (spec.num_layers, 2, sizes.num_blocks + 1, sizes.block_size, spec.num_kv_heads, spec.head_dim)
    return torch.zeros(shape)
