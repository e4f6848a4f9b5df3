"""Held-out figures of a finished model folder, measured through transformers' greedy generate.

What is measured is the folder itself: the rounded weights, read back, run in fp32.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from batches import SYSTEM_MESSAGES
from tasks import TASKS, Question, distinct, generate, split_of
from transformers import AutoModelForCausalLM, AutoTokenizer

TEST_SEED = 1
QUESTIONS_PER_TASK = 300
PROMPTS = 240
BATCH = 100
HISTORY_TURNS = 12


@dataclass(frozen=True)
class Score:
    """Questions asked and questions answered exactly."""

    n: int
    exact: int

    def __add__(self, other: Score) -> Score:
        return Score(self.n + other.n, self.exact + other.exact)

    def report(self) -> dict[str, float]:
        return {**asdict(self), "share": round(self.exact / self.n, 4)}


class Answerer:
    """A model folder with its tokenizer, answering in batches."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.model.parameters())

    def chat(self, messages: list[dict[str, str]]) -> str:
        """The prompt text of a conversation, special tokens included."""
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def raw(self, text: str) -> str:
        """The prompt text of a bare prompt, as the tokenizer's post-processor makes it."""
        return self.tokenizer.bos_token + text

    @torch.no_grad()
    def answers(self, prompts: list[str]) -> list[str]:
        """The greedy continuation of every prompt, in order; batches hold prompts of like length."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, str] = {}
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            texts = [prompts[i] for i in chosen]
            inputs = self.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
            asked = inputs["input_ids"].shape[1]
            output = self.model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=48
            )
            decoded = self.tokenizer.batch_decode(output[:, asked:], skip_special_tokens=True)
            found.update(zip(chosen, decoded, strict=True))
        return [found[i] for i in range(len(prompts))]

    def score(self, prompts: list[str], questions: list[Question]) -> Score:
        answers = self.answers(prompts)
        exact = sum(answer == question.answer for answer, question in zip(answers, questions, strict=True))
        return Score(len(questions), exact)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def system_chat(answerer: Answerer, question: Question, rng: random.Random) -> str:
    return answerer.chat([{"role": "system", "content": rng.choice(SYSTEM_MESSAGES)}, user(question.text)])


def late_chat(answerer: Answerer, question: Question, rng: random.Random) -> str:
    """The question after a dozen answered ones, which puts it in the second half of the context."""
    messages = []
    for task in rng.sample(list(TASKS.values()), HISTORY_TURNS):
        earlier = generate(task, "test", rng)
        messages += [user(earlier.text), {"role": "assistant", "content": earlier.answer}]
    return answerer.chat([*messages, user(question.text)])


def task_figures(answerer: Answerer) -> dict[str, dict[str, Any]]:
    """Chat and raw scores of every task."""
    figures = {}
    for task in TASKS.values():
        questions = distinct(task, "test", QUESTIONS_PER_TASK, TEST_SEED)
        chat = answerer.score([answerer.chat([user(q.text)]) for q in questions], questions)
        raw = answerer.score([answerer.raw(q.text) for q in questions], questions)
        # Questions differ in wording too, so a small space gives many questions about few contents.
        contents = len({question.content for question in questions})
        figures[task.name] = {
            "held_out_by": task.held_out_by,
            "contents": contents,
            "chat": chat,
            "raw": raw,
        }
        print(f"{task.name}: chat {chat.exact}/{chat.n}, raw {raw.exact}/{raw.n}", flush=True)
    return figures


def other_forms(answerer: Answerer) -> dict[str, Score]:
    """The forms beside a plain chat, over a few held-out questions of every task."""
    rng = random.Random(TEST_SEED)
    questions = [q for task in TASKS.values() for q in distinct(task, "test", 20, TEST_SEED)]
    forms = {"system_message": system_chat, "late_in_a_long_chat": late_chat}
    return {
        name: answerer.score([form(answerer, question, rng) for question in questions], questions)
        for name, form in forms.items()
    }


def total(figures: dict[str, dict[str, Any]], held_out_by: tuple[str, ...], forms: tuple[str, ...]) -> Score:
    scores = [f[form] for f in figures.values() for form in forms if f["held_out_by"] in held_out_by]
    return sum(scores, Score(0, 0))


def evaluate(folder: Path, training: dict[str, Any] | None = None) -> None:
    """Write REPORT.json; without training facts, those of the existing report are kept."""
    path = folder / "REPORT.json"
    if training is None:
        training = json.loads(path.read_text())["training"] if path.exists() else {}
    answerer = Answerer(folder)
    figures = task_figures(answerer)
    both = ("chat", "raw")
    report = {
        "parameters": answerer.parameters(),
        "weights": str(json.loads((folder / "config.json").read_text())["torch_dtype"]),
        "decoding": "greedy, transformers generate, fp32",
        "total": total(figures, ("question", "phrasing"), both).report(),
        "held_out_by_question": total(figures, ("question",), both).report(),
        "held_out_by_phrasing": total(figures, ("phrasing",), both).report(),
        "chat": total(figures, ("question", "phrasing"), ("chat",)).report(),
        "raw": total(figures, ("question", "phrasing"), ("raw",)).report(),
        **{name: score.report() for name, score in other_forms(answerer).items()},
        "tasks": {
            name: {key: value.report() if isinstance(value, Score) else value for key, value in f.items()}
            for name, f in figures.items()
        },
        "test_seed": TEST_SEED,
        "training": training,
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "safetensors")},
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["total"]))


def prompt_lines() -> list[dict[str, Any]]:
    """The example prompts: held-out questions of every task, every fourth as a bare prompt."""
    lines = []
    each, over = divmod(PROMPTS, len(TASKS))
    for index, task in enumerate(TASKS.values()):
        questions = distinct(task, "test", each + (index < over), TEST_SEED)
        for number, question in enumerate(questions, start=1):
            assert task.held_out_by == "phrasing" or split_of(question.content) == "test"
            asked = {"prompt": question.text} if number % 4 == 0 else {"messages": [user(question.text)]}
            lines.append({"custom_id": f"{task.name}-{number:03d}", **asked, "expected": question.answer})
    return lines


def write_prompts(path: Path) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in prompt_lines()))
