"""A parser's pieces put together, as a client sees them in the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from producer.gateway.openai.parsers.parser import Parser
from producer.gateway.openai.parsers.pieces import CallArguments, CallStart, Content, Piece, Reasoning

Answer = tuple[str, str, list[tuple[str, str]]]
"""Content, reasoning, and calls as name and arguments."""


def answer_of(parser: Parser, parts: Sequence[str]) -> Answer:
    """What comes of a text that arrives in these parts."""
    pieces: list[Piece] = []
    for part in parts:
        pieces += parser.feed(part)
    return put_together(pieces + parser.end())


def put_together(pieces: Sequence[Piece]) -> Answer:
    """Pieces as they add up; a name comes before its arguments."""
    content, reasoning, calls = "", "", list[tuple[str, str]]()
    for piece in pieces:
        match piece:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case CallStart(name):
                calls.append((name, ""))
            case CallArguments(text):
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
    return content, reasoning, calls


def cut(text: str, places: Sequence[int]) -> list[str]:
    """A text in parts."""
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in pairwise(bounds)]
