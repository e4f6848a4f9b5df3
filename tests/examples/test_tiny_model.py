"""The tiny model in examples/models/tiny: its files, its tokenizer, its template, and that it is right."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
sandbox = pytest.importorskip("jinja2.sandbox")

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = EXAMPLES / "models" / "tiny"
PROMPTS = EXAMPLES / "prompts.jsonl"

CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "What is 12 + 7?"}],
    [{"role": "system", "content": "Be brief. 😀"}, {"role": "user", "content": "Greet Ada."}],
    [
        {"role": "user", "content": "Reverse: stream."},
        {"role": "assistant", "content": "maerts"},
        {"role": "user", "content": "Sort 3, 1, 2."},
    ],
]
TEXTS = [
    "",
    " ",
    "What is 12 + 7?",
    "naïve café — 東京",
    "👩‍👩‍👧 😀\n\ttab",
    "don't  stop\r\n",
    "\x00\x7f",
    "الْعَرَبِيَّة",
]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The tasks module of examples/tiny, which is a folder of scripts and no package."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "tiny"))
    import tasks

    yield tasks
    for name in ("tasks", "wording"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def auto_tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(MODEL)


def prompt_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*")) <= 12 * 10**6


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_round_trips(text: str, auto_tokenizer: Any) -> None:
    plain = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    ids = plain.encode(text, add_special_tokens=False).ids
    assert plain.decode(ids) == text
    assert auto_tokenizer.encode(text, add_special_tokens=False) == ids
    assert auto_tokenizer.decode(ids) == text


def test_raw_text_starts_with_bos_and_digits_are_single_tokens(auto_tokenizer: Any) -> None:
    ids = auto_tokenizer.encode("What is 12 + 345?")
    assert ids[0] == auto_tokenizer.bos_token_id
    tokens = auto_tokenizer.convert_ids_to_tokens(ids)
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("12345")


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("generate", [True, False])
def test_the_template_renders_the_same_everywhere(
    messages: list[dict[str, str]], generate: bool, auto_tokenizer: Any
) -> None:
    source = json.loads((MODEL / "tokenizer_config.json").read_text())["chat_template"]
    template = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    rendered = template.render(messages=messages, add_generation_prompt=generate)
    assert rendered == auto_tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generate
    )
    turns = "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages)
    assert rendered == "<|bos|>" + turns + ("<|assistant|>" if generate else "")


def test_end_is_what_generation_stops_at(auto_tokenizer: Any) -> None:
    end = auto_tokenizer.convert_tokens_to_ids("<|end|>")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((MODEL / name).read_text())["eos_token_id"] == end
    assert json.loads((MODEL / "generation_config.json").read_text())["do_sample"] is False


def test_held_out_questions_are_never_trained_on(tiny: ModuleType) -> None:
    for task in tiny.TASKS.values():
        train, test = (tiny.distinct(task, split, 300, seed=5) for split in ("train", "test"))
        assert not {q.text for q in train} & {q.text for q in test}, task.name
        if task.held_out_by == "question":
            assert not {q.content for q in train} & {q.content for q in test}, task.name
        else:
            assert not set(task.phrasings.train) & set(task.phrasings.test), task.name


def test_the_prompts_are_held_out(tiny: ModuleType) -> None:
    lines = prompt_lines()
    assert len(lines) == 240
    assert len({line["custom_id"] for line in lines}) == 240
    assert 50 <= sum("prompt" in line for line in lines) <= 70
    for task in tiny.TASKS.values():
        held_out = {q.text: q.answer for q in tiny.distinct(task, "test", 18, seed=1)}
        mine = [line for line in lines if line["custom_id"].startswith(f"{task.name}-")]
        assert len(mine) in (17, 18)
        for line in mine:
            text = line["prompt"] if "prompt" in line else line["messages"][0]["content"]
            assert held_out[text] == line["expected"]


def test_the_report_says_at_least_97_percent() -> None:
    report = json.loads((MODEL / "REPORT.json").read_text())
    for name in ("total", "held_out_by_question", "held_out_by_phrasing", "chat", "raw"):
        assert report[name]["share"] >= 0.97, name
    for name, task in report["tasks"].items():
        assert task["chat"]["n"] >= 60, name
        assert task["chat"]["n"] == task["raw"]["n"], name
        assert min(task["chat"]["share"], task["raw"]["share"]) >= 0.97, name
    assert report["training"]["seconds"] > 0


def test_the_model_is_right(auto_tokenizer: Any) -> None:
    """Every fourth of the example prompts, in one padded batch."""
    lines = prompt_lines()[::4]
    texts = [
        auto_tokenizer.bos_token + line["prompt"]
        if "prompt" in line
        else auto_tokenizer.apply_chat_template(line["messages"], tokenize=False, add_generation_prompt=True)
        for line in lines
    ]
    inputs = auto_tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    output = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=48
    )
    asked = inputs["input_ids"].shape[1]
    answers = auto_tokenizer.batch_decode(output[:, asked:], skip_special_tokens=True)
    wrong = [
        (text, answer, line["expected"])
        for text, answer, line in zip(texts, answers, lines, strict=True)
        if answer != line["expected"]
    ]
    assert len(wrong) <= 0.03 * len(lines), wrong
