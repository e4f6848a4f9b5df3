"""The door: every request passes it, and only routes that say `public` are open to all.

A route is public by its handler's `opt`: `PUBLIC`. Whoever may be let in by something other than a bearer key
(a page's cookie) is a `Door` too.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from litestar.connection import ASGIConnection
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from producer.gateway.caller import Caller
from producer.gateway.errors import Forbidden, Unauthorized
from producer.gateway.limits import bounded_receive, check_media_type

PUBLIC: Final = {"public": True}
OPERATOR: Final = {"operator": True}
"""`opt` of routes that are for operators alone."""


class Door(Protocol):
    """Lets callers in."""

    async def enter(self, connection: ASGIConnection[Any, Any, Any, Any]) -> Caller:
        """Who asks.

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
        caller = await gateway.door.enter(connection)
        await gateway.meter.count(caller)
        check_media_type(scope["route_handler"], dict(scope["headers"]))
        if opt.get("operator") and not caller.is_operator:
            raise Forbidden("this key may not do that; it takes an operator's key", code="operator_only")
        scope["auth"] = caller
        await next_app(scope, bounded_receive(receive, gateway.settings.body_timeout_s), send)


def bearer(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The key in the header Authorization.

    Raises:
        Unauthorized: there is none.
    """
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized(
            "this gateway wants a key: send the header `Authorization: Bearer KEY`; "
            "`penstock keys create` makes one",
            code="missing_api_key",
        )
    return token.strip()
