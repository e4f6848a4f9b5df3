"""The door: every request passes it, and only routes that say `public` are open to all.

A route is public by its handler's `opt`: `PUBLIC`. The live page's routes, `PAGE`, take a key by cookie too.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from litestar.connection import ASGIConnection
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from producer.gateway.caller import Caller
from producer.gateway.cookie import key_in_cookie
from producer.gateway.errors import Forbidden, Unauthorized
from producer.gateway.limits import bounded_receive, check_media_type

PUBLIC: Final = {"public": True}
OPERATOR: Final = {"operator": True}
"""`opt` of routes that are for operators alone."""
PAGE: Final = {"operator": True, "page": True}
"""`opt` of the live page's routes."""


class Door(Protocol):
    """Lets callers in."""

    async def enter(self, connection: ASGIConnection[Any, Any, Any, Any], key: str = "") -> Caller:
        """Who asks.

        Args:
            key: what was shown otherwise than in the header Authorization, which goes first.

        Raises:
            Unauthorized: no key, or none of ours.
        """
        ...


class Access(ASGIMiddleware):
    """Puts the caller into the connection's `auth`, or answers 401, 403 or 429."""

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Lets a request through to its route."""
        opt = scope["route_handler"].opt
        if opt.get("public"):
            await next_app(scope, receive, send)
            return
        connection: ASGIConnection[Any, Any, Any, Any] = ASGIConnection(scope)
        gateway = scope["litestar_app"].state.gateway
        key = key_in_cookie(connection) if opt.get("page") else ""
        caller = await gateway.door.enter(connection, key)
        await gateway.meter.count(caller)
        check_media_type(scope["route_handler"], dict(scope["headers"]))
        if opt.get("operator") and not caller.is_operator:
            raise Forbidden("this key may not do that; it takes an operator's key", code="operator_only")
        scope["auth"] = caller
        await next_app(scope, bounded_receive(receive, gateway.settings.body_timeout_s), send)


def bearer(connection: ASGIConnection[Any, Any, Any, Any], otherwise: str = "") -> str:
    """The key in the header Authorization; where there is no such header, `otherwise`.

    Raises:
        Unauthorized: there is none.
    """
    if otherwise and "authorization" not in connection.headers:
        return otherwise
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized(
            "this gateway wants a key: send the header `Authorization: Bearer KEY`; "
            "`penstock keys create` makes one",
            code="missing_api_key",
        )
    return token.strip()
