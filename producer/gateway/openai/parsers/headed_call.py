"""One tool call whose name stands before its arguments, read as it comes."""

from __future__ import annotations

import re
from typing import Final, Literal

from producer.gateway.openai.parsers.json_call import JsonValue

_LONGEST: Final = 512
"""Characters of what stands before the arguments; longer is no call."""


class HeadedCall:
    """Reads `name{…}`, with whatever a format has before, between and instead of white space."""

    def __init__(self, header: re.Pattern[str]) -> None:
        self.state: Literal["open", "value", "done", "bad"] = "open"
        self.name: str | None = None
        self._header = header
        self._before = ""
        self._value = JsonValue()
        self._given = 0

    @property
    def begun(self) -> bool:
        """Whether this is a call."""
        return self.name is not None

    def take_arguments(self) -> str:
        """The JSON of the arguments that has come since this was asked last."""
        text = self._value.text[self._given :]
        self._given += len(text)
        return text

    def feed(self, text: str, at: int) -> int:
        """Take what belongs to the call from `at` on, and give where that ends."""
        if self.state == "open":
            at = self._read_header(text, at)
        if self.state == "value":
            at = self._value.feed(text, at)
            self.state = "done" if self._value.done else "value"
        return at

    def _read_header(self, text: str, at: int) -> int:
        brace = text.find("{", at, at + _LONGEST - len(self._before))
        end = min(len(text), at + _LONGEST - len(self._before)) if brace < 0 else brace
        self._before += text[at:end]
        if brace >= 0:
            match = self._header.fullmatch(self._before)
            self.name = match[match.lastindex or 0] if match else None
            self.state = "value" if match else "bad"
        elif len(self._before) >= _LONGEST:
            self.state = "bad"
        return end
