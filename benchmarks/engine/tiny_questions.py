"""Held-out questions of the trained tiny model, and how many of them our engine answers exactly."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine.ours import generate, make_engine
from engine.request import Request, RequestParams

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "models" / "tiny"
LONGEST_ANSWER = 48
SEED = 1
"""Of the questions in the model's own report."""


@dataclass(frozen=True)
class Asked:
    """A question as token ids, and its only right answer."""

    prompt_token_ids: list[int]
    answer: str


def tokenizer() -> Any:
    """The model's."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


def questions(count: int) -> list[Asked]:
    """At least so many, as many of each task, half of them as a chat and half as bare prompts."""
    sys.path.insert(0, str(EXAMPLES / "tiny"))  # its files are a script's, not a package
    tasks: Any = importlib.import_module("tasks")
    own = tokenizer()
    asked: list[Asked] = []
    for task in tasks.TASKS.values():
        for i, question in enumerate(tasks.distinct(task, "test", -(-count // len(tasks.TASKS)), SEED)):
            chat = [{"role": "user", "content": question.text}]
            text = own.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            text = text if i % 2 else own.bos_token + question.text
            asked.append(Asked(own(text, add_special_tokens=False)["input_ids"], question.answer))
    return asked


def share_answered(asked: list[Asked], precision: str, ops: str) -> float:
    """Of the questions, greedily."""
    settings = {"model": str(FOLDER), "precision": precision, "ops": ops, "device": "cpu"}
    engine = make_engine({**settings, "max_num_seqs": 64})
    params = RequestParams(max_tokens=LONGEST_ANSWER, seed=0, temperature=0.0)
    tokens, _ = generate(
        engine,
        [
            Request(request_id=str(i), prompt_token_ids=one.prompt_token_ids, params=params)
            for i, one in enumerate(asked)
        ],
    )
    own = tokenizer()
    answers = own.batch_decode([tokens[str(i)] for i in range(len(asked))], skip_special_tokens=True)
    right = sum(answer == one.answer for answer, one in zip(answers, asked, strict=True))
    return right / len(asked)
