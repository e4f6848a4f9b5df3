"""The formats in which models write tool calls, by the names that consumers give them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from producer.gateway.openai.parsers.json_calls import JsonCalls
from producer.gateway.openai.parsers.parser import Parser
from producer.gateway.openai.parsers.pieces import CallArguments, CallStart, Piece
from producer.gateway.openai.parsers.pythonic import Pythonic
from producer.gateway.openai.parsers.qwen3_coder import Qwen3Coder


class Hermes(JsonCalls):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, one after another: Hermes, Qwen 2.5 and 3."""

    STARTS: ClassVar = ("<tool_call>",)
    ENDS: ClassVar = ("</tool_call>",)


class Llama3Json(JsonCalls):
    """The whole text is `{"name": …, "parameters": {…}}`, or several with `;` between: Llama 3.1 and 3.2."""

    NOISE: ClassVar = ("<|python_tag|>",)


class Mistral(JsonCalls):
    """`[TOOL_CALLS]` and an array of objects, or `[TOOL_CALLS]name{…}` for each call in later models."""

    STARTS: ClassVar = ("[TOOL_CALLS]",)
    HEADER: ClassVar = re.compile(r"\s*([\w.\-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*")


class Granite(JsonCalls):
    """`<|tool_call|>` or `<tool_call>` and an array of objects: Granite 3."""

    STARTS: ClassVar = ("<|tool_call|>", "<tool_call>")
    ENDS: ClassVar = ("</tool_call>",)


def _mark(*words: str) -> str:
    """One of DeepSeek's special tokens, which are written with a bar and an underline of their own."""
    return f"<\uff5c{chr(0x2581).join(('tool', *words))}\uff5c>"


class DeepseekV3(JsonCalls):
    """Calls between markers of their own; V3 and R1 write the arguments as a code block, V3.1 as they are."""

    STARTS: ClassVar = (_mark("call", "begin"),)
    NOISE: ClassVar = (_mark("calls", "begin"),)
    ENDS: ClassVar = ("```", _mark("call", "end"), _mark("calls", "end"))
    HEADER: ClassVar = re.compile(
        rf"\s*(?:function{_mark('sep')}([^\s<]+)\s*```json\s*|([^\s<]+){_mark('sep')}\s*)"
    )


class Enforced(JsonCalls):
    """The whole text is an array of objects, as `tool_choice: required` has it written."""


class Named:
    """The whole text is the arguments of one tool, as its schema makes any model write."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def feed(self, text: str) -> list[Piece]:
        """See `Parser.feed`."""
        if not text:
            return []
        start: list[Piece] = [] if self._begun else [CallStart(self._name)]
        self._begun = True
        return [*start, CallArguments(text)]

    def end(self) -> list[Piece]:
        """See `Parser.end`."""
        return []


Tools = Sequence[Mapping[str, Any]]
"""As requests have them: `{"type": "function", "function": {name, parameters}}`."""

FORMATS: Final[dict[str, Callable[[Tools], Parser]]] = {
    "hermes": lambda _: Hermes(),
    "llama3_json": lambda _: Llama3Json(),
    "mistral": lambda _: Mistral(),
    "granite": lambda _: Granite(),
    "deepseek_v3": lambda _: DeepseekV3(),
    "qwen3_coder": Qwen3Coder,
    "pythonic": lambda _: Pythonic(),
}
