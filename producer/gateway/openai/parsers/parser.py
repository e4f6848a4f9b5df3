"""What every parser of tool calls is, and the search for a marker that may be cut in two."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from producer.gateway.openai.parsers.pieces import Piece


class Parser(Protocol):
    """Takes a model's text as it comes. How it is cut into stretches does not change what comes out."""

    def feed(self, text: str) -> list[Piece]:
        """Take more of the text."""
        ...

    def end(self) -> list[Piece]:
        """There is no more of it."""
        ...


_SPACE_AT_END = re.compile(r"\s*\Z")


def first_of(markers: Sequence[str], text: str) -> tuple[int, str] | None:
    """Where the first of some markers begins, and which it is; of two at one place the longer."""
    found = [(at, -len(marker), marker) for marker in markers if (at := text.find(marker)) >= 0]
    if not found:
        return None
    at, _, marker = min(found)
    return at, marker


def held(markers: Sequence[str], text: str) -> int:
    """Length of the text's end that may be the beginning of a marker, and of the white space before it."""
    partial = max((_overlap(marker, text) for marker in markers), default=0)
    space = _SPACE_AT_END.search(text, 0, len(text) - partial)
    assert space is not None, "it matches nothing, too"
    return len(text) - space.start()


def _overlap(marker: str, text: str) -> int:
    """Length of the longest end of the text that the marker begins with, short of the whole marker."""
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
