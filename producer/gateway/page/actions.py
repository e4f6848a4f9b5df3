"""What the page's buttons do. Replies are words for the page's notice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Final

import msgspec
from litestar import Response, post
from litestar.params import FromPath, URLEncodedBody
from msgspec import Meta, Struct

from penstock.errors import NoSuchLetter
from penstock.follower import parse_entry_id
from penstock.keys import DEFAULT_LANE, JobId, check_lane
from penstock.messages import Job, decode_job
from producer.gateway.access import PAGE
from producer.gateway.errors import BadRequest, NotFound
from producer.gateway.gateway import CallersRequest, GatewayHere
from producer.gateway.page.life import Watched
from producer.gateway.page.rendering import page
from producer.gateway.queue.jobs import estimated_tokens
from producer.threads import in_thread

MAX_TOKENS: Final = 256


class Trial(Struct, frozen=True, kw_only=True):
    """The box to try a prompt. A form's values are texts, and its empty ones are there."""

    prompt: str = ""
    form: str = "chat"
    """`chat`, or `text` for a prompt as it is."""
    max_tokens: Annotated[str, Meta(max_length=16)] = ""
    temperature: Annotated[str, Meta(max_length=16)] = ""
    lane: Annotated[str, Meta(max_length=64)] = ""


@post("/page/queue/pause", opt=PAGE, status_code=200, include_in_schema=False)
async def pause_queue(gateway: GatewayHere) -> Response[str]:
    """Consumers take nothing more."""
    await gateway.client.pause()
    gateway.board.look()
    return _notice("The queue is paused. What runs goes on.")


@post("/page/queue/resume", opt=PAGE, status_code=200, include_in_schema=False)
async def resume_queue(gateway: GatewayHere) -> Response[str]:
    """Undo it."""
    await gateway.client.resume()
    gateway.board.look()
    return _notice("The queue goes on.")


@post("/page/lanes/{lane:str}/pause", opt=PAGE, status_code=200, include_in_schema=False)
async def pause_lane(gateway: GatewayHere, lane: FromPath[str]) -> Response[str]:
    """Consumers take nothing more from it."""
    await gateway.client.pause(_lane(lane))
    gateway.board.look()
    return _notice(f"Lane {lane} is paused. What runs goes on.")


@post("/page/lanes/{lane:str}/resume", opt=PAGE, status_code=200, include_in_schema=False)
async def resume_lane(gateway: GatewayHere, lane: FromPath[str]) -> Response[str]:
    """Undo it."""
    await gateway.client.resume(_lane(lane))
    gateway.board.look()
    return _notice(f"Lane {lane} goes on.")


@post("/page/dead/{letter_id:str}/requeue", opt=PAGE, status_code=200, include_in_schema=False)
async def requeue(gateway: GatewayHere, letter_id: FromPath[str]) -> Response[str]:
    """Make a new job of a dead letter."""
    try:
        job_id = await gateway.client.requeue(_letter(letter_id))
    except NoSuchLetter as error:
        raise NotFound(str(error), code="dead_letter_not_found") from None
    gateway.board.look()
    return _notice("Requeued as a new job:", job_id)


@post("/page/dead/{letter_id:str}/drop", opt=PAGE, status_code=200, include_in_schema=False)
async def drop(gateway: GatewayHere, letter_id: FromPath[str]) -> Response[str]:
    """Delete a dead letter."""
    if not await gateway.client.drop(_letter(letter_id)):
        raise NotFound(f"there is no dead letter {letter_id}", code="dead_letter_not_found")
    gateway.board.look()
    return _notice("The dead letter is dropped.")


@post("/page/batches/{tenant:str}/{batch_id:str}/cancel", opt=PAGE, status_code=200, include_in_schema=False)
async def cancel_batch(gateway: GatewayHere, tenant: FromPath[str], batch_id: FromPath[str]) -> Response[str]:
    """End a batch: answers stay."""
    await in_thread(gateway.works.batches.cancel, tenant, batch_id)
    gateway.dispatcher.look(batch_id)
    gateway.board.look()
    return _notice(f"Batch {batch_id} is being cancelled. Its answers stay.")


@post("/page/jobs/{job_id:str}/cancel", opt=PAGE, status_code=200, include_in_schema=False)
async def cancel_job(gateway: GatewayHere, job_id: FromPath[str]) -> Response[str]:
    """End a job at once."""
    cancelled = await gateway.client.cancel(str(JobId.parse(job_id)))
    gateway.board.look()
    return _notice("The job is cancelled." if cancelled else "The job had ended already.")


@post("/page/try", opt=PAGE, status_code=200, include_in_schema=False)
async def try_prompt(
    request: CallersRequest, gateway: GatewayHere, data: URLEncodedBody[Trial]
) -> Response[str]:
    """Put a job in, and show its life."""
    job = _job(data)
    lane = _lane(data.lane.strip()) if data.lane.strip() else request.auth.lane or DEFAULT_LANE
    async with gateway.meter.admit(request.auth, estimated_tokens(job)):
        job_id = JobId.parse(await gateway.client.submit(job, lane))
    gateway.board.look()
    views = Watched(gateway.client, gateway.link, gateway.keys, job_id).views()
    try:
        view = await anext(views)
    finally:
        await views.aclose()
    return page("trial", view=view)


def _job(trial: Trial) -> Job:
    """The job that the form asks for.

    Raises:
        BadRequest: it is empty, or a number is none.
        InvalidJob: a parameter is out of range.
    """
    if not trial.prompt.strip():
        raise BadRequest("the prompt is empty; write one", param="prompt", code="invalid_value")
    params: dict[str, float] = {"max_tokens": MAX_TOKENS}
    if trial.max_tokens.strip():
        params["max_tokens"] = _number(trial.max_tokens, "max_tokens", int)
    if trial.temperature.strip():
        params["temperature"] = _number(trial.temperature, "temperature", float)
    is_text = trial.form == "text"
    asked = {"prompt": trial.prompt} if is_text else {"messages": [{"role": "user", "content": trial.prompt}]}
    return decode_job(msgspec.json.encode({**asked, "sampling_params": params, "stream": True}))


def _number(text: str, name: str, kind: Callable[[str], float]) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        words = f"{name} is {text[:16]!r}; it must be a number"
        raise BadRequest(words, param=name, code="invalid_value")
    return number


def _lane(lane: str) -> str:
    try:
        return check_lane(lane)
    except ValueError as error:
        raise BadRequest(str(error), param="lane", code="invalid_value") from None


def _letter(letter_id: str) -> str:
    try:
        parse_entry_id(letter_id)
    except ValueError as error:
        raise BadRequest(str(error), param="letter_id", code="invalid_value") from None
    return letter_id


def _notice(words: str, job_id: str | None = None) -> Response[str]:
    return page("notice", words=words, job_id=job_id)


ROUTES: Final = (
    pause_queue,
    resume_queue,
    pause_lane,
    resume_lane,
    requeue,
    drop,
    cancel_batch,
    cancel_job,
    try_prompt,
)
