"""Request bodies: decoded, or refused in OpenAI's words with the name of the field that is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from producer.gateway.errors import BadRequest
from producer.gateway.openai.unsupported import reason_against

Body = TypeVar("Body", bound=Struct)

_PLACE: Final = re.compile(r"(?P<words>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>.*)`", re.DOTALL)
_LONGEST_WORDS: Final = 300
"""Characters of what a client sent that an error repeats."""


def read_body(data: bytes | Mapping[str, Any], kind: type[Body]) -> Body:
    """A request from its JSON, or from what a line of a batch has as `body`.

    Raises:
        BadRequest: it is not JSON, or breaks the type; `param` is the first field that does.
    """
    try:
        if isinstance(data, bytes):
            return msgspec.json.decode(data, type=kind)
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        words = f"We could not parse the JSON body of your request: {error}"
        raise BadRequest(words, code="invalid_json") from None
    except RecursionError:
        raise BadRequest("The JSON body of your request is nested too deeply", code="invalid_json") from None


def _refusal(message: str) -> BadRequest:
    match = _PLACE.fullmatch(message)
    assert match is not None, "both of its parts may be empty"
    words, path = match["words"], match["path"] or ""
    if found := _UNKNOWN.fullmatch(words):
        name = _joined(path, found["name"])
        return BadRequest(
            f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter"
        )
    if found := _MISSING.fullmatch(words):
        name = _joined(path, found["name"])
        return BadRequest(
            f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
        )
    if (reason := reason_against(path)) is not None:
        return BadRequest(f"'{path}' is not supported: {reason}", param=path, code="unsupported_parameter")
    words = words[:_LONGEST_WORDS]
    if not path:
        return BadRequest(f"Invalid request body: {words}", code="invalid_type")
    if ", got `" in words:
        return BadRequest(f"Invalid type for '{path}': {words}", param=path, code="invalid_type")
    return BadRequest(f"Invalid value for '{path}': {words}", param=path, code="invalid_value")


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}"[:_LONGEST_WORDS] if path else name[:_LONGEST_WORDS]
