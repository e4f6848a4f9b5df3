"""Reasoning told from the answer, whole and in any parts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.messages import ReasoningMarkers
from producer.gateway.openai.answer import AnswerParser
from producer.gateway.openai.dialect import Dialect
from producer.gateway.openai.form import ChatForm
from tests.producer.gateway.openai.parsers.reading import answer_of, cut

CLOSED = Dialect(
    reasoning=ReasoningMarkers(start="<think>", end="</think>", opened=False), tool_format="hermes"
)
OPENED = Dialect(
    reasoning=ReasoningMarkers(start="<think>", end="</think>", opened=True), tool_format="hermes"
)
CALL = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'


def parser_of(dialect: Dialect, **form: bool) -> AnswerParser:
    return AnswerParser.of(ChatForm(calls="dialect", **form), dialect)


@pytest.mark.parametrize(
    ("dialect", "text", "content", "reasoning"),
    [
        (CLOSED, "<think>\nhm\n\nso\n</think>\n\nYes.\n", "Yes.\n", "hm\n\nso"),
        (CLOSED, "Yes. <think>no</think>", "Yes. <think>no</think>", ""),
        (CLOSED, "<think>\n\n</think>\n\nYes.", "Yes.", ""),
        (CLOSED, "<think>hm", "", "hm"),
        (CLOSED, "<thi", "<thi", ""),
        (CLOSED, "  Yes.", "  Yes.", ""),
        (OPENED, "hm\n</think>\n\nYes.", "Yes.", "hm"),
        (OPENED, "<think>\nhm</think>Yes.", "Yes.", "hm"),
        (OPENED, "hm </thi", "", "hm </thi"),
    ],
)
def test_reasoning_and_content(dialect: Dialect, text: str, content: str, reasoning: str) -> None:
    assert answer_of(parser_of(dialect), [text]) == (content, reasoning, [])
    assert answer_of(parser_of(dialect), list(text)) == (content, reasoning, [])


def test_calls_are_found_behind_the_reasoning_and_not_in_it() -> None:
    text = f"<think>maybe {CALL}</think>\n{CALL}"
    assert answer_of(parser_of(CLOSED), [text]) == ("", f"maybe {CALL}", [("look", "{}")])


def test_a_template_that_was_asked_not_to_think_leaves_an_answer_that_is_all_content() -> None:
    assert answer_of(parser_of(OPENED, reasoning_opened=False), ["Yes."]) == ("Yes.", "", [])


def test_an_output_that_a_grammar_holds_is_not_taken_for_reasoning() -> None:
    assert answer_of(parser_of(OPENED, reasons=False), ['{"a": 1}']) == ('{"a": 1}', "", [])


@pytest.mark.parametrize("dialect", [CLOSED, OPENED], ids=["closed", "opened"])
@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["<think>", "</think>", "<th", "hm", " ", "\n", "Yes.", CALL, "<tool_call>", "é"]),
        max_size=8,
    ),
    places=st.lists(st.integers(0, 500), max_size=12),
)
def test_any_text_in_any_parts_is_what_it_is_whole(
    dialect: Dialect, parts: list[str], places: list[int]
) -> None:
    text = "".join(parts)
    assert answer_of(parser_of(dialect), cut(text, places)) == answer_of(parser_of(dialect), [text])
