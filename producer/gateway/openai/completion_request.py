"""The body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from penstock.sampling import MAX_SAMPLES
from producer.gateway.openai.requests import Logprobs, TextRequest


class CompletionRequest(TextRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A text completion: OpenAI's fields, and vLLM's extra parameters."""

    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    """A text, texts, token ids, or lists of token ids."""
    max_tokens: Annotated[int, Meta(ge=0)] | None = None
    """16 by default; 0 to be told of the prompt alone."""
    logprobs: Logprobs | None = None
    echo: bool | None = None
    best_of: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)] | None = None
    """Only as many as `n`."""

    # Only what changes nothing; see unsupported.py
    suffix: None = None
    prompt_embeds: None = None
