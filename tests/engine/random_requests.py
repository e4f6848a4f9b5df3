"""Random requests of every kind and parameter, each a function of its number alone."""

from __future__ import annotations

import random
from typing import Any

from engine.request import Grammar, RepetitionDetection, Request, RequestParams, Sample

GRAMMARS = (
    Grammar(kind="regex", text="[a-c]{2,5}(x|yy)?"),
    Grammar(kind="regex", text="(yes|no|yesterday)"),
    Grammar(kind="json_schema", text='{"type":"object","properties":{"a":{"type":"integer","maximum":99}},'
            '"required":["a"],"additionalProperties":false}'),
    Grammar(kind="json_schema", text='{"type":"array","items":{"enum":["u","vw"]},"maxItems":2}'),
)  # fmt: skip


def random_request(number: int, vocab_size: int, longest_prompt: int = 40, max_tokens: int = 14) -> Request:
    """Request `number`: prompts share beginnings, so that blocks are shared too."""
    rng = random.Random(number)
    stem = random.Random(rng.randrange(6)).choices(range(vocab_size), k=longest_prompt)
    tail = [rng.randrange(vocab_size) for _ in range(rng.randrange(1, 10))]
    prompt = (stem[: rng.randrange(longest_prompt)] + tail)[:longest_prompt]
    kind = rng.choices(("generate", "score", "embed"), weights=(20, 1, 1))[0]
    if kind != "generate":
        params = RequestParams(
            max_tokens=0,
            seed=0,
            prompt_logprobs=rng.choice((0, 3)) if kind == "score" else None,
            pooling=rng.choice(("last", "mean")),
            normalize=rng.random() < 0.5,
        )
        return Request(request_id=str(number), prompt_token_ids=prompt, params=params, kind=kind)
    params = RequestParams(**_sampling(rng, vocab_size, max_tokens))
    num_samples = rng.choice((1, 1, 1, 1, 2, 3))
    samples = [Sample(index=index) for index in range(num_samples)]
    return Request(request_id=str(number), prompt_token_ids=prompt, params=params, samples=samples)


def _sampling(rng: random.Random, vocab_size: int, most_tokens: int) -> dict[str, Any]:
    def token_ids(most: int) -> tuple[int, ...]:
        return tuple(rng.sample(range(vocab_size), rng.randrange(1, most)))

    max_tokens = rng.randrange(1, most_tokens + 1)
    wishes: dict[str, Any] = {
        "temperature": rng.choice((0.0, 0.7, 1.0, 2.5)),
        "top_p": rng.choice((1.0, 0.8, 0.3)),
        "top_k": rng.choice((0, 1, 7, 60)),
        "min_p": rng.choice((0.0, 0.1)),
        "presence_penalty": rng.choice((-1.5, 0.5, 2.0)),
        "frequency_penalty": rng.choice((-0.7, 1.0)),
        "repetition_penalty": rng.choice((0.8, 1.3)),
        "logit_bias": {token: rng.uniform(-50, 20) for token in token_ids(6)},
        "min_tokens": rng.randrange(max_tokens + 1),
        "stop_token_ids": token_ids(30),
        "ignore_eos": True,
        "bad_words": tuple(token_ids(3) for _ in range(3)),
        "allowed_token_ids": token_ids(vocab_size),
        "logprobs": rng.choice((0, 1, 5)),
        "prompt_logprobs": rng.choice((0, 2)),
        "repetition": RepetitionDetection(max_pattern_size=3, min_count=2),
        "grammar": rng.choice(GRAMMARS),
    }
    chosen = rng.sample(sorted(wishes), rng.randrange(6))
    if "grammar" in chosen and "allowed_token_ids" in chosen:
        chosen.remove("allowed_token_ids")
    params = {name: wishes[name] for name in chosen}
    return {"max_tokens": max_tokens, "seed": rng.getrandbits(64), **params}
