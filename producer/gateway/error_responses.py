"""Errors in the OpenAPI document: which statuses an operation has beside its own, and what each means."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct


class _Described(Struct, frozen=True):
    """One status, as a component of the document."""

    name: str
    words: str
    headers: tuple[str, ...] = ()


_STATUSES: Final = {
    400: _Described("BadRequest", "The request breaks the contract; `param` names the field."),
    401: _Described("Unauthorized", "No key, or none that is good.", ("WWW-Authenticate",)),
    403: _Described("Forbidden", "The key is good, but not for this."),
    404: _Described("NotFound", "There is no such thing, or it is another tenant's."),
    408: _Described("BodyTimeout", "The body stopped coming."),
    409: _Described("Conflict", "Not in the state that things are in."),
    413: _Described("RequestTooLarge", "More bytes than the gateway takes."),
    415: _Described("UnsupportedMediaType", "The body is of a media type that the route does not take."),
    429: _Described(
        "TooManyRequests", "A limit of the key, or of its lane.", ("Retry-After", "retry-after-ms")
    ),
    500: _Described("Failed", "The job failed as often as the queue tries."),
    503: _Described(
        "Unavailable", "The queue can't be reached, or the keys can't be known.", ("Retry-After",)
    ),
    504: _Described("Timeout", "The job did not end in time, and was cancelled."),
}
_HEADERS: Final = {
    "WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}},
    "Retry-After": {
        "description": "Seconds after which to come back.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "retry-after-ms": {
        "description": "The same in milliseconds.",
        "schema": {"type": "integer", "minimum": 1},
    },
}
_WITH_KEY: Final = (401, 403, 429, 503)
_WITH_BODY: Final = (400, 408, 413, 415)
_OF_ANSWERS: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
"""Paths that answer with what becomes of a job."""
_CONFLICTS: Final = frozenset(
    {
        ("delete", "/v1/files/{file_id}"),
        ("post", "/v1/batches/{batch_id}/cancel"),
        ("post", "/v1/batches/{batch_id}/retry"),
    }
)


def components(error: dict[str, Any]) -> dict[str, Any]:
    """What operations refer to. `error`: the schema of an error's body."""
    return {
        described.name: {
            "description": described.words,
            "headers": {name: _HEADERS[name] for name in described.headers},
            "content": {"application/json": {"schema": error}},
        }
        for described in _STATUSES.values()
    }


def add_errors(method: str, path: str, operation: dict[str, Any], error: dict[str, Any]) -> None:
    """Describe an operation's errors; those that it describes itself stay."""
    responses: dict[str, Any] = operation.setdefault("responses", {})
    responses.pop("400", None)  # Litestar's own form, which replies.py replaces
    for status in _statuses_of(method, path, operation):
        name = _STATUSES[status].name
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{name}"})
    responses["default"] = {
        "description": "Any other error, in OpenAI's form.",
        "content": {"application/json": {"schema": error}},
    }


def _statuses_of(method: str, path: str, operation: dict[str, Any]) -> list[int]:
    found: set[int] = set()
    if not path.startswith("/health"):
        found.update(_WITH_KEY)
    if operation.get("parameters"):
        found.add(400)
    if "requestBody" in operation:
        found.update(_WITH_BODY)
    if "{" in path:
        found.add(404)
    if path in _OF_ANSWERS:
        found.update((404, 409, 500, 504))
    if (method, path) in _CONFLICTS:
        found.add(409)
    return sorted(found)
