"""Figures and words of progress."""

from __future__ import annotations

import io
import sys

import pytest

from producer.answers import Tally
from producer.progress import PlainProgress, Speed, TerminalProgress, clock, describe


def test_speed_counts_neither_the_past_nor_the_loading_of_the_model() -> None:
    speed = Speed()
    assert speed.figures(Tally(answered=1000, completion_tokens=9000), 3000, now=0.0) == (0, 0, None)
    assert speed.figures(Tally(answered=1000, completion_tokens=9000), 3000, now=60.0) == (0, 0, None)
    assert speed.figures(Tally(answered=1001, completion_tokens=9010), 3000, now=90.0) == (0, 0, None)
    later = Tally(answered=1090, failed=11, completion_tokens=9510)
    assert speed.figures(later, 3000, now=100.0) == (10.0, 50.0, 189.9)


def test_words() -> None:
    speed = Speed(found=0, began=10.0, rows=1)
    tally = Tally(answered=1_200, failed=1, completion_tokens=24_000)
    assert describe(tally, 5_000, speed, now=20.0) == (
        "1,201 of 5,000 rows, 120.0 rows/s, 2,400 tokens/s, 0:32 to go, 1 failed"
    )


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36_000, "10:00:00")]
)
def test_clock(seconds: float, words: str) -> None:
    assert clock(seconds) == words


def test_plain_lines_repeat_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress(interval_s=0.0)
    with progress:
        progress.wait("the consumer is not ready yet: starting")
        progress.wait("the consumer is not ready yet: loading weights")
        progress.wait(None)
        for answered in (1, 1, 2):
            progress.update(Tally(answered=answered), 2)
    assert capsys.readouterr().err.splitlines() == [
        "penstock: waiting: the consumer is not ready yet: starting",
        "penstock: 1 of 2 rows",
        "penstock: 2 of 2 rows",
    ]


def test_the_bar_ends_where_the_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with TerminalProgress() as progress:
        progress.say("the path [a] is kept as it is")
        for answered in range(50):
            progress.update(Tally(answered=answered, failed=1), 50)
    assert "the path [a] is kept as it is" in screen.getvalue()
    assert "50/50 rows 1 failed" in screen.getvalue()
