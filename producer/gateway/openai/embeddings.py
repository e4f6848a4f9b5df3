"""POST /v1/embeddings."""

from __future__ import annotations

from typing import Final

from litestar import Response, post
from litestar.params import JSONBody

from producer.gateway.gateway import CallersRequest, GatewayHere
from producer.gateway.openai.asked import Asked, reply
from producer.gateway.openai.body_reader import reads
from producer.gateway.openai.embedding_job import embedding_jobs
from producer.gateway.openai.embedding_reply import EmbeddingList
from producer.gateway.openai.embedding_request import EmbeddingRequest


@post(
    "/v1/embeddings",
    dto=reads(EmbeddingRequest),
    return_dto=None,
    status_code=200,
    summary="Create embeddings",
    tags=["openai"],
)
async def create_embeddings(
    request: CallersRequest, gateway: GatewayHere, data: JSONBody[EmbeddingRequest]
) -> Response[EmbeddingList]:
    """A vector for each input."""
    jobs, form = embedding_jobs(data, await gateway.served.known_models())
    return await reply(Asked(model=data.model, jobs=jobs, form=form), request, gateway)


ROUTES: Final = (create_embeddings,)
