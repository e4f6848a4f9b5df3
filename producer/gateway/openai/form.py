"""How the end of a job is told: what of a request its reply needs, and nothing of the prompt.

A form is small and can be kept as JSON, so that whoever put a job in need not keep its request.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from producer.gateway.openai.dialect import Dialect


class ChatForm(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="chat"):
    """Of a chat completion."""

    tools: list[dict[str, Any]] = []
    """Those that the model may call, as the request has them."""
    calls: Literal["none", "dialect", "array", "named"] = "none"
    """How tool calls are written: not at all; as the model does; as a JSON array that a schema enforces; or
    the whole text is the arguments of `named_tool`."""
    named_tool: str = ""
    parallel_calls: bool = True
    reasons: bool = True
    """Whether the model may think before it answers: not where a grammar holds its output from the start."""
    reasoning_opened: bool = True
    """Whether a template that opens the reasoning in the prompt did so: not where it was asked not to."""
    include_reasoning: bool = True
    prefix: str = ""
    """Of every message: what the request's last message had already."""
    as_token_ids: bool = False
    """Name tokens `token_id:N` in logprobs."""
    token_ids: bool = False
    """Tell token ids as well."""
    include_usage: bool = False
    """In a stream: a last chunk with the usage."""
    continuous_usage: bool = False
    dialect: Dialect | None = None
    """The model's, where it was known when the request came."""


class CompletionForm(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="completion"):
    """Of a text completion."""

    n: int = 1
    """Choices for each prompt."""
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False
    """Tell those of the prompt apart as well, in vLLM's form."""
    as_token_ids: bool = False
    token_ids: bool = False
    include_usage: bool = False
    continuous_usage: bool = False


class EmbeddingForm(Struct, frozen=True, kw_only=True, omit_defaults=True, tag="embedding"):
    """Of embeddings."""

    encoding: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    """Only the first so many, scaled to length 1 again."""
    normalize: bool = True


Form = ChatForm | CompletionForm | EmbeddingForm
