"""The runner: turns a batch of plain ints into tensors, runs the model, samples.

This one computes where the host does, and a step is over when `sample` returns. `engine.device_runner` is its
twin for a device that works beside the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from engine.batch import Batch, StepResult
from engine.inputs import StepArrays, gather
from engine.kv_cache import KVStorage
from engine.models.model import Model
from engine.prompts import PromptResults, PromptWishes
from engine.recording import DecodeRecording
from engine.rows import Rows
from engine.sampler import Sampled, Sampler
from engine.transfer import share
from kernels.attention import AttentionMetadata, AttentionPlan, plan_attention
from kernels.mask import TokenMasks

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

    @property
    def table_width(self) -> int:
        """Blocks of the longest context."""
        return table_width(self.max_model_len, self.block_size)


def table_width(context_len: int, block_size: int) -> int:
    """Blocks that a table needs for a context of so many tokens."""
    padded_len = -(-context_len // _CONTEXT_STEP) * _CONTEXT_STEP
    return -(-padded_len // block_size)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """The tensors of one step of T tokens."""

    token_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[T] int64."""
    plans: tuple[AttentionPlan, ...]
    """One for each of the model's attention shapes."""


class PendingStep(Protocol):
    """A step's results that may still be on their way to the host."""

    def wait(self) -> StepResult:
        """The results, sampled tokens in the order of the rows they were asked for. To be called once for
        each step, in order, and before the next step samples."""
        ...


class ModelRunner(Protocol):
    """Runs batches of one model. `forward` and `sample` alternate; a step's `wait` may come after the
    `forward` that follows it."""

    def forward(self, batch: Batch) -> None:
        """Computes the batch's tokens, the logits of its sampled rows, and what else its rows wish for."""
        ...

    def sample(self, rows: list[int], masks: TokenMasks | None = None) -> PendingStep:
        """Draws the next token of the batch's sampled rows, in batch order, and appends it to their rows.
        Masks are tensors of the host."""
        ...


class Pending:
    """Results that are there."""

    def __init__(self, sampled: Sampled | None, prompts: PromptResults, broken_rows: list[int]) -> None:
        self._sampled = sampled
        self._prompts = prompts
        self._broken_rows = broken_rows

    def wait(self) -> StepResult:
        """See `PendingStep.wait`."""
        return StepResult(
            token_ids=self._sampled.token_ids.tolist() if self._sampled else [],
            logprobs=self._sampled.logprobs if self._sampled else {},
            prompt_logprobs=self._prompts.logprobs,
            embeddings=self._prompts.embeddings,
            broken_rows=self._broken_rows,
        )


class Runner:
    """See `ModelRunner`."""

    def __init__(
        self,
        model: Model,
        sizes: RunnerSizes,
        eos_token_ids: Sequence[int] = (),
        *,
        kv_dtype: torch.dtype | None = None,
        records: bool = True,
    ) -> None:
        """kv_dtype: of the cache, the model's where it is None. records: whether decode steps are recorded,
        where the op set can."""
        self.model = model
        self._storage = KVStorage(model, sizes.num_blocks, sizes.block_size, kv_dtype or model.dtype)
        self.cache = self._storage.layers
        self._block_size = sizes.block_size
        self.rows = Rows(sizes.max_num_seqs, sizes.max_model_len, sizes.table_width)
        self.sampler = Sampler(model.ops, sizes.max_num_seqs, eos_token_ids)
        self._wishes = PromptWishes(model, share)
        self._prompts = PromptResults()
        self._logits: Tensor | None = None
        self._broken: list[int] = []
        self.recording: DecodeRecording | None = None
        if records and model.ops.record is not None:
            self.recording = DecodeRecording(model, self.cache, self.rows.tables, sizes.block_size)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> None:
        """See `ModelRunner.forward`."""
        arrays = self.prepare(batch)
        if self.recording is not None and self.recording.takes(arrays):
            width = table_width(int(arrays.ends.max()), self._block_size)
            hidden = self.recording.run(arrays, self.rows.tables, width)
        else:
            inputs = self._to_tensors(arrays)
            hidden = self.model.forward(inputs.token_ids, inputs.positions, self.cache, inputs.plans)
        self._logits = None
        if batch.sampled_rows:
            sampled = hidden if arrays.decodes_only else hidden[torch.from_numpy(arrays.last_tokens)]
            self._logits = self.model.logits(sampled)
        self._prompts, self._broken = PromptResults(), []
        if len(batch.sampled_rows) < len(batch.rows):
            self._broken = _broken_rows(batch, arrays, hidden)
        if self._wishes:
            self._prompts = self._wishes.look(arrays, hidden, self.rows)

    @torch.inference_mode()
    def sample(self, rows: list[int], masks: TokenMasks | None = None) -> Pending:
        """See `ModelRunner.sample`."""
        sampled: Sampled | None = None
        if rows:
            assert self._logits is not None, "sampled before forward"
            index = np.array(rows, dtype=np.int64)
            sampled = self.sampler.sample(self._logits, index, self.rows, masks)
            self._logits = None
            # Negative ones say that there is no token: never read, but the buffer stays in range.
            self.rows.append_tokens(index, np.maximum(sampled.token_ids.numpy(), 0))
        return Pending(sampled, self._prompts, self._broken)

    def prepare(self, batch: Batch) -> StepArrays:
        """Applies the batch's changes and gathers what its tokens need."""
        self._apply(batch)
        return gather(batch, self.rows, self._block_size)

    def _to_tensors(self, arrays: StepArrays) -> StepInputs:
        max_context_len = int(arrays.ends.max())
        metadata = AttentionMetadata(
            cu_seqlens_q=torch.from_numpy(arrays.bounds.astype(np.int32)),
            context_lens=torch.from_numpy(arrays.ends.astype(np.int32)),
            block_tables=torch.from_numpy(
                self.rows.tables[arrays.rows, : table_width(max_context_len, self._block_size)]
            ),
            slot_mapping=torch.from_numpy(arrays.slots),
            block_size=self._block_size,
            max_query_len=int(np.diff(arrays.bounds).max()),
            max_context_len=max_context_len,
        )
        return StepInputs(
            token_ids=torch.from_numpy(arrays.token_ids),
            positions=torch.from_numpy(arrays.positions),
            plans=tuple(
                plan_attention(self.model.ops, metadata, shape) for shape in self.model.attention_shapes
            ),
        )

    def _apply(self, batch: Batch) -> None:
        self.rows.apply(batch)
        for new in batch.new_rows:
            self.sampler.set_row(new)
            self._wishes.set_row(new)
        if batch.copied_blocks:
            self._storage.copy_blocks(
                torch.tensor([copied.source for copied in batch.copied_blocks]),
                torch.tensor([copied.target for copied in batch.copied_blocks]),
            )
        if self.model.ops.reads_past_context and batch.appended_blocks:
            # Attention reads past a context's end, with weight 0: what is there must be finite.
            self._storage.clear_blocks(
                torch.tensor([block for _, blocks in batch.appended_blocks for block in blocks])
            )


def _broken_rows(batch: Batch, arrays: StepArrays, hidden: Tensor) -> list[int]:
    """Rows without a sample whose last hidden state is not finite: whatever is not, spreads to it."""
    places = unsampled_places(batch)
    finite = hidden[torch.from_numpy(arrays.bounds[1:][places] - 1)].isfinite().all(1)
    return [batch.rows[i] for i, is_finite in zip(places, finite.tolist(), strict=True) if not is_finite]


def unsampled_places(batch: Batch) -> list[int]:
    """Where in the batch rows are that don't sample."""
    sampled = set(batch.sampled_rows)
    return [i for i, row in enumerate(batch.rows) if row not in sampled]
