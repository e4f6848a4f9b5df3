"""Tool calls as Qwen3-Coder writes them: tags for the function and for each parameter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from producer.gateway.openai.parsers.parser import first_of, held
from producer.gateway.openai.parsers.pieces import CallArguments, CallStart, Content, Piece

_CALL: Final = "<tool_call>"
_FUNCTION: Final = "<function="
_PARAMETER: Final = "<parameter="
_VALUE_END: Final = "</parameter>"
_ENDS: Final = ("</function>", "</tool_call>")
_NAME: Final = re.compile(r"[^<>\s]{1,256}")

State = Literal["text", "call", "name", "parameters", "parameter", "value", "after"]


class Qwen3Coder:
    """`<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>`.

    A value is written bare, and becomes what the tool's schema says it is: a string unless it is declared as
    something else that the text is. Arguments come parameter by parameter.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._schemas = {tool["function"]["name"]: _properties(tool["function"]) for tool in tools}
        self._state: State = "text"
        self._buffer = ""
        self._raw = ""
        self._name = ""
        self._key = ""
        self._num_arguments = 0

    def feed(self, text: str) -> list[Piece]:
        """See `Parser.feed`."""
        self._buffer += text
        pieces: list[Piece] = []
        while self._buffer and self._advance(pieces):
            pass
        return pieces

    def end(self) -> list[Piece]:
        """See `Parser.end`."""
        left = self._raw + self._buffer if self._state in ("text", "call", "name") else ""
        self._buffer = self._raw = ""
        return [Content(left)] if left else []

    def _advance(self, pieces: list[Piece]) -> bool:
        match self._state:
            case "text":
                return self._read_text(pieces)
            case "call":
                return self._read_call(pieces)
            case "name":
                return self._read_name(pieces)
            case "parameters":
                return self._read_parameters(pieces)
            case "parameter":
                return self._read_key()
            case "value":
                return self._read_value(pieces)
            case "after":
                return self._read_after()

    def _read_text(self, pieces: list[Piece]) -> bool:
        markers = (_CALL, _FUNCTION)
        found = first_of(markers, self._buffer)
        if found is None:
            keep = len(self._buffer) - held(markers, self._buffer)
            if keep:
                pieces.append(Content(self._take(keep)))
            return False
        at, marker = found
        if text := self._buffer[:at].rstrip():
            pieces.append(Content(self._take(len(text))))
        self._raw = self._take(at - len(text) + len(marker))
        self._state = "call" if marker == _CALL else "name"
        return True

    def _read_call(self, pieces: list[Piece]) -> bool:
        bare = self._buffer.lstrip()
        self._raw += self._take(len(self._buffer) - len(bare))
        if bare.startswith(_FUNCTION):
            self._raw += self._take(len(_FUNCTION))
            self._state = "name"
        elif _FUNCTION.startswith(bare):
            return False
        else:
            self._give_up(pieces)
        return True

    def _read_name(self, pieces: list[Piece]) -> bool:
        end = self._buffer.find(">")
        name = self._buffer if end < 0 else self._buffer[:end]
        if end < 0 and (not name or _NAME.fullmatch(name)):
            return False
        if end < 0 or not _NAME.fullmatch(name):
            self._give_up(pieces)
            return True
        self._take(end + 1)
        self._name, self._raw, self._num_arguments = name, "", 0
        self._state = "parameters"
        pieces.append(CallStart(name))
        return True

    def _read_parameters(self, pieces: list[Piece]) -> bool:
        """Between parameters; what is neither one nor the end of them is passed over."""
        markers = (_PARAMETER, *_ENDS)
        found = first_of(markers, self._buffer)
        if found is None:
            self._take(len(self._buffer) - held(markers, self._buffer))
            return False
        at, marker = found
        self._take(at + len(marker))
        if marker == _PARAMETER:
            self._state = "parameter"
        else:
            pieces.append(CallArguments("}" if self._num_arguments else "{}"))
            self._state = "after"
        return True

    def _read_key(self) -> bool:
        end = self._buffer.find(">")
        if end < 0:
            return False
        self._key = self._take(end + 1)[:-1].strip()
        self._state = "value"
        return True

    def _read_value(self, pieces: list[Piece]) -> bool:
        end = self._buffer.find(_VALUE_END)
        if end < 0:
            return False
        value = self._take(end).removeprefix("\n").removesuffix("\n")
        self._take(len(_VALUE_END))
        written = _as_json(value, self._schemas.get(self._name, {}).get(self._key))
        before = ", " if self._num_arguments else "{"
        pieces.append(CallArguments(f"{before}{json.dumps(self._key, ensure_ascii=False)}: {written}"))
        self._num_arguments += 1
        self._state = "parameters"
        return True

    def _read_after(self) -> bool:
        self._buffer = self._buffer.lstrip()
        found = next((end for end in _ENDS if self._buffer.startswith(end)), None)
        if found is not None:
            self._take(len(found))
            return True
        if any(marker.startswith(self._buffer) for marker in (*_ENDS, _CALL, _FUNCTION)):
            return False
        self._state = "text"
        return True

    def _give_up(self, pieces: list[Piece]) -> None:
        pieces.append(Content(self._raw))
        self._raw = ""
        self._state = "text"

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken


def _properties(function: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = (function.get("parameters") or {}).get("properties")
    return properties if isinstance(properties, dict) else {}


def _as_json(value: str, schema: Any) -> str:
    """A bare value as JSON: what its schema declares, if the text can be read as such; else a string."""
    declared = schema.get("type", "any") if isinstance(schema, dict) else "any"
    kinds = declared if isinstance(declared, list) else [declared]
    if "string" not in kinds or (value == "null" and "null" in kinds):
        try:
            found = json.loads(value.lower() if value in ("True", "False", "None") else value)
        except ValueError:
            return "null" if value == "None" and kinds != ["any"] else json.dumps(value, ensure_ascii=False)
        return json.dumps(found, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)
