"""The scheduler under random operations, and its promises one by one. No model, no torch."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.batch import NO_TOKEN, Batch
from engine.blocks import BlockManager
from engine.request import Output, Request, RequestParams
from engine.scheduler import Limits, Scheduler

EOS = 9
VOCAB_SIZE = 10


def scheduler_of(
    num_blocks: int = 8, block_size: int = 4, window: int = 24, num_seqs: int = 4, budget: int = 16
) -> Scheduler:
    limits = Limits(
        max_num_seqs=num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=window,
        vocab_size=VOCAB_SIZE,
        eos_token_ids=(EOS,),
    )
    return Scheduler(limits, BlockManager(num_blocks, block_size))


def request(name: str, prompt_len: int, max_tokens: int = 5, resumed: int = 0) -> Request:
    return Request(
        request_id=name,
        prompt_token_ids=[1] * prompt_len,
        output_token_ids=[2] * resumed,
        params=RequestParams(max_tokens=max_tokens, seed=0, stop_token_ids=(8,)),
    )


EMPTY_BATCH = Batch(
    retired_rows=[], new_rows=[], appended_blocks=[], rows=[], num_scheduled_tokens=[], sampled_rows=[]
)


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, aborts and steps in any order; a step's results may come after the next step was scheduled.

    A model of the runner follows the batches: it knows rows, blocks and tokens from the deltas alone.
    """

    @initialize(
        num_seqs=st.integers(1, 4),
        blocks=st.integers(1, 10),
        size=st.integers(1, 5),
        budget=st.integers(1, 20),
    )
    def start(self, num_seqs: int, blocks: int, size: int, budget: int) -> None:
        self.scheduler = scheduler_of(blocks, size, min(24, blocks * size), num_seqs, budget)
        self.in_flight: deque[Batch] = deque()
        self.live: dict[str, Request] = {}
        self.generated: dict[str, int] = {}
        self.computed: dict[int, int] = {}
        self.known: dict[int, int] = {}
        self.tables: dict[int, list[int]] = {}
        self.count = 0

    @rule(prompt_len=st.integers(0, 30), max_tokens=st.integers(1, 12), resumed=st.integers(0, 4))
    def add(self, prompt_len: int, max_tokens: int, resumed: int) -> None:
        self.count += 1
        added = request(f"r{self.count}", prompt_len, max_tokens, resumed)
        self.live[added.request_id] = added
        self.generated[added.request_id] = resumed
        self.take(self.scheduler.add(added))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        assert self.scheduler.abort(name)
        assert not self.scheduler.abort(name)
        del self.live[name]

    @precondition(lambda self: len(self.in_flight) < 2)
    @rule()
    def schedule(self) -> None:
        batch = self.scheduler.schedule()
        if batch.rows:
            self.follow(batch)
            self.in_flight.append(batch)
        else:  # nobody runs it, so it must not carry what has changed
            assert batch == EMPTY_BATCH

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        tokens = st.one_of(st.integers(0, 5), st.sampled_from([8, EOS]))
        size = len(self.in_flight[0].sampled_rows)
        self.retire(data.draw(st.lists(tokens, min_size=size, max_size=size)))

    def retire(self, tokens: list[int]) -> None:
        for output in self.scheduler.update(self.in_flight.popleft(), tokens):
            self.take(output)

    def take(self, output: Output | None) -> None:
        """An output is of a live request, and ends it at most once and for the right reason."""
        if output is None:
            return
        asked = self.live[output.request_id]
        count = self.generated[output.request_id] = self.generated[output.request_id] + len(output.token_ids)
        window = self.scheduler.limits.max_model_len
        total = len(asked.prompt_token_ids) + count
        if output.error is not None:
            assert not asked.prompt_token_ids or total >= window
        elif output.finish_reason == "length":
            assert count >= asked.params.max_tokens or total >= window
        elif output.finish_reason == "stop":
            assert output.stop_token_id in (8, EOS)
        else:
            assert count < asked.params.max_tokens
            assert total < window
            assert not {8, EOS} & set(output.token_ids)
            return
        del self.live[output.request_id]

    def follow(self, batch: Batch) -> None:
        """What the runner does, with its assumptions asserted."""
        limits, size = self.scheduler.limits, self.scheduler.blocks.block_size
        busy = {row for b in self.in_flight for row in b.rows}
        assert not busy & set(batch.retired_rows), "a row retired while in flight"
        for row in batch.retired_rows:
            self.tables.pop(row)
        for new in batch.new_rows:
            assert new.row not in self.tables, "a row in use was given away"
            self.tables[new.row] = []
            self.computed[new.row], self.known[new.row] = new.num_computed_tokens, len(new.token_ids)
        for row, blocks in batch.appended_blocks:
            self.tables[row] += blocks
        assert sum(batch.num_scheduled_tokens) <= limits.max_num_batched_tokens
        assert len(set(batch.rows)) == len(batch.rows)
        for row, count in zip(batch.rows, batch.num_scheduled_tokens, strict=True):
            assert count > 0
            self.computed[row] += count
            assert self.computed[row] <= self.known[row], "a token scheduled before it was sampled"
            assert self.computed[row] <= len(self.tables[row]) * size, "a token without a block"
            assert (row in batch.sampled_rows) == (self.computed[row] == self.known[row])
        assert batch.sampled_rows == [row for row in batch.rows if row in batch.sampled_rows]
        for row in batch.sampled_rows:
            self.known[row] += 1
            assert self.known[row] <= limits.max_model_len, "a token past the window"

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def teardown(self) -> None:
        """Whatever happened: everything ends, and nothing is left over."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(5_000):
            if not self.in_flight:
                batch = self.scheduler.schedule()
                if not batch.rows:
                    break
                self.follow(batch)
                self.in_flight.append(batch)
            self.retire([0] * len(self.in_flight[0].sampled_rows))
            self.scheduler.check_integrity()
        assert not self.scheduler.has_work
        assert not self.live
        assert self.scheduler.blocks.num_free == self.scheduler.blocks.num_blocks


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def step(scheduler: Scheduler, token: int = 0) -> tuple[Batch, list[Output]]:
    batch = scheduler.schedule()
    outputs = scheduler.update(batch, [token] * len(batch.sampled_rows))
    scheduler.check_integrity()
    return batch, outputs


def test_decodes_share_the_budget_with_a_chunk_of_the_next_prompt() -> None:
    scheduler = scheduler_of(num_blocks=20, budget=8)
    scheduler.add(request("a", 4))
    step(scheduler)
    scheduler.add(request("b", 12))
    batch, outputs = step(scheduler)
    assert batch.num_scheduled_tokens == [1, 7]
    assert [output.request_id for output in outputs] == ["a"]
    batch, outputs = step(scheduler)
    assert batch.num_scheduled_tokens == [1, 5]
    assert [output.request_id for output in outputs] == ["a", "b"]


def test_the_last_admitted_is_preempted_and_comes_back_with_its_output() -> None:
    scheduler = scheduler_of(num_blocks=6, block_size=4, window=24, budget=32)
    scheduler.add(request("old", 11, max_tokens=12))
    scheduler.add(request("new", 7, max_tokens=12))
    for _ in range(6):
        step(scheduler, token=3)
    assert scheduler.num_preemptions == 1
    assert scheduler.num_waiting == 1
    new_rows = []
    while scheduler.has_work:
        new_rows += step(scheduler, token=3)[0].new_rows
    again = new_rows[0]
    assert again.token_ids[:7] == [1] * 7
    assert set(again.token_ids[7:]) == {3}
    assert again.num_output_tokens == len(again.token_ids) - 7
    assert again.num_computed_tokens == 0


def test_a_prompt_waits_until_it_fits_whole_and_nobody_is_preempted_for_it() -> None:
    scheduler = scheduler_of(num_blocks=6, block_size=4, window=24, budget=64)
    scheduler.add(request("a", 12, max_tokens=3))
    scheduler.add(request("b", 16, max_tokens=3))
    batch, _ = step(scheduler)
    assert len(batch.rows) == 1
    while scheduler.has_work:
        step(scheduler)
    assert scheduler.num_preemptions == 0


def test_an_end_token_known_one_step_late_drops_the_extra_token() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3, max_tokens=10))
    first = scheduler.schedule()
    second = scheduler.schedule()  # overlap depth 1: before the first is known
    assert second.num_scheduled_tokens == [1]
    outputs = scheduler.update(first, [EOS])
    assert outputs[0].finish_reason == "stop"
    assert scheduler.blocks.num_free < scheduler.blocks.num_blocks  # the second step still uses them
    assert scheduler.update(second, [4]) == []
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks
    assert not scheduler.has_work


def test_logits_that_are_not_finite_end_one_request() -> None:
    scheduler = scheduler_of(num_blocks=12)
    scheduler.add(request("good", 3))
    scheduler.add(request("bad", 3))
    outputs = scheduler.update(scheduler.schedule(), [0, NO_TOKEN])
    assert outputs[0].error is None
    assert "not finite" in (outputs[1].error or "")
    assert scheduler.num_running == 1


def test_max_tokens_is_never_overscheduled() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3, max_tokens=1))
    first = scheduler.schedule()
    assert scheduler.schedule().rows == []
    assert scheduler.update(first, [0])[0].finish_reason == "length"


def test_an_abort_in_flight_waits_for_its_step_and_its_id_is_free_at_once() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3))
    batch = scheduler.schedule()
    assert scheduler.abort("a")
    scheduler.check_integrity()
    assert scheduler.add(request("a", 2)) is None
    assert scheduler.update(batch, [0]) == []
    while scheduler.has_work:
        _, outputs = step(scheduler)
    assert outputs[-1].finish_reason == "length"


@pytest.mark.parametrize("released", [0, 1])
def test_releasing_what_is_free_is_our_own_bug(released: int) -> None:
    manager = BlockManager(2, 4)
    manager.release(manager.allocate(2)[:released])
    with pytest.raises(AssertionError, match="released a free block"):
        manager.release([1, 1])


def test_shared_blocks_are_free_after_the_last_table() -> None:
    manager = BlockManager(3, 4)
    table = manager.allocate(2)
    manager.share(table[0])
    manager.check_integrity([table, table[:1]])
    manager.release(table)
    assert manager.num_free == 2
    manager.check_integrity([table[:1]])
    manager.release(table[:1])
    assert manager.num_free == 3
