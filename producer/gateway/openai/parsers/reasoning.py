"""What a model thinks before it answers, told from the answer."""

from __future__ import annotations

from typing import Literal

from penstock.messages import ReasoningMarkers
from producer.gateway.openai.parsers.parser import held
from producer.gateway.openai.parsers.pieces import Content, Piece, Reasoning


class ReasoningParser:
    """Splits a text at the markers of its beginning; later ones are content.

    White space next to the markers belongs to neither side. A text that ends before the end marker is
    reasoning to its end.
    """

    def __init__(self, markers: ReasoningMarkers, *, opened: bool) -> None:
        """Read outputs that begin inside where `opened`."""
        self._start = markers.start
        self._end = markers.end
        self._opened = opened
        self._state: Literal["open", "reasoning", "closed", "content"] = "open"
        self._buffer = ""
        self._reasoned = False

    def feed(self, text: str) -> list[Piece]:
        """See `Parser.feed`."""
        self._buffer += text
        pieces: list[Piece] = []
        while self._buffer and self._advance(pieces):
            pass
        return pieces

    def end(self) -> list[Piece]:
        """See `Parser.end`."""
        left, self._buffer = self._buffer, ""
        match self._state:
            case "open" if not self._opened:
                return [Content(left)] if left else []
            case "content":
                return [Content(left)] if left else []
            case "closed":
                return []
            case _:
                left = left.rstrip() if self._reasoned else left.strip()
                return [Reasoning(left)] if left else []

    def _advance(self, pieces: list[Piece]) -> bool:
        match self._state:
            case "open":
                return self._open()
            case "reasoning":
                return self._reason(pieces)
            case "closed":
                self._buffer = self._buffer.lstrip()
                self._state = "content" if self._buffer else "closed"
                return True
            case "content":
                pieces.append(Content(self._buffer))
                self._buffer = ""
                return False

    def _open(self) -> bool:
        bare = self._buffer.lstrip()
        if bare.startswith(self._start):
            self._buffer = bare[len(self._start) :]
            self._state = "reasoning"
        elif self._start.startswith(bare):
            return False
        else:
            self._state = "reasoning" if self._opened else "content"
        return True

    def _reason(self, pieces: list[Piece]) -> bool:
        if not self._reasoned:
            self._buffer = self._buffer.lstrip()
        at = self._buffer.find(self._end)
        length = (
            len(self._buffer[:at].rstrip())
            if at >= 0
            else len(self._buffer) - held((self._end,), self._buffer)
        )
        if length:
            pieces.append(Reasoning(self._buffer[:length]))
            self._reasoned = True
        if at < 0:
            self._buffer = self._buffer[length:]
            return False
        self._buffer = self._buffer[at + len(self._end) :]
        self._state = "closed"
        return True
