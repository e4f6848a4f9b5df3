"""Numbers as people read them."""

from __future__ import annotations

import math
import time
from typing import Final

_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"))


def number(value: float) -> str:
    """`7`, `0.4`, `0.03`, `12,345`, `3.2 M`."""
    if value >= 1e6:
        return f"{value / 1e6:,.1f} M"
    if value >= 9.95 or value == int(value):
        return f"{value:,.0f}"
    if 0 < value < 0.05:
        return f"{value:.1g}"
    return f"{value:.1f}"


def seconds(value: float) -> str:
    """`3 ms`, `1.2 s`, `45 s`, `3 min`, `2 h 5 min`, `4 d 3 h`."""
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 59.5:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    rest = round(value)
    parts: list[str] = []
    for size, unit in _UNITS:
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
            rest %= size
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts)


def clock(at_s: float) -> str:
    """A Unix time as ISO 8601 in UTC, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(at_s))


def percent(part: float) -> str:
    """A part of 1, rounded down: only the whole is 100 %."""
    return f"{math.floor(100 * part + 1e-9)} %"


def shortened(text: str, most: int) -> str:
    """The text, cut where it is longer."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
