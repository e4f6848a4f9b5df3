"""/v1/batches."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Final

import msgspec
from litestar import get, post
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter

from producer.gateway.batches.creation import BatchRequest, made_batch
from producer.gateway.batches.objects import BatchList, BatchObject, BatchRecord
from producer.gateway.batches.retry import retried
from producer.gateway.batches.works import Works
from producer.gateway.caller import Caller
from producer.gateway.errors import NotFound
from producer.gateway.gateway import CallersRequest, GatewayHere
from producer.threads import in_thread


@post("/v1/batches", status_code=200, summary="Create a batch", tags=["batches"])
async def create_batch(
    request: CallersRequest,
    gateway: GatewayHere,
    data: JSONBody[BatchRequest],
    strict: Annotated[bool | None, HeaderParameter(name="X-Strict-Batch")] = None,
) -> BatchObject:
    """Runs the requests of an uploaded file. The input is validated afterwards: look at the batch's status. A
    bad line costs itself and is told in the error file, unless the batch is strict."""
    is_strict = gateway.settings.strict_batches if strict is None else strict
    record = await in_thread(_made, gateway.works, data, request.auth, is_strict)
    gateway.dispatcher.look(record.batch.id)
    return record.batch


def _made(works: Works, asked: BatchRequest, caller: Caller, is_strict: bool) -> BatchRecord:
    record = made_batch(asked, caller, is_strict=is_strict)
    try:
        works.files.find(caller.tenant, asked.input_file_id)
    except NotFound:  # which the batch will tell
        record = msgspec.structs.replace(record, had_input=False)
    works.batches.create(caller.tenant, record)
    return record


@get("/v1/batches", summary="List batches", tags=["batches"])
async def list_batches(
    request: CallersRequest,
    gateway: GatewayHere,
    after: Annotated[str | None, QueryParameter(max_length=128)] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
) -> BatchList:
    """The batches of the key's tenant, newest first."""

    def read() -> list[BatchObject]:
        listed = gateway.works.batches.listed(request.auth.tenant, after)
        return [record.batch for record in islice(listed, limit + 1)]

    found = await in_thread(read)
    shown = found[:limit]
    return BatchList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(found) > limit,
    )


@get("/v1/batches/{batch_id:str}", summary="Retrieve a batch", tags=["batches"])
async def get_batch(request: CallersRequest, gateway: GatewayHere, batch_id: FromPath[str]) -> BatchObject:
    """A batch as it is now."""
    return (await in_thread(gateway.works.batches.find, request.auth.tenant, batch_id)).batch


@post("/v1/batches/{batch_id:str}/cancel", status_code=200, summary="Cancel a batch", tags=["batches"])
async def cancel_batch(request: CallersRequest, gateway: GatewayHere, batch_id: FromPath[str]) -> BatchObject:
    """Ends a batch: answers stay, all other rows are in the error file as `batch_cancelled`."""
    record = await in_thread(gateway.works.batches.cancel, request.auth.tenant, batch_id)
    gateway.dispatcher.look(batch_id)
    return record.batch


@post(
    "/v1/batches/{batch_id:str}/retry",
    status_code=200,
    summary="Retry a batch's failed rows",
    tags=["batches"],
)
async def retry_batch(request: CallersRequest, gateway: GatewayHere, batch_id: FromPath[str]) -> BatchObject:
    """Makes a new batch of the rows of an ended one that failed, in an input file of their own."""
    record = await in_thread(retried, gateway.works, request.auth, batch_id)
    await in_thread(gateway.works.batches.create, request.auth.tenant, record)
    gateway.dispatcher.look(record.batch.id)
    return record.batch


ROUTES: Final = (create_batch, list_batches, get_batch, cancel_batch, retry_batch)
