"""The page's cookie: a browser shows its key by it, on the page's own routes and nowhere else.

It holds the key itself, out of reach of scripts, so that no gateway has to remember who is logged in: a
revoked key is out at once, at every gateway, and a server that loses its data lets nobody in. What a browser
sends by itself, any page could make it send; so what changes something must come from our own page.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from litestar.connection import ASGIConnection
from litestar.datastructures import Cookie

from producer.gateway.errors import Forbidden

NAME: Final = "penstock_key"
KEPT_S: Final = 12 * 3600

_Connection = ASGIConnection[Any, Any, Any, Any]

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def key_in_cookie(connection: _Connection) -> str:
    """The key that the browser shows; empty where it shows none.

    Raises:
        Forbidden: the request would change something, and another site's page may have sent it.
    """
    key = connection.cookies.get(NAME, "")
    if connection.scope.get("method") not in _SAFE:
        _check_origin(connection, is_needed=bool(key))
    return key


def cookie_of(key: str, connection: _Connection) -> Cookie:
    """What the browser is to keep; empty to have it forget."""
    return Cookie(
        key=NAME,
        value=key,
        max_age=KEPT_S if key else 0,
        httponly=True,
        secure=connection.url.scheme == "https",
        samesite="strict",
    )


def _check_origin(connection: _Connection, *, is_needed: bool) -> None:
    site, origin = connection.headers.get("sec-fetch-site"), connection.headers.get("origin")
    host = connection.headers.get("host", "")
    if site in (None, "same-origin", "none") and (
        urlsplit(origin).netloc == host if origin is not None else site is not None or not is_needed
    ):
        return
    raise Forbidden("only the gateway's own page may do that", code="foreign_origin")
