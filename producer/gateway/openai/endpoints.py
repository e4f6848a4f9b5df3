"""OpenAI's endpoints as a batch drives them: from a line's body to its job, from the job's end to its reply.

    job, form = read_row(endpoint, body, await gateway.served.known_models())
    …
    status, reply = tell(form, job_id, event, await gateway.served.known_models())

`form` is a small struct that can be kept as JSON (`msgspec.json.decode(data, type=Form)`), or made again from
the line. Nothing here knows of HTTP or of the queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from penstock.messages import Done, Failed, Heartbeat, Job
from producer.gateway.errors import BadRequest
from producer.gateway.openai.chat_job import read_chat
from producer.gateway.openai.chat_reply import chat_completion
from producer.gateway.openai.completion_job import read_completion
from producer.gateway.openai.completion_reply import text_completion
from producer.gateway.openai.dialect import Dialect
from producer.gateway.openai.embedding_job import read_embedding
from producer.gateway.openai.embedding_reply import embeddings
from producer.gateway.openai.failures import error_of
from producer.gateway.openai.form import ChatForm, CompletionForm, EmbeddingForm, Form

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"
ENDPOINTS: Final = (CHAT, COMPLETIONS, EMBEDDINGS)

Models = Mapping[str, Heartbeat]
"""By name, what the queue serves: `Served.known_models`. Empty: not known, no model is refused."""

_READERS: Final = {CHAT: read_chat, COMPLETIONS: read_completion, EMBEDDINGS: read_embedding}


PROMPT_PARAMS: Final = {ChatForm: "messages", CompletionForm: "prompt", EmbeddingForm: "input"}
"""What a request calls its prompt."""


def read_row(endpoint: str, body: Mapping[str, Any], models: Models) -> tuple[Job, Form]:
    """The one job of a batch's line, not streamed, and how its end is told.

    Raises:
        BadRequest: the body breaks the contract; `param` is the field, without `body.` before it.
        NotFound: the model is not served (code `model_not_found`).
    """
    if endpoint not in _READERS:
        raise BadRequest(
            f"'{endpoint}' is not an endpoint that batches can use; those are {', '.join(ENDPOINTS)}",
            param="endpoint",
            code="invalid_value",
        )
    if body.get("stream"):
        raise BadRequest("a batch's reply can't be streamed", param="stream", code="streaming_unsupported")
    jobs, form = _READERS[endpoint](body, models)
    if len(jobs) != 1:
        param = PROMPT_PARAMS[type(form)]
        raise BadRequest(
            f"'{param}' has {len(jobs)} texts; a line of a batch has one, so write one line for each",
            param=param,
            code="invalid_value",
        )
    return jobs[0], form


def tell(form: Form, job_id: str, event: Done | Failed, models: Models) -> tuple[int, Struct]:
    """HTTP status and body of a job's end."""
    if isinstance(event, Failed):
        error = error_of(event.error, PROMPT_PARAMS[type(form)])
        return error.status, error.reply
    try:
        return 200, reply_of(form, [(job_id, event)], models)
    except BadRequest as error:
        return error.status, error.reply


def reply_of(form: Form, ends: list[tuple[str, Done]], models: Models) -> Struct:
    """The body of a reply, made of the ends of a request's jobs in order.

    Raises:
        BadRequest: what was asked for can't be made of this (more dimensions than the model has).
    """
    match form:
        case ChatForm():
            job_id, done = ends[0]
            dialect = form.dialect or Dialect.of(models.get(done.model)) or Dialect()
            return chat_completion(form, dialect, job_id, done)
        case CompletionForm():
            return text_completion(form, ends)
        case EmbeddingForm():
            return embeddings(form, ends)
