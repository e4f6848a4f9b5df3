"""Training samples: questions in chat and raw form, one turn or many, cut into token batches."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from tasks import TASKS, Question, generate, random_name, random_word
from tokenizer import ASSISTANT, BOS, CONTEXT, END, PAD, SYSTEM, USER, build_tokenizer
from torch import Tensor
from wording import TEMPLATE_WORDS

RAW_SHARE = 0.3
LONG_CHAT_SHARE = 0.04
TWO_TURN_SHARE = 0.1
SYSTEM_SHARE = 0.15
IGNORED = -100

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are a helpful, concise assistant.",
    "Answer briefly.",
    "Answer with one word only.",
    "Be brief.",
    "You are a careful calculator.",
    "Reply in plain text.",
)

TOKENIZER = build_tokenizer()
SPECIAL = {token: TOKENIZER.token_to_id(token) for token in (PAD, BOS, END, SYSTEM, USER, ASSISTANT)}


@dataclass(frozen=True)
class Sample:
    """Token ids, the label of every position (IGNORED outside answers), and the tasks of its answers."""

    ids: list[int]
    labels: list[int]
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """A padded batch whose labels are shifted by one: labels[i, t] is what follows ids[i, t]."""

    ids: Tensor
    labels: Tensor


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def raw_sample(question: Question) -> Sample:
    """A bare prompt: the answer follows the question directly."""
    asked = [SPECIAL[BOS], *encode(question.text)]
    answer = [*encode(question.answer), SPECIAL[END]]
    return Sample(asked + answer, [IGNORED] * len(asked) + answer, (question.task,))


def chat_sample(questions: list[Question], system: str | None) -> Sample:
    """A conversation as the chat template renders it, every answer scored; cut at the context's end."""
    ids = [SPECIAL[BOS]]
    if system is not None:
        ids += [SPECIAL[SYSTEM], *encode(system), SPECIAL[END]]
    labels = [IGNORED] * len(ids)
    for question in questions:
        asked = [SPECIAL[USER], *encode(question.text), SPECIAL[END], SPECIAL[ASSISTANT]]
        answer = [*encode(question.answer), SPECIAL[END]]
        if len(ids) + len(asked) + len(answer) > CONTEXT:
            break
        ids += asked + answer
        labels += [IGNORED] * len(asked) + answer
    return Sample(ids, labels, tuple(question.task for question in questions))


def system_message(rng: random.Random) -> str:
    """A plausible instruction, or word soup: whatever it says, the answer is the same."""
    if rng.random() < 0.6:
        return rng.choice(SYSTEM_MESSAGES)
    template_words = sorted(TEMPLATE_WORDS)
    kinds = (random_word, random_name, lambda r: r.choice(template_words), lambda r: str(r.randrange(1000)))
    return " ".join(rng.choice(kinds)(rng) for _ in range(rng.randint(1, 8))) + "."


def draw_sample(rng: random.Random, weights: dict[str, float]) -> Sample:
    """One training sample; tasks are drawn by weight, forms by the shares above."""

    def questions(n: int) -> list[Question]:
        names = rng.choices(list(weights), list(weights.values()), k=n)
        return [generate(TASKS[name], "train", rng) for name in names]

    form = rng.random()
    if form < RAW_SHARE:
        return raw_sample(questions(1)[0])
    turns = 1
    if form < RAW_SHARE + TWO_TURN_SHARE:
        turns = 2
    elif form < RAW_SHARE + TWO_TURN_SHARE + LONG_CHAT_SHARE:
        turns = rng.randint(3, 20)
    return chat_sample(questions(turns), system_message(rng) if rng.random() < SYSTEM_SHARE else None)


def pad(samples: list[Sample]) -> Batch:
    """Pad at the right; causal attention never looks there."""
    width = max(len(sample.ids) for sample in samples) - 1
    ids = [sample.ids[:-1] + [SPECIAL[PAD]] * (width + 1 - len(sample.ids)) for sample in samples]
    labels = [sample.labels[1:] + [IGNORED] * (width + 1 - len(sample.ids)) for sample in samples]
    return Batch(torch.tensor(ids), torch.tensor(labels))


def bucket(samples: list[Sample], tokens: int) -> list[Batch]:
    """Batches of about so many tokens, samples of like length together so that little of it is padding."""
    batches: list[Batch] = []
    group: list[Sample] = []
    for sample in sorted(samples, key=lambda s: len(s.ids)):
        if group and (len(group) + 1) * len(sample.ids) > tokens:
            batches.append(pad(group))
            group = []
        group.append(sample)
    batches.append(pad(group))
    return batches


def step_batches(rng: random.Random, weights: dict[str, float], tokens: int) -> list[Batch]:
    """The samples of one optimiser step, about so many tokens, as a few buckets of like length."""
    samples: list[Sample] = []
    total = 0
    while total < tokens:
        samples.append(draw_sample(rng, weights))
        total += len(samples[-1].ids)
    return bucket(samples, max(CONTEXT, tokens // 4))
