"""What crosses into the engine and back: plain values, no tensors. See `engine.messages` for the wire."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct, field

FinishReason = Literal["stop", "length", "repetition"]
RequestKind = Literal["generate", "score", "embed"]
GrammarKind = Literal["json_schema", "regex", "lark"]
Pooling = Literal["last", "mean"]
ErrorType = Literal["invalid_job", "engine_error"]

MAX_TEMPERATURE = 100.0
REPETITION_PENALTY = (0.01, 100.0)
"""Least and most: it divides logits, and what it divides must stay finite."""


class Grammar(Struct, frozen=True, kw_only=True):
    """What a request's output must match, as text for the grammar compiler."""

    kind: GrammarKind
    text: str
    """A JSON schema as JSON, a regular expression, or a Lark grammar."""


class RepetitionDetection(Struct, frozen=True, kw_only=True):
    """Ends an output whose last `min_count` stretches of some size are the same; as vLLM has it."""

    max_pattern_size: int
    min_pattern_size: int = 1
    min_count: int = 2


class RequestParams(Struct, frozen=True, kw_only=True):
    """Sampling parameters with every default resolved; see `penstock.messages.SamplingParams`."""

    max_tokens: int
    """Output tokens in all, resumed ones included; at least 1 (0 where the kind generates nothing)."""
    seed: int
    """64 bits, unsigned: the Philox key of this request's draws."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps all."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    """No end token and no stop token before this many output tokens."""
    stop_token_ids: tuple[int, ...] = ()
    """Ends with finish reason `stop` and the id as stop reason. The model's end tokens are not among them."""
    ignore_eos: bool = False
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token sequences that the output never contains."""
    allowed_token_ids: tuple[int, ...] = ()
    """Nothing else is sampled; empty: everything may be."""
    logprobs: int | None = None
    """Log-probabilities of each output token and of this many most likely ones; None: none."""
    prompt_logprobs: int | None = None
    """The same of each prompt token but the first, given its predecessors."""
    repetition: RepetitionDetection | None = None
    grammar: Grammar | None = None
    pooling: Pooling = "last"
    """embed: which hidden states the vector is made of."""
    normalize: bool = True
    """embed: scale the vector to length 1."""


class Sample(Struct, frozen=True, kw_only=True):
    """One of the outputs of a request: its index is part of every draw's counter."""

    index: int = 0
    output_token_ids: list[int] = []
    """Tokens that an earlier run has already produced: the engine prefills prompt + output and goes on after
    them, and reports only what is new."""


class Request(Struct, frozen=True, kw_only=True):
    """One prompt to continue, once per sample. Immutable; the scheduler keeps its state in `Sequence`s."""

    request_id: str
    prompt_token_ids: list[int]
    params: RequestParams
    samples: list[Sample] = field(default_factory=lambda: [Sample()])
    kind: RequestKind = "generate"


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """Natural logarithms of softmax(logits), before penalties, masks, temperature and filters."""

    logprob: float
    """Of the token itself."""
    rank: int
    """1 for the most likely token of the vocabulary."""
    top: list[tuple[int, float]]
    """Most likely first: token id, log-probability."""


class Output(Struct, frozen=True, kw_only=True):
    """What one step added to one sample of a request. `finish_reason` is set on a sample's last output.

    An end token or stop token is the last of `token_ids`: whoever detokenizes leaves it out of the text.
    `error` is set where the engine could not run the request: it ends all samples, and no other request.
    """

    request_id: str
    token_ids: list[int]
    sample: int = 0
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The end token or stop token that ended it."""
    logprobs: list[TokenLogprobs] = []
    """One for each of `token_ids`, where asked for."""
    prompt_logprobs: list[TokenLogprobs] = []
    """Of the prompt's tokens from the second on, whole, in the first output that comes after the prompt."""
    embedding: list[float] = []
    """embed: the pooled vector, [hidden_size]."""
    num_cached_tokens: int = 0
    """Prompt tokens whose keys and values were found in the prefix cache when the sample first started."""
    error: str | None = None
    error_type: ErrorType = "engine_error"
    """`invalid_job`: the request itself is at fault."""


def refusal(request: Request, max_model_len: int, vocab_size: int) -> str | None:
    """Why an engine of this window and vocabulary cannot run a request, in words; None if it can."""
    params = request.params
    if not request.prompt_token_ids:
        return "the prompt has no tokens"
    if not request.samples:
        return "the request has no samples"
    if len({sample.index for sample in request.samples}) < len(request.samples):
        return "two samples have the same index"
    if request.kind == "generate" and params.max_tokens < 1:
        return f"max_tokens is {params.max_tokens}: at least 1 is needed"
    num_prompt_tokens = len(request.prompt_token_ids)
    for sample in request.samples:
        num_tokens = num_prompt_tokens + len(sample.output_token_ids)
        ended = num_tokens == max_model_len and (request.kind != "generate" or bool(sample.output_token_ids))
        if num_tokens >= max_model_len and not ended:
            return f"{num_tokens} tokens leave no room for output: the window is {max_model_len} tokens"
        if not 0 <= sample.index < 2**32:
            return f"sample is {sample.index}: it must fit 32 bits without a sign"
    for token_ids in (request.prompt_token_ids, *(sample.output_token_ids for sample in request.samples)):
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
            return f"a token id is outside the vocabulary of {vocab_size}"
    return _params_refusal(params) or _ids_refusal(params, vocab_size)


def _params_refusal(params: RequestParams) -> str | None:
    if not 0 <= params.temperature <= MAX_TEMPERATURE:
        return f"temperature is {params.temperature}: it must be from 0 to {MAX_TEMPERATURE}"
    if not 0 < params.top_p <= 1:
        return f"top_p is {params.top_p}: it must be above 0 and at most 1"
    if not 0 <= params.min_p <= 1:
        return f"min_p is {params.min_p}: it must be from 0 to 1"
    if not 0 <= params.top_k < 2**31:
        return f"top_k is {params.top_k}: it must be 0 (all) or more, and fit 31 bits"
    if not 0 <= params.seed < 2**64:
        return f"seed is {params.seed}: it must fit 64 bits without a sign"
    for name in ("presence_penalty", "frequency_penalty"):
        if not -2 <= getattr(params, name) <= 2:
            return f"{name} is {getattr(params, name)}: it must be from -2 to 2"
    low, high = REPETITION_PENALTY
    if not low <= params.repetition_penalty <= high:
        return f"repetition_penalty is {params.repetition_penalty}: it must be from {low} to {high}"
    for name in ("logprobs", "prompt_logprobs"):
        if (getattr(params, name) or 0) < 0:
            return f"{name} is {getattr(params, name)}: it must be 0 or more"
    if not all(math.isfinite(bias) for bias in params.logit_bias.values()):
        return "a logit_bias is not finite"
    if not 0 <= params.min_tokens <= params.max_tokens:
        return f"min_tokens is {params.min_tokens}: it must be from 0 to max_tokens ({params.max_tokens})"
    return None


def _ids_refusal(params: RequestParams, vocab_size: int) -> str | None:
    named: list[tuple[str, tuple[int, ...]]] = [
        ("logit_bias", tuple(params.logit_bias)),
        ("stop_token_ids", params.stop_token_ids),
        ("allowed_token_ids", params.allowed_token_ids),
        *(("bad_words", word) for word in params.bad_words),
    ]
    for name, ids in named:
        for token_id in ids:
            if not 0 <= token_id < vocab_size:
                return f"{name} has {token_id}: the ids of this model go from 0 to {vocab_size - 1}"
    if not all(params.bad_words):
        return "a bad word has no tokens"
    return None
