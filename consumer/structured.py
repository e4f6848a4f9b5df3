"""Structured output on the consumer's side: what the engine's grammar is, and whether finished text fits it.

The engine's masks allow nothing else; checking again what comes out catches what they cannot know (two
branches of a `oneOf` at once, a keyword that was to be ignored), and any fault in them.

JSON is checked by jsonschema-rs: ten times and more as fast as jsonschema, exact in decimals, with regular
expressions that take linear time, and it fetches nothing. Regular expressions are checked by the grammar
compiler itself, whose syntax no other library shares to the letter. A Lark grammar is not checked again.
"""

from __future__ import annotations

import decimal
import json
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

import jsonschema_rs
import msgspec
from llguidance import LLMatcher, LLTokenizer

from consumer.schema_cost import CostUnknown, worst_case_visits
from engine.request import Grammar
from penstock.errors import InvalidJob
from penstock.messages import StructuredOutputs

MAX_SCHEMA_CHARS: Final = 256 * 1024
MAX_LARK_CHARS: Final = 64 * 1024
MAX_REGEX_CHARS: Final = 64 * 1024
MAX_VISITS: Final = 200_000
"""Of schemas on parts of an output: a check that may take more, a tenth of a second or so, is left out."""
MAX_WORDS: Final = 500

_REGEX_SPECIAL: Final = str.maketrans({char: f"\\{char}" for char in "\\.+*?()|[]{}^$"})


def grammar_of(structured_outputs: StructuredOutputs) -> Grammar:
    """What the engine is asked for.

    Raises:
        InvalidJob: the text is too long, or allows nothing.
    """
    match structured_outputs:
        case StructuredOutputs(json=False):
            raise InvalidJob("`structured_outputs.json` is false: no output matches that")
        case StructuredOutputs(json=None, json_object=True):
            text = '{"type":"object"}'
            kind, name, limit = "json_schema", "json_object", MAX_SCHEMA_CHARS
        case StructuredOutputs(json=dict() | True as schema):
            text = _schema_text(schema)
            kind, name, limit = "json_schema", "json", MAX_SCHEMA_CHARS
        case StructuredOutputs(regex=str() as text):
            kind, name, limit = "regex", "regex", MAX_REGEX_CHARS
        case StructuredOutputs(choice=list() as choices):
            text = "|".join(choice.translate(_REGEX_SPECIAL) for choice in choices)
            kind, name, limit = "regex", "choice", MAX_SCHEMA_CHARS
        case _:
            assert structured_outputs.grammar is not None
            text = structured_outputs.grammar
            kind, name, limit = "lark", "grammar", MAX_LARK_CHARS
    if len(text) > limit:
        raise InvalidJob(f"`structured_outputs.{name}` has {len(text)} characters; at most {limit} are taken")
    return Grammar(kind=kind, text=text)


def validate(structured_outputs: StructuredOutputs, text: str) -> str | None:
    """Why a finished output is not what was asked for, in words; None if it is, or if that cannot be told.

    For outputs that have ended by themselves: one that a length or a stop string has cut is a part.
    """
    match structured_outputs:
        case StructuredOutputs(choice=list() as choices):
            return None if text in choices else f"{_short(text)} is none of the choices"
        case StructuredOutputs(regex=str() as regex):
            return _regex_mismatch(regex, text)
        case StructuredOutputs(json_object=True):
            return _json_mismatch('{"type":"object"}', text)
        case StructuredOutputs(json=dict() | bool() as schema):
            return _json_mismatch(_schema_text(schema), text)
        case _:
            return None


def _schema_text(schema: dict[str, Any] | bool) -> str:
    # True is the schema {}; the order of keys stays, as it is the order in which they are generated.
    return msgspec.json.encode({} if schema is True else schema).decode()


def _json_mismatch(schema_text: str, text: str) -> str | None:
    try:
        instance = json.loads(text, parse_float=_decimal, parse_int=_integer, parse_constant=_no_constant)
    except ValueError as error:
        return f"the output is not JSON: {error}"
    except RecursionError:
        return "the output is nested too deeply to be read"
    schema, validator = _validator(schema_text)
    if validator is None:
        return None
    try:
        if worst_case_visits(schema, instance, MAX_VISITS) > MAX_VISITS:
            return None
    except CostUnknown:
        return None
    try:
        validator.validate(instance)
    except jsonschema_rs.ValidationError as error:
        where = "".join(f"[{part!r}]" for part in error.instance_path)
        return f"the output does not match the schema{' at ' + where if where else ''}: {_cut(error.message)}"
    return None


@lru_cache(maxsize=64)
def _validator(schema_text: str) -> tuple[Any, jsonschema_rs.Validator | None]:
    """None in place of a validator that cannot be made: the engine has compiled the schema, so it is one of
    those where the two disagree (a pattern that only one of them can run)."""
    schema = json.loads(schema_text)
    try:
        return schema, jsonschema_rs.validator_for(
            schema, offline=True, pattern_options=jsonschema_rs.RegexOptions()
        )
    except (ValueError, jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError):
        return schema, None


@lru_cache(maxsize=64)
def _regex_matcher(regex: str) -> LLMatcher:
    return LLMatcher(_byte_tokens(), LLMatcher.grammar_from_regex(regex), log_level=0)


@lru_cache(maxsize=1)
def _byte_tokens() -> LLTokenizer:
    return LLTokenizer("byte")


def _regex_mismatch(regex: str, text: str) -> str | None:
    matcher = _regex_matcher(regex).deep_copy()
    if matcher.consume_tokens(list(text.encode())):
        matches = matcher.is_accepting()
    else:
        # Other words are of the compiler's limits: then nothing is known.
        matches = "doesn't satisfy the grammar" not in matcher.get_error()
    return None if matches else f"{_short(text)} does not match the regular expression"


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) < 1000 else Decimal(digits)  # Python refuses to read 4,300 digits


def _decimal(number: str) -> Decimal:
    try:
        return Decimal(number)
    except decimal.InvalidOperation:  # an exponent of 19 digits: JSON sets no limit
        tiny = "-" in number[1:]
        return Decimal(("-" if number[0] == "-" else "") + ("1e-999999" if tiny else "1e999999"))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _short(text: str) -> str:
    return _cut(repr(text))


def _cut(words: str) -> str:
    return words if len(words) <= MAX_WORDS else words[:MAX_WORDS] + " …"
