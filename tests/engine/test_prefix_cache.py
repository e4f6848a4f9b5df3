"""What the scheduler finds in the prefix cache, what it does not, and whom it starts because of that."""

from __future__ import annotations

import pytest

from engine.batch import NewRow
from engine.scheduler import Scheduler
from tests.engine.runner_model import RunnerModel
from tests.engine.scheduling import EOS, finish, request, result_of, scheduler_of, step


def first_start(scheduler: Scheduler) -> NewRow:
    """Of the next step that starts anything."""
    while True:
        batch, _ = step(scheduler)
        if batch.new_rows:
            return batch.new_rows[0]


def test_a_known_prefix_is_found_and_counted() -> None:
    scheduler = scheduler_of(num_blocks=12)
    scheduler.add(request("a", [1] * 8 + [2, 2], max_tokens=1))
    (output,) = finish(scheduler)
    assert output.num_cached_tokens == 0
    scheduler.add(request("b", [1] * 8 + [3, 3], max_tokens=2))
    batch, (output,) = step(scheduler)
    assert batch.num_scheduled_tokens == [2]
    assert batch.new_rows[0].num_computed_tokens == 8
    assert output.num_cached_tokens == 8
    assert [output.num_cached_tokens for output in finish(scheduler)] == [0]
    assert (scheduler.num_prompt_tokens, scheduler.num_cached_tokens) == (20, 8)


def test_the_last_token_is_always_computed() -> None:
    scheduler = scheduler_of(num_blocks=12)
    for name, expected in (("a", 0), ("b", 4)):
        scheduler.add(request(name, [1] * 8, max_tokens=1))
        assert first_start(scheduler).num_computed_tokens == expected


def test_a_prefix_counts_only_whole() -> None:
    scheduler = scheduler_of(num_blocks=12)
    scheduler.add(request("a", [1] * 12, max_tokens=1))
    finish(scheduler)
    scheduler.add(request("b", [2] * 4 + [1] * 8, max_tokens=1))
    assert first_start(scheduler).num_computed_tokens == 0


@pytest.mark.parametrize(
    ("kind", "params", "finds"),
    [
        ("generate", {}, 8),
        ("generate", {"prompt_logprobs": 0}, 0),
        ("score", {}, 0),
        ("embed", {"pooling": "mean"}, 0),
        ("embed", {"pooling": "last"}, 8),
    ],
)
def test_what_needs_every_position_looks_for_nothing_but_is_found(
    kind: str, params: dict[str, object], finds: int
) -> None:
    scheduler = scheduler_of(num_blocks=12)
    runner = RunnerModel(4, 16, 24)

    def run_alone(name: str, **params: object) -> int:
        """The tokens that it starts with."""
        scheduler.add(request(name, [1] * 9, max_tokens=1, **params))
        batch = scheduler.schedule()
        result = runner.run(batch, [0] * len(batch.sampled_rows))
        (output,) = scheduler.update(runner.retire(), result)
        assert output.finish_reason is not None
        return batch.new_rows[0].num_computed_tokens

    assert run_alone("a", kind=kind, **params) == 0
    assert run_alone("b", kind=kind, **params) == finds
    assert run_alone("c") == 8


def test_it_can_be_switched_off() -> None:
    scheduler = scheduler_of(num_blocks=12, prefix_cache=False)
    for name in "ab":
        scheduler.add(request(name, [1] * 9, max_tokens=1))
        assert first_start(scheduler).num_computed_tokens == 0


def test_a_dropped_token_is_never_found() -> None:
    scheduler = scheduler_of(num_blocks=12)
    scheduler.add(request("a", [1] * 7))
    first, second = scheduler.schedule(), scheduler.schedule()  # the second computes an eighth token
    scheduler.update(first, result_of(first, EOS))
    scheduler.update(second, result_of(second, 2))
    scheduler.add(request("b", [1] * 7 + [EOS, 1]))
    assert first_start(scheduler).num_computed_tokens == 4


def test_nothing_is_found_before_its_step_has_retired() -> None:
    scheduler = scheduler_of(num_blocks=12)
    scheduler.add(request("a", [1] * 9))
    in_flight = scheduler.schedule()
    scheduler.add(request("b", [1] * 9))
    assert scheduler.schedule().new_rows == []  # it waits instead of computing the same
    scheduler.check_integrity()
    scheduler.update(in_flight, result_of(in_flight))


def test_whoever_shares_what_is_being_computed_waits_for_it_and_others_pass() -> None:
    scheduler = scheduler_of(num_blocks=20)
    for name, prompt in (("a", [1] * 8 + [2]), ("b", [1] * 8 + [3]), ("c", [4, 4]), ("d", [1] * 3)):
        scheduler.add(request(name, prompt))
    batch, outputs = step(scheduler)
    assert [output.request_id for output in outputs] == ["a", "c", "d"]  # d has no block in common
    batch, outputs = step(scheduler)
    assert [output.request_id for output in outputs] == ["a", "c", "d", "b"]
    assert [new.num_computed_tokens for new in batch.new_rows] == [8]


def test_waiting_ends_where_the_one_that_computes_is_aborted() -> None:
    scheduler = scheduler_of(num_blocks=20, budget=4)
    scheduler.add(request("a", [1] * 9))
    scheduler.add(request("b", [1] * 9))
    batch = scheduler.schedule()
    assert len(batch.rows) == 1
    scheduler.abort("a")
    assert scheduler.update(batch, result_of(batch)) == []
    scheduler.check_integrity()
    assert first_start(scheduler).num_computed_tokens == 0
    assert {output.request_id for output in finish(scheduler)} == {"b"}


def test_a_preempted_sequence_finds_its_own_blocks() -> None:
    scheduler = scheduler_of(num_blocks=5, budget=32)
    scheduler.add(request("a", 7, max_tokens=9))
    scheduler.add(request("b", 7, max_tokens=3))
    step(scheduler)
    assert scheduler.num_running == 2
    while scheduler.num_preemptions == 0:
        step(scheduler)
    scheduler.abort("a")
    again = first_start(scheduler)
    assert (again.token_ids[0], again.num_computed_tokens) == (ord("b") % 6, 8)


def test_those_that_find_a_prefix_start_first() -> None:
    scheduler = scheduler_of(num_blocks=20, num_seqs=1)
    scheduler.add(request("a", [1] * 9, max_tokens=1))
    finish(scheduler)
    for name, first in (("b", 2), ("c", 1), ("d", 3), ("e", 1)):
        scheduler.add(request(name, [first] * 9, max_tokens=1))
    assert [output.request_id for output in finish(scheduler)] == ["c", "e", "b", "d"]


def test_nobody_is_overtaken_for_ever() -> None:
    scheduler = scheduler_of(num_blocks=20, num_seqs=1)
    scheduler.add(request("a", [1] * 9, max_tokens=1))
    finish(scheduler)
    scheduler.add(request("patient", [2] * 9, max_tokens=1))
    order: list[str] = []
    for i in range(10):
        scheduler.add(request(f"a{i}", [1] * 9, max_tokens=1))
        order += [output.request_id for output in step(scheduler)[1]]
    assert order == ["a0", "a1", "a2", "a3", "patient", "a4", "a5", "a6", "a7", "a8"]


def test_the_longest_start_first_at_the_end_of_a_backlog() -> None:
    scheduler = scheduler_of(num_blocks=20, num_seqs=1)
    for name, prompt, max_tokens in (("a", 3, 1), ("b", 3, 4), ("c", 9, 2)):
        scheduler.add(request(name, prompt, max_tokens=max_tokens))
    scheduler.backlog_ends = True
    assert [output.request_id for output in finish(scheduler) if output.finish_reason] == ["c", "b", "a"]


def test_a_long_backlog_keeps_its_order() -> None:
    scheduler = scheduler_of(num_blocks=20, num_seqs=1)
    for i in range(6):
        scheduler.add(request(f"a{i}", 3, max_tokens=1 + i))
    scheduler.backlog_ends = True
    order = [output.request_id for output in finish(scheduler) if output.finish_reason]
    assert order == ["a0", "a1", "a5", "a4", "a3", "a2"]
