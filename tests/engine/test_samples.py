"""Samples of one request share their prompt's blocks and copy what they write to."""

from __future__ import annotations

import pytest

from engine.batch import StepResult
from engine.request import Sample, TokenLogprobs
from tests.engine.scheduling import STOP, finish, request, result_of, scheduler_of, step


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_siblings_wait_for_the_prompt_and_share_its_blocks(prefix_cache: bool) -> None:
    scheduler = scheduler_of(num_blocks=12, budget=6, prefix_cache=prefix_cache)
    scheduler.add(request("a", 10, samples=3))
    for _ in range(2):  # the prompt takes two steps
        assert len(step(scheduler)[0].rows) == 1
    batch, outputs = step(scheduler)
    assert [new.sample for new in batch.new_rows] == [1, 2]
    leader = scheduler.schedule().rows[0]
    for new in batch.new_rows:
        assert new.row != leader
        assert new.num_computed_tokens == 9
        assert len(new.block_table) == 3
    assert batch.new_rows[0].block_table == batch.new_rows[1].block_table
    assert [(copy.row, copy.index) for copy in batch.copied_blocks] == [
        (new.row, 2) for new in batch.new_rows
    ]
    assert batch.num_scheduled_tokens == [1, 1, 1]
    assert [output.sample for output in outputs] == [0, 1, 2]
    assert [output.num_cached_tokens for output in outputs] == [0, 0, 0]
    assert scheduler.num_prompt_tokens == 10


def test_nothing_is_copied_where_the_last_prompt_token_has_a_block_of_its_own() -> None:
    scheduler = scheduler_of(num_blocks=12)
    scheduler.add(request("a", 9, samples=2))
    step(scheduler)
    batch, _ = step(scheduler)
    (new,) = batch.new_rows
    assert (new.num_computed_tokens, len(new.block_table)) == (8, 2)
    assert batch.copied_blocks == []


def test_a_resumed_sibling_shares_the_prompt_only() -> None:
    scheduler = scheduler_of(num_blocks=12)
    samples = [Sample(index=0), Sample(index=1, output_token_ids=[1, 2, 3])]
    scheduler.add(request("a", 6, samples=samples))
    step(scheduler)
    batch, _ = step(scheduler)
    (new,) = batch.new_rows
    assert (new.num_computed_tokens, new.num_prompt_tokens, len(new.token_ids)) == (6, 6, 9)
    assert batch.num_scheduled_tokens == [1, 3]


def test_siblings_go_on_by_themselves_where_the_leader_is_aborted() -> None:
    scheduler = scheduler_of(num_blocks=12, budget=4, prefix_cache=False)
    scheduler.add(request("a", 10, samples=3))
    batch = scheduler.schedule()
    assert scheduler.abort_sample("a", 0)
    assert not scheduler.abort_sample("a", 0)
    scheduler.update(batch, result_of(batch))
    scheduler.check_integrity()
    batch, _ = step(scheduler)
    assert [(new.sample, new.num_computed_tokens) for new in batch.new_rows] == [(1, 0)]
    outputs = finish(scheduler)
    assert [output.sample for output in outputs if output.finish_reason] == [1, 2]


def test_copies_count_where_blocks_are_short() -> None:
    scheduler = scheduler_of(num_blocks=3, prefix_cache=False)
    scheduler.add(request("a", 6, max_tokens=6, samples=4))
    outputs = finish(scheduler)
    assert [output.sample for output in outputs if output.finish_reason] == [0, 1, 2, 3]


def test_samples_end_one_by_one() -> None:
    scheduler = scheduler_of(num_blocks=12)
    scheduler.add(request("a", 6, samples=2))
    step(scheduler)
    batch = scheduler.schedule()
    outputs = scheduler.update(batch, StepResult(token_ids=[STOP, 1]))
    assert [(output.sample, output.finish_reason) for output in outputs] == [(0, "stop"), (1, None)]
    assert {output.sample for output in finish(scheduler)} == {1}


def test_prompt_logprobs_come_once_with_the_lowest_sample() -> None:
    scheduler = scheduler_of(num_blocks=12, budget=4)
    samples = [Sample(index=5), Sample(index=2)]
    scheduler.add(request("a", 6, samples=samples, prompt_logprobs=0))
    entries = [TokenLogprobs(-float(i), 1, []) for i in range(5)]
    batch = scheduler.schedule()
    assert [new.sample for new in batch.new_rows] == [2]
    row = batch.rows[0]
    scheduler.update(batch, StepResult(token_ids=[], prompt_logprobs={row: entries[:4]}))
    batch = scheduler.schedule()
    (output,) = scheduler.update(batch, StepResult(token_ids=[1], prompt_logprobs={row: entries[4:]}))
    assert output.prompt_logprobs == entries
    batch = scheduler.schedule()
    sibling = batch.new_rows[0].row
    result = StepResult(token_ids=[1, 1], prompt_logprobs={sibling: entries[:1]})  # not asked for
    assert [output.prompt_logprobs for output in scheduler.update(batch, result)] == [[], []]


def test_prompt_logprobs_come_where_all_samples_have_ended_before() -> None:
    scheduler = scheduler_of(num_blocks=12, budget=4)
    samples = [Sample(index=0, output_token_ids=[1, STOP]), Sample(index=1, output_token_ids=[1, 2, 1])]
    outputs = scheduler.add(request("a", 6, max_tokens=3, samples=samples, prompt_logprobs=0))
    assert [(output.sample, output.finish_reason) for output in outputs] == [(0, "stop")]
    entries = [TokenLogprobs(-float(i), 1, []) for i in range(5)]
    batch = scheduler.schedule()
    (new,) = batch.new_rows
    assert len(new.token_ids) == 6, "what is known of the output does not matter"
    assert scheduler.update(batch, StepResult(token_ids=[], prompt_logprobs={new.row: entries[:4]})) == []
    batch = scheduler.schedule()
    result = StepResult(token_ids=[], prompt_logprobs={new.row: entries[4:]})
    (output,) = scheduler.update(batch, result)
    assert (output.sample, output.finish_reason, output.token_ids) == (1, "length", [])
    assert output.prompt_logprobs == entries
    assert not scheduler.has_work


def test_a_preemption_does_not_double_prompt_logprobs() -> None:
    scheduler = scheduler_of(num_blocks=5, budget=32)
    scheduler.add(request("a", 7, max_tokens=9))
    scheduler.add(request("b", 7, max_tokens=9, prompt_logprobs=0))
    entries = [TokenLogprobs(-float(i), 1, []) for i in range(6)]
    given: list[list[TokenLogprobs]] = []
    starts: list[int] = []
    while scheduler.has_work:
        batch = scheduler.schedule()
        asked = [new for new in batch.new_rows if new.params.prompt_logprobs is not None]
        starts += [new.num_computed_tokens for new in asked]
        prompt_logprobs = {new.row: entries[new.num_computed_tokens :] for new in asked}
        result = StepResult(token_ids=[1] * len(batch.sampled_rows), prompt_logprobs=prompt_logprobs)
        given += [output.prompt_logprobs for output in scheduler.update(batch, result)]
    assert scheduler.num_preemptions == 1
    assert starts == [0, 4]  # once they are out, it may look into the cache
    assert [entry for entry in given if entry] == [entries]


def test_a_sibling_waits_where_its_copy_would_take_the_leaders_next_block() -> None:
    scheduler = scheduler_of(num_blocks=3)
    scheduler.add(request("a", 6, max_tokens=2, samples=2))
    step(scheduler)
    assert scheduler.blocks.num_free == 1
    assert scheduler.schedule().new_rows == []
