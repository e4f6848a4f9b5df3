"""JSON schemas for grammar tests: two files written by hand, and any number from a seeded generator."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PATTERNS = (
    "^[a-z]+$",
    "^[A-Z]{2}[0-9]{4}$",
    r"^\d{1,3}(\.\d{1,3}){3}$",
    "x[0-9]",
    "^(red|green|blue)-[0-9]+$",
    r"^\w+@\w+\.(org|net)$",
    "^[äöü]{2,5}$",
)
FORMATS = ("date", "time", "date-time", "email", "uuid", "ipv4", "hostname", "duration", "uri")
NAMES = ("id", "name", "größe", "a b", "x-y", "日本", "value", 'quo"te', "tags", "n")


def accepted_schemas() -> dict[str, Any]:
    """By name: nested, recursive, overlapping and otherwise odd ones that the compiler knows."""
    return json.loads((FOLDER / "accepted.json").read_text(encoding="utf-8"))


def refused_schemas() -> dict[str, dict[str, Any]]:
    """By name, `schema` and what is in the `words` of its refusal: contradictions, nonsense, and keywords
    that the compiler does not know."""
    return json.loads((FOLDER / "refused.json").read_text(encoding="utf-8"))


def generated_schema(seed: int) -> dict[str, Any]:
    """One of unlimited many; the same for the same seed."""
    rng = random.Random(seed)
    schema = _schema(rng, depth=rng.randint(0, 3))
    if rng.random() < 0.3:
        inner = schema
        schema = _object(rng, 1)
        schema["$defs"] = {"inner": inner}
        schema["properties"]["ref"] = {"$ref": "#/$defs/inner"}
        schema["required"] = [*schema.get("required", []), "ref"]
    return schema


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    leaves = (_string, _integer, _number, _choice, _plain)
    branches = (_object, _object, _array, _array, _combined)
    return rng.choice(branches)(rng, depth) if depth > 0 else rng.choice(leaves)(rng)


def _string(rng: random.Random) -> dict[str, Any]:
    kind = rng.choice(("free", "length", "pattern", "format"))
    if kind == "length":
        low = rng.randint(0, 8)
        return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 20)}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(PATTERNS)}
    if kind == "format":
        return {"type": "string", "format": rng.choice(FORMATS)}
    return {"type": "string"}


def _integer(rng: random.Random) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    low = rng.randint(-1000, 1000)
    if rng.random() < 0.7:
        schema[rng.choice(("minimum", "exclusiveMinimum"))] = low
    if rng.random() < 0.7:
        schema[rng.choice(("maximum", "exclusiveMaximum"))] = low + rng.randint(5, 100_000)
    if rng.random() < 0.3:
        schema["multipleOf"] = rng.choice((2, 3, 5, 10))
    return schema


def _number(rng: random.Random) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "number"}
    low = round(rng.uniform(-100, 100), rng.randint(0, 3))
    if rng.random() < 0.7:
        schema[rng.choice(("minimum", "exclusiveMinimum"))] = low
    if rng.random() < 0.7:
        schema[rng.choice(("maximum", "exclusiveMaximum"))] = round(low + rng.uniform(1, 1000), 2)
    if rng.random() < 0.2:
        schema["multipleOf"] = rng.choice((0.5, 0.25, 0.01))
    return schema


def _choice(rng: random.Random) -> dict[str, Any]:
    values = ["a", "ab", 'q"\\', "日本語", 1, -2.5, True, None, [], {}, [1, "x"], {"k": "v"}]
    if rng.random() < 0.3:
        return {"const": rng.choice(values)}
    return {"enum": rng.sample(values, rng.randint(1, 6))}


def _plain(rng: random.Random) -> dict[str, Any]:
    return {"type": rng.choice(("boolean", "null", ["string", "null"], ["integer", "boolean"]))}


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(0, 5))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
    }
    extra = rng.random()
    if extra < 0.6:
        schema["additionalProperties"] = False
    elif extra < 0.8:
        schema["additionalProperties"] = _schema(rng, 0)
    return schema


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": _schema(rng, depth - 1)}
    low = rng.randint(0, 3)
    if rng.random() < 0.5:
        schema["minItems"] = low
    if rng.random() < 0.7:
        schema["maxItems"] = low + rng.randint(0, 4)
    if rng.random() < 0.3:
        schema["prefixItems"] = [_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    return schema


def _combined(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.choice(("anyOf", "oneOf", "allOf"))
    if kind == "allOf":
        return {"allOf": [_integer(rng), {"type": ["integer", "string"]}]}
    parts = [_string(rng), _integer(rng), _object(rng, depth - 1), {"type": "null"}]
    return {kind: rng.sample(parts, rng.randint(2, 4))}
