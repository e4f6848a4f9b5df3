"""Sampling in a test: a token buffer without a runner, and the documented distribution in plain float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.batch import NewRow
from engine.penalties import Ints, Ints32
from engine.request import RequestParams, TokenLogprobs
from engine.sampler import Sampler
from kernels.mask import TokenMasks
from kernels.opset import OpSet


@dataclass
class Buffer:
    """What the runner keeps of tokens."""

    tokens: Ints32
    num_tokens: Ints
    num_prompt_tokens: Ints


@dataclass(frozen=True)
class Row:
    """A sequence that is about to sample a token."""

    logits: Sequence[float]
    params: RequestParams
    prompt: Sequence[int] = (0,)
    output: Sequence[int] = ()
    sample: int = 0
    allowed: frozenset[int] | None = None
    """What its grammar allows."""


@dataclass
class Result:
    """By place in the batch."""

    tokens: list[int]
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict[int, TokenLogprobs])


def params_of(**settings: Any) -> RequestParams:
    """Parameters with what a test does not care about filled in."""
    return RequestParams(**{"max_tokens": 100, "seed": 0, **settings})


def packed(allowed: Sequence[frozenset[int]], vocab_size: int) -> Tensor:
    """Sets of token ids as the words of a grammar's mask."""
    bits = np.zeros((len(allowed), -(-vocab_size // 32) * 32), dtype=np.uint8)
    for i, ids in enumerate(allowed):
        bits[i, sorted(ids)] = 1
    return torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").view(np.int32))


def sample_rows(ops: OpSet, rows: Sequence[Row], eos_token_ids: Sequence[int] = ()) -> Result:
    """One step of a fresh sampler over all rows, which stand in its buffers in reverse order."""
    num_rows = len(rows)
    max_len = max(len(row.prompt) + len(row.output) for row in rows)
    sampler = Sampler(ops, num_rows, eos_token_ids)
    buffer = Buffer(
        np.full((num_rows, max_len), -9, dtype=np.int32),
        np.zeros(num_rows, dtype=np.int64),
        np.zeros(num_rows, dtype=np.int64),
    )
    places = np.arange(num_rows)[::-1].copy()
    for place, row in zip(places.tolist(), rows, strict=True):
        token_ids = [*row.prompt, *row.output]
        buffer.tokens[place, : len(token_ids)] = token_ids
        buffer.num_tokens[place] = len(token_ids)
        buffer.num_prompt_tokens[place] = len(row.prompt)
        sampler.set_row(
            NewRow(
                row=place,
                token_ids=token_ids,
                num_prompt_tokens=len(row.prompt),
                num_computed_tokens=0,
                params=row.params,
                sample=row.sample,
            )
        )
    masked = [i for i, row in enumerate(rows) if row.allowed is not None]
    masks = None
    if masked:
        allowed = [ids for row in rows if (ids := row.allowed) is not None]
        masks = TokenMasks(torch.tensor(masked), packed(allowed, len(rows[0].logits)))
    with torch.inference_mode():
        logits = torch.from_numpy(np.array([row.logits for row in rows], dtype=np.float32))
        sampled = sampler.sample(logits, places, buffer, masks)
    return Result(
        sampled.token_ids.tolist(),
        {num_rows - 1 - place: logprobs for place, logprobs in sampled.logprobs.items()},
    )


def distribution(row: Row, eos_token_ids: Sequence[int] = ()) -> list[float]:
    """The probabilities of a row's next token, each parameter applied as its documentation says."""
    params = row.params
    logits = np.array(row.logits, dtype=np.float64)
    logits[sorted(_banned(row, eos_token_ids))] = -math.inf
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    for token in {*row.prompt, *row.output}:
        penalty = params.repetition_penalty
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    for token in set(row.output):
        logits[token] -= params.frequency_penalty * list(row.output).count(token)
        logits[token] -= params.presence_penalty
    if params.temperature == 0:
        return [float(token == logits.argmax()) for token in range(len(logits))]
    probabilities = np.exp((logits - logits.max()) / params.temperature)
    probabilities[probabilities < params.min_p * probabilities.max()] = 0
    if 0 < params.top_k < len(logits):
        probabilities[probabilities < np.sort(probabilities)[-params.top_k]] = 0
    probabilities /= probabilities.sum()
    more_probable = [probabilities[probabilities > probability].sum() for probability in probabilities]
    probabilities[np.array(more_probable) >= params.top_p] = 0
    return (probabilities / probabilities.sum()).tolist()


def _banned(row: Row, eos_token_ids: Sequence[int]) -> set[int]:
    params, output = row.params, list(row.output)
    banned: set[int] = set()
    if params.allowed_token_ids:
        banned |= set(range(len(row.logits))) - set(params.allowed_token_ids)
    for *begin, last in params.bad_words:
        if output[len(output) - len(begin) :] == begin and len(output) >= len(begin):
            banned.add(last)
    if len(output) < params.min_tokens:
        banned |= {*eos_token_ids, *params.stop_token_ids}
    if row.allowed is not None:
        banned |= set(range(len(row.logits))) - row.allowed
    return banned
