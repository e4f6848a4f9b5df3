"""Who may see the page: whoever shows an operator's key, once, in a form."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import quote

from litestar import Request, Response, get, post
from litestar.params import URLEncodedBody
from litestar.response import Redirect
from msgspec import Meta, Struct

from producer.gateway.access import PAGE, PUBLIC
from producer.gateway.cookie import cookie_of, key_in_cookie
from producer.gateway.errors import ApiError, ErrorBody, ErrorReply, Forbidden, Unauthorized
from producer.gateway.gateway import GatewayHere
from producer.gateway.page.rendering import page
from producer.gateway.replies import reply_to

_AnyRequest = Request[Any, Any, Any]


class Login(Struct, frozen=True, kw_only=True):
    """The form."""

    key: Annotated[str, Meta(max_length=256)] = ""
    to: Annotated[str, Meta(max_length=512)] = "/"
    """The page that was asked for."""


@get("/login", opt=PAGE, include_in_schema=False)
async def login_again() -> Redirect:
    """The address that a refused key leaves in the browser: the form again, or the page."""
    return Redirect("/", status_code=303)


@post("/login", opt=PUBLIC, include_in_schema=False)
async def login(request: _AnyRequest, gateway: GatewayHere, data: URLEncodedBody[Login]) -> Response[Any]:
    """A cookie for a key."""
    key_in_cookie(request)  # refuses other sites' forms
    key = data.key.strip()
    caller = await gateway.door.enter(request, key)
    await gateway.meter.count(caller)
    if not caller.is_operator:
        raise Forbidden("this key is not an operator's; the page takes one", code="operator_only")
    return Redirect(quote(_place(data.to)), status_code=303, cookies=[cookie_of(key, request)])


@post("/logout", opt=PAGE, include_in_schema=False)
async def logout(request: _AnyRequest) -> Redirect:
    """The browser forgets the key."""
    return Redirect("/", status_code=303, cookies=[cookie_of("", request)])


def on_page_error(request: _AnyRequest, error: Exception) -> Response[str] | Response[ErrorReply]:
    """An error as the page shows it: as words for its notice, as the form that asks for a key, or as a page
    of its own. Whoever did not ask for HTML has it as from any other route."""
    reply = reply_to(request, error)
    status, told = reply.status_code or ApiError.status, reply.content.error
    if request.headers.get("hx-request") == "true":
        is_notice = request.headers.get("hx-target") == "notice"  # which is read out as it is
        part = page("error_notice", status, words=told.message, is_notice=is_notice)
        if status == Unauthorized.status:
            part.headers["HX-Redirect"] = "/"
        return part
    if "text/html" not in request.headers.get("accept", ""):
        return reply
    if status == Unauthorized.status or told.code == "operator_only":
        return page("login", status, words=_words(request, told), to=_place(request.url.path))
    return page("error_page", status, words=told.message, code=status)


def _place(path: str) -> str:
    """Where a login leads: to a job's page or the first one, never where others' forms might want it to."""
    return path if path.startswith("/page/jobs/") else "/"


def _words(request: _AnyRequest, error: ErrorBody) -> str | None:
    """What is wrong with the key that was shown; None where there was none to be wrong."""
    if error.code == "missing_api_key":
        return "Enter a key." if request.method == "POST" else None
    return error.message


ROUTES: Final = (login_again, login, logout)
