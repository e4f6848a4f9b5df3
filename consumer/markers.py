"""What marks reasoning and tool calls in a model's outputs, as its chat template tells.

Nothing states it: a template writes earlier calls and thoughts as the model would, or tells the model how to
write them, and that is looked for. Formats have the names that vLLM's tool parsers have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, Literal

from msgspec import Struct

from consumer.chat_template import ChatTemplate
from consumer.tokenizer import PromptTokenizer
from penstock.errors import InvalidJob
from penstock.messages import Job, Message, ReasoningMarkers

ToolFormatFlag = Literal[
    "auto",
    "none",
    "hermes",
    "llama3_json",
    "mistral",
    "qwen3_coder",
    "granite",
    "deepseek_v3",
    "pythonic",
]
ReasoningFormatFlag = Literal["auto", "none", "think", "mistral"]


class _ToolFormat(Struct, frozen=True):
    written: str
    """A regular expression that is found in templates of the format."""
    tokens: tuple[str, ...] = ()
    """Those of its markers that are tokens of their own, special ones perhaps."""


_BAR: Final = "\N{FULLWIDTH VERTICAL LINE}"
_DEEPSEEK: Final = tuple(
    f"<{_BAR}tool▁{name}{_BAR}>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")
)

_TOOL_FORMATS: Final = {
    "deepseek_v3": _ToolFormat(_DEEPSEEK[0], _DEEPSEEK),
    "mistral": _ToolFormat(r"\[TOOL_CALLS\]", ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")),
    # Its calls stand between hermes' markers, so it comes before that.
    "qwen3_coder": _ToolFormat("<function=(?s:.*)<parameter=", ("<tool_call>", "</tool_call>")),
    "granite": _ToolFormat(r"<\|tool_call\|>", ("<|tool_call|>",)),
    "hermes": _ToolFormat("<tool_call>", ("<tool_call>", "</tool_call>")),
    "pythonic": _ToolFormat(r"\[\s*func\w*\(", ("<|python_start|>", "<|python_end|>")),
    "llama3_json": _ToolFormat(
        r"<\|python_tag\|>|\{\\?\"name\\?\":[^{}\"]{0,40},\s*\\?\"parameters\\?\":", ("<|python_tag|>",)
    ),
}
"""In the order in which they are looked for."""

_REASONING: Final = {"think": ("<think>", "</think>"), "mistral": ("[THINK]", "[/THINK]")}


class OutputMarkers(Struct, frozen=True, kw_only=True):
    """How a model marks what is no answer, and which special tokens stay in its text for that."""

    tool_format: str | None = None
    reasoning: ReasoningMarkers | None = None
    reasoning_ids: tuple[int, int] | None = None
    """The start marker's and the end marker's token, where each is one."""
    dropped_ids: frozenset[int] | None = None
    """Special tokens to leave out of a text without special tokens; None: all of them."""
    dropped_with_tools: frozenset[int] | None = None
    """The same for a job with tools."""

    @classmethod
    def find(
        cls,
        tokenizer: PromptTokenizer,
        tool_format: ToolFormatFlag = "auto",
        reasoning_format: ReasoningFormatFlag = "auto",
    ) -> OutputMarkers:
        """Those of the model; where a format is named, or `none`, that is believed instead."""
        template = tokenizer.template
        tools = _tool_format(template) if tool_format == "auto" else _named(tool_format)
        form = _reasoning_format(template) if reasoning_format == "auto" else _named(reasoning_format)
        pair = _REASONING[form] if form is not None else None
        whole: Any = tokenizer.tokenizer
        kept = set(_ids(whole, pair or ()))
        of_calls = _ids(whole, _TOOL_FORMATS[tools].tokens if tools is not None else ())
        special = {id for id, token in whole.get_added_tokens_decoder().items() if token.special}
        return cls(
            tool_format=tools,
            reasoning=_reasoning(template, pair),
            reasoning_ids=_both(whole, pair),
            dropped_ids=_dropped(special, kept),
            dropped_with_tools=_dropped(special, kept | set(of_calls)),
        )

    def dropped(self, job: Job) -> frozenset[int] | None:
        """Special tokens that this job's text leaves out, where it leaves out any; None: all of them."""
        return self.dropped_with_tools if job.tools else self.dropped_ids


def _named(flag: str) -> str | None:
    return None if flag == "none" else flag


def _tool_format(template: ChatTemplate | None) -> str | None:
    if template is None or not template.takes("tools"):
        return None
    found = (name for name, form in _TOOL_FORMATS.items() if re.search(form.written, template.source))
    return next(found, None)


def _reasoning_format(template: ChatTemplate | None) -> str | None:
    source = template.source if template is not None else ""
    found = (name for name, pair in _REASONING.items() if any(marker in source for marker in pair))
    return next(found, None)


def _reasoning(template: ChatTemplate | None, pair: tuple[str, str] | None) -> ReasoningMarkers | None:
    if pair is None:
        return None
    return ReasoningMarkers(start=pair[0], end=pair[1], opened=_opens(template, pair[0]))


def _opens(template: ChatTemplate | None, start: str) -> bool:
    """Whether what the template writes before an answer ends with the start marker."""
    if template is None:
        return False
    try:
        prompt = template.render(Job(messages=[Message(role="user", content="Hello")]))
    except InvalidJob:  # it wants more than that
        return False
    return prompt.rstrip().endswith(start)


def _ids(tokenizer: Any, markers: Iterable[str]) -> list[int]:
    """Of the markers that are one token each, these."""
    return [id for marker in markers if (id := tokenizer.token_to_id(marker)) is not None]


def _both(tokenizer: Any, pair: tuple[str, str] | None) -> tuple[int, int] | None:
    match _ids(tokenizer, pair or ()):
        case [start, end]:
            return start, end
        case _:
            return None


def _dropped(special: set[int], kept: set[int]) -> frozenset[int] | None:
    return frozenset(special - kept) if special & kept else None
