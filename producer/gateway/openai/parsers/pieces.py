"""What a model's text is made of, in the order in which it comes."""

from __future__ import annotations

from msgspec import Struct


class Reasoning(Struct, frozen=True):
    """A stretch of what the model thinks before it answers."""

    text: str


class Content(Struct, frozen=True):
    """A stretch of the answer."""

    text: str


class CallStart(Struct, frozen=True):
    """The model calls a tool; its arguments follow."""

    name: str


class CallArguments(Struct, frozen=True):
    """A stretch of the JSON of the arguments of the call that began last."""

    text: str


Piece = Reasoning | Content | CallStart | CallArguments
