"""Jobs: put in, looked at, cancelled."""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

import msgspec
from litestar import Response, get, post
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter
from msgspec import Struct

from penstock.attempts import Attempt
from penstock.client import Client
from penstock.errors import JobFailed, JobLost, ResultTimeout
from penstock.keys import JobId, check_idempotency_key, check_lane
from penstock.messages import Done, Failed, Job
from penstock.status import Ended, JobStatus, Leased, Queued, Released
from producer.gateway.caller import Caller
from producer.gateway.errors import BadRequest, Forbidden
from producer.gateway.gateway import CallersRequest, Gateway, GatewayHere

LONGEST_WAIT_S = 60.0

BYTES_PER_TOKEN = 4
TOKENS_WITHOUT_LIMIT = 256


class Submission(Job, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A job, see docs/wire.md, and what the gateway is to do with it."""

    lane: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """By default the key's own; another one takes an operator's key."""
    webhook: bool = False
    """Tell the tenant's webhooks when the job has ended."""

    @property
    def job(self) -> Job:
        """The job alone."""
        return Job(**{name: getattr(self, name) for name in Job.__struct_fields__})


class JobReply(Struct, frozen=True, kw_only=True):
    """Where a job is."""

    id: str
    object: Literal["penstock.job"] = "penstock.job"
    lane: str
    state: Literal["queued", "leased", "released", "ended", "expired", "lost", "unknown"]
    """As `penstock status` tells it; docs/wire.md says what each means."""
    ahead: int | None = None
    """About how many jobs of its lane are before it, while it is queued."""
    waits_for: str | None = None
    """`turn`, `consumer`, `model`, `resume` or `lane`; while it is queued or released."""
    detail: str | None = None
    consumer: str | None = None
    """Who has it, while it is leased; told to operators alone."""
    deliveries: int | None = None
    """How often it was handed out."""
    attempts: list[dict[str, Any]] = []
    """Those that failed, oldest first."""
    result: dict[str, Any] | None = None
    """The terminal event, `done` or `failed`, when it has ended."""


class CancelReply(Struct, frozen=True, kw_only=True):
    """What became of the wish to cancel."""

    id: str
    object: Literal["penstock.job.cancelled"] = "penstock.job.cancelled"
    cancelled: bool
    """Whether this request did it; false where the job had ended before."""


@post("/v1/penstock/jobs", status_code=202, summary="Submit a job", tags=["jobs"])
async def submit_job(
    request: CallersRequest,
    gateway: GatewayHere,
    data: JSONBody[Submission],
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key", max_length=255)] = None,
) -> Response[JobReply]:
    """Put a job into the lane of the key. The same Idempotency-Key gives the same job for a day."""
    caller: Caller = request.auth
    lane = _lane_of(data, caller)
    job = data.job
    if job.batch is not None:
        raise BadRequest(
            "rows of a batch come by /v1/batches, or by the client", param="batch", code="invalid_value"
        )
    own = None if idempotency_key is None else _own_key(idempotency_key, caller)
    async with AsyncExitStack() as stack:
        held = gateway.meter.admit(caller, estimated_tokens(job))
        await stack.enter_async_context(held)
        job_id = await gateway.client.submit(job, lane, idempotency_key=own)
        if caller.limits.queued_tokens is not None:
            stack.pop_all()
            gateway.meter.release_after(held, gateway.client.result(job_id))
    if data.webhook:
        await gateway.events.watch(caller.tenant, job_id)
    handle = await _handle_of(gateway, caller, job_id)
    reply = JobReply(id=handle, lane=JobId.parse(job_id).lane, state="queued")
    return Response(reply, status_code=202, headers={"Location": f"/v1/penstock/jobs/{handle}"})


@get("/v1/penstock/jobs/{job_id:str}", summary="Retrieve a job", tags=["jobs"])
async def get_job(
    request: CallersRequest,
    gateway: GatewayHere,
    job_id: FromPath[str],
    wait: Annotated[float, QueryParameter(ge=0, le=LONGEST_WAIT_S)] = 0.0,
) -> JobReply:
    """Where a job is, with its result once it has ended; `wait` waits for that for so many seconds."""
    caller: Caller = request.auth
    own = await gateway.handles.open(job_id, caller)
    if wait > 0:
        await _wait(gateway.client, own, wait)
    return reply_of(job_id, await gateway.client.status(own), caller)


@post("/v1/penstock/jobs/{job_id:str}/cancel", status_code=200, summary="Cancel a job", tags=["jobs"])
async def cancel_job(request: CallersRequest, gateway: GatewayHere, job_id: FromPath[str]) -> CancelReply:
    """End a job at once, whether or not a consumer works on it."""
    own = await gateway.handles.open(job_id, request.auth)
    return CancelReply(id=job_id, cancelled=await gateway.client.cancel(own))


def estimated_tokens(job: Job) -> int:
    """About how many tokens a job takes, prompt and output."""
    if job.prompt_token_ids is not None:
        prompt = len(job.prompt_token_ids)
    else:
        text = job.prompt if job.prompt is not None else msgspec.json.encode(job.messages).decode()
        prompt = len(text.encode()) // BYTES_PER_TOKEN + 1
    if job.kind != "generate":
        return prompt
    params = job.sampling_params
    return prompt + params.n * (params.max_tokens or TOKENS_WITHOUT_LIMIT)


def reply_of(handle: str, status: JobStatus, caller: Caller) -> JobReply:
    """A status as a reply."""
    lane = handle.partition(".")[0]
    match status:
        case Queued():
            detail = status.detail or None
            return JobReply(
                id=handle,
                lane=lane,
                state="queued",
                ahead=status.ahead,
                waits_for=status.waits_for,
                detail=detail,
            )
        case Leased():
            consumer = status.consumer if caller.is_operator else None
            failed = _plain(status.attempts, caller)
            return JobReply(
                id=handle,
                lane=lane,
                state="leased",
                consumer=consumer,
                deliveries=status.deliveries,
                attempts=failed,
            )
        case Released():
            return JobReply(
                id=handle,
                lane=lane,
                state="released",
                waits_for=status.waits_for,
                detail=status.detail or None,
                deliveries=status.deliveries,
                attempts=_plain(status.attempts, caller),
            )
        case Ended():
            return JobReply(id=handle, lane=lane, state="ended", result=_as_dict(status.event))
        case _:
            return JobReply(id=handle, lane=lane, state=status.__struct_config__.tag)  # pyright: ignore[reportArgumentType] - one of the names above


async def _wait(client: Client, job_id: str, seconds: float) -> None:
    try:
        await client.result(job_id, seconds)
    except (JobFailed, JobLost, ResultTimeout):
        return  # where it is says the status


async def _handle_of(gateway: Gateway, caller: Caller, job_id: str) -> str:
    return await gateway.handles.sign(job_id, caller.tenant)


def _lane_of(data: Submission, caller: Caller) -> str:
    if data.lane is None or data.lane == caller.lane:
        return caller.lane
    if not caller.is_operator:
        raise Forbidden(
            f"this key's lane is {caller.lane!r}; another one takes an operator's key",
            param="lane",
            code="lane_not_yours",
        )
    try:
        return check_lane(data.lane)
    except ValueError as error:
        raise BadRequest(str(error), param="lane", code="invalid_value") from None


def _own_key(idempotency_key: str, caller: Caller) -> str:
    """A key of the tenant's own: what another tenant sends under the same name is another job."""
    try:
        check_idempotency_key(idempotency_key)
    except ValueError as error:
        raise BadRequest(str(error), param="Idempotency-Key", code="invalid_value") from None
    return f"gateway-{hashlib.sha256((caller.tenant + ' ' + idempotency_key).encode()).hexdigest()}"


def _plain(attempts: list[Attempt], caller: Caller) -> list[dict[str, Any]]:
    found = [_as_dict(attempt) for attempt in attempts]
    if not caller.is_operator:
        for attempt in found:
            attempt.pop("consumer", None)
    return found


def _as_dict(value: Done | Failed | Attempt) -> dict[str, Any]:
    return msgspec.to_builtins(value)


ROUTES = (submit_job, get_job, cancel_job)
