"""What would be right for a field, in words, for the one who is told that its value is not."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec.inspect
from msgspec import Struct

_BROKEN: Final = re.compile(
    r"Expected `(?P<kind>\w+)`(?: of length)? [<>]=? [^ ]+ - at (?P<key>`key` in )?`(?P<path>\$[^`]*)`"
)
"""msgspec's words for a value beyond one bound; those name neither the other bound nor a union's members."""
_NO_MEMBER: Final = re.compile(r"Invalid enum value .* - at `(?P<path>\$[^`]*)`", re.DOTALL)
"""Its words for a value that is none of those listed; they don't list them."""
_STEP: Final = re.compile(r"\.(\w+)|\[")
_KINDS: Final[dict[str, type]] = {
    "int": msgspec.inspect.IntType,
    "float": msgspec.inspect.FloatType,
    "str": msgspec.inspect.StrType,
    "array": msgspec.inspect.ListType,
    "object": msgspec.inspect.DictType,
}


def right_words(struct: type[Struct], message: str) -> str | None:
    """The whole range, or all values, of the field of `struct` that `message`, one of msgspec's, is about.

    None where the message is about something else.
    """
    match = _NO_MEMBER.fullmatch(message)
    if match is not None:
        (member,) = _of_kind(_at(struct, match["path"]), msgspec.inspect.LiteralType)
        return f"it is one of: {', '.join(map(str, member.values))}"
    match = _BROKEN.fullmatch(message)
    return None if match is None else f"its range: {_range(struct, match)}"


def _at(struct: type[Struct], path: str) -> Any:
    found: Any = msgspec.inspect.type_info(struct)
    for step in _STEP.finditer(path):
        found = _into(found, step[1])
    return found


def _range(struct: type[Struct], match: re.Match[str]) -> str:
    found = _at(struct, match["path"])
    if match["key"]:
        found = next(iter(_of_kind(found, msgspec.inspect.DictType))).key_type
    member = next(iter(_of_kind(found, _KINDS[match["kind"]])))
    if match["kind"] in ("int", "float"):
        return _between(member.gt, member.ge, member.le)
    unit = "characters" if match["kind"] == "str" else "entries"
    return f"{_between(None, member.min_length, member.max_length)} {unit}"


def _into(found: Any, name: str | None) -> Any:
    """The type of a field, or, where no name is given, of a list's items or an object's values."""
    if name is not None:
        (holder,) = _of_kind(found, msgspec.inspect.StructType)
        return next(field.type for field in holder.fields if field.encode_name == name)
    for member in _of_kind(found, msgspec.inspect.ListType):
        return member.item_type
    (holder,) = _of_kind(found, msgspec.inspect.DictType)
    return holder.value_type


def _of_kind(found: Any, kind: type) -> list[Any]:
    members = found.types if isinstance(found, msgspec.inspect.UnionType) else (found,)
    return [member for member in members if isinstance(member, kind)]


def _between(above: Any, least: Any, most: Any) -> str:
    if least is not None and most is not None:
        return f"from {_number(least)} to {_number(most)}"
    lower = f"above {_number(above)}" if above is not None else None
    lower = f"{_number(least)} or more" if least is not None else lower
    upper = f"at most {_number(most)}" if most is not None else None
    return " and ".join(words for words in (lower, upper) if words is not None)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
