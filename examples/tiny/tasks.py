"""The questions of the tiny model: generators, phrasings and the train / valid / test split.

A question is held out by what it asks, not by how it is worded: the operands, the word or the name are
hashed, and the hash alone says which split they belong to, so a held-out operand pair is never trained on
in any phrasing. Facts that a model can only memorise (capitals, weekdays) are held out by phrasing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from wording import CAPITALS, DAYS, NAMES, PHRASINGS, TEMPLATE_WORDS, WORDS, Phrasings

Split = Literal["train", "valid", "test"]
TEST_PERCENT = 10
VALID_PERCENT = 3

VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Question:
    """One question, its only right answer, and the content its split is decided by."""

    task: str
    text: str
    answer: str
    content: str


@dataclass(frozen=True)
class Draw:
    """The random part of a question: what fills the phrasing's slots, the answer, and the split's key."""

    slots: dict[str, object]
    answer: str
    content: str


@dataclass(frozen=True)
class Task:
    """A kind of question and how its held-out part is told from its training part."""

    name: str
    held_out_by: Literal["question", "phrasing"]
    draw: Callable[[random.Random], Draw]

    @property
    def phrasings(self) -> Phrasings:
        return PHRASINGS[self.name]


@lru_cache(maxsize=1 << 17)
def split_of(content: str) -> Split:
    """The split that the content belongs to; a pure function of the text, so every run agrees."""
    bucket = int.from_bytes(hashlib.blake2b(content.encode(), digest_size=4).digest(), "big") % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "valid" if bucket < TEST_PERCENT + VALID_PERCENT else "train"


def random_word(rng: random.Random) -> str:
    """A lower-case word of 3 to 6 letters: a real one, a pronounceable one, or plain random letters.

    Words of the question templates are left out: they are single tokens, so their letters are not visible.
    """
    while True:
        kind = rng.random()
        length = rng.randint(3, 6)
        if kind < 0.15:
            word = rng.choice(WORDS)
        elif kind < 0.6:
            start = rng.randrange(2)
            word = "".join(rng.choice(VOWELS if (i + start) % 2 else CONSONANTS) for i in range(length))
        else:
            word = "".join(rng.choice(LETTERS) for _ in range(length))
        if word not in TEMPLATE_WORDS:
            return word


def random_name(rng: random.Random) -> str:
    """A given name, or a made-up one that looks like one."""
    if rng.random() < 0.5:
        return rng.choice(NAMES)
    while True:
        word = random_word(rng)
        if len(word) <= 7 and word.capitalize() not in TEMPLATE_WORDS:
            return word.capitalize()


def draw_add(rng: random.Random) -> Draw:
    a, b = rng.randint(0, 99), rng.randint(0, 99)
    # a + b and b + a share a key: the held-out sum must not be trained on the other way round.
    return Draw({"a": a, "b": b}, str(a + b), f"add {min(a, b)} {max(a, b)}")


def draw_subtract(rng: random.Random) -> Draw:
    b, a = sorted((rng.randint(0, 99), rng.randint(0, 99)))
    return Draw({"a": a, "b": b}, str(a - b), f"subtract {a} {b}")


def draw_reverse(rng: random.Random) -> Draw:
    word = random_word(rng)
    return Draw({"word": word}, word[::-1], f"word {word}")


def draw_upper(rng: random.Random) -> Draw:
    word = random_word(rng)
    return Draw({"word": word}, word.upper(), f"word {word}")


def draw_count(rng: random.Random) -> Draw:
    word = random_word(rng)
    return Draw({"word": word}, str(len(word)), f"word {word}")


def draw_first(rng: random.Random) -> Draw:
    word = random_word(rng)
    return Draw({"word": word}, word[0], f"word {word}")


def draw_last(rng: random.Random) -> Draw:
    word = random_word(rng)
    return Draw({"word": word}, word[-1], f"word {word}")


def draw_sort(rng: random.Random) -> Draw:
    numbers = rng.sample(range(10 if rng.random() < 0.2 else 100), 3)
    ordered = sorted(numbers)
    # The key is the set of numbers: another order of a held-out list is the same question.
    return Draw({"numbers": ", ".join(map(str, numbers))}, ", ".join(map(str, ordered)), f"sort {ordered}")


def draw_compare(rng: random.Random) -> Draw:
    a = rng.randrange(100)
    # Half of the pairs are close, so that the last digits are what decides.
    b = a + rng.randint(-9, 9) if rng.random() < 0.5 else rng.randrange(100)
    if a == b or not 0 <= b <= 99:
        return draw_compare(rng)
    larger = rng.random() < 0.5
    which = rng.choice(("larger", "bigger", "greater") if larger else ("smaller", "lower", "less"))
    answer = max(a, b) if larger else min(a, b)
    return Draw({"a": a, "b": b, "which": which}, str(answer), f"compare {min(a, b)} {max(a, b)}")


def draw_parity(rng: random.Random) -> Draw:
    a = rng.randrange(10 ** rng.randint(2, 4))
    return Draw({"a": a}, "odd" if a % 2 else "even", f"parity {a}")


def draw_json(rng: random.Random) -> Draw:
    name, age = random_name(rng), rng.randint(1, 99)
    return Draw({"name": name, "age": age}, json.dumps({"name": name, "age": age}), f"name {name}")


def draw_greet(rng: random.Random) -> Draw:
    name = random_name(rng)
    return Draw({"name": name}, f"Hello, {name}!", f"name {name}")


def draw_capital(rng: random.Random) -> Draw:
    country = rng.choice(tuple(CAPITALS))
    return Draw({"country": country}, CAPITALS[country], f"capital {country}")


def draw_day(rng: random.Random) -> Draw:
    day, n = rng.randrange(7), rng.randint(2, 3)
    return Draw({"day": DAYS[day], "n": n}, DAYS[(day + n) % 7], f"day {day} {n}")


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("add", "question", draw_add),
        Task("subtract", "question", draw_subtract),
        Task("reverse", "question", draw_reverse),
        Task("upper", "question", draw_upper),
        Task("count", "question", draw_count),
        Task("first", "question", draw_first),
        Task("last", "question", draw_last),
        Task("sort", "question", draw_sort),
        Task("compare", "question", draw_compare),
        Task("parity", "question", draw_parity),
        Task("json", "question", draw_json),
        Task("greet", "question", draw_greet),
        Task("capital", "phrasing", draw_capital),
        Task("day", "phrasing", draw_day),
    )
}


def generate(task: Task, split: Split, rng: random.Random) -> Question:
    """One random question of the task that belongs to the split."""
    while True:
        draw = task.draw(rng)
        if task.held_out_by == "phrasing" or split_of(draw.content) == split:
            break
    wordings = getattr(task.phrasings, split) if task.held_out_by == "phrasing" else task.phrasings.train
    return Question(task.name, rng.choice(wordings).format(**draw.slots), draw.answer, draw.content)


def distinct(task: Task, split: Split, n: int, seed: int) -> list[Question]:
    """Up to n questions of the split, no two the same; fewer where the task's space is smaller than n."""
    rng = random.Random(f"{task.name} {split} {seed}")
    found: dict[str, Question] = {}
    for _ in range(60 * n):
        question = generate(task, split, rng)
        found.setdefault(question.text, question)
        if len(found) == n:
            break
    return list(found.values())
