"""Log-probabilities as clients get them: the engine's, with the tokens' texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from engine.request import TokenLogprobs
from penstock.messages import TokenLogprob, TopLogprob

LEAST_LOGPROB: Final = -9999.0
"""Stands for minus infinity, which JSON cannot write; OpenAI's and vLLM's value."""


class TokenTexts:
    """Each token's text, decoded alone, special tokens included."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}  # bounded by the vocabulary

    def __getitem__(self, token_id: int) -> str:
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text


def token_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], texts: TokenTexts
) -> list[TokenLogprob]:
    """One for each token; `logprobs` has one for each as well."""
    return [
        TokenLogprob(
            token_id=token_id,
            token=texts[token_id],
            logprob=_finite(found.logprob),
            rank=found.rank,
            top_logprobs=[
                TopLogprob(token_id=top, token=texts[top], logprob=_finite(logprob))
                for top, logprob in found.top
            ],
        )
        for token_id, found in zip(token_ids, logprobs, strict=True)
    ]


def _finite(logprob: float) -> float:
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB
