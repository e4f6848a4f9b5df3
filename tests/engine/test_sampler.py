"""The sampler: documented distributions, vLLM's published behaviours, rows that never touch each other."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from engine.batch import NO_TOKEN, NOTHING_ALLOWED, NewRow
from engine.sampler import Sampler
from kernels.opset import OpSet, load_op_set
from tests.chi_square import assert_follows
from tests.engine.sampling import Buffer, Row, distribution, params_of, sample_rows

LOGITS = (1.0, 2.0, -0.5, 1.5, 0.2, -1.0, 0.8, 1.1)
PROMPT, OUTPUT = (0, 1, 1, 2), (3, 3, 3, 0, 4)
EOS = (5, 6)
NUM_DRAWS = 6_000


@pytest.fixture(scope="module")
def cpu() -> OpSet:
    return load_op_set("cpu")


@pytest.fixture(scope="module")
def reference() -> OpSet:
    return load_op_set("reference")


DISTRIBUTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.3},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.8, "min_p": 0.1},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"frequency_penalty": 0.5},
    {"frequency_penalty": -0.4},
    {"presence_penalty": 1.2},
    {"presence_penalty": -1.0},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.3, "presence_penalty": 0.4},
    {"logit_bias": {2: 2.5, 1: -1.0}},
    {"logit_bias": {3: 1.0}, "repetition_penalty": 2.0},
    {"logit_bias": {0: -3.0}, "repetition_penalty": 2.0},
    {"allowed_token_ids": (7, 2, 1, 2)},
    {"bad_words": ((1,), (0, 4, 7), (4, 3), (9, 9, 9, 9, 9, 9, 9, 2))},
    {"bad_words": ((2, 3, 3, 3, 0, 4, 1),)},  # would match with the prompt's last token
    {"min_tokens": 6, "stop_token_ids": (7,)},
    {"min_tokens": 5, "stop_token_ids": (7,)},
    {"grammar": {0, 2, 3, 5}},
    {"grammar": {0, 2, 3, 5}, "min_tokens": 9, "logit_bias": {2: 1.0}, "presence_penalty": 0.5},
    {
        "temperature": 0.9,
        "top_p": 0.9,
        "top_k": 4,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.2,
        "allowed_token_ids": (0, 1, 2, 3, 4, 6),
        "bad_words": ((4, 2),),
        "grammar": {0, 1, 2, 3, 4},
    },
]


@pytest.mark.parametrize("settings", DISTRIBUTIONS, ids=str)
def test_draws_follow_the_documented_distribution(settings: dict[str, Any], cpu: OpSet) -> None:
    settings = dict(settings)
    grammar = settings.pop("grammar", None)
    row = Row(LOGITS, params_of(**settings), PROMPT, OUTPUT, allowed=frozenset(grammar) if grammar else None)
    rows = [replace(row, params=msgspec.structs.replace(row.params, seed=seed)) for seed in range(NUM_DRAWS)]
    assert_follows(sample_rows(cpu, rows, EOS).tokens, distribution(row, EOS))


@pytest.mark.parametrize("settings", DISTRIBUTIONS, ids=str)
def test_greedy_takes_the_best_that_is_left(settings: dict[str, Any], cpu: OpSet) -> None:
    settings = {**settings, "temperature": 0.0}
    grammar = settings.pop("grammar", None)
    row = Row(LOGITS, params_of(**settings), PROMPT, OUTPUT, allowed=frozenset(grammar) if grammar else None)
    assert distribution(row, EOS)[sample_rows(cpu, [row], EOS).tokens[0]] == 1


def test_draws_depend_on_seed_sample_and_output_index_alone(cpu: OpSet) -> None:
    logits = [0.0] * 1000
    row = Row(logits, params_of(seed=7), PROMPT, OUTPUT)
    token = sample_rows(cpu, [row]).tokens[0]
    resumed = replace(row, prompt=(9, 9), output=(8,) * len(OUTPUT))
    others = [
        replace(row, params=params_of(seed=8)),
        replace(row, params=params_of(seed=7 + 2**63)),
        replace(row, sample=1),
        replace(row, output=OUTPUT[:-1]),
    ]
    got = sample_rows(cpu, [row, resumed, *others]).tokens
    assert got[:2] == [token, token]
    assert len({token, *got[2:]}) == 5


# vLLM's documentation of SamplingParams, sentence by sentence.


def greedy(cpu: OpSet, *, output: tuple[int, ...] = OUTPUT, **settings: Any) -> int:
    row = Row(LOGITS, params_of(temperature=0.0, **settings), PROMPT, output)
    return sample_rows(cpu, [row], EOS).tokens[0]


def test_bad_words_ban_the_last_token_where_it_would_complete_the_word(cpu: OpSet) -> None:
    """Only the last token of a corresponding token sequence is not allowed when the next generated token can
    complete the sequence."""
    assert greedy(cpu) == 1
    assert greedy(cpu, bad_words=((1,),)) == 3
    assert greedy(cpu, bad_words=((0, 4, 1),)) == 3
    assert greedy(cpu, bad_words=((3, 4, 1),)) == 1
    assert greedy(cpu, bad_words=((1, 3),)) == 1
    assert greedy(cpu, bad_words=((2, 1),), output=()) == 1  # the prompt ends with 2: it does not count


def test_allowed_token_ids_retain_only_these(cpu: OpSet) -> None:
    assert greedy(cpu, allowed_token_ids=(2, 5)) == 2
    assert greedy(cpu, allowed_token_ids=(5,)) == 5


def test_min_tokens_before_eos_or_stop_token_ids_can_be_generated(cpu: OpSet) -> None:
    wanted = {"logit_bias": {5: 50.0, 7: 40.0}}
    assert greedy(cpu, **wanted) == 5
    assert greedy(cpu, **wanted, min_tokens=len(OUTPUT)) == 5
    assert greedy(cpu, **wanted, min_tokens=len(OUTPUT) + 1) == 7
    assert greedy(cpu, **wanted, min_tokens=len(OUTPUT) + 1, stop_token_ids=(7,)) == 1
    assert greedy(cpu, **wanted, min_tokens=len(OUTPUT) + 1, ignore_eos=True) == 7


def test_logit_bias_of_100_selects_and_of_minus_100_bans(cpu: OpSet) -> None:
    """OpenAI: values like -100 or 100 should result in a ban or exclusive selection of the token."""
    for bias, expected in ((100.0, {5}), (-100.0, {0, 1, 2, 3, 4, 6, 7})):
        rows = [Row(LOGITS, params_of(seed=seed, logit_bias={5: bias})) for seed in range(500)]
        assert set(sample_rows(cpu, rows).tokens) == expected


def test_penalties_encourage_or_discourage_repeats(cpu: OpSet) -> None:
    """Values > 1 (repetition) or > 0 encourage the model to use new tokens; the others, to repeat tokens. The
    repetition penalty looks at prompt and output, the others at the generated text alone."""
    prompt, output = (1,), (3,)

    def share(tokens: tuple[int, ...], **settings: Any) -> float:
        rows = [Row(LOGITS, params_of(seed=seed, **settings), prompt, output) for seed in range(2000)]
        return sum(token in tokens for token in sample_rows(cpu, rows).tokens) / 2000

    seen = share(prompt + output)
    assert share(prompt + output, repetition_penalty=2.0) < seen - 0.05
    assert share(prompt + output, repetition_penalty=0.5) > seen + 0.05
    for name in ("frequency_penalty", "presence_penalty"):
        assert share(output, **{name: 1.0}) < share(output) - 0.05
        assert share(output, **{name: -1.0}) > share(output) + 0.05
        assert share(prompt, **{name: 1.0}) > share(prompt)


def test_seeds_repeat(cpu: OpSet) -> None:
    rows = [Row(LOGITS, params_of(seed=seed, temperature=1.3)) for seed in range(300)]
    first, second = sample_rows(cpu, rows).tokens, sample_rows(cpu, rows).tokens
    assert first == second
    assert len(set(first)) > 5


# What the sampler cannot do.


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_token_say_why(temperature: float, cpu: OpSet) -> None:
    def row(logits: Any = LOGITS, allowed: frozenset[int] | None = None, **settings: Any) -> Row:
        params = params_of(temperature=temperature, top_p=0.9, logprobs=1, **settings)
        return Row(logits, params, PROMPT, OUTPUT, allowed=allowed)

    rows = [
        row([math.nan] * 8),
        row([1.0, math.inf, *LOGITS[2:]]),
        row([-math.inf] * 8),
        row([math.nan] * 8, frozenset({1}), presence_penalty=1.0),
        row(allowed=frozenset()),
        row(allowed=frozenset({1}), bad_words=((1,),)),
        row(allowed=frozenset({1}), allowed_token_ids=(2,)),
        row(allowed_token_ids=(5,), min_tokens=9),  # no grammar: min_tokens is not lifted
        row(allowed=frozenset({5}), min_tokens=9),
        row(allowed=frozenset({5, 6}), min_tokens=9, bad_words=((5,),)),
        row(allowed_token_ids=(3,)),
    ]
    result = sample_rows(cpu, rows, EOS)
    assert result.tokens == [NO_TOKEN] * 4 + [NOTHING_ALLOWED] * 4 + [5, 6, 3]
    assert sorted(result.logprobs) == [8, 9, 10], "rows without a token have no log-probabilities"
    for i, each in enumerate(rows):
        assert sample_rows(cpu, [each], EOS).tokens == [result.tokens[i]]


# Rows on their own and together.


def random_row(rng: random.Random, vocab_size: int, *, plain: bool = False) -> Row:
    def maybe(value: Any, otherwise: Any) -> Any:
        return value if rng.random() < 0.3 else otherwise

    def ids(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocab_size) for _ in range(rng.randrange(1, most)))

    spread = rng.choice((0.1, 1.0, 5.0))
    logits = [rng.gauss(0, spread) for _ in range(vocab_size)]
    if rng.random() < 0.3:
        logits = [round(logit * 2) / 2 for logit in logits]
    output = tuple(rng.randrange(min(vocab_size, 30)) for _ in range(rng.randrange(12)))
    settings: dict[str, Any] = {
        "seed": rng.randrange(2**64),
        "temperature": rng.choice((0.0, 0.3, 1.0, 1.5)),
        "top_p": maybe(rng.uniform(0.1, 1.0), 1.0),
        "top_k": maybe(rng.choice((1, 5, 50, 300, 10**6)), 0),
        "min_p": maybe(rng.random() ** 3, 0.0),
        "logprobs": maybe(rng.randrange(6), None),
    }
    if plain:
        return Row(logits, params_of(**settings), ids(8), output)
    settings |= {
        "repetition_penalty": maybe(rng.uniform(0.5, 2.0), 1.0),
        "frequency_penalty": maybe(rng.uniform(-2, 2), 0.0),
        "presence_penalty": maybe(rng.uniform(-2, 2), 0.0),
        "logit_bias": maybe({token: rng.uniform(-5, 5) for token in ids(9)}, {}),
        "allowed_token_ids": maybe(ids(40), ()),
        "bad_words": maybe((ids(3), (*output[-2:], *ids(2)), ids(5)), ()),
        "min_tokens": maybe(rng.randrange(15), 0),
        "stop_token_ids": maybe(ids(4), ()),
    }
    allowed = maybe(frozenset(rng.sample(range(vocab_size), vocab_size // 2)), None)
    return Row(logits, params_of(**settings), ids(8), output, rng.randrange(3), allowed)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("vocab_size", [40, 700, 4000])
def test_a_row_is_the_same_to_the_bit_alone_and_in_any_batch(
    vocab_size: int, num_threads: int, cpu: OpSet
) -> None:
    torch.set_num_threads(num_threads)
    rng = random.Random(vocab_size)
    rows = [random_row(rng, vocab_size, plain=i % 3 == 0) for i in range(60)]
    eos = (1, 2)
    whole = sample_rows(cpu, rows, eos)
    for i, row in enumerate(rows):
        alone = sample_rows(cpu, [row], eos)
        assert alone.tokens[0] == whole.tokens[i], f"row {i}: {row.params}"
        assert alone.logprobs.get(0) == whole.logprobs.get(i), f"row {i}: {row.params}"
    for size in (2, 9, 31):
        picked = rng.sample(range(len(rows)), size)
        part = sample_rows(cpu, [rows[i] for i in picked], eos)
        assert part.tokens == [whole.tokens[i] for i in picked]
        assert part.logprobs == {k: whole.logprobs[i] for k, i in enumerate(picked) if i in whole.logprobs}
    torch.set_num_threads(1)


@pytest.mark.parametrize("vocab_size", [40, 3000])
def test_op_sets_agree(vocab_size: int, cpu: OpSet, reference: OpSet) -> None:
    rng = random.Random(vocab_size + 1)
    rows = [random_row(rng, vocab_size) for _ in range(120)]
    got, expected = sample_rows(cpu, rows, (1,)), sample_rows(reference, rows, (1,))
    assert got.tokens == expected.tokens
    assert got.logprobs.keys() == expected.logprobs.keys()
    for i, logprobs in got.logprobs.items():
        other = expected.logprobs[i]
        assert logprobs.rank == other.rank
        assert [token for token, _ in logprobs.top] == [token for token, _ in other.top]
        assert logprobs.logprob == pytest.approx(other.logprob, abs=2e-5)


def test_every_random_row_samples_what_its_distribution_allows(cpu: OpSet) -> None:
    rng = random.Random(11)
    rows = [row for _ in range(300) if _banned_free(row := random_row(rng, 40), (1,))]
    assert len(rows) > 200
    for row, token in zip(rows, sample_rows(cpu, rows, (1,)).tokens, strict=True):
        assert distribution(row, (1,))[token] > 0, row.params


def _banned_free(row: Row, eos_token_ids: tuple[int, ...]) -> bool:
    """Whether the row has anything left that it may sample, before filters."""
    return sample_rows(load_op_set("reference"), [row], eos_token_ids).tokens[0] >= 0


def test_a_row_that_is_set_again_forgets_what_it_was(cpu: OpSet) -> None:
    sampler = Sampler(cpu, 1, EOS)
    buffer = Buffer(
        np.array([[1, 1, 1]], dtype=np.int32), np.array([3], dtype=np.int64), np.array([1], dtype=np.int64)
    )
    strange = params_of(
        temperature=0.0,
        logprobs=1,
        repetition_penalty=9.0,
        logit_bias={2: 50.0},
        allowed_token_ids=(3,),
        bad_words=((1,),),
        min_tokens=50,
    )
    for params, expected in ((strange, 3), (params_of(temperature=0.0), 1)):
        sampler.set_row(
            NewRow(row=0, token_ids=[1, 1, 1], num_prompt_tokens=1, num_computed_tokens=0, params=params)
        )
        sampled = sampler.sample(torch.tensor([LOGITS]), np.array([0]), buffer)
        assert sampled.token_ids.tolist() == [expected]
        assert bool(sampled.logprobs) == (params is strange)


def test_tokens_seen_step_by_step_are_those_of_a_fresh_start(cpu: OpSet) -> None:
    """Penalties remember what they counted; a sampler that starts from the same tokens agrees at every step,
    whichever rows each step has and whoever had the row before."""
    rng = random.Random(5)
    num_rows, vocab_size, num_steps = 6, 12, 60
    sampler = Sampler(cpu, num_rows, EOS)
    buffer = Buffer(
        np.zeros((num_rows, 100), dtype=np.int32),
        np.zeros(num_rows, dtype=np.int64),
        np.zeros(num_rows, dtype=np.int64),
    )
    rows: dict[int, Row] = {}
    for _ in range(num_steps):
        for place in range(num_rows):
            if place not in rows or rng.random() < 0.04:
                rows[place] = _start(sampler, buffer, place, random_row(rng, vocab_size), rng)
        step = sorted(rng.sample(range(num_rows), rng.randrange(1, num_rows + 1)))
        for place in step:
            logits = tuple(rng.gauss(0, 1) for _ in range(vocab_size))
            rows[place] = replace(rows[place], logits=logits)
        index = np.array(step, dtype=np.int64)
        logits = torch.tensor([rows[place].logits for place in step])
        tokens = sampler.sample(logits, index, buffer).token_ids.tolist()
        assert tokens == sample_rows(cpu, [rows[place] for place in step], EOS).tokens
        for place, token in zip(step, tokens, strict=True):
            buffer.tokens[place, buffer.num_tokens[place]] = token
            buffer.num_tokens[place] += 1
            rows[place] = replace(rows[place], output=(*rows[place].output, token))


def _start(sampler: Sampler, buffer: Buffer, place: int, row: Row, rng: random.Random) -> Row:
    """A sequence with penalties and without masks starts in a place of the buffer."""
    params = params_of(
        seed=rng.randrange(2**64),
        temperature=rng.choice((0.0, 1.0)),
        repetition_penalty=rng.choice((1.0, 1.0, 1.5)),
        frequency_penalty=rng.choice((0.0, 0.7)),
        presence_penalty=rng.choice((0.0, -0.5)),
    )
    row = replace(row, params=params, allowed=None)
    token_ids = [*(token % 12 for token in row.prompt), *(token % 12 for token in row.output)]
    num_prompt_tokens = len(row.prompt)
    row = replace(row, prompt=token_ids[:num_prompt_tokens], output=tuple(token_ids[num_prompt_tokens:]))
    buffer.tokens[place, : len(token_ids)] = token_ids
    buffer.num_tokens[place] = len(token_ids)
    buffer.num_prompt_tokens[place] = num_prompt_tokens
    sampler.set_row(
        NewRow(
            row=place,
            token_ids=token_ids,
            num_prompt_tokens=num_prompt_tokens,
            num_computed_tokens=0,
            params=params,
            sample=row.sample,
        )
    )
    return row
