"""What the gateway refuses, in OpenAI's form: `{"error": {message, type, param, code}}`.

ApiError
├── BadRequest        400  invalid_request_error
├── Unauthorized      401  authentication_error
├── Forbidden         403  permission_error
├── NotFound          404  invalid_request_error
├── TooLate           408  invalid_request_error
├── Conflict          409  invalid_request_error
├── TooLarge          413  invalid_request_error
├── WrongType         415  invalid_request_error
├── TooMany           429  rate_limit_error, with Retry-After
├── Unavailable       503  server_error, with Retry-After
└── TooSlow           504  timeout_error
"""

from __future__ import annotations

import math
from typing import ClassVar

from msgspec import Struct

from penstock.errors import PenstockError


class ErrorBody(Struct, frozen=True, kw_only=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(Struct, frozen=True):
    """The body of a reply that is an error."""

    error: ErrorBody


class ApiError(PenstockError):
    """A request that is refused."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code

    @property
    def reply(self) -> ErrorReply:
        """The body."""
        return ErrorReply(ErrorBody(message=str(self), type=self.kind, param=self.param, code=self.code))

    @property
    def headers(self) -> dict[str, str]:
        """Headers beside it."""
        return {}


class BadRequest(ApiError):
    """The request breaks the contract."""

    status = 400
    kind = "invalid_request_error"


class Unauthorized(ApiError):
    """There is no key, or it is none of ours."""

    status = 401
    kind = "authentication_error"

    @property
    def headers(self) -> dict[str, str]:
        """As RFC 6750 wants them."""
        return {"WWW-Authenticate": "Bearer"}


class Forbidden(ApiError):
    """The key is good, but not for this."""

    status = 403
    kind = "permission_error"


class NotFound(ApiError):
    """There is no such thing, or it is another tenant's."""

    status = 404
    kind = "invalid_request_error"


class TooLate(ApiError):
    """The body did not come."""

    status = 408
    kind = "invalid_request_error"

    @property
    def headers(self) -> dict[str, str]:
        """What may still come of the body is no request."""
        return {"Connection": "close"}


class Conflict(ApiError):
    """Not in the state that things are in."""

    status = 409
    kind = "invalid_request_error"


class TooLarge(ApiError):
    """More bytes than the gateway takes."""

    status = 413
    kind = "invalid_request_error"


class WrongType(ApiError):
    """The body is of a media type that the route does not take."""

    status = 415
    kind = "invalid_request_error"


class TooMany(ApiError):
    """A limit of the key, or the queue is full."""

    status = 429
    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: float, code: str = "rate_limit_exceeded") -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """When to come back, in whole seconds and in milliseconds, as OpenAI's clients read them."""
        return {
            "Retry-After": str(max(1, math.ceil(self.retry_after_s))),
            "retry-after-ms": str(max(1, int(self.retry_after_s * 1000))),
        }


class Unavailable(ApiError):
    """The server or a consumer is missing."""

    status = 503
    kind = "server_error"

    @property
    def headers(self) -> dict[str, str]:
        """When to come back."""
        return {"Retry-After": "2"}


class TooSlow(ApiError):
    """No answer in time; the job was cancelled."""

    status = 504
    kind = "timeout_error"
