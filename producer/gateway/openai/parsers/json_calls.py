"""Tool calls written as JSON, and what text is around them."""

from __future__ import annotations

import re
from typing import ClassVar, Final, Literal

from producer.gateway.openai.parsers.headed_call import HeadedCall
from producer.gateway.openai.parsers.json_call import JsonCall
from producer.gateway.openai.parsers.parser import first_of, held
from producer.gateway.openai.parsers.pieces import CallArguments, CallStart, Content, Piece

_BETWEEN: Final = " \t\r\n,;"
"""What may stand between two calls."""


class JsonCalls:
    """Calls behind markers: a JSON object each, a JSON array of them, or a name and a JSON object.

    What follows a marker and is no call stays content, the marker included.
    """

    STARTS: ClassVar[tuple[str, ...]] = ()
    """What calls begin with. None: they are the whole text, or there are none."""
    NOISE: ClassVar[tuple[str, ...]] = ()
    """What may stand before calls and is no content."""
    ENDS: ClassVar[tuple[str, ...]] = ()
    """What may stand behind a call and is no content."""
    HEADER: ClassVar[re.Pattern[str] | None] = None
    """What stands between a marker and the arguments where the name is not inside an object; its last group
    that matches is the name."""

    def __init__(self) -> None:
        self._state: Literal["text", "call", "after", "plain"] = "text" if self.STARTS else "call"
        self._buffer = ""  # not looked at yet, or held back
        self._raw = ""  # of a call that may turn out to be none
        self._object: JsonCall | HeadedCall | None = None
        self._said_start = False
        self._in_array = False

    def feed(self, text: str) -> list[Piece]:
        """See `Parser.feed`."""
        self._buffer += text
        pieces: list[Piece] = []
        while self._buffer and self._advance(pieces):
            pass
        return pieces

    def end(self) -> list[Piece]:
        """See `Parser.end`."""
        left = self._buffer if self._said_start else self._raw + self._buffer
        if self._state == "after" and any(end.startswith(left) for end in self.ENDS):
            left = ""
        self._buffer = self._raw = ""
        return [Content(left)] if left else []

    def _advance(self, pieces: list[Piece]) -> bool:
        """Go on with the buffer; whether there may be more to do."""
        match self._state:
            case "text":
                return self._read_text(pieces)
            case "call":
                return self._read_call(pieces)
            case "after":
                return self._read_after()
            case "plain":
                pieces.append(Content(self._buffer))
                self._buffer = ""
                return False

    def _read_text(self, pieces: list[Piece]) -> bool:
        markers = (*self.STARTS, *self.NOISE)
        found = first_of(markers, self._buffer)
        if found is None:
            keep = held(markers, self._buffer)
            text, self._buffer = (
                self._buffer[: len(self._buffer) - keep],
                self._buffer[len(self._buffer) - keep :],
            )
            if text:
                pieces.append(Content(text))
            return False
        at, marker = found
        text, before = self._buffer[:at].rstrip(), self._buffer[: at + len(marker)]
        if text:
            pieces.append(Content(text))
        self._buffer = self._buffer[len(before) :]
        if marker in self.STARTS:
            self._state, self._raw, self._in_array = "call", before[len(text) :], False
        return True

    def _read_call(self, pieces: list[Piece]) -> bool:
        """Behind a marker, or between the objects of an array, or inside an object."""
        call = self._object
        if call is None:
            return self._open_call()
        self._keep(call.feed(self._buffer, 0))
        if call.begun:
            assert call.name is not None, "a call that has begun has a name"
            if not self._said_start:
                self._said_start = True
                pieces.append(CallStart(call.name))
            if arguments := call.take_arguments():
                pieces.append(CallArguments(arguments))
        if call.state == "done" or (call.state == "bad" and call.begun):
            self._end_call()
        elif call.state == "bad":
            self._give_up(pieces)
        return True

    def _open_call(self) -> bool:
        """Find where a call begins; whether there is more to do, with what has come."""
        bare = self._buffer.lstrip()
        self._keep(len(self._buffer) - len(bare))
        if not bare or any(marker.startswith(bare) and marker != bare for marker in self.NOISE):
            return False
        noise = next((marker for marker in self.NOISE if bare.startswith(marker)), None)
        if noise is not None:
            self._keep(len(noise))
        elif bare[0] == "[" and not self._in_array:
            self._keep(1)
            self._in_array = True
        elif self.HEADER is not None and bare[0] != "{" and not self._in_array:
            self._object = HeadedCall(self.HEADER)
        else:
            self._object = JsonCall()
        return True

    def _keep(self, length: int) -> None:
        self._raw += self._buffer[:length]
        self._buffer = self._buffer[length:]

    def _end_call(self) -> None:
        self._object, self._raw, self._said_start = None, "", False
        self._state = "after"

    def _give_up(self, pieces: list[Piece]) -> None:
        """It is no call: what was taken for one is content."""
        if self._raw:
            pieces.append(Content(self._raw))
        self._object, self._raw = None, ""
        self._state = "text" if self.STARTS else "plain"

    def _read_after(self) -> bool:
        """Behind a call: the next one, or what ends them."""
        self._buffer = self._buffer.lstrip(_BETWEEN)
        ends = ("]", *self.NOISE, *self.ENDS)
        found = next((end for end in ends if self._buffer.startswith(end)), None)
        if found is not None:
            self._in_array = self._in_array and found != "]"
            self._buffer = self._buffer[len(found) :]
            return True
        if not self._buffer or any(marker.startswith(self._buffer) for marker in (*ends, *self.STARTS)):
            return False
        if self._buffer[0] == "{" and (self._in_array or not self.STARTS):
            self._state, self._raw = "call", ""
        else:
            self._state = "text" if self.STARTS else "plain"
        return True
