"""The chat template: tools, calls, thoughts, documents as templates expect them; messages to go on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.chat_template import ChatTemplate
from penstock.errors import InvalidJob
from penstock.messages import FunctionCall, FunctionDefinition, Job, Message, Tool, ToolCall

ADD = Tool(
    function=FunctionDefinition(
        name="add", description="Adds.", parameters={"type": "object", "properties": {"a": {"type": "int"}}}
    )
)
CALL = ToolCall(id="call_1", function=FunctionCall(name="add", arguments='{"a": 1, "é": "<"}'))
USER = Message(role="user", content="Hi")


def render(source: str, *messages: Message, **fields: Any) -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    return template.render(Job(messages=list(messages) or [USER], **fields))


def test_tools_are_objects_that_a_template_writes_as_json() -> None:
    text = render("{% for tool in tools %}{{ tool | tojson }}{% endfor %}", tools=[ADD])
    assert json.loads(text) == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "int"}}},
        },
    }
    assert text.index("type") < text.index("function") < text.index("name") < text.index("parameters")


def test_without_tools_a_template_finds_none() -> None:
    source = "{% if tools is not none %}tools{% endif %}{% if documents is not none %}documents{% endif %}-"
    assert render(source) == "-"
    assert render(source, tools=[]) == "tools-"


def test_a_template_that_takes_no_tools_is_no_place_for_them() -> None:
    source = "{# tools, documents #}{{ messages[0].content }}{{ toolset }}"
    assert render(source) == "Hi"
    with pytest.raises(InvalidJob, match="this model's chat template takes no `tools`"):
        render(source, tools=[ADD])
    with pytest.raises(InvalidJob, match="this model's chat template takes no `documents`"):
        render(source, documents=[{"title": "a"}])


def test_documents_are_given_as_they_are() -> None:
    source = "{% for d in documents %}{{ d.title }}:{{ d.text }};{% endfor %}"
    documents = [{"title": "a", "text": "x"}, {"title": "b", "text": "y"}]
    assert render(source, documents=documents) == "a:x;b:y;"


def test_what_a_job_gives_its_variables_may_not_give_again() -> None:
    source = "{{ tools | tojson }}"
    assert render(source, chat_template_kwargs={"tools": [1]}) == "[1]"
    with pytest.raises(InvalidJob, match="may not set tools"):
        render(source, tools=[ADD], chat_template_kwargs={"tools": [1]})


CALLS = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }}/{{ c.type }}/{{ c.function.name }}"
    "({{ c.function.arguments | tojson }}){% endfor %}{% if m.tool_call_id %}{{ m.tool_call_id }}={% endif %}"
    "{{ m.content }}{% endfor %}"
)


def test_calls_and_what_answers_them() -> None:
    answer = Message(role="tool", content="2", tool_call_id="call_1")
    text = render(CALLS, Message(role="assistant", tool_calls=[CALL]), answer)
    assert text == 'call_1/function/add({"a": 1, "é": "<"})call_1=2'


@pytest.mark.parametrize(
    ("arguments", "written"),
    [("", "{}"), (" ", "{}"), ("{}", "{}"), ("[1]", '"[1]"'), ("{a", '"{a"'), ("1", '"1"')],
)
def test_arguments_that_are_no_object_stay_text(arguments: str, written: str) -> None:
    call = ToolCall(id="c", function=FunctionCall(name="f", arguments=arguments))
    assert render(CALLS, Message(role="assistant", tool_calls=[call])) == f"c/function/f({written})"


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()))
def test_arguments_survive_the_template(arguments: dict[str, Any]) -> None:
    call = ToolCall(id="c", function=FunctionCall(name="f", arguments=json.dumps(arguments)))
    source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    assert json.loads(render(source, Message(role="assistant", tool_calls=[call]))) == arguments


def test_thoughts_have_both_their_names() -> None:
    source = "{% for m in messages %}{{ m.reasoning }}|{{ m.reasoning_content }}|{{ m.content }};{% endfor %}"
    assert render(source, USER, Message(role="assistant", reasoning="so")) == "||Hi;so|so|;"


def test_what_a_message_lacks_is_not_there() -> None:
    source = "{{ messages[0].keys() | list | join(',') }}"
    assert render(source) == "role,content"


def test_a_template_may_write_json_as_transformers_lets_it() -> None:
    source = "{{ messages[0] | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}"
    assert render(source, Message(role="user", content="é")) == '{"content":"\\u00e9","role":"user"}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"


TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content CUT }}</>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("cut", "last", "text"),
    [
        ("", "The answer", "<user>Hi</>\n<assistant>The answer"),
        ("", "  The answer  ", "<user>Hi</>\n<assistant>  The answer  "),
        ("| trim", "  The answer  ", "<user>Hi</>\n<assistant>The answer"),
        ("", "Hi", "<user>Hi</>\n<assistant>Hi"),
    ],
)
def test_the_last_message_is_left_open_to_go_on_with(cut: str, last: str, text: str) -> None:
    fields: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    assert render(TURNS.replace("CUT", cut), USER, Message(role="assistant", content=last), **fields) == text


def test_nothing_to_go_on_with_is_said() -> None:
    fields: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    source = TURNS.replace("CUT", "")
    with pytest.raises(InvalidJob, match="needs a last message with text"):
        render(source, USER, Message(role="assistant", content=" "), **fields)
    with pytest.raises(InvalidJob, match="does not write the last message as it is given"):
        render("{{ messages[0].content }}", USER, Message(role="assistant", content="x"), **fields)


def test_no_turn_is_opened_where_none_is_wanted() -> None:
    source = TURNS.replace("CUT", "")
    assert render(source) == "<user>Hi</>\n<assistant>"
    assert render(source, add_generation_prompt=False) == "<user>Hi</>\n"
    assert render(source, kind="score") == "<user>Hi</>\n"


DEFAULT, TOOL_USE = "plain {{ documents }}", "with {{ tools[0].function.name }} <tool_call>"
NAMED = [{"name": "default", "template": DEFAULT}, {"name": "tool_use", "template": TOOL_USE}]


@pytest.mark.parametrize("in_files", [True, False])
def test_a_model_may_have_a_template_for_tools(tmp_path: Path, in_files: bool) -> None:
    if in_files:
        (tmp_path / "chat_template.jinja").write_text(DEFAULT)
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(TOOL_USE)
    template = ChatTemplate.load(tmp_path, {} if in_files else {"chat_template": NAMED})
    assert template is not None
    assert template.takes("tools")
    assert "<tool_call>" in template.source
    assert template.render(Job(messages=[USER])) == "plain None"
    assert template.render(Job(messages=[USER], tools=[ADD])) == "with add <tool_call>"
    with pytest.raises(InvalidJob, match="takes no `documents`"):
        template.render(Job(messages=[USER], tools=[ADD], documents=[{}]))


def test_without_a_default_template_there_is_none(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path, {"chat_template": NAMED[1:]}) is None
