"""Chat messages and tools, as a model's chat template renders them. Field names are OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from penstock.errors import InvalidJob

TOOL_NAME_PATTERN: Final = r"^[a-zA-Z0-9_-]{1,64}$(?!\n)"  # to Python, `$` also is before a last newline
ToolName = Annotated[str, Meta(pattern=TOOL_NAME_PATTERN)]


class TextPart(Struct, frozen=True, forbid_unknown_fields=True):
    """One text part of a chat message's content."""

    text: str
    type: Literal["text"] = "text"


class FunctionCall(Struct, frozen=True, forbid_unknown_fields=True):
    """Which function the model called, and with what: free text, as models may write anything."""

    name: str
    arguments: str
    """JSON, in most cases; a template is given the object where it is one."""


class ToolCall(Struct, frozen=True, forbid_unknown_fields=True):
    """One call that an assistant's message made."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One chat message, rendered by the model's chat template.

    Only a message with `tool_calls`, or an assistant's with `reasoning`, may have no `content`.
    """

    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str | list[TextPart] | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=1024)] | None = None
    tool_call_id: str | None = None
    """Of a `tool` message: the call that it answers."""
    reasoning: str | None = None
    """What an assistant thought before its `content`; templates get it as `reasoning_content` as well."""

    def __post_init__(self) -> None:
        if self.content is not None or self.tool_calls:
            return
        if self.role != "assistant" or self.reasoning is None:
            raise InvalidJob(
                f"a message of role `{self.role[:64]}` has no `content`; only one with `tool_calls`, or an "
                "assistant's with `reasoning`, may have none"
            )

    @property
    def text(self) -> str:
        """The content as one text; empty where there is none."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


class FunctionDefinition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of its arguments."""
    strict: bool | None = None


class Tool(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the tools that the chat template tells the model of."""

    type: Literal["function"] = "function"
    function: FunctionDefinition
