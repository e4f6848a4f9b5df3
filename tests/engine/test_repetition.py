"""Repetition detection against its definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.repetition import is_repeating
from engine.request import RepetitionDetection


def by_definition(output: list[int], asked: RepetitionDetection) -> bool:
    if asked.min_count < 2:
        return False
    for size in range(max(1, asked.min_pattern_size), asked.max_pattern_size + 1):
        stretch = output[-size:]
        if (
            len(output) >= size * asked.min_count
            and output[-size * asked.min_count :] == stretch * asked.min_count
        ):
            return True
    return False


@given(
    prompt=st.lists(st.integers(0, 2), max_size=4),
    head=st.lists(st.integers(0, 2), max_size=4),
    pattern=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    count=st.integers(0, 5),
    smallest=st.integers(0, 5),
    largest=st.integers(0, 5),
    min_count=st.integers(0, 5),
)
def test_it_finds_what_the_definition_says(
    prompt: list[int],
    head: list[int],
    pattern: list[int],
    count: int,
    smallest: int,
    largest: int,
    min_count: int,
) -> None:
    asked = RepetitionDetection(max_pattern_size=largest, min_pattern_size=smallest, min_count=min_count)
    output = head + pattern * count
    assert is_repeating(prompt + output, len(prompt), asked) == by_definition(output, asked)


@pytest.mark.parametrize(
    ("output", "smallest", "found"),
    [([1, 2, 1, 2, 1, 2], 1, True), ([2, 1, 2, 1, 2], 1, False), ([3, 3, 3], 1, True), ([3, 3, 3], 2, False)],
)
def test_examples(output: list[int], smallest: int, found: bool) -> None:
    asked = RepetitionDetection(max_pattern_size=3, min_pattern_size=smallest, min_count=3)
    assert is_repeating(output, 0, asked) == found


def test_the_prompt_does_not_count() -> None:
    asked = RepetitionDetection(max_pattern_size=1, min_count=3)
    assert not is_repeating([5, 5, 5, 5], 2, asked)
