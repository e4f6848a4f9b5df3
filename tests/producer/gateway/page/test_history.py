"""Speeds and means from heartbeats, and the charts that are drawn of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from penstock.messages import Heartbeat
from producer.gateway.page.charts import HEIGHT, WIDTH, charts_of, nice_top, path_of
from producer.gateway.page.history import HELD_S, NUM_SAMPLES, History, Speed
from producer.gateway.page.words import clock, number, percent, seconds, shortened


def beat(at_s: float, tokens: int = 0, **fields: Any) -> Heartbeat:
    return Heartbeat(
        model="m",
        phase="ready",
        at_ms=int(at_s * 1000),
        interval_ms=10_000,
        generation_tokens_total=tokens,
        **{"started_ms": 1, **fields},
    )


def test_a_speed_is_the_growth_between_two_heartbeats() -> None:
    history = History()
    history.add(0, {"a": beat(100, 5000)})
    assert history.speed_of("a") == Speed()  # how long the first took, nobody knows
    history.add(2, {"a": beat(104, 5100, prompt_tokens_total=8)})
    assert history.speed_of("a") == Speed(prompt_tokens_per_s=2, generation_tokens_per_s=25)
    history.add(4, {"a": beat(104, 5100, prompt_tokens_total=8)})
    assert history.speed_of("a").generation_tokens_per_s == 25  # no news yet
    history.add(2 + HELD_S + 0.1, {"a": beat(104, 5100)})
    assert history.speed_of("a") == Speed()
    assert [sample.generation_tokens_per_s for sample in history.samples] == [0, 25, 25, 0]
    assert history.speed_of("nobody") == Speed()


def test_consumers_add_up_and_those_that_went_count_no_more() -> None:
    history = History()
    history.add(0, {"a": beat(0), "b": beat(0, 700)})
    history.add(2, {"a": beat(2, 20, num_running=3), "b": beat(2, 760, num_running=4, num_waiting=1)})
    sample = history.samples[-1]
    assert (sample.generation_tokens_per_s, sample.num_running, sample.num_waiting) == (40, 7, 1)
    history.add(4, {"a": beat(4, 40)})
    assert history.samples[-1].generation_tokens_per_s == 10
    history.add(6, {"a": beat(6, 3, started_ms=2)})  # begun anew, at 0
    assert history.samples[-1].generation_tokens_per_s == 0


def test_latencies_are_means_over_the_jobs_that_ended_between() -> None:
    history = History()
    history.add(0, {"a": beat(0, jobs_total=10, e2e_seconds_total=50.0, queue_seconds_total=5.0)})
    history.add(2, {"a": beat(2, jobs_total=14, e2e_seconds_total=60.0, queue_seconds_total=7.0)})
    history.add(4, {"a": beat(4, jobs_total=14, e2e_seconds_total=60.0, queue_seconds_total=7.0)})
    assert [(sample.e2e_s, sample.queue_s) for sample in history.samples] == [
        (None, None),
        (2.5, 0.5),
        (None, None),
    ]


def test_it_holds_five_minutes_and_no_more() -> None:
    history = History()
    for at in range(NUM_SAMPLES + 7):
        history.add(2 * at, {"a": beat(2 * at, 10 * at)})
    assert len(history.samples) == NUM_SAMPLES
    tokens = charts_of(history.samples)[0]
    assert (tokens.title, tokens.top, tokens.series[0].now) == ("Output tokens per second", "5", "5")


@pytest.mark.parametrize(
    ("largest", "top"), [(0, 1), (0.03, 0.05), (1, 1), (1.1, 2), (700, 1000), (3e6, 5e6)]
)
def test_the_upper_edge_is_a_round_number(largest: float, top: float) -> None:
    assert nice_top(largest) == pytest.approx(top)


def test_a_line_ends_at_the_right_edge_and_breaks_where_nothing_is_known() -> None:
    path = path_of([1.0, 2.0, None, 0.0], 2.0)
    assert path.count("M") == 2
    assert path.endswith(f"M{WIDTH}.0 {HEIGHT - 1}.0h0.1")
    assert re.findall(r"L[0-9.]+ ([0-9.]+)", path) == ["1.0"]
    assert path_of([None, None], 1.0) == path_of([], 1.0) == ""


def test_charts_of_nothing_are_empty() -> None:
    assert all(series.now == "-" and not series.path for chart in charts_of([]) for series in chart.series)


def test_numbers_read_as_people_write_them() -> None:
    assert [number(value) for value in (0, 0.034, 0.42, 7, 9.96, 12.6, 12345, 3_210_000)] == [
        "0",
        "0.03",
        "0.4",
        "7",
        "10",
        "13",
        "12,345",
        "3.2 M",
    ]
    assert [seconds(value) for value in (0.0031, 0.9997, 1.23, 9.96, 59.4, 59.7, 61, 3600, 7500, 360000)] == [
        "3 ms", "1.0 s", "1.2 s", "10 s", "59 s", "1 min", "1 min", "1 h", "2 h 5 min", "4 d 4 h",
    ]  # fmt: skip
    assert [percent(part) for part in (0, 0.29, 0.999, 1)] == ["0 %", "29 %", "99 %", "100 %"]
    assert clock(0) == "1970-01-01 00:00:00Z"
    assert [shortened(text, 4) for text in ("abcd", "abcde")] == ["abcd", "abc…"]
