"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any, Final

from litestar import Response, post
from litestar.params import JSONBody

from producer.gateway.gateway import CallersRequest, GatewayHere
from producer.gateway.openai.asked import Asked, reply, stream
from producer.gateway.openai.body_reader import reads
from producer.gateway.openai.chat_job import chat_job
from producer.gateway.openai.chat_reply import ChatCompletion
from producer.gateway.openai.chat_request import ChatRequest
from producer.gateway.openai.streamed import LastEventId, Streamed


@post(
    "/v1/chat/completions",
    dto=reads(ChatRequest),
    return_dto=None,
    status_code=200,
    operation_class=Streamed,
    summary="Create a chat completion",
    tags=["openai"],
)
async def create_chat_completion(
    request: CallersRequest,
    gateway: GatewayHere,
    data: JSONBody[ChatRequest],
    last_event_id: LastEventId = None,
) -> Response[ChatCompletion]:
    """The model's answer to a conversation, whole, or with `stream` as server-sent events.

    A stream that was cut off is taken up again by the same request with Last-Event-ID.
    """
    jobs, form = chat_job(data, await gateway.served.known_models())
    asked = Asked(model=data.model, jobs=jobs, form=form)
    answer: Response[Any]
    if data.stream:
        answer = await stream(asked, request, gateway, last_event_id)
    else:
        answer = await reply(asked, request, gateway)
    return answer


ROUTES: Final = (create_chat_completion,)
