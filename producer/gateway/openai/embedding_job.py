"""From a request for embeddings to its jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from penstock.messages import Heartbeat, Job
from penstock.sampling import PoolingParams
from producer.gateway.openai.body import read_body
from producer.gateway.openai.checked import beat_of, checked_jobs
from producer.gateway.openai.embedding_request import EmbeddingRequest
from producer.gateway.openai.form import EmbeddingForm
from producer.gateway.openai.prompts import Prompt, prompts_of

_NAMES: Final = {"prompt": "input", "prompt_token_ids": "input", "custom_id": "request_id"}


def read_embedding(
    body: bytes | Mapping[str, Any], models: Mapping[str, Heartbeat]
) -> tuple[list[Job], EmbeddingForm]:
    """The jobs of a request, one for each input, and how their ends are told.

    Raises:
        BadRequest: the body breaks the contract; `param` is the field.
        NotFound: the model is not served.
    """
    return embedding_jobs(read_body(body, EmbeddingRequest), models)


def embedding_jobs(
    request: EmbeddingRequest, models: Mapping[str, Heartbeat]
) -> tuple[list[Job], EmbeddingForm]:
    """As `read_embedding`, of a request that was read."""
    beat_of(request.model, models)
    prompts = prompts_of(request.input, "input")
    jobs = checked_jobs(lambda: [_job(request, prompt) for prompt in prompts], _NAMES)
    form = EmbeddingForm(
        encoding=request.encoding_format or "float",
        dimensions=request.dimensions,
        normalize=request.normalize is not False,
    )
    return jobs, form


def _job(request: EmbeddingRequest, prompt: Prompt) -> Job:
    return Job(
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=None if isinstance(prompt, str) else prompt,
        kind="embed",
        model=request.model,
        pooling_params=PoolingParams(normalize=request.normalize is not False),
        custom_id=request.request_id,
        add_special_tokens=request.add_special_tokens,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
    )
