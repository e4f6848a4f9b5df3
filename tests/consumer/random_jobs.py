"""Random jobs that generate, each a function of its number alone, with every parameter that a resumed run
has to take up where the last one was cut off."""

from __future__ import annotations

import random
from typing import Any

from penstock.messages import Job, Message
from penstock.sampling import RepetitionDetection, SamplingParams, StructuredOutputs

VOCAB_SIZE = 468

QUESTIONS = (
    "What is 12 + 7?",
    "Greet Ada.",
    "Name and age as JSON: Chen is 66 years old.",
    "What is the capital of France?",
    "Reverse: stream.",
    "Sort 31, 4, 15.",
)

# Some come often, some have beginnings that do and are held back for nothing, some need several tokens.
STOPS = (
    "6",
    "e",
    "D",
    "a!",
    "ris",
    '", "',
    "re",
    "6 6",
    " t",
    "\N{REPLACEMENT CHARACTER}",
    "e?????",
    "66}}}",
)

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
STRUCTURES = (
    StructuredOutputs(json=SCHEMA),
    StructuredOutputs(json={"type": "array", "items": {"enum": ["u", "vw"]}, "maxItems": 4}),
    StructuredOutputs(regex="[0-9a-f]{2,9}(é|ü)?(x+|yes)"),
    StructuredOutputs(choice=["Paris", "Parsley", "Rome", "the letter"]),
    StructuredOutputs(grammar='start: item ("," item)* "."\nitem: /[a-c]{1,3}/'),
)


def random_job(number: int) -> Job:
    """Job `number`: streamed, and with its token ids in the end."""
    rng = random.Random(number)
    question = rng.choice(QUESTIONS)
    asked: dict[str, Any] = {"prompt": question}
    if rng.random() < 0.3:
        asked = {"messages": [Message(role="user", content=question)]}
    params = SamplingParams(**_sampling(rng))
    return Job(**asked, sampling_params=params, stream=True, return_token_ids=True)


def _sampling(rng: random.Random) -> dict[str, Any]:
    max_tokens = rng.randrange(3, 33)
    wishes: dict[str, Any] = {
        "n": rng.choice((2, 3)),
        "seed": rng.randrange(1000),
        "min_tokens": rng.randrange(1, max_tokens + 1),
        "presence_penalty": rng.choice((-1.5, 0.5, 2.0)),
        "frequency_penalty": rng.choice((-0.7, 1.0)),
        "repetition_penalty": rng.choice((0.8, 1.3)),
        "stop": rng.sample(STOPS, rng.randrange(1, 4)),
        "include_stop_str_in_output": True,
        "stop_token_ids": rng.sample(range(VOCAB_SIZE), rng.randrange(1, 40)),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": rng.choice((0, 1, 4)),
        "prompt_logprobs": rng.choice((0, 2)),
        "bad_words": rng.sample(("Hello", "6", "the letter", "aris", "name"), 2),
        "logit_bias": {token: rng.uniform(-20, 8) for token in rng.sample(range(VOCAB_SIZE), 5)},
        "top_k": rng.choice((1, 7, 60)),
        "top_p": rng.choice((0.8, 0.95)),
        "repetition_detection": RepetitionDetection(max_pattern_size=3, min_count=2),
        "structured_outputs": rng.choice(STRUCTURES),
    }
    chosen = rng.sample(sorted(wishes), rng.randrange(2, 10))
    if rng.random() < 0.4:
        chosen.append("n")
    temperature = rng.choice((0.0, 0.8, 1.5, 2.5, 3.5))
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        **{name: wishes[name] for name in chosen},
    }
