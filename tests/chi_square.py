"""Pearson's chi-square test against exact probabilities, with stored critical values."""

from __future__ import annotations

from collections.abc import Sequence

CRITICAL = (
    *(23.928, 27.631, 30.665, 33.377, 35.888, 38.258, 40.522, 42.701),
    *(44.811, 46.863, 48.866, 50.825, 52.747, 54.635, 56.493),
)
"""By degrees of freedom, from 1: what the statistic exceeds once in a million times."""


def assert_follows(draws: Sequence[int], probabilities: Sequence[float]) -> None:
    """The draws, indices of `probabilities`, have that distribution; what cannot be drawn never is."""
    assert abs(sum(probabilities) - 1) < 1e-9
    counts = [0] * len(probabilities)
    for draw in draws:
        counts[draw] += 1
    possible = [i for i, probability in enumerate(probabilities) if probability > 0]
    impossible = {i: count for i, count in enumerate(counts) if count and i not in possible}
    assert not impossible, f"drawn though their probability is 0: {impossible}"
    expected = [probabilities[i] * len(draws) for i in possible]
    assert min(expected) >= 5, "too few draws for the test to mean something"
    statistic = sum((counts[i] - e) ** 2 / e for i, e in zip(possible, expected, strict=True))
    if len(possible) > 1:
        assert statistic < CRITICAL[len(possible) - 2], f"{counts}, expected {expected} of {possible}"
