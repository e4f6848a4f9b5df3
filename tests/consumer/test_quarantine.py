"""Who is blamed for the engine's deaths."""

from __future__ import annotations

import random

import pytest

from consumer.quarantine import Quarantine


def run_to_the_end(jobs: list[str], poison: set[str], order: random.Random) -> list[str]:
    """Play an engine that dies in the first step of any poison job; gives who was blamed."""
    quarantine = Quarantine()
    running, blamed = dict.fromkeys(jobs), list[str]()
    in_engine = set(jobs)
    for _ in range(1000):
        if not running:
            return blamed
        if in_engine & poison:
            for key in quarantine.engine_died(list(running), limit=5):
                blamed.append(key)
                del running[key]
            in_engine = set() if quarantine.active else set(running)
        else:
            quarantine.survived(in_engine)
            if in_engine:
                ended = order.choice(sorted(in_engine))
                in_engine.remove(ended)
                del running[ended]
                quarantine.forget(ended)
        if (key := quarantine.next_to_join()) is not None:
            in_engine.add(key)
    raise AssertionError("it never ends")


@pytest.mark.parametrize("seed", range(30))
def test_the_poison_is_found_and_nobody_else_is_blamed(seed: int) -> None:
    order = random.Random(seed)
    jobs = [f"job {n}" for n in range(order.randrange(1, 12))]
    poison = set(order.sample(jobs, order.randrange(0, min(4, len(jobs)) + 1)))
    assert set(run_to_the_end(jobs, poison, order)) == poison


def test_unexplained_deaths_end_at_the_limit() -> None:
    quarantine = Quarantine()
    deaths = 0
    while not quarantine.engine_died(["a"], limit=3):
        deaths += 1
        while (key := quarantine.next_to_join()) is not None:
            quarantine.survived([key])  # it dies later, of something that its first step does not show
    assert deaths == 2


def test_who_comes_meanwhile_waits_behind_the_suspects() -> None:
    quarantine = Quarantine()
    quarantine.engine_died(["a", "b"], limit=5)
    assert not quarantine.active
    quarantine.engine_died(["a", "b"], limit=5)
    quarantine.join_later(["c"])
    assert [quarantine.next_to_join(), quarantine.next_to_join()] == ["a", None]
    quarantine.survived(["a"])
    quarantine.forget("b")
    assert quarantine.next_to_join() == "c"
