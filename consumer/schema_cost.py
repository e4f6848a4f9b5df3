"""How long checking an output against a JSON schema may take, told beforehand.

Schemas that refer to others twice double at every step: forty lines can ask for 2^40 visits, and whatever
checks them holds the interpreter's lock all the while. Here the visits are counted without making them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

_SAME_LIST: Final = ("allOf", "anyOf", "oneOf")
_SAME_ONE: Final = ("not", "if", "then", "else")
_EACH_MEMBER: Final = ("additionalProperties", "unevaluatedProperties", "propertyNames")
_EACH_ITEM: Final = ("items", "additionalItems", "unevaluatedItems", "contains")
_MAX_DEPTH: Final = 200


class CostUnknown(Exception):
    """The schema refers to others in ways that are not followed here, or too deeply."""


def worst_case_visits(schema: Any, instance: Any, limit: int) -> int:
    """Pairs of schema and value that a checker visits which never stops early: exact up to `limit`.

    Each pair is counted once and its count used again, so that the time taken grows with the product of both
    sizes at most; CostUnknown is raised where that, too, passes the limit.
    """
    return _Counting(schema, limit).visits(schema, instance, 0)


class _Counting:
    def __init__(self, root: Any, limit: int) -> None:
        self._root = root
        self._limit = limit
        self._known: dict[tuple[int, int], int] = {}

    def visits(self, schema: Any, value: Any, depth: int) -> int:
        if not isinstance(schema, dict):
            return 1
        pair = (id(schema), id(value))
        if pair in self._known:
            return self._known[pair]
        if depth > _MAX_DEPTH or len(self._known) > self._limit:
            raise CostUnknown
        self._known[pair] = 1  # while it is counted: a schema that is itself adds nothing
        total = 1
        for child, part in self._children(cast(dict[str, Any], schema), value):
            total += self.visits(child, part, depth + 1)
        self._known[pair] = min(total, self._limit + 1)
        return self._known[pair]

    def _children(self, schema: dict[str, Any], value: Any) -> Iterator[tuple[Any, Any]]:
        if "$dynamicRef" in schema or "$recursiveRef" in schema:
            raise CostUnknown
        if "$id" in schema and schema is not self._root:  # references below it are relative to it
            raise CostUnknown
        yield from ((child, value) for key in _SAME_LIST for child in _list(schema.get(key)))
        yield from ((schema[key], value) for key in _SAME_ONE if key in schema)
        for key in ("dependentSchemas", "dependencies"):
            yield from ((child, value) for child in _dict(schema.get(key)).values())
        if "$ref" in schema:
            yield self._target(schema["$ref"]), value
        if isinstance(value, dict):
            yield from _of_members(schema, cast(dict[str, Any], value))
        elif isinstance(value, list):
            yield from _of_items(schema, cast(list[Any], value))

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or "%" in reference:
            raise CostUnknown
        if reference == "#":
            return self._root
        if not reference.startswith("#/"):
            raise CostUnknown
        found = self._root
        for part in reference[2:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = cast(dict[str, Any], found)[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(cast(list[Any], found)):
                found = cast(list[Any], found)[int(key)]
            else:
                raise CostUnknown
        return found


def _of_members(schema: dict[str, Any], value: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    properties = _dict(schema.get("properties"))
    patterns = list(_dict(schema.get("patternProperties")).values())
    others = [schema[key] for key in _EACH_MEMBER if key in schema]
    for name, member in value.items():
        if name in properties:
            yield properties[name], member
        yield from ((child, member) for child in (*patterns, *others))


def _of_items(schema: dict[str, Any], value: list[Any]) -> Iterator[tuple[Any, Any]]:
    every = [schema[key] for key in _EACH_ITEM if isinstance(schema.get(key), dict)]
    for key in ("prefixItems", "items"):
        yield from zip(_list(schema.get(key)), value, strict=False)
    yield from ((child, item) for item in value for child in every)


def _dict(found: Any) -> dict[str, Any]:
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}


def _list(found: Any) -> list[Any]:
    return cast(list[Any], found) if isinstance(found, list) else []
