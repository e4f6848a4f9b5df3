"""The runner: turns a batch of plain ints into tensors, runs the model, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batch import Batch, StepResult
from engine.logprobs import prompt_logprobs
from engine.models.model import KVCache, Model
from engine.pooling import Pooler
from engine.request import TokenLogprobs
from engine.rows import Ints, Rows
from engine.sampler import Sampled, Sampler
from kernels.attention import AttentionMetadata, AttentionPlan, LayerCache, plan_attention
from kernels.mask import TokenMasks

_CONTEXT_STEP = 16
"""Block tables reach to the end of a context that is rounded up to this, as attention pads it."""
_PROMPT_LOGITS = 1 << 23
"""Logits that are held at once for prompt log-probabilities."""


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
    plans: tuple[AttentionPlan, ...]
    """One for each of the model's attention shapes."""
    logit_rows: Tensor
    """[R] int64: the tokens whose logits are sampled."""
    bounds: Ints
    """[rows + 1]: where each of the batch's rows begins and ends among the tokens."""


class Pending:
    """A step's results that may still be on their way to the host."""

    def __init__(
        self,
        sampled: Sampled | None,
        prompt_logprobs: dict[int, list[TokenLogprobs]],
        embeddings: dict[int, list[float]],
        broken_rows: list[int],
    ) -> None:
        self._broken_rows = broken_rows
        self._sampled = sampled
        self._prompt_logprobs = prompt_logprobs
        self._embeddings = embeddings

    def wait(self) -> StepResult:
        """The results, sampled tokens in the order of the rows they were asked for."""
        return StepResult(
            token_ids=self._sampled.token_ids.tolist() if self._sampled else [],
            logprobs=self._sampled.logprobs if self._sampled else {},
            prompt_logprobs=self._prompt_logprobs,
            embeddings=self._embeddings,
            broken_rows=self._broken_rows,
        )


class Runner:
    """Runs batches of one model. `forward` and `sample` alternate."""

    def __init__(self, model: Model, sizes: RunnerSizes, eos_token_ids: Sequence[int] = ()) -> None:
        self.model = model
        self._storage = _new_storage(model, sizes)
        self.cache: KVCache = [LayerCache(layer[0], layer[1]) for layer in self._storage]
        self._block_size = sizes.block_size
        padded_len = -(-sizes.max_model_len // _CONTEXT_STEP) * _CONTEXT_STEP
        self.rows = Rows(sizes.max_num_seqs, sizes.max_model_len, -(-padded_len // sizes.block_size))
        self.sampler = Sampler(model.ops, sizes.max_num_seqs, eos_token_ids)
        self._pooler = Pooler()
        self._scored: dict[int, int] = {}
        self._logits: Tensor | None = None
        self._prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        self._embeddings: dict[int, list[float]] = {}
        self._broken: list[int] = []

    @torch.inference_mode()
    def forward(self, batch: Batch) -> None:
        """Computes the batch's tokens, the logits of its sampled rows, and what else its rows wish for."""
        inputs = self.prepare(batch)
        hidden = self.model.forward(inputs.token_ids, inputs.positions, self.cache, inputs.plans)
        self._logits = self.model.logits(hidden[inputs.logit_rows]) if batch.sampled_rows else None
        self._prompt_logprobs, self._embeddings, self._broken = {}, {}, []
        if len(batch.sampled_rows) < len(batch.rows):
            self._broken = _broken_rows(batch, inputs, hidden)
        if self._scored or self._pooler:
            self._look_at_prompts(batch, inputs, hidden)

    @torch.inference_mode()
    def sample(self, rows: list[int], masks: TokenMasks | None = None) -> Pending:
        """Draws the next token of the batch's sampled rows, in batch order, and appends it to their rows."""
        sampled: Sampled | None = None
        if rows:
            assert self._logits is not None, "sampled before forward"
            index = np.array(rows, dtype=np.int64)
            sampled = self.sampler.sample(self._logits, index, self.rows, masks)
            self._logits = None
            # Negative ones say that there is no token: never read, but the buffer stays in range.
            self.rows.append_tokens(index, np.maximum(sampled.token_ids.numpy(), 0))
        return Pending(sampled, self._prompt_logprobs, self._embeddings, self._broken)

    def prepare(self, batch: Batch) -> StepInputs:
        """Applies the batch's changes and gathers what its tokens need."""
        self._apply(batch)
        state = self.rows
        rows = np.array(batch.rows, dtype=np.int64)
        counts = np.array(batch.num_scheduled_tokens, dtype=np.int64)
        starts = state.num_computed[rows]
        ends = starts + counts
        assert (ends <= state.num_tokens[rows]).all(), "scheduled tokens that the buffer does not hold"
        bounds = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(counts, out=bounds[1:])
        if len(rows) == bounds[-1]:  # decodes only
            token_rows, positions = rows, starts
        else:
            token_rows = np.repeat(rows, counts)
            positions = np.arange(bounds[-1]) + np.repeat(starts - bounds[:-1], counts)
        blocks = state.tables[token_rows, positions // self._block_size].astype(np.int64)
        slots = blocks * self._block_size + positions % self._block_size
        state.num_computed[rows] = ends
        padded_len = -(-int(ends.max()) // _CONTEXT_STEP) * _CONTEXT_STEP
        metadata = AttentionMetadata(
            cu_seqlens_q=torch.from_numpy(bounds.astype(np.int32)),
            context_lens=torch.from_numpy(ends.astype(np.int32)),
            block_tables=torch.from_numpy(state.tables[rows, : -(-padded_len // self._block_size)]),
            slot_mapping=torch.from_numpy(slots),
            block_size=self._block_size,
            max_query_len=int(counts.max()),
            max_context_len=int(ends.max()),
        )
        last_tokens = bounds[1:] - 1
        if len(batch.sampled_rows) < len(batch.rows):
            last_tokens = last_tokens[np.isin(rows, np.array(batch.sampled_rows, dtype=np.int64))]
        return StepInputs(
            token_ids=torch.from_numpy(state.tokens[token_rows, positions].astype(np.int64)),
            positions=torch.from_numpy(positions),
            plans=tuple(
                plan_attention(self.model.ops, metadata, shape) for shape in self.model.attention_shapes
            ),
            logit_rows=torch.from_numpy(last_tokens),
            bounds=bounds,
        )

    def _apply(self, batch: Batch) -> None:
        self.rows.apply(batch)
        for new in batch.new_rows:
            self.sampler.set_row(new)
            self._pooler.set_row(new)
            self._scored.pop(new.row, None)
            if new.params.prompt_logprobs is not None:
                self._scored[new.row] = new.params.prompt_logprobs
        if batch.copied_blocks:
            sources = torch.tensor([copied.source for copied in batch.copied_blocks])
            targets = torch.tensor([copied.target for copied in batch.copied_blocks])
            self._storage.index_copy_(2, targets, self._storage.index_select(2, sources))
        if batch.appended_blocks:
            # Attention reads past a context's end, with weight 0: what is there must be finite.
            fresh = [block for _, blocks in batch.appended_blocks for block in blocks]
            self._storage.index_fill_(2, torch.tensor(fresh), 0.0)

    def _look_at_prompts(self, batch: Batch, inputs: StepInputs, hidden: Tensor) -> None:
        """Log-probabilities and vectors of the rows that wish for them."""
        state = self.rows
        for i, row in enumerate(batch.rows):
            first, last = int(inputs.bounds[i]), int(inputs.bounds[i + 1])
            end = int(state.num_computed[row])
            vector = self._pooler.add(row, hidden[first:last], end)
            if vector is not None:
                self._embeddings[row] = vector
            if row not in self._scored:
                continue
            start = end - (last - first)
            num_prompt_tokens = int(state.num_prompt_tokens[row])
            targets = state.tokens[row, start + 1 : min(end + 1, num_prompt_tokens)].astype(np.int64)
            self._prompt_logprobs[row] = self._score(
                hidden[first : first + len(targets)], torch.from_numpy(targets), self._scored[row]
            )
            if end + 1 >= num_prompt_tokens:
                del self._scored[row]

    def _score(self, hidden: Tensor, targets: Tensor, num_top: int) -> list[TokenLogprobs]:
        step = max(1, _PROMPT_LOGITS // self.model.vocab_size)
        found: list[TokenLogprobs] = []
        for start in range(0, len(targets), step):
            logits = self.model.logits(hidden[start : start + step])
            found += prompt_logprobs(self.model.ops, logits, targets[start : start + step], num_top)
        return found


def _broken_rows(batch: Batch, inputs: StepInputs, hidden: Tensor) -> list[int]:
    """Rows without a sample whose last hidden state is not finite: whatever is not, spreads to it."""
    sampled = set(batch.sampled_rows)
    places = [i for i, row in enumerate(batch.rows) if row not in sampled]
    finite = hidden[torch.from_numpy(inputs.bounds[1:][places] - 1)].isfinite().all(1)
    return [batch.rows[i] for i, is_finite in zip(places, finite.tolist(), strict=True) if not is_finite]


def _new_storage(model: Model, sizes: RunnerSizes) -> Tensor:
    """The KV cache, zeros: [layer, 2, block, slot, kv_head, head_dim]. Nobody writes to the null block."""
    shape = model.attention_shapes[0]
    return torch.zeros(
        (
            *(model.num_layers, 2, sizes.num_blocks + 1),
            *(sizes.block_size, shape.num_kv_heads, shape.head_dim),
        ),
        dtype=model.dtype,
    )
