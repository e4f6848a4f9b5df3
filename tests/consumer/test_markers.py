"""What a chat template tells of a model's outputs: how tool calls are written, and what marks reasoning."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumer.markers import OutputMarkers
from consumer.reasoning import num_reasoning_tokens, opens_reasoning
from consumer.token_logprobs import TokenTexts
from consumer.tokenizer import PromptTokenizer
from penstock.messages import FunctionDefinition, Job, Message, ReasoningMarkers, Tool
from tests.consumer.models import byte_tokenizer, save_model

BAR = "\N{FULLWIDTH VERTICAL LINE}"
HEAD = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
TAIL = "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}WRITTEN{% endfor %}"
TOLD = "{% if tools %}WRITTEN{% endif %}"


def written(calls: str, told: str = "") -> str:
    """A template that writes earlier calls so, or tells the model how to write them."""
    return HEAD + CALLS.replace("WRITTEN", calls) + TOLD.replace("WRITTEN", told) + TAIL


FAMILIES = {
    "hermes": written("<tool_call>{{ c.function | tojson }}</tool_call>"),
    "qwen3_coder": written(
        "<tool_call><function={{ c.function.name }}>{% for k, v in c.function.arguments.items() %}"
        "<parameter={{ k }}>{{ v }}</parameter>{% endfor %}</function></tool_call>"
    ),
    "llama3_json": written("", 'Answer as {"name": function name, "parameters": its arguments}.'),
    "mistral": written("[TOOL_CALLS][{{ c.function | tojson }}]"),
    "granite": written("", "Answer with <|tool_call|> and a list of calls."),
    "deepseek_v3": written(f"<{BAR}tool▁calls▁begin{BAR}>{{{{ c.function.name }}}}"),
    "pythonic": written("", "Answer as [func_name1(name1=value1), func_name2(name=value)]."),
}


def markers(folder: Path, template: str | None, *special: str, **flags: str) -> OutputMarkers:
    tokenizer = PromptTokenizer(save_model(folder, template=template, special=special), vocab_size=300)
    return OutputMarkers.find(tokenizer, **flags)  # type: ignore[arg-type] - some of the flags' values


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_familys_tool_calls_are_known_by_its_template(tmp_path: Path, name: str) -> None:
    assert markers(tmp_path, FAMILIES[name]).tool_format == name


def test_a_tag_of_python_is_llamas(tmp_path: Path) -> None:
    assert markers(tmp_path, written("<|python_tag|>{{ c.function | tojson }}")).tool_format == "llama3_json"


@pytest.mark.parametrize(
    "template", [None, written("{{ c.function | tojson }}"), "{# tools #}<tool_call>", "{# <think> #}"]
)
def test_no_format_is_made_up(tmp_path: Path, template: str | None) -> None:
    assert markers(tmp_path, template) == OutputMarkers()


def think(*, opened: bool) -> ReasoningMarkers:
    return ReasoningMarkers(start="<think>", end="</think>", opened=opened)


THINKS = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (THINKS, think(opened=False)),
        (
            THINKS + "{% if add_generation_prompt %}<assistant><think>{{ '\\n' }}{% endif %}",
            think(opened=True),
        ),
        (
            THINKS + "{% if add_generation_prompt %}<think></think>{% endif %}",
            think(opened=False),
        ),
        ("[THINK]{{ m }}[/THINK]", ReasoningMarkers(start="[THINK]", end="[/THINK]", opened=False)),
        (
            "</think>{{ raise_exception('no') }}",
            think(opened=False),
        ),
        ("{{ messages }}", None),
        (None, None),
    ],
)
def test_reasoning_is_known_by_its_markers(
    tmp_path: Path, template: str | None, found: ReasoningMarkers | None
) -> None:
    assert markers(tmp_path, template).reasoning == found


def test_a_flag_is_believed_more_than_the_template(tmp_path: Path) -> None:
    template = FAMILIES["hermes"] + THINKS
    off = markers(tmp_path, template, tool_format="none", reasoning_format="none")
    assert off == OutputMarkers()
    flags = {"tool_format": "mistral", "reasoning_format": "mistral"}
    other = markers(tmp_path, template, "[THINK]", "[/THINK]", **flags)
    assert other.tool_format == "mistral"
    assert other.reasoning == ReasoningMarkers(start="[THINK]", end="[/THINK]", opened=False)
    assert other.reasoning_ids == (258, 259)
    bare = markers(tmp_path / "bare", None, reasoning_format="think")
    assert bare.reasoning == think(opened=False)
    assert bare.reasoning_ids is None


def test_special_tokens_that_mark_something_are_kept(tmp_path: Path) -> None:
    template = FAMILIES["mistral"] + "[THINK][/THINK]"
    found = markers(tmp_path, template, "[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]", "[INST]")
    plain = Job(messages=[Message(role="user", content="x")])
    tool = Tool(function=FunctionDefinition(name="f"))
    called = Job(messages=[Message(role="user", content="x")], tools=[tool])
    assert found.dropped(plain) == {256, 257, 260, 261, 262}
    assert found.dropped(called) == {256, 257, 262}
    alone = markers(tmp_path / "alone", FAMILIES["mistral"], "[TOOL_CALLS]")
    assert (alone.dropped(plain), alone.dropped(called)) == (None, {256, 257})


START, END = 258, 259


@pytest.mark.parametrize(
    ("output", "opened", "count"),
    [
        ([], False, 0),
        ([1, 2], False, 0),
        ([1, 2], True, 2),
        ([START, 1], False, 2),
        ([START, 1, END, 2], False, 3),
        ([1, END, 2, END], True, 2),
        ([1, END], False, 2),
        ([END, 1], True, 1),
    ],
)
def test_reasoning_ends_with_its_marker(output: list[int], opened: bool, count: int) -> None:
    assert num_reasoning_tokens(output, (START, END), opened=opened) == count


@pytest.mark.parametrize(
    ("prompt", "continued", "opened"),
    [
        ([1, START], False, True),
        ([1, START, 10, 32], False, True),
        ([START, 10, END, 10], False, False),
        ([1, START, 97, 98], False, False),
        ([1, START, 97, 98], True, True),
        ([START, 97, END, 98], True, False),
        ([10, 10], False, False),
        ([97], True, False),
    ],
)
def test_a_prompt_opens_reasoning_by_ending_in_it(prompt: list[int], continued: bool, opened: bool) -> None:
    texts = TokenTexts(byte_tokenizer(["<think>", "</think>"]))
    assert opens_reasoning(prompt, (START, END), texts, continued=continued) is opened
