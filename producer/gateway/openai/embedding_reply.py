"""The reply to a request for embeddings."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from penstock.messages import Done
from producer.gateway.errors import BadRequest
from producer.gateway.openai.form import EmbeddingForm
from producer.gateway.openai.usage import EmbeddingUsage, usage_of


class Embedding(Struct, frozen=True, kw_only=True):
    """One vector: numbers, or their 32-bit floats, little end first, as base64."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingList(Struct, frozen=True, kw_only=True):
    """The reply."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


def embeddings(form: EmbeddingForm, ends: Sequence[tuple[str, Done]]) -> EmbeddingList:
    """Made of the ends of a request's jobs, one for each input.

    Raises:
        BadRequest: the model has fewer dimensions than were asked for.
    """
    usage = usage_of(done for _, done in ends)
    return EmbeddingList(
        data=[
            Embedding(index=number, embedding=_encoded(form, _cut(form, done.embedding or [])))
            for number, (_, done) in enumerate(ends)
        ],
        model=ends[0][1].model,
        usage=EmbeddingUsage(usage.prompt_tokens, usage.prompt_tokens),
    )


def _cut(form: EmbeddingForm, vector: list[float]) -> list[float]:
    """The first dimensions alone: what Matryoshka models are trained to keep their meaning in."""
    if form.dimensions is None or form.dimensions == len(vector):
        return vector
    if form.dimensions > len(vector):
        words = f"'dimensions' is {form.dimensions}; the model's embeddings have {len(vector)}"
        raise BadRequest(words, param="dimensions", code="invalid_value")
    cut = vector[: form.dimensions]
    length = math.hypot(*cut) if form.normalize else 1.0
    return [value / length for value in cut] if length else cut


def _encoded(form: EmbeddingForm, vector: list[float]) -> list[float] | str:
    if form.encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
