"""Charts as paths of SVG: a line for each series, over the samples that are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from msgspec import Struct

from producer.gateway.page.history import NUM_SAMPLES, Sample
from producer.gateway.page.words import number, seconds

WIDTH: Final = 300
HEIGHT: Final = 60
_STEPS: Final = (1, 2, 5, 10)
_Tell: TypeAlias = Callable[[float], str]


class Series(Struct, frozen=True, kw_only=True):
    """One line of a chart."""

    label: str
    now: str
    """Its last value, in words."""
    path: str
    """Of SVG, within `WIDTH` by `HEIGHT`; empty where there is nothing to draw."""


class Chart(Struct, frozen=True, kw_only=True):
    """One chart."""

    name: str
    title: str
    top: str
    """The value at its upper edge, in words."""
    series: list[Series]
    """The first is the one that matters."""


def charts_of(samples: Sequence[Sample]) -> list[Chart]:
    """The page's charts."""
    return [
        _chart(
            "tokens",
            "Output tokens per second",
            [("output", [sample.generation_tokens_per_s for sample in samples])],
            number,
        ),
        _chart(
            "prompts",
            "Prompt tokens per second",
            [("prompt", [sample.prompt_tokens_per_s for sample in samples])],
            number,
        ),
        _chart(
            "latency",
            "Mean latency",
            [
                ("enqueue to end", [sample.e2e_s for sample in samples]),
                ("of it in the queue", [sample.queue_s for sample in samples]),
            ],
            seconds,
        ),
        _chart(
            "sequences",
            "Sequences in engines",
            [
                ("running", [float(sample.num_running) for sample in samples]),
                ("waiting for room", [float(sample.num_waiting) for sample in samples]),
            ],
            number,
        ),
    ]


def nice_top(largest: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is not below it; 1 for 0."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in _STEPS if step * power >= largest * (1 - 1e-9))


def path_of(values: Sequence[float | None], top: float) -> str:
    """A line through the values, the last one at the right edge, broken where there is None; a value that
    stands alone is a dot."""
    found: list[str] = []
    before: float | None = None
    for index, value in enumerate(values):
        if value is not None:
            x = WIDTH - (len(values) - 1 - index) * WIDTH / (NUM_SAMPLES - 1)
            y = HEIGHT - 1 - min(max(value / top, 0.0), 1.0) * (HEIGHT - 2)
            found.append(f"{'M' if before is None else 'L'}{x:.1f} {y:.1f}")
            alone = before is None and (index + 1 == len(values) or values[index + 1] is None)
            found += ["h0.1"] if alone else []
        before = value
    return "".join(found)


def _chart(name: str, title: str, series: Sequence[tuple[str, Sequence[float | None]]], tell: _Tell) -> Chart:
    known = [value for _, values in series for value in values if value is not None]
    top = nice_top(max(known, default=0.0))
    return Chart(
        name=name,
        title=title,
        top=tell(top),
        series=[
            Series(label=label, now=_last(values, tell), path=path_of(values, top))
            for label, values in series
        ],
    )


def _last(values: Sequence[float | None], tell: _Tell) -> str:
    last = next((value for value in reversed(values) if value is not None), None)
    return "-" if last is None else tell(last)
