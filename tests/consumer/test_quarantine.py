"""Who is blamed for the engine's deaths."""

from __future__ import annotations

import random

import pytest

from consumer.quarantine import TRIAL_STEPS, Quarantine


def run_to_the_end(jobs: list[str], poison: dict[str, int], order: random.Random) -> list[str]:
    """Play an engine that dies in the n-th step of a poison job in it; gives who was blamed."""
    quarantine = Quarantine()
    running, blamed = dict.fromkeys(jobs), list[str]()
    steps = dict.fromkeys(jobs, 0)  # of those in the engine
    for _ in range(2000):
        if not running:
            return blamed
        steps = {key: count + 1 for key, count in steps.items()}
        if any(poison.get(key) == count for key, count in steps.items()):
            for key in quarantine.engine_died(list(running), limit=5):
                blamed.append(key)
                del running[key]
            steps = {} if quarantine.active else dict.fromkeys(running, 0)
        else:
            quarantine.survived(steps)
            healthy = sorted(steps.keys() - poison.keys())
            if healthy and order.random() < 0.2:
                ended = order.choice(healthy)
                del steps[ended], running[ended]
                quarantine.forget(ended)
        if (key := quarantine.next_to_join()) is not None:
            steps[key] = 0
    raise AssertionError("it never ends")


@pytest.mark.parametrize("seed", range(100))
def test_the_poison_is_found_and_nobody_else_is_blamed(seed: int) -> None:
    order = random.Random(seed)
    jobs = [f"job {n}" for n in range(order.randrange(1, 12))]
    poisonous = order.sample(jobs, order.randrange(0, min(4, len(jobs)) + 1))
    poison = {key: order.randint(1, TRIAL_STEPS) for key in poisonous}
    assert set(run_to_the_end(jobs, poison, order)) == poison.keys()


def test_who_joins_when_another_kills_is_tried_alone_and_cleared() -> None:
    quarantine = Quarantine()
    for _ in range(2):
        assert quarantine.engine_died(["late poison", "innocent"], limit=9) == []
    assert quarantine.next_to_join() == "late poison"
    for _ in range(TRIAL_STEPS):
        quarantine.survived(["late poison"])
    assert quarantine.next_to_join() == "innocent"
    assert quarantine.engine_died(["late poison", "innocent"], limit=9) == []
    assert quarantine.next_to_join() == "innocent"
    assert quarantine.waiting == {"late poison"}, "it is alone"
    for _ in range(TRIAL_STEPS):
        quarantine.survived(["innocent"])
    assert quarantine.next_to_join() == "late poison"
    assert quarantine.engine_died(["late poison", "innocent"], limit=9) == []
    assert quarantine.next_to_join() == "late poison"
    assert quarantine.engine_died(["late poison"], limit=9) == ["late poison"]


def test_unexplained_deaths_end_at_the_limit() -> None:
    quarantine = Quarantine()
    deaths = 0
    while not quarantine.engine_died(["a"], limit=3):
        deaths += 1
        while (key := quarantine.next_to_join()) is not None:
            for _ in range(TRIAL_STEPS):
                quarantine.survived([key])  # it dies later, of something that its first steps do not show
    assert deaths == 2


def test_who_comes_meanwhile_waits_behind_the_suspects() -> None:
    quarantine = Quarantine()
    quarantine.engine_died(["a", "b"], limit=5)
    assert not quarantine.active
    quarantine.engine_died(["a", "b"], limit=5)
    quarantine.join_later(["c"])
    assert [quarantine.next_to_join(), quarantine.next_to_join()] == ["a", None]
    for _ in range(TRIAL_STEPS):
        quarantine.survived(["a"])
    quarantine.forget("b")
    assert quarantine.next_to_join() == "c"
