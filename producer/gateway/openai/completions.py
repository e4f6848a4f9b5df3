"""POST /v1/completions."""

from __future__ import annotations

from typing import Any, Final

from litestar import Response, post
from litestar.params import JSONBody

from producer.gateway.gateway import CallersRequest, GatewayHere
from producer.gateway.openai.asked import Asked, reply, stream
from producer.gateway.openai.body_reader import reads
from producer.gateway.openai.completion_job import completion_jobs
from producer.gateway.openai.completion_reply import TextCompletion
from producer.gateway.openai.completion_request import CompletionRequest
from producer.gateway.openai.streamed import LastEventId, Streamed


@post(
    "/v1/completions",
    dto=reads(CompletionRequest),
    return_dto=None,
    status_code=200,
    operation_class=Streamed,
    summary="Create a text completion",
    tags=["openai"],
)
async def create_completion(
    request: CallersRequest,
    gateway: GatewayHere,
    data: JSONBody[CompletionRequest],
    last_event_id: LastEventId = None,
) -> Response[TextCompletion]:
    """The model's continuation of each prompt, whole, or with `stream` as server-sent events.

    A stream that was cut off is taken up again by the same request with Last-Event-ID.
    """
    jobs, form = completion_jobs(data, await gateway.served.known_models())
    asked = Asked(model=data.model, jobs=jobs, form=form)
    answer: Response[Any]
    if data.stream:
        answer = await stream(asked, request, gateway, last_event_id)
    else:
        answer = await reply(asked, request, gateway)
    return answer


ROUTES: Final = (create_completion,)
