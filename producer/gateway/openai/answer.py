"""A choice's whole text, in its parts: reasoning first, then content and tool calls."""

from __future__ import annotations

from producer.gateway.openai.dialect import Dialect
from producer.gateway.openai.form import ChatForm
from producer.gateway.openai.parsers.formats import FORMATS, Enforced, Named
from producer.gateway.openai.parsers.parser import Parser
from producer.gateway.openai.parsers.pieces import Content, Piece
from producer.gateway.openai.parsers.reasoning import ReasoningParser


class AnswerParser:
    """Passes what is no reasoning on to the parser of tool calls, where there are any."""

    def __init__(self, reasoning: Parser | None, calls: Parser | None) -> None:
        self._reasoning = reasoning
        self._calls = calls

    @classmethod
    def of(cls, form: ChatForm, dialect: Dialect) -> AnswerParser:
        """For a reply of this form by a model of this dialect."""
        reasoning = None
        if form.reasons and dialect.reasoning is not None:
            opened = dialect.reasoning.opened and form.reasoning_opened
            reasoning = ReasoningParser(dialect.reasoning, opened=opened)
        return cls(reasoning, _calls_parser(form, dialect))

    def feed(self, text: str) -> list[Piece]:
        """See `Parser.feed`."""
        if not text:
            return []
        return self._parse_calls([Content(text)] if self._reasoning is None else self._reasoning.feed(text))

    def end(self) -> list[Piece]:
        """See `Parser.end`."""
        pieces = self._parse_calls([] if self._reasoning is None else self._reasoning.end())
        return pieces + ([] if self._calls is None else self._calls.end())

    def _parse_calls(self, pieces: list[Piece]) -> list[Piece]:
        if self._calls is None:
            return pieces
        parsed: list[Piece] = []
        for piece in pieces:
            parsed += self._calls.feed(piece.text) if isinstance(piece, Content) else [piece]
        return parsed


def _calls_parser(form: ChatForm, dialect: Dialect) -> Parser | None:
    match form.calls:
        case "named":
            return Named(form.named_tool)
        case "array":
            return Enforced()
        case "dialect":
            make = FORMATS.get(dialect.tool_format or "")
            return make(form.tools) if make is not None else None
        case "none":
            return None
