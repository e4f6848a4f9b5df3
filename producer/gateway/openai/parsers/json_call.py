"""One tool call written as a JSON object, read as it comes."""

from __future__ import annotations

import json
import re
from typing import Final, Literal

_SPACE: Final = " \t\r\n"
_STRING_STOP: Final = re.compile(r'["\\]')
_NESTED_STOP: Final = re.compile(r'["{}\[\]]')
_SCALAR: Final = re.compile(r"[-+.0-9A-Za-z]*")
_ARGUMENTS: Final = ("arguments", "parameters")

State = Literal["open", "key", "colon", "value", "done", "bad"]


class JsonValue:
    """The extent of one JSON value: brackets and strings are matched, no more of its syntax is checked."""

    def __init__(self) -> None:
        self.text = ""
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str, at: int) -> int:
        """Take what belongs to the value from `at` on, and give where that ends."""
        begin = at
        while at < len(text) and not self.done:
            at = self._string(text, at) if self._in_string else self._outside(text, at)
        self.text += text[begin:at]
        return at

    def _string(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        stop = _STRING_STOP.search(text, at)
        if stop is None:
            return len(text)
        if stop[0] == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self.done = self._depth == 0
        return stop.end()

    def _outside(self, text: str, at: int) -> int:
        if self._depth == 0 and (self.text or text[at] not in '"{['):  # a scalar, or more of one
            match = _SCALAR.match(text, at)
            assert match is not None, "it matches nothing, too"
            self.done = match.end() < len(text)
            return match.end()
        stop = _NESTED_STOP.search(text, at)
        if stop is None:
            return len(text)
        if stop[0] == '"':
            self._in_string = True
        else:
            self._depth += 1 if stop[0] in "{[" else -1
            self.done = self._depth == 0
        return stop.end()


class JsonCall:
    """Reads `{"name": …, "arguments": {…}}`, keys in any order; `parameters` is another word for arguments.

    The call has `begun` once its name is known and its arguments are an object. What breaks before that is no
    call; what breaks after is one whose arguments are as the model wrote them.
    """

    def __init__(self) -> None:
        self.state: State = "open"
        self.name: str | None = None
        self._arguments: str | None = None
        self._complete = False
        self._given = 0
        self._key = JsonValue()
        self._value = JsonValue()

    @property
    def begun(self) -> bool:
        """Whether this is a call."""
        return bool(self.name) and self._arguments is not None

    def take_arguments(self) -> str:
        """The JSON of the arguments that has come since this was asked last."""
        text = (self._arguments or "")[self._given :]
        self._given += len(text)
        return text

    def feed(self, text: str, at: int) -> int:
        """Take what belongs to the object from `at` on, and give where that ends."""
        while at < len(text) and self.state not in ("done", "bad"):
            inside = self._value.text if self.state == "value" else self._key.text and self.state == "key"
            at = at + 1 if text[at] in _SPACE and not inside else self._step(text, at)
        return at

    def _step(self, text: str, at: int) -> int:
        match self.state:
            case "open":
                self.state = "key" if text[at] == "{" else "bad"
                return at + (text[at] == "{")
            case "key":
                return self._read_key(text, at)
            case "colon":
                self.state = "value" if text[at] == ":" else "bad"
                return at + (text[at] == ":")
            case _:
                return self._read_value(text, at)

    def _read_key(self, text: str, at: int) -> int:
        if not self._key.text:
            if text[at] == ",":
                return at + 1
            if text[at] == "}":
                return self._close(at + 1)
            if text[at] != '"':
                self.state = "bad"
                return at
        at = self._key.feed(text, at)
        if self._key.done:
            self.state = "colon"
        return at

    def _read_value(self, text: str, at: int) -> int:
        at = self._value.feed(text, at)
        key = _string(self._key.text)
        if not self._value.text:
            self.state = "bad"
        elif key in _ARGUMENTS and self._value.text[0] == "{" and not self._complete:
            self._arguments = self._value.text
        if self._value.done and self.state == "value":
            self._end_value(key)
        return at

    def _end_value(self, key: str | None) -> None:
        text, self._key, self._value = self._value.text, JsonValue(), JsonValue()
        self.state = "key"
        if key == "name" and self.name is None:
            self.name = _string(text)
            self.state = "key" if self.name else "bad"
        elif key in _ARGUMENTS and not self._complete:
            self._arguments = text if text[0] == "{" else _object_of(text)
            self._complete = self._arguments is not None
            self.state = "key" if self._complete else "bad"

    def _close(self, at: int) -> int:
        if self.name and self._arguments is None:
            self._arguments = "{}"
        self.state = "done" if self.begun else "bad"
        return at


def _string(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _object_of(text: str) -> str | None:
    """Arguments that are not written as an object: as none, or as a string that holds one."""
    if text == "null":
        return "{}"
    inner = (_string(text) or "").strip()
    return inner if inner.startswith("{") else None
