"""Tool calls as a list of calls in Python's notation: Llama 4, Llama 3.2, ToolACE."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any, Final, Literal

from producer.gateway.openai.parsers.pieces import CallArguments, CallStart, Content, Piece

_START: Final = "<|python_start|>"
_END: Final = "<|python_end|>"


class Pythonic:
    """The whole text is `[name(key=value, …), …]`.

    A call comes when it is complete: its arguments are values of Python's, and are only known as JSON once
    they can be read. Text that is no such list is content, from where it stops to be one.
    """

    def __init__(self) -> None:
        self._state: Literal["open", "call", "between", "after", "plain"] = "open"
        self._buffer = ""
        self._raw = ""  # of what opened the list
        self._scan = _Scan()

    def feed(self, text: str) -> list[Piece]:
        """See `Parser.feed`."""
        self._buffer += text
        pieces: list[Piece] = []
        while self._buffer and self._advance(pieces):
            pass
        return pieces

    def end(self) -> list[Piece]:
        """See `Parser.end`."""
        left = self._raw + self._buffer
        if self._state in ("between", "after") and _END.startswith(left.strip()):
            left = ""
        self._buffer = self._raw = ""
        return [Content(left)] if left else []

    def _advance(self, pieces: list[Piece]) -> bool:
        match self._state:
            case "open":
                return self._open(pieces)
            case "call":
                return self._read_call(pieces)
            case "between":
                return self._read_between()
            case "after":
                return self._read_after(pieces)
            case "plain":
                self._give_up(pieces)
                return False

    def _open(self, pieces: list[Piece]) -> bool:
        bare = self._buffer.lstrip().removeprefix(_START).lstrip()
        if not bare or _START.startswith(bare):
            return False
        if bare[0] != "[":
            self._give_up(pieces)
            return True
        self._raw, self._buffer = self._buffer[: -len(bare) + 1 or None], bare[1:]
        self._state = "call"
        return True

    def _read_call(self, pieces: list[Piece]) -> bool:
        length = self._scan.feed(self._buffer)
        if length is None:
            return False
        call = _read(self._buffer[:length].strip())
        if call is None:
            self._give_up(pieces)
            return True
        name, arguments = call
        pieces += [CallStart(name), CallArguments(arguments)]
        self._raw, self._buffer = "", self._buffer[length:]
        self._state, self._scan = "between", _Scan()
        return True

    def _read_between(self) -> bool:
        bare = self._buffer.lstrip()
        if not bare:
            return False
        self._buffer = bare[1:] if bare[0] in ",]" else bare
        self._state = "call" if bare[0] == "," else "after"
        return True

    def _read_after(self, pieces: list[Piece]) -> bool:
        bare = self._buffer.lstrip()
        if _END.startswith(bare):
            return False
        self._buffer = bare.removeprefix(_END)
        if self._buffer:
            self._give_up(pieces)
        return True

    def _give_up(self, pieces: list[Piece]) -> None:
        """No further call: the rest is content, as it comes."""
        if self._raw or self._buffer:
            pieces.append(Content(self._raw + self._buffer))
        self._raw = self._buffer = ""
        self._state = "plain"


class _Scan:
    """Finds where a call ends: at the bracket that closes its first one."""

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._quote = ""

    def feed(self, text: str) -> int | None:
        """Length of the call at the beginning of the text; None as long as it has not ended.

        The text is what was fed before, and more.
        """
        while self._at < len(text):
            character = text[self._at]
            if self._quote:
                if character == "\\":
                    if self._at + 1 >= len(text):
                        return None
                    self._at += 1
                elif character == self._quote:
                    self._quote = ""
            elif character in "'\"":
                self._quote = character
            elif character in "([{":
                self._depth += 1
            elif character in ")]}":
                self._depth -= 1
                if self._depth <= 0:
                    self._at += 1
                    return self._at
            self._at += 1
        return None


def _read(text: str) -> tuple[str, str] | None:
    """Name and arguments of one call, as JSON; None where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes, which are the model's
            node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call) or node.args:
            return None
        arguments: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                return None
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        return ast.unparse(node.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
