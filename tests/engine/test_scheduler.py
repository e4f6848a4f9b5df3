"""The scheduler's promises one by one: order, preemption, endings. No model, no torch."""

from __future__ import annotations

import pytest

from engine.batch import NO_TOKEN, NOTHING_ALLOWED, StepResult
from engine.request import RepetitionDetection, Sample, TokenLogprobs
from tests.engine.scheduling import (
    COMPLETE,
    EOS,
    FORBIDDEN,
    STOP,
    Follower,
    finish,
    request,
    result_of,
    scheduler_of,
    step,
)


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


def test_the_cheapest_to_recompute_is_preempted_and_comes_back_with_its_output() -> None:
    scheduler = scheduler_of(num_blocks=6, budget=32, prefix_cache=False)
    scheduler.add(request("short", 7, max_tokens=12))
    scheduler.add(request("far", 11, max_tokens=12))
    for _ in range(6):
        step(scheduler, token=3)
    assert scheduler.num_preemptions == 1
    assert scheduler.num_waiting == 1
    new_rows = []
    while scheduler.has_work:
        new_rows += step(scheduler, token=3)[0].new_rows
    (again,) = new_rows
    assert again.token_ids[:7] == [ord("s") % 6] * 7
    assert set(again.token_ids[7:]) == {3}
    assert again.num_prompt_tokens == 7
    assert again.num_computed_tokens == 0


def test_of_two_that_cost_the_same_the_later_one_gives_way() -> None:
    scheduler = scheduler_of(num_blocks=5, budget=32)
    scheduler.add(request("a", 7, max_tokens=9))
    scheduler.add(request("b", 7, max_tokens=9))
    outputs = finish(scheduler)
    assert scheduler.num_preemptions == 1
    assert [output.request_id for output in outputs if output.finish_reason] == ["a", "b"]


def test_a_prompt_waits_until_it_fits_whole_and_nobody_is_preempted_for_it() -> None:
    scheduler = scheduler_of(num_blocks=6, budget=64)
    scheduler.add(request("a", 12, max_tokens=3))
    scheduler.add(request("b", 16, max_tokens=3))
    batch, _ = step(scheduler)
    assert len(batch.rows) == 1
    finish(scheduler)
    assert scheduler.num_preemptions == 0


def test_a_victim_in_flight_pauses_until_its_step_retires() -> None:
    scheduler = scheduler_of(num_blocks=5, budget=32)
    scheduler.add(request("a", 7, max_tokens=9))
    scheduler.add(request("b", 7, max_tokens=9))
    in_flight = [scheduler.schedule()]
    finished: list[str] = []
    while scheduler.has_work:
        batch = scheduler.schedule()  # overlap depth 1
        if batch.rows:
            in_flight.append(batch)
        oldest = in_flight.pop(0)
        outputs = scheduler.update(oldest, result_of(oldest))
        finished += [output.request_id for output in outputs if output.finish_reason]
        scheduler.check_integrity()
    assert finished == ["a", "b"]
    assert scheduler.num_preemptions == 1


def test_an_end_token_known_one_step_late_drops_the_extra_token() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3, max_tokens=10))
    first = scheduler.schedule()
    second = scheduler.schedule()  # overlap depth 1: before the first is known
    assert second.num_scheduled_tokens == [1]
    outputs = scheduler.update(first, result_of(first, EOS))
    assert outputs[0].finish_reason == "stop"
    assert outputs[0].stop_token_id == EOS
    assert scheduler.blocks.num_free < scheduler.blocks.num_blocks  # the second step still uses them
    assert scheduler.update(second, result_of(second, 4)) == []
    assert scheduler.blocks.num_free == scheduler.blocks.num_blocks
    assert not scheduler.has_work


@pytest.mark.parametrize(
    ("token", "words", "error_type"),
    [(NO_TOKEN, "not finite", "engine_error"), (NOTHING_ALLOWED, "no token is allowed", "invalid_job")],
)
def test_a_row_without_a_token_ends_its_own_request_only(token: int, words: str, error_type: str) -> None:
    scheduler = scheduler_of(num_blocks=12)
    scheduler.add(request("good", 3))
    scheduler.add(request("bad", 3))
    outputs = scheduler.update(scheduler.schedule(), StepResult(token_ids=[0, token]))
    assert outputs[0].error is None
    assert words in (outputs[1].error or "")
    assert outputs[1].error_type == error_type
    assert scheduler.num_running == 1
    assert {output.request_id for output in finish(scheduler)} == {"good"}


def test_max_tokens_is_never_overscheduled() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3, max_tokens=1))
    first = scheduler.schedule()
    assert scheduler.schedule().rows == []
    assert scheduler.update(first, result_of(first))[0].finish_reason == "length"


def test_an_abort_in_flight_waits_for_its_step_and_its_id_is_free_at_once() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3))
    batch = scheduler.schedule()
    assert scheduler.abort("a")
    assert not scheduler.abort("a")
    scheduler.check_integrity()
    assert scheduler.add(request("a", 2)) == []
    assert scheduler.update(batch, result_of(batch)) == []
    assert finish(scheduler)[-1].finish_reason == "length"


def test_what_cannot_run_is_refused_at_once() -> None:
    scheduler = scheduler_of()
    (output,) = scheduler.add(request("long", 24))
    assert "window" in (output.error or "")
    assert output.error_type == "invalid_job"
    scheduler.add(request("a", 3))
    (output,) = scheduler.add(request("a", 3))
    assert "already running" in (output.error or "")
    assert not scheduler.abort_sample("a", 1)
    assert not scheduler.abort_sample("b", 0)


def test_min_tokens_holds_back_end_tokens_and_stop_tokens() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3, max_tokens=5, min_tokens=3))
    assert step(scheduler, token=EOS)[1][0].finish_reason is None
    assert step(scheduler, token=STOP)[1][0].finish_reason is None
    (output,) = step(scheduler, token=STOP)[1]
    assert (output.finish_reason, output.stop_token_id) == ("stop", STOP)


def test_ignore_eos_goes_on_after_an_end_token() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3, max_tokens=2, ignore_eos=True))
    assert [output.finish_reason for output in finish(scheduler, token=EOS)] == [None, "length"]


def test_repetition_ends_an_output_but_not_before_min_tokens() -> None:
    scheduler = scheduler_of()
    repetition = RepetitionDetection(max_pattern_size=2, min_count=3)
    scheduler.add(request("a", [5, 5, 5], max_tokens=9, repetition=repetition))
    assert [output.finish_reason for output in finish(scheduler, token=5)] == [None, None, "repetition"]
    scheduler.add(request("a", [5, 5, 5], max_tokens=9, repetition=repetition, min_tokens=5))
    assert [output.finish_reason for output in finish(scheduler, token=5)] == [None] * 4 + ["repetition"]


def test_a_complete_constraint_ends_its_output_whatever_min_tokens_says() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3, min_tokens=4), Follower())
    step(scheduler, token=1)
    (output,) = step(scheduler, token=COMPLETE)[1]
    assert (output.finish_reason, output.stop_token_id) == ("stop", None)


def test_a_constraint_follows_its_sample_and_never_sees_the_end_token() -> None:
    scheduler = scheduler_of()
    original = Follower()
    samples = [Sample(index=0, output_token_ids=[1, 2]), Sample(index=1)]
    assert scheduler.add(request("a", 3, samples=samples), original) == []
    first = scheduler.schedule()
    followers = [scheduler.constraint_of(new.row) for new in first.new_rows]
    assert [follower.seen for follower in followers if isinstance(follower, Follower)] == [[1, 2]]
    scheduler.update(first, result_of(first, 3))
    second = scheduler.schedule()
    followers = [scheduler.constraint_of(row) for row in second.rows]
    assert [f.seen for f in followers if isinstance(f, Follower)] == [[1, 2, 3], []]
    scheduler.update(second, StepResult(token_ids=[EOS, 4]))
    assert original.seen == []
    assert [f.seen for f in followers if isinstance(f, Follower)] == [[1, 2, 3], [4]]


def test_a_constraint_of_what_has_ended_in_flight_is_none() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3), Follower())
    first, second = scheduler.schedule(), scheduler.schedule()
    assert scheduler.constraint_of(second.rows[0]) is not None
    scheduler.update(first, result_of(first, EOS))
    assert scheduler.constraint_of(second.rows[0]) is None


def test_a_violated_constraint_ends_the_request_with_its_words() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 3, samples=2), Follower())
    step(scheduler, token=1)
    outputs = step(scheduler, token=FORBIDDEN)[1]
    assert [(output.error, output.error_type) for output in outputs] == [("forbidden", "engine_error")]
    assert not scheduler.has_work
    resumed = [Sample(index=3, output_token_ids=[1, FORBIDDEN, 2])]
    (output,) = scheduler.add(request("b", 3, samples=resumed), Follower())
    assert (output.error, output.sample) == ("forbidden", 3)


def test_resumed_samples_that_have_ended_say_so_at_once() -> None:
    scheduler = scheduler_of()
    endings = {0: [1, EOS], 1: [1, 2, 3, 4, 5], 2: [1, COMPLETE], 3: [1]}
    samples = [Sample(index=index, output_token_ids=tokens) for index, tokens in endings.items()]
    outputs = scheduler.add(request("a", 3, samples=samples), Follower())
    assert [(o.sample, o.finish_reason, o.token_ids) for o in outputs] == [
        (0, "stop", []),
        (1, "length", []),
        (2, "stop", []),
    ]
    assert {output.sample for output in finish(scheduler)} == {3}


def test_scores_are_gathered_over_chunks_and_sample_nothing() -> None:
    scheduler = scheduler_of(budget=4)
    scheduler.add(request("a", 6, max_tokens=0, kind="score"))
    entries = [TokenLogprobs(-float(i), 1, []) for i in range(5)]
    first = scheduler.schedule()
    second = scheduler.schedule()
    assert [first.num_scheduled_tokens, second.num_scheduled_tokens] == [[4], [2]]
    assert [first.sampled_rows, second.sampled_rows] == [[], []]
    assert (
        scheduler.update(first, StepResult(token_ids=[], prompt_logprobs={first.rows[0]: entries[:4]})) == []
    )
    (output,) = scheduler.update(
        second, StepResult(token_ids=[], prompt_logprobs={first.rows[0]: entries[4:]})
    )
    assert (output.finish_reason, output.token_ids) == ("stop", [])
    assert output.prompt_logprobs == entries
    assert not scheduler.has_work


def test_an_embedding_comes_with_the_last_prompt_token() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("a", 6, max_tokens=0, kind="embed"))
    batch = scheduler.schedule()
    (output,) = scheduler.update(batch, StepResult(token_ids=[], embeddings={batch.rows[0]: [0.5]}))
    assert (output.finish_reason, output.embedding) == ("stop", [0.5])


def test_results_that_are_not_finite_end_scores_and_embeddings() -> None:
    scheduler = scheduler_of()
    scheduler.add(request("embed", 2, max_tokens=0, kind="embed"))
    scheduler.add(request("score", 2, max_tokens=0, kind="score"))
    batch = scheduler.schedule()
    nan = float("nan")
    prompt_logprobs = {batch.rows[1]: [TokenLogprobs(nan, 1, [])]}
    outputs = scheduler.update(
        batch, StepResult(token_ids=[], embeddings={batch.rows[0]: [nan]}, prompt_logprobs=prompt_logprobs)
    )
    assert all("not finite" in (output.error or "") for output in outputs)
    assert len(outputs) == 2
    assert not scheduler.has_work
