"""Whole pages, and the streams that keep them fresh."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Final

from litestar import Response, get
from litestar.params import FromPath, QueryParameter
from litestar.response import Redirect, Stream

from penstock.errors import InvalidJobId
from penstock.keys import JobId
from producer.gateway.access import PAGE
from producer.gateway.errors import NotFound
from producer.gateway.gateway import CallersRequest, Gateway, GatewayHere
from producer.gateway.page.life import LifeView, Watched, find_entry, prompt_of, read_job
from producer.gateway.page.rendering import page, render
from producer.gateway.page.sending import event, sent


@get("/", opt=PAGE, include_in_schema=False)
async def overview_page(request: CallersRequest, gateway: GatewayHere) -> Response[str]:
    """The overview."""
    parts = await gateway.board.parts()
    return page("overview_page", parts=parts, key_id=request.auth.key_id, lane=request.auth.lane)


@get("/page/events", opt=PAGE, media_type="text/event-stream", include_in_schema=False)
async def overview_events(request: CallersRequest, gateway: GatewayHere) -> Stream:
    """The overview's parts as they change."""

    async def lines() -> AsyncGenerator[bytes]:
        async with aclosing(gateway.board.changes()) as changes:
            async for parts in changes:
                yield b"".join(event(name, html) for name, html in parts.items())

    return sent(request, gateway, lines())


@get("/page/jobs", opt=PAGE, include_in_schema=False)
async def find_job(job_id: Annotated[str, QueryParameter(name="id", max_length=256)] = "") -> Redirect:
    """From the box that asks for an id to the job's page."""
    return Redirect(f"/page/jobs/{_parsed(job_id.strip())}", status_code=303)


@get("/page/jobs/{job_id:str}", opt=PAGE, include_in_schema=False)
async def job_page(
    request: CallersRequest, gateway: GatewayHere, job_id: FromPath[str]
) -> Response[str] | Redirect:
    """A job's life."""
    parsed = _parsed(job_id)
    entry = await find_entry(gateway.link, gateway.keys, parsed)
    if entry is not None and entry.job_id != parsed:
        return Redirect(f"/page/jobs/{entry.job_id}", status_code=303)
    async with aclosing(_watched(gateway, parsed).views()) as views:
        view = await anext(views)
    job = None if entry is None else entry.job
    if entry is None and view.letter is not None:
        job = read_job(view.letter.job)
    return page(
        "job_page",
        view=view,
        job=job,
        prompt=None if job is None else prompt_of(job),
        key_id=request.auth.key_id,
    )


@get("/page/jobs/{job_id:str}/events", opt=PAGE, media_type="text/event-stream", include_in_schema=False)
async def job_life(request: CallersRequest, gateway: GatewayHere, job_id: FromPath[str]) -> Stream:
    """A job's life as it goes on; ends with the event `over`."""
    return sent(request, gateway, _life(gateway, _parsed(job_id)))


async def _life(gateway: Gateway, job_id: JobId) -> AsyncGenerator[bytes]:
    before: LifeView | None = None
    async with aclosing(_watched(gateway, job_id).views()) as views:
        async for view in views:
            if view != before:
                yield event("life", render("life", view=view))
            before = view
    yield event("over", "")


def _watched(gateway: Gateway, job_id: JobId) -> Watched:
    return Watched(gateway.client, gateway.link, gateway.keys, job_id)


def _parsed(text: str) -> JobId:
    """A job's id, also as its tenant knows it: with the tag behind it.

    Raises:
        NotFound: it is none.
    """
    head, _, tag = text.rpartition(".")
    try:
        return JobId.parse(head if len(tag) == 32 else text)
    except InvalidJobId as error:
        raise NotFound(str(error), code="job_not_found") from None


ROUTES: Final = (overview_page, overview_events, find_job, job_page, job_life)
