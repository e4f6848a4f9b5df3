"""From exceptions to OpenAI's error replies."""

from __future__ import annotations

import logging
import re
from typing import Any, Final

from litestar import Request, Response
from litestar.exceptions import HTTPException, SerializationException, ValidationException
from litestar.types import ExceptionHandlersMap

from penstock.errors import InvalidJob, InvalidJobId, JobLost, QueueFull, ServerError, ServerUnavailable
from producer.gateway.errors import (
    ApiError,
    BadRequest,
    ErrorBody,
    ErrorReply,
    NotFound,
    TooLarge,
    TooMany,
    Unavailable,
)

log = logging.getLogger(__name__)

_UNKNOWN_FIELD: Final = re.compile(r"unknown field `([^`]*)`")

_AnyRequest = Request[Any, Any, Any]


def api_error_of(error: Exception) -> ApiError | None:
    """What a client is told of an exception of ours; None of one that nobody foresaw."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            return TooMany(str(error), retry_after_s=error.retry_after_s, code="queue_full")
        case InvalidJobId() | JobLost():
            return NotFound(str(error), code="job_not_found")
        case InvalidJob():
            return BadRequest(str(error), code="invalid_job")
        case ServerUnavailable() | ServerError():
            return Unavailable(f"the queue can't be reached: {error}", code="queue_unavailable")
        case _:
            return None


def reply_of(error: ApiError) -> Response[ErrorReply]:
    """An error as a reply."""
    return Response(error.reply, status_code=error.status, headers=error.headers)


def _on_own(_: _AnyRequest, error: Exception) -> Response[ErrorReply]:
    told = api_error_of(error)
    assert told is not None, "only exceptions that have a reply are registered"
    return reply_of(told)


def _on_validation(_: _AnyRequest, error: ValidationException) -> Response[ErrorReply]:
    """A body or a parameter that does not fit its type: the first place that is wrong."""
    places = error.extra if isinstance(error.extra, list) else []
    place = next((one for one in places if isinstance(one, dict)), {})
    words = str(place.get("message") or error.detail)
    if place.get("key") == "data" and words == "'data'":  # a KeyError's words: there is none to look into
        return reply_of(BadRequest("the request has no body; send one, as JSON", code="missing_body"))
    param = _param_of(place, words)
    return reply_of(BadRequest(f"{param}: {words}" if param else words, param=param, code="invalid_value"))


def _param_of(place: dict[str, Any], words: str) -> str | None:
    """What is wrong, by the name that the sender knows it by."""
    key = str(place.get("key") or "")
    if place.get("source") in ("header", "cookie"):
        return key.replace("_", "-").title()
    path = [] if key in ("", "data") else [key]  # `data` is the whole body
    if unknown := _UNKNOWN_FIELD.search(words):
        path.append(unknown[1])
    return ".".join(path) or None


def _on_http(request: _AnyRequest, error: HTTPException) -> Response[ErrorReply]:
    status = error.status_code
    if status == 413:
        return reply_of(TooLarge(error.detail, code="request_too_large"))
    if isinstance(error.__cause__, SerializationException):
        return reply_of(BadRequest(f"the body is not JSON: {error.detail}", code="invalid_json"))
    if status >= 500:
        log.error("a request failed", exc_info=error)
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = ErrorReply(ErrorBody(message=_words_of(request, error), type=kind))
    return Response(body, status_code=status, headers=error.headers)


def _words_of(request: _AnyRequest, error: HTTPException) -> str:
    asked = f"({request.method} {request.url.path[:200]})"
    match error.status_code:
        case 404:
            return f"Invalid URL {asked}"
        case 405:
            return f"Invalid method for URL {asked}"
        case _:
            return error.detail


def _on_nesting(_: _AnyRequest, error: Exception) -> Response[ErrorReply]:
    return reply_of(BadRequest("the body is nested too deeply", code="invalid_json"))


def _on_unforeseen(request: _AnyRequest, error: Exception) -> Response[ErrorReply]:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    body = ErrorReply(ErrorBody(message="the gateway failed; its log says how", type="server_error"))
    return Response(body, status_code=500)


def reply_to(request: _AnyRequest, error: Exception) -> Response[ErrorReply]:
    """Any exception as the reply that any route but the page's makes of it."""
    handlers = dict[Any, Any](HANDLERS)
    return next(handlers[kind] for kind in type(error).__mro__ if kind in handlers)(request, error)


HANDLERS: ExceptionHandlersMap = {
    ApiError: _on_own,
    QueueFull: _on_own,
    InvalidJob: _on_own,
    InvalidJobId: _on_own,
    JobLost: _on_own,
    ServerError: _on_own,
    ValidationException: _on_validation,
    HTTPException: _on_http,
    RecursionError: _on_nesting,
    Exception: _on_unforeseen,
}
