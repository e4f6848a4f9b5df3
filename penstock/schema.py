"""JSON Schemas of what crosses Redis, made from the message types: `python -m penstock.schema [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from penstock.messages import Event, Job

DIALECT = "https://json-schema.org/draft/2020-12/schema"


_INPUTS = (
    ("prompt", "string", "minLength"),
    ("messages", "array", "minItems"),
    ("prompt_token_ids", "array", "minItems"),
)

_MESSAGES = [
    {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
    {"required": ["tool_calls"], "properties": {"tool_calls": {"type": "array", "minItems": 1}}},
    {
        "required": ["reasoning"],
        "properties": {"role": {"const": "assistant"}, "reasoning": {"type": "string"}},
    },
]
"""A message has content, or calls tools, or is an assistant's thoughts."""


def _given(job: dict[str, Any], name: str, kind: str, least: str) -> dict[str, Any]:
    """The condition that this field is given; and where it is given, it is not empty."""
    job["properties"][name]["anyOf"][0][least] = 1
    return {"required": [name], "properties": {name: {"type": kind}}}


def job_schema() -> dict[str, Any]:
    """Schema of the field `job`.

    What is beyond it: a job's JSON has a limit in bytes, the rules between two fields that docs/wire.md
    names, and what depends on the model.
    """
    schema = msgspec.json.schema(Job)
    job = schema["$defs"]["Job"]
    job["oneOf"] = [_given(job, *rule) for rule in _INPUTS]
    length = job["properties"]["truncate_prompt_tokens"]["anyOf"][0]
    length["not"] = {"const": 0}
    schema["$defs"]["Message"]["anyOf"] = _MESSAGES
    forms = schema["$defs"]["StructuredOutputs"]
    given = [
        {"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in forms["properties"]
    ]
    forms["oneOf"] = given
    return {"$schema": DIALECT, "title": "penstock job", **schema}


def event_schema() -> dict[str, Any]:
    """Schema of the field `event`. Newer consumers may add fields: readers ignore what they don't know."""
    return {"$schema": DIALECT, "title": "penstock event", **msgspec.json.schema(Event)}


def schemas() -> dict[str, str]:
    """File name to text, for every schema."""
    made = {"job.schema.json": job_schema(), "event.schema.json": event_schema()}
    return {
        name: msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"
        for name, schema in made.items()
    }


def main(folder: str = "docs/schemas") -> None:
    """Write the schemas."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (path / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
