"""OpenAI's counts of tokens."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from penstock.messages import Done, Tokens


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


class UsageSoFar:
    """Counts the tokens of a stream as they are told: vLLM's `continuous_usage_stats`."""

    def __init__(self, num_jobs: int) -> None:
        self._prompts = [0] * num_jobs
        self._completions = [0] * num_jobs

    def take(self, job: int, event: Tokens) -> None:
        """A stretch of a sample."""
        self._prompts[job] = event.prompt_tokens or self._prompts[job]
        self._completions[job] += len(event.token_ids)

    def end(self, job: int, done: Done) -> None:
        """A job's end, which has tokens that no stretch had: those that were held back."""
        self._prompts[job] = done.usage.prompt_tokens
        self._completions[job] = done.usage.completion_tokens

    @property
    def usage(self) -> CompletionUsage:
        """The counts up to now; before a job's first event its prompt is not counted yet."""
        prompt, completion = sum(self._prompts), sum(self._completions)
        return CompletionUsage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
        )
