"""OpenAI's counts of tokens."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from penstock.messages import Done


class PromptTokensDetails(Struct, frozen=True):
    """Of the prompt's tokens."""

    cached_tokens: int = 0


class CompletionTokensDetails(Struct, frozen=True):
    """Of the output's tokens."""

    reasoning_tokens: int = 0


class CompletionUsage(Struct, frozen=True, kw_only=True):
    """Of one reply, over all its choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class EmbeddingUsage(Struct, frozen=True):
    """Of a reply with embeddings."""

    prompt_tokens: int
    total_tokens: int


def usage_of(ends: Iterable[Done]) -> CompletionUsage:
    """The sum over a request's jobs."""
    usages = [done.usage for done in ends]
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return CompletionUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(sum(usage.cached_tokens for usage in usages)),
        completion_tokens_details=CompletionTokensDetails(sum(usage.reasoning_tokens for usage in usages)),
    )
