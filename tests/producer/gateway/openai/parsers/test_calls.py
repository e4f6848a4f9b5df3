"""Tool calls in the formats of models, read whole and in any parts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.gateway.openai.parsers.formats import FORMATS, DeepseekV3, Enforced, Named
from producer.gateway.openai.parsers.parser import Parser
from producer.gateway.openai.parsers.pieces import CallArguments, CallStart
from tests.producer.gateway.openai.parsers.reading import answer_of, cut

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"type": "integer"}, "all": {}},
            },
        },
    }
]

BEGIN, END = DeepseekV3.STARTS[0], DeepseekV3.ENDS[1]
SEP = BEGIN.replace("call", "sep").replace("\N{LOWER ONE EIGHTH BLOCK}begin", "")
ALL, ALL_END = DeepseekV3.NOISE[0], DeepseekV3.ENDS[2]

ONE = [("look", '{"place": "Bonn", "days": 2}')]
TWO = [*ONE, ("think", "{}")]
CALL = '{"name": "look", "arguments": {"place": "Bonn", "days": 2}}'

EXAMPLES = {
    "hermes one": ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", ONE),
    "hermes two": (
        "hermes",
        f'I will look.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{{"name": "think"}}\n</tool_call>',
        "I will look.",
        TWO,
    ),
    "hermes with text behind": ("hermes", f"<tool_call>{CALL}</tool_call>\nDone.", "Done.", ONE),
    "hermes, arguments first": (
        "hermes",
        '<tool_call>{"arguments": {"place": "Bonn", "days": 2}, "name": "look"}</tool_call>',
        "",
        ONE,
    ),
    "hermes, brackets in strings": (
        "hermes",
        r'<tool_call>{"name": "look", "arguments": {"place": "}]\"</tool_call>{"}}</tool_call>',
        "",
        [("look", r'{"place": "}]\"</tool_call>{"}')],
    ),
    "hermes, arguments as a string": (
        "hermes",
        r'<tool_call>{"name": "look", "arguments": "{\"days\": 2}"}</tool_call>',
        "",
        [("look", '{"days": 2}')],
    ),
    "hermes, no call": ("hermes", "a <b> 1 < 2 <tool_cal", "a <b> 1 < 2 <tool_cal", []),
    "hermes, no name": (
        "hermes",
        'so: <tool_call>{"nome": "look"}</tool_call>',
        'so: <tool_call>{"nome": "look"}</tool_call>',
        [],
    ),
    "hermes, arguments that are no object": (
        "hermes",
        '<tool_call>{"name": "look", "arguments": 5}',
        '<tool_call>{"name": "look", "arguments": 5}',
        [],
    ),
    "hermes, cut before the arguments": (
        "hermes",
        '<tool_call>{"name": "look", "argu',
        '<tool_call>{"name": "look", "argu',
        [],
    ),
    "hermes, cut in the arguments": (
        "hermes",
        '<tool_call>{"name": "look", "arguments": {"place": "Bo',
        "",
        [("look", '{"place": "Bo')],
    ),
    "llama one": ("llama3_json", CALL.replace("arguments", "parameters"), "", ONE),
    "llama two": ("llama3_json", f'<|python_tag|>{CALL}; {{"name": "think", "parameters": {{}}}}', "", TWO),
    "llama, an object that is no call": ("llama3_json", '{"answer": 5} ok', '{"answer": 5} ok', []),
    "llama, text": ("llama3_json", "Well, {1}", "Well, {1}", []),
    "mistral array": ("mistral", f'[TOOL_CALLS][{CALL}, {{"name": "think", "arguments": {{}}}}]', "", TWO),
    "mistral names": (
        "mistral",
        'Yes. [TOOL_CALLS]look{"place": "Bonn", "days": 2}[TOOL_CALLS]think[ARGS]{}',
        "Yes.",
        TWO,
    ),
    "mistral, no call": ("mistral", "[TOOL_CALLS]oh no!", "[TOOL_CALLS]oh no!", []),
    "granite": ("granite", f"<|tool_call|>[{CALL}]", "", ONE),
    "granite, another marker": ("granite", f"<tool_call>[{CALL}]</tool_call>", "", ONE),
    "deepseek v3": (
        "deepseek_v3",
        f"Yes.\n{ALL}{BEGIN}function{SEP}look\n```json\n{ONE[0][1]}\n```{END}\n"
        f"{BEGIN}function{SEP}think\n```json\n{{}}\n```{END}{ALL_END}",
        "Yes.",
        TWO,
    ),
    "deepseek v3.1": ("deepseek_v3", f"{ALL}{BEGIN}look{SEP}{ONE[0][1]}{END}{ALL_END}", "", ONE),
    "qwen3-coder": (
        "qwen3_coder",
        "Yes.\n<tool_call>\n<function=look>\n<parameter=place>\nBonn\n</parameter>\n<parameter=days>\n2\n"
        "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=think>\n</function>\n</tool_call>",
        "Yes.",
        TWO,
    ),
    "qwen3-coder, types": (
        "qwen3_coder",
        "<function=look><parameter=place>2</parameter><parameter=days>two</parameter>"
        "<parameter=all>[true]</parameter></function>",
        "",
        [("look", '{"place": "2", "days": "two", "all": [true]}')],
    ),
    "qwen3-coder, no function": ("qwen3_coder", "a <tool_call>\nb", "a <tool_call>\nb", []),
    "pythonic": ("pythonic", "[look(place='Bonn', days=2), think()]", "", TWO),
    "pythonic, marked": ("pythonic", '<|python_start|>[look(place="Bonn", days=2)]<|python_end|>', "", ONE),
    "pythonic, brackets in strings": (
        "pythonic",
        r"[look(place='a)\'](', days=-2)]",
        "",
        [("look", '{"place": "a)\'](", "days": -2}')],
    ),
    "pythonic, a list": ("pythonic", "[1, 2] think()", "[1, 2] think()", []),
    "pythonic, a call of something else": ("pythonic", "[look(open('x'))]", "[look(open('x'))]", []),
}


def parser_of(name: str) -> Parser:
    return FORMATS[name](TOOLS)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_calls_and_content_of_a_whole_text(example: tuple[str, str, str, list[tuple[str, str]]]) -> None:
    name, text, content, calls = example
    assert answer_of(parser_of(name), [text]) == (content, "", calls)


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_character_by_character_is_the_same(example: tuple[str, str, str, list[tuple[str, str]]]) -> None:
    name, text, content, calls = example
    assert answer_of(parser_of(name), list(text)) == (content, "", calls)


WHOLE = [example[1] for example in EXAMPLES.values()]
MARKERS = ["<tool_call>", "</tool_call>", "<function=", "<parameter=days>", "</parameter>", "<|tool_call|>"]
MORE_MARKERS = ["[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "```", BEGIN, SEP, END, ALL_END]
JSON = ['{"name": ', '"look"', ', "arguments": ', '{"days": 1', "{}", "}", '"', "\\", "null", "12"]
OTHERS = ["look", "look(days=1)", ">", "[", "]", "(", ")", ",", ";", " ", "\n", "é", "'"]
FRAGMENTS = st.sampled_from(
    [*WHOLE, *(text[: len(text) // 2] for text in WHOLE), *MARKERS, *MORE_MARKERS, *JSON, *OTHERS]
)
VALUES = st.recursive(st.text(max_size=8) | st.integers(), st.lists)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150, deadline=None)
@given(parts=st.lists(FRAGMENTS, max_size=8), places=st.lists(st.integers(0, 2000), max_size=12))
def test_any_text_in_any_parts_is_what_it_is_whole(name: str, parts: list[str], places: list[int]) -> None:
    text = "".join(parts)
    assert answer_of(parser_of(name), cut(text, places)) == answer_of(parser_of(name), [text])


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="abc .,\n{}é<", max_size=60))
def test_text_without_markers_is_content_as_it_is(name: str, text: str) -> None:
    assert answer_of(parser_of(name), [text]) == (text, "", [])


@given(
    arguments=st.dictionaries(
        st.text(max_size=5), st.recursive(st.text(max_size=8) | st.integers(), st.lists)
    ),
    places=st.lists(st.integers(0, 2000), max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_arguments_are_as_the_model_wrote_them(arguments: dict[str, Any], places: list[int]) -> None:
    written = json.dumps(arguments)
    text = f'<tool_call>\n{{"name": "look", "arguments": {written}}}\n</tool_call>'
    assert answer_of(parser_of("hermes"), cut(text, places)) == ("", "", [("look", written)])


def test_the_name_comes_first_and_arguments_as_they_are_written() -> None:
    parser = parser_of("hermes")
    assert parser.feed('<tool_call>{"name": "look", ') == []
    assert parser.feed('"arguments": {"pl') == [CallStart("look"), CallArguments('{"pl')]
    assert parser.feed('ace": "B') == [CallArguments('ace": "B')]


def test_what_a_schema_enforced_needs_no_markers() -> None:
    text = '[{"name": "look", "parameters": {"days": 2}}, {"name": "think", "parameters": {}}]'
    assert answer_of(Enforced(), list(text)) == ("", "", [("look", '{"days": 2}'), ("think", "{}")])
    assert answer_of(Named("look"), ['{"da', 'ys": 2}']) == ("", "", [("look", '{"days": 2}')])
