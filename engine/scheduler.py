"""The scheduler: which tokens of which sequences the next step computes, and what each result means.

Policy, in plain ints. Decodes come first, then prefills that have begun, then new sequences, within one
budget of tokens. Where blocks run out, the sequence that costs least to compute again gives its own back and
starts again later, from its prompt and what it has generated.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct
from msgspec.structs import replace

from engine.admission import Admission, Start
from engine.batch import Batch, StepResult
from engine.blocks import BlockManager
from engine.constraint import Constraint, ConstraintViolated
from engine.endings import ending_of_resumed
from engine.request import Output, Request, Sample, refusal
from engine.retirement import Retirement
from engine.running import RunningSet
from engine.sequence import NO_ROW, NOT_STARTED, Family, Sequence
from engine.step import StepBuilder
from engine.waiting import WaitingQueue

_LOOKAHEAD = 4
"""Waiting sequences to look at, in rows."""


class Limits(Struct, frozen=True, kw_only=True):
    """What bounds a step, a sequence and the cache."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    """Tokens of prompt and output together; the cache holds at least one such sequence."""
    vocab_size: int
    eos_token_ids: Collection[int] = ()


class Scheduler:
    """Owns sequences from `add` to their last output. `schedule` and `update` alternate (overlap depth 0);
    nothing in it breaks if one more `schedule` comes before the `update` of the step in flight (depth 1)."""

    def __init__(self, limits: Limits, blocks: BlockManager) -> None:
        assert blocks.num_blocks * blocks.block_size >= limits.max_model_len, (
            "one sequence must fit the cache"
        )
        self.limits = limits
        self.blocks = blocks
        self.backlog_ends = False
        """Whether no more requests will come soon: `Submit.last` of the last ones that came."""
        self.num_prompt_tokens = 0
        """Of sequences that started, since start. Siblings that share a prompt count it once."""
        self.num_cached_tokens = 0
        """How many of them were found in the prefix cache."""
        self._eos = frozenset(limits.eos_token_ids)
        self._families: dict[str, Family] = {}
        self._admission = Admission(blocks)
        self._waiting = WaitingQueue(_LOOKAHEAD * limits.max_num_seqs)
        self._running = RunningSet(limits.max_num_seqs, blocks, self._admission, self._waiting)
        self._retirement = Retirement(self._running, self._families)
        self._num_steps = 0
        self._num_free_at_look = 0
        """Free blocks when admission last found that nothing could start."""

    @property
    def num_running(self) -> int:
        return len(self._running.sequences)

    @property
    def num_preemptions(self) -> int:
        return self._running.num_preemptions

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._running.sequences or self._waiting)

    def add(self, request: Request, constraint: Constraint | None = None) -> list[Output]:
        """Takes a request, whose samples each follow a fork of the constraint. Outputs come back at once if
        it cannot run, and for samples that have already ended."""
        request_id = request.request_id
        reason = refusal(request, self.limits.max_model_len, self.limits.vocab_size)
        if reason is not None:
            return [Output(request_id=request_id, token_ids=[], error=reason, error_type="invalid_job")]
        if request_id in self._families:
            return [
                Output(request_id=request_id, token_ids=[], error="a request with this id is already running")
            ]
        if request.kind == "score" and request.params.prompt_logprobs is None:
            request = replace(request, params=replace(request.params, prompt_logprobs=0))
        family = Family(request)
        outputs: list[Output] = []
        for sample in sorted(request.samples, key=lambda sample: sample.index):
            seq = Sequence(family, sample, self._eos, self.limits.max_model_len)
            try:
                seq.constraint = constraint.fork() if constraint is not None else None
                finish_reason, stop_token_id = ending_of_resumed(seq)
            except ConstraintViolated as error:
                return [Output(request_id=request_id, token_ids=[], sample=sample.index, error=str(error))]
            if finish_reason is None:
                family.live[sample.index] = seq
                continue
            outputs.append(
                Output(
                    request_id=request_id,
                    token_ids=[],
                    sample=sample.index,
                    finish_reason=finish_reason,
                    stop_token_id=stop_token_id,
                )
            )
        if family.live:
            self._queue(family)
        elif outputs and request.kind == "generate" and request.params.prompt_logprobs is not None:
            self._score_prompt(request, outputs.pop())
        return outputs

    def abort(self, request_id: str) -> bool:
        """Drops a request, now or when the step that it is in retires. False if there is no such request."""
        family = self._families.get(request_id)
        if family is None:
            return False
        self._retirement.end_all(family)
        self._running.free_ended()
        return True

    def abort_sample(self, request_id: str, index: int) -> bool:
        """Drops one sample of a request. False if there is no such sample."""
        family = self._families.get(request_id)
        seq = family.live.get(index) if family is not None else None
        if seq is None:
            return False
        self._retirement.end(seq)
        self._running.free_ended()
        return True

    def fail_row(self, row: int, words: str) -> list[Output]:
        """Ends the request of a row in flight, in these words; nothing if it has ended already."""
        seq = self._running.rows[row]
        assert seq is not None, "nothing owns this row"
        return [] if seq.ended else [self._retirement.fail(seq, words)]

    def constraint_of(self, row: int) -> Constraint | None:
        """What the next token of a row in flight must keep to; None if it may be anything, or has ended."""
        seq = self._running.rows[row]
        assert seq is not None, "nothing owns this row"
        return None if seq.ended else seq.constraint

    def schedule(self) -> Batch:
        """The next step; without rows, and then without changes, if nothing can run."""
        self._num_steps += 1
        step = StepBuilder(self._num_steps, self.limits.max_num_batched_tokens)
        running = self._running
        yielding, running.yielding = running.yielding, None
        decodes: list[Sequence] = []
        extended: list[Sequence] = []
        prefills: list[Sequence] = []
        for seq in running.sequences:
            if seq.num_computed_tokens < seq.decodes_until:
                decodes.append(seq)
            elif seq is not yielding and not seq.ended:
                (extended if seq.num_tokens - seq.num_computed_tokens == 1 else prefills).append(seq)
        for seq in extended:  # first, for they may preempt, and what is in a step cannot be preempted
            running.proceed(step, seq)
        if step.preempted or running.yielding is not None:
            decodes = [seq for seq in decodes if seq.decodes_until > 0]
        step.run_decodes(decodes)
        for seq in prefills:
            running.proceed(step, seq)
        if running.yielding is None:
            if yielding is not None:
                running.proceed(step, yielding)
            self._admit(step)
        retired: list[int] = []
        if step.rows:  # a batch without rows is never run: what retired waits for one that is
            retired, running.retired_rows = running.retired_rows, []
        return step.finish(retired)

    def update(self, batch: Batch, result: StepResult) -> list[Output]:
        """Retires a step: batches come back in the order in which they were scheduled."""
        return self._retirement.retire(batch, result)

    def check_integrity(self) -> None:
        """Asserts that rows, tables, counts, hashes and siblings agree. For tests, and for an idle engine."""
        self._running.check_integrity()
        self._admission.check_integrity(self._running.sequences)
        for seq in self._waiting:
            assert seq.row == NO_ROW
            assert not seq.ended
            assert not seq.block_table
            assert seq.num_computed_tokens == 0
        live = {seq for seq in (*self._running.sequences, *self._waiting) if not seq.ended}
        assert live == {seq for family in self._families.values() for seq in family.live.values()}
        for request_id, family in self._families.items():
            assert family.request.request_id == request_id
            leader = family.leader
            members = [seq for seq in family.live.values() if seq.row != NO_ROW and seq.shares_prompt]
            assert leader in members if members else leader is None, "siblings wait for nobody"

    def _score_prompt(self, request: Request, last: Output) -> None:
        """All samples have ended in an earlier run, and no run has given the prompt's logprobs: they are
        computed now, and the last of the ends waits for them."""
        sample = Sample(index=last.sample)
        family = Family(replace(request, kind="score", samples=[sample]))
        family.withheld = last
        family.live[last.sample] = Sequence(family, sample, self._eos, self.limits.max_model_len)
        self._queue(family)

    def _queue(self, family: Family) -> None:
        request = family.request
        self._families[request.request_id] = family
        if request.kind != "embed" and request.params.prompt_logprobs is not None:
            family.scorer = next(iter(family.live.values()))
            family.scorer.needs_whole_prompt = True
        prompt_hashes: list[bytes] = []
        for seq in family.live.values():
            seq.block_hashes = prompt_hashes.copy()  # the same for all: hashed once
            self._admission.prepare(seq)
            prompt_hashes = seq.block_hashes[: seq.num_prompt_tokens // self.blocks.block_size]
            self._waiting.append(seq)
        self._running.has_changed = True

    def _admit(self, step: StepBuilder) -> None:
        """Starts waiting sequences whose whole prompt fits beside what the running ones need soon. Else the
        newcomer would soon be preempted."""
        running, blocks = self._running, self.blocks
        if step.preempted or not self._waiting:  # who preempts and admits would only preempt again
            return
        if not running.free_rows or step.budget == 0:
            return
        if not (running.has_changed or blocks.num_free > self._num_free_at_look or not running.sequences):
            return
        running.has_changed = False
        num_soon = running.num_blocks_soon()
        for seq in self._waiting.candidates(blocks.is_known, self.backlog_ends):
            if not running.free_rows or step.budget == 0:
                running.has_changed = True
                break
            start = self._admission.plan(seq, step.number, patient=not self._waiting.is_due(seq))
            if start is None:
                continue
            if running.sequences and start.num_needed_blocks + num_soon > blocks.num_free:
                break
            self._waiting.start(seq)
            self._count_prompt(seq, start)
            running.start(step, seq, start)
            num_soon += max(1, blocks.blocks_for(seq.num_tokens) - len(seq.block_table))
            running.has_changed = True  # the window has moved on
        if running.last_shared_prompt_step == step.number:
            running.has_changed = True  # siblings had still to wait
        self._num_free_at_look = blocks.num_free

    def _count_prompt(self, seq: Sequence, start: Start) -> None:
        if seq.num_cached_tokens != NOT_STARTED:
            return
        seq.num_cached_tokens = 0
        if not start.is_sibling:
            seq.num_cached_tokens = min(start.num_computed_tokens, seq.num_prompt_tokens)
            self.num_prompt_tokens += seq.num_prompt_tokens
            self.num_cached_tokens += seq.num_cached_tokens
