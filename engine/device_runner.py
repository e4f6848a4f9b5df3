"""The runner of a device that works beside the host: nothing waits for it but `wait`.

A step's sampled tokens stay on the device, where the next step's inputs take them; their copies are on their
way to the host meanwhile. Block tables live on the device, and only what changes in them is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.batch import Batch, StepResult
from engine.dry_run import StepSizes, compile_steps
from engine.graphs import DecodeGraphs, DecodeInputs
from engine.inputs import StepArrays, gather
from engine.kv_cache import KVStorage
from engine.models.model import Model
from engine.prompts import PromptResults, PromptWishes
from engine.rows import Ints, Rows
from engine.runner import RunnerSizes, unsampled_places
from engine.sampler import Sampled, Sampler
from engine.transfer import Download, Uploader
from kernels.attention import AttentionMetadata, AttentionPlan, plan_attention
from kernels.mask import TokenMasks

log = logging.getLogger(__name__)


class DevicePending:
    """Results on their way to the host."""

    def __init__(
        self, sampled: Sampled | None, prompts: PromptResults, unsampled: tuple[list[int], Tensor] | None
    ) -> None:
        """unsampled: rows without a sample, and whether their hidden states are finite, [U] bool."""
        self._sampled = sampled
        self._prompts = prompts
        self._unsampled_rows: list[int] = []
        self._reserved: tuple[Rows, Ints, Ints] | None = None
        tensors = [] if sampled is None else sampled.tensors
        if unsampled is not None:
            self._unsampled_rows, finite = unsampled
            tensors.append(finite)
        self._download = Download(tensors)

    def fills(self, state: Rows, rows: Ints, positions: Ints) -> DevicePending:
        """Says where the sampled tokens go, once they are here."""
        self._reserved = (state, rows, positions)
        return self

    def wait(self) -> StepResult:
        """See `engine.runner.PendingStep.wait`."""
        tensors = self._download.wait()
        broken: list[int] = []
        if self._unsampled_rows:
            finite = tensors.pop().tolist()
            broken = [row for row, good in zip(self._unsampled_rows, finite, strict=True) if not good]
        sampled = None if self._sampled is None else self._sampled.with_tensors(tensors)
        if sampled is not None and self._reserved is not None:
            state, rows, positions = self._reserved
            state.fill(rows, positions, np.maximum(sampled.token_ids.numpy(), 0))
        return StepResult(
            token_ids=[] if sampled is None else sampled.token_ids.tolist(),
            logprobs={} if sampled is None else sampled.logprobs,
            prompt_logprobs=self._prompts.logprobs,
            embeddings=self._prompts.embeddings,
            broken_rows=broken,
        )


class DeviceRunner:
    """See `engine.runner.ModelRunner`. It also runs on the processor, to be tested there."""

    def __init__(
        self,
        model: Model,
        sizes: RunnerSizes,
        eos_token_ids: Sequence[int] = (),
        *,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """kv_dtype: of the cache, the model's where it is None."""
        self.model = model
        self._device = model.device
        self._sizes = sizes
        self._storage = KVStorage(model, sizes.num_blocks, sizes.block_size, kv_dtype or model.dtype)
        self.cache = self._storage.layers
        self.rows = Rows(sizes.max_num_seqs, sizes.max_model_len, sizes.table_width)
        self._upload = Uploader(model.device)
        self.sampler = Sampler(model.ops, sizes.max_num_seqs, eos_token_ids, self._upload)
        self._wishes = PromptWishes(model, self._upload)
        # One row more, which stays empty: a graph's padding.
        self._tables = torch.zeros(
            (sizes.max_num_seqs + 1, sizes.table_width), dtype=torch.int32, device=self._device
        )
        self._sampled_tokens = torch.zeros(sizes.max_num_seqs, dtype=torch.int64, device=self._device)
        self._prompts = PromptResults()
        self._unsampled: tuple[list[int], Tensor] | None = None
        self._logits: Tensor | None = None
        self._graphs: DecodeGraphs | None = None

    def compile_steps(self, max_num_tokens: int) -> None:
        """Compiles what steps of up to so many tokens need, see `engine.dry_run.compile_steps`."""
        sizes = StepSizes(self._sizes.max_num_seqs, max_num_tokens, self._sizes.max_model_len)
        compile_steps(self.model, self.cache, self._sizes.block_size, sizes)

    @torch.inference_mode()
    def record_decodes(self) -> None:
        """From now on steps of nothing but decodes are replayed, see `engine.graphs`."""
        graphs = DecodeGraphs(self._decode, self._sizes.max_num_seqs, self._device)
        try:
            graphs.record()
        except RuntimeError as error:
            log.warning("decode steps cannot be recorded, and run eagerly, which is slower: %s", error)
            return
        self._graphs = graphs

    @torch.inference_mode()
    def forward(self, batch: Batch) -> None:
        """See `ModelRunner.forward`."""
        self._apply(batch)
        arrays = gather(batch, self.rows, self._sizes.block_size)
        # A position that is not known yet is that of the token which the step before samples.
        known = self.rows.num_known[arrays.token_rows]
        sources = np.where(arrays.positions >= known, arrays.token_rows, -1)
        if self._graphs is not None and arrays.decodes_only:
            sampled_hidden = hidden = self._graphs.replay(arrays, sources)
        else:
            hidden, last_tokens = self._run_eagerly(arrays, sources)
            sampled_hidden = hidden[last_tokens]
        self._logits = self.model.logits(sampled_hidden) if batch.sampled_rows else None
        self._prompts, self._unsampled = PromptResults(), None
        if len(batch.sampled_rows) < len(batch.rows):
            self._unsampled = self._look_at_unsampled(batch, arrays, hidden)
        if self._wishes:
            self._prompts = self._wishes.look(arrays, hidden, self.rows)

    @torch.inference_mode()
    def sample(self, rows: list[int], masks: TokenMasks | None = None) -> DevicePending:
        """See `ModelRunner.sample`."""
        if not rows:
            return DevicePending(None, self._prompts, self._unsampled)
        assert self._logits is not None, "sampled before forward"
        index = np.array(rows, dtype=np.int64)
        sampled = self.sampler.sample(self._logits, index, self.rows, masks)
        self._logits = None
        (on_device,) = self._upload(index)
        # Negative ones say that there is no token: never read, but the embedding's index stays in range.
        self._sampled_tokens.index_copy_(0, on_device, sampled.token_ids.clamp_min(0))
        pending = DevicePending(sampled, self._prompts, self._unsampled)
        return pending.fills(self.rows, index, self.rows.reserve(index))

    def _run_eagerly(self, arrays: StepArrays, sources: Ints) -> tuple[Tensor, Tensor]:
        """Hidden states of all tokens, and which of them are sampled."""
        token_ids, source, positions, slots, rows, bounds, context_lens, last_tokens = self._upload(
            arrays.token_ids,
            sources,
            arrays.positions,
            arrays.slots,
            arrays.rows,
            arrays.bounds.astype(np.int32),
            arrays.ends.astype(np.int32),
            arrays.last_tokens,
        )
        counts = np.diff(arrays.bounds)
        metadata = AttentionMetadata(
            cu_seqlens_q=bounds,
            context_lens=context_lens,
            block_tables=self._tables[rows],
            slot_mapping=slots,
            block_size=self._sizes.block_size,
            max_query_len=int(counts.max()),
            max_context_len=int(arrays.ends.max()),
            num_decodes=int((counts > 1).argmax()) if counts.max() > 1 else len(counts),
        )
        token_ids = self._known_tokens(token_ids, source)
        return self.model.forward(token_ids, positions, self.cache, self._plan(metadata)), last_tokens

    def _decode(self, inputs: DecodeInputs) -> Tensor:
        """What is recorded: one token of each row."""
        size = inputs.rows.shape[0]
        metadata = AttentionMetadata(
            cu_seqlens_q=torch.arange(size + 1, dtype=torch.int32, device=self._device),
            context_lens=inputs.context_lens,
            block_tables=self._tables[inputs.rows],
            slot_mapping=inputs.slots,
            block_size=self._sizes.block_size,
            max_query_len=1,
            max_context_len=self._sizes.max_model_len,
        )
        token_ids = self._known_tokens(inputs.token_ids, inputs.sources)
        return self.model.forward(token_ids, inputs.positions, self.cache, self._plan(metadata))

    def _known_tokens(self, token_ids: Tensor, sources: Tensor) -> Tensor:
        return torch.where(sources >= 0, self._sampled_tokens[sources.clamp_min(0)], token_ids)

    def _plan(self, metadata: AttentionMetadata) -> tuple[AttentionPlan, ...]:
        ops = self.model.ops
        return tuple(plan_attention(ops, metadata, shape) for shape in self.model.attention_shapes)

    def _apply(self, batch: Batch) -> None:
        self.rows.apply(batch)
        for new in batch.new_rows:
            self.sampler.set_row(new)
            self._wishes.set_row(new)
        if batch.copied_blocks:
            self._storage.copy_blocks(
                *self._upload(
                    np.array([copied.source for copied in batch.copied_blocks]),
                    np.array([copied.target for copied in batch.copied_blocks]),
                )
            )
        if self.rows.table_changes:
            self._send_tables()
        if self.model.ops.reads_past_context and batch.appended_blocks:
            fresh = [block for _, blocks in batch.appended_blocks for block in blocks]
            self._storage.clear_blocks(*self._upload(np.array(fresh)))

    def _send_tables(self) -> None:
        # A place may have changed twice, and a device writes in no order.
        entries = {
            start + i: block for start, blocks in self.rows.table_changes for i, block in enumerate(blocks)
        }
        places, blocks = self._upload(
            np.fromiter(entries.keys(), np.int64, len(entries)),
            np.fromiter(entries.values(), np.int32, len(entries)),
        )
        self._tables.view(-1).index_copy_(0, places, blocks)

    def _look_at_unsampled(
        self, batch: Batch, arrays: StepArrays, hidden: Tensor
    ) -> tuple[list[int], Tensor]:
        """Rows without a sample, and whether their last hidden states are finite: whatever is not, spreads
        to them."""
        places = unsampled_places(batch)
        (last,) = self._upload(arrays.bounds[1:][places] - 1)
        return [batch.rows[i] for i in places], hidden[last].isfinite().all(1)
