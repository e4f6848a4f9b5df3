"""Dead letters: jobs that failed at their last attempt, tried again or dropped. For operators."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import delete, get, post
from litestar.params import FromPath, QueryParameter
from msgspec import Struct

from penstock.dead import DeadLetter
from penstock.errors import NoSuchLetter
from penstock.follower import parse_entry_id
from producer.gateway.access import OPERATOR
from producer.gateway.errors import BadRequest, NotFound
from producer.gateway.gateway import GatewayHere


class LetterReply(Struct, frozen=True, kw_only=True):
    """One dead letter."""

    id: str
    object: Literal["penstock.dead_letter"] = "penstock.dead_letter"
    job_id: str
    lane: str
    died_at_ms: int
    error: dict[str, Any]
    attempts: list[dict[str, Any]]
    """Oldest first."""
    job: dict[str, Any] | None
    """Its fields as they were sent; null where they can't be read."""


class LetterList(Struct, frozen=True, kw_only=True):
    """A page of dead letters, oldest first."""

    data: list[LetterReply]
    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class RequeueReply(Struct, frozen=True, kw_only=True):
    """What a dead letter became."""

    id: str
    """Of the dead letter, which is gone."""
    object: Literal["penstock.dead_letter.requeued"] = "penstock.dead_letter.requeued"
    job_id: str
    """Of the new job."""


class DropReply(Struct, frozen=True, kw_only=True):
    """A dead letter that is gone."""

    id: str
    object: Literal["penstock.dead_letter.deleted"] = "penstock.dead_letter.deleted"
    deleted: bool = True


@get("/v1/penstock/dead", opt=OPERATOR, summary="List dead letters", tags=["dead letters"])
async def list_letters(
    gateway: GatewayHere,
    after: Annotated[str | None, QueryParameter(max_length=64)] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
) -> LetterList:
    """Up to `limit` of them behind the letter `after`, oldest first."""
    letters = await gateway.client.dead_letters(_checked(after or "0-0", "after"), limit + 1)
    data = [_reply(letter) for letter in letters[:limit]]
    return LetterList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(letters) > limit,
    )


@get(
    "/v1/penstock/dead/{letter_id:str}", opt=OPERATOR, summary="Retrieve a dead letter", tags=["dead letters"]
)
async def get_letter(gateway: GatewayHere, letter_id: FromPath[str]) -> LetterReply:
    """One of them."""
    try:
        return _reply(await gateway.client.dead_letter(_checked(letter_id, "letter_id")))
    except NoSuchLetter as error:
        raise NotFound(str(error), code="dead_letter_not_found") from None


@post(
    "/v1/penstock/dead/{letter_id:str}/requeue",
    opt=OPERATOR,
    status_code=200,
    summary="Requeue a dead letter",
    tags=["dead letters"],
)
async def requeue_letter(gateway: GatewayHere, letter_id: FromPath[str]) -> RequeueReply:
    """Make a new job of it, with attempts anew, at the end of its lane."""
    try:
        job_id = await gateway.client.requeue(_checked(letter_id, "letter_id"))
    except NoSuchLetter as error:
        raise NotFound(str(error), code="dead_letter_not_found") from None
    return RequeueReply(id=letter_id, job_id=job_id)


@delete(
    "/v1/penstock/dead/{letter_id:str}",
    opt=OPERATOR,
    status_code=200,
    summary="Drop a dead letter",
    tags=["dead letters"],
)
async def drop_letter(gateway: GatewayHere, letter_id: FromPath[str]) -> DropReply:
    """Delete it; its job stays failed."""
    if not await gateway.client.drop(_checked(letter_id, "letter_id")):
        raise NotFound(f"there is no dead letter {letter_id}", code="dead_letter_not_found")
    return DropReply(id=letter_id)


def _checked(letter_id: str, param: str) -> str:
    try:
        parse_entry_id(letter_id)
    except ValueError as error:
        raise BadRequest(str(error), param=param, code="invalid_value") from None
    return letter_id


def _reply(letter: DeadLetter) -> LetterReply:
    return LetterReply(
        id=letter.letter_id,
        job_id=letter.job_id,
        lane=letter.job_id.partition(".")[0],
        died_at_ms=int(letter.letter_id.partition("-")[0]),
        error=msgspec.to_builtins(letter.event.error),
        attempts=[msgspec.to_builtins(attempt) for attempt in letter.attempts],
        job=_fields(letter.job),
    )


def _fields(job: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(job, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


ROUTES = (list_letters, get_letter, requeue_letter, drop_letter)
