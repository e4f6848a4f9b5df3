"""Who may see the page: whoever shows an operator's key, once, in a form."""

from __future__ import annotations

from typing import Annotated, Any, Final

from litestar import Request, Response, post
from litestar.params import URLEncodedBody
from litestar.response import Redirect
from msgspec import Meta, Struct

from producer.gateway.access import PAGE, PUBLIC
from producer.gateway.cookie import cookie_of, key_in_cookie
from producer.gateway.errors import ApiError, ErrorReply, Forbidden, Unauthorized
from producer.gateway.gateway import GatewayHere
from producer.gateway.page.rendering import page
from producer.gateway.replies import api_error_of, reply_of

_AnyRequest = Request[Any, Any, Any]


class Login(Struct, frozen=True, kw_only=True):
    """The form."""

    key: Annotated[str, Meta(max_length=256)] = ""


@post("/login", opt=PUBLIC, include_in_schema=False)
async def login(request: _AnyRequest, gateway: GatewayHere, data: URLEncodedBody[Login]) -> Response[Any]:
    """A cookie for a key."""
    key_in_cookie(request)  # refuses other sites' forms
    key = data.key.strip()
    caller = await gateway.door.enter(request, key)
    await gateway.meter.count(caller)
    if not caller.is_operator:
        raise Forbidden("this key is not an operator's; the page takes one", code="operator_only")
    return Redirect("/", status_code=303, cookies=[cookie_of(key, request)])


@post("/logout", opt=PAGE, include_in_schema=False)
async def logout(request: _AnyRequest) -> Redirect:
    """The browser forgets the key."""
    return Redirect("/", status_code=303, cookies=[cookie_of("", request)])


def on_page_error(request: _AnyRequest, error: Exception) -> Response[str] | Response[ErrorReply]:
    """An error as the page shows it: as words for its notice, as the form that asks for a key, or as a page
    of its own. Whoever did not ask for HTML has it as from any other route."""
    told = api_error_of(error)
    assert told is not None, "only exceptions that have a reply are registered"
    if request.headers.get("hx-request") == "true":
        reply = page("error_notice", told.status, words=str(told))
        if isinstance(told, Unauthorized):
            reply.headers["HX-Redirect"] = "/"
        return reply
    if "text/html" not in request.headers.get("accept", ""):
        return reply_of(told)
    if _wants_key(told):
        return page("login", told.status, words=_words(request, told))
    return page("error_page", told.status, words=str(told), code=told.status)


def _words(request: _AnyRequest, error: ApiError) -> str | None:
    """What is wrong with the key that was shown; None where there was none to be wrong."""
    if error.code == "missing_api_key":
        return "Enter a key." if request.scope["path"] == "/login" else None
    return str(error)


def _wants_key(error: ApiError) -> bool:
    return isinstance(error, Unauthorized) or error.code == "operator_only"


ROUTES: Final = (login, logout)
