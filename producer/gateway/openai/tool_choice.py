"""Which tools the model is told of, and how it is made to call them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from penstock.chat import Tool
from penstock.sampling import StructuredOutputs
from producer.gateway.errors import BadRequest
from producer.gateway.openai.chat_request import ChatRequest, NamedTool
from producer.gateway.openai.dialect import Dialect
from producer.gateway.openai.parameters import structured_outputs_of


class Choice(Struct, frozen=True, kw_only=True):
    """What `tools` and `tool_choice` come to."""

    tools: list[Tool] = []
    """For the chat template."""
    calls: Literal["none", "dialect", "array", "named"] = "none"
    """See `ChatForm`."""
    named: str = ""
    structured_outputs: StructuredOutputs | None = None
    """What enforces the choice."""


def choose(request: ChatRequest, dialect: Dialect | None) -> Choice:
    """Read a request's `tools` and `tool_choice`.

    `required` and a named tool are enforced by a schema for the whole output, whatever the model's own way of
    writing calls is: an array of calls, or the arguments alone.

    Raises:
        BadRequest: the choice is among no tools, or can't be kept.
    """
    tools, choice = request.tools or [], request.tool_choice
    if not tools:
        if choice not in (None, "none"):
            words = "'tool_choice' is only allowed when 'tools' are specified"
            raise BadRequest(words, param="tool_choice", code="invalid_value")
        return Choice()
    if choice == "none":
        return Choice()
    if structured_outputs_of(request) is not None:
        raise BadRequest(
            "'tools' can't be combined with a 'response_format' or structured outputs: a model that is held "
            "to a form from its first token calls no tools. Leave one of them out, or say tool_choice 'none'",
            param="tools",
            code="invalid_value",
        )
    if isinstance(choice, NamedTool):
        return _named(tools, choice)
    if choice == "required":
        most = 1 if request.parallel_tool_calls is False else None
        return Choice(tools=tools, calls="array", structured_outputs=_array(tools, most))
    if dialect is not None and dialect.tool_format is None:
        raise BadRequest(
            f"it is not known how the model '{request.model}' writes tool calls; tool_choice 'required' or a "
            "named tool works with any model",
            param="tools",
            code="tools_unsupported",
        )
    return Choice(tools=tools, calls="dialect")


def as_dicts(tools: list[Tool]) -> list[dict[str, Any]]:
    """Tools as a parser reads them."""
    return msgspec.to_builtins(tools)


def _named(tools: list[Tool], choice: NamedTool) -> Choice:
    name = choice.function.name
    tool = next((tool for tool in tools if tool.function.name == name), None)
    if tool is None:
        raise BadRequest(
            f"Tool choice '{name}' not found in 'tools' parameter",
            param="tool_choice",
            code="invalid_value",
        )
    schema = StructuredOutputs(json=_parameters(tool))
    return Choice(tools=tools, calls="named", named=name, structured_outputs=schema)


def _array(tools: list[Tool], most: int | None) -> StructuredOutputs:
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "parameters": _moved(_parameters(tool), f"#/items/anyOf/{number}/properties/parameters"),
            },
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for number, tool in enumerate(tools)
    ]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if most is not None:
        schema["maxItems"] = most
    return StructuredOutputs(json=schema)


def _parameters(tool: Tool) -> dict[str, Any]:
    """A schema of the tool's arguments, which are an object."""
    return tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def _moved(schema: Any, root: str) -> Any:
    """A schema whose root is now at this place of another: its references into itself follow it there."""
    if isinstance(schema, list):
        return [_moved(one, root) for one in schema]  # pyright: ignore[reportUnknownVariableType] - JSON
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(value, root) for name, value in schema.items()}
    target = moved.get("$ref")
    if isinstance(target, str) and (target == "#" or target.startswith("#/")):
        moved["$ref"] = root + target[1:]
    return moved
