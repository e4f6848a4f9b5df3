"""/v1/files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Final, Literal

from litestar import delete, get, post
from litestar.datastructures import ResponseHeader
from litestar.exceptions import InternalServerException
from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType
from litestar.params import FromPath, FromQuery, QueryParameter
from litestar.response import Stream

from producer.gateway.batches.outputs import Outputs
from producer.gateway.errors import BadRequest, Conflict
from producer.gateway.files.content import Content, Contents
from producer.gateway.files.objects import FileDeleted, FileList, FileObject, FileRecord
from producer.gateway.files.upload import FORM_BYTES, Upload, too_large
from producer.gateway.gateway import CallersRequest, Gateway, GatewayHere
from producer.threads import in_thread


@dataclass
class _UploadOperation(Operation):
    """The form, described; it is read as it comes."""

    def __post_init__(self) -> None:
        # Not a default: Litestar, which finds no body among the handler's arguments, says that there is none.
        media = OpenAPIMediaType(schema=_FORM)
        self.request_body = RequestBody(required=True, content={"multipart/form-data": media})


@post(
    "/v1/files",
    status_code=200,
    request_max_body_size=None,
    operation_class=_UploadOperation,
    summary="Upload a file",
    tags=["files"],
)
async def upload_file(request: CallersRequest, gateway: GatewayHere) -> FileObject:
    """Takes a file of requests, as a multipart form of `purpose` (`batch`) and `file`."""
    limit = gateway.settings.max_file_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit + FORM_BYTES:
        raise too_large(limit)
    upload = Upload(gateway.works.files, request.auth.tenant, limit)
    return await upload.take(request.headers.get("content-type", ""), _received(request))


async def _received(request: CallersRequest) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except InternalServerException as error:  # so Litestar calls a client that went away
        raise BadRequest("the upload broke off", code="invalid_form") from error


@get("/v1/files", summary="List files", tags=["files"])
async def list_files(
    request: CallersRequest,
    gateway: GatewayHere,
    after: Annotated[str | None, QueryParameter(max_length=128)] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=10_000)] = 10_000,
    order: FromQuery[Literal["asc", "desc"]] = "desc",
    purpose: Annotated[str | None, QueryParameter(max_length=64)] = None,
) -> FileList:
    """The files of the key's tenant, by the time at which they were made."""
    tenant = request.auth.tenant

    def read() -> list[FileObject]:
        contents = _contents(gateway, tenant)
        listed = gateway.works.files.listed(tenant, newest_first=order == "desc", after=after)
        wanted = (one for one in listed if purpose is None or one.file.purpose == purpose)
        return [contents.sized(one) for one in islice(wanted, limit + 1)]

    found = await in_thread(read)
    shown = found[:limit]
    return FileList(
        data=shown,
        first_id=shown[0].id if shown else None,
        last_id=shown[-1].id if shown else None,
        has_more=len(found) > limit,
    )


@get("/v1/files/{file_id:str}", summary="Retrieve a file's object", tags=["files"])
async def get_file(request: CallersRequest, gateway: GatewayHere, file_id: FromPath[str]) -> FileObject:
    """What is known of a file."""
    tenant = request.auth.tenant
    record = await in_thread(gateway.works.files.find, tenant, file_id)
    return await in_thread(_contents(gateway, tenant).sized, record)


@get(
    "/v1/files/{file_id:str}/content",
    media_type="application/octet-stream",
    response_headers=[
        # The values are examples, by which Litestar knows the type.
        ResponseHeader(
            name="X-Incomplete",
            description="true while a batch writes it",
            value="true",
            documentation_only=True,
        ),
        ResponseHeader(
            name="X-Last-Line", description="its lines so far", value="1", documentation_only=True
        ),
    ],
    summary="Retrieve a file's content",
    tags=["files"],
)
async def get_content(
    request: CallersRequest,
    gateway: GatewayHere,
    file_id: FromPath[str],
    offset: Annotated[int, QueryParameter(ge=0, le=2**53)] = 0,
) -> Stream:
    """A file's bytes, behind its first `offset` lines. A batch's output can be read while it is written:
    X-Incomplete is `true` then, and X-Last-Line the offset from which to go on."""
    content = await in_thread(_contents(gateway, request.auth.tenant).of, file_id, offset)
    headers = {
        "X-Incomplete": "false" if content.is_complete else "true",
        "X-Last-Line": str(content.lines),
    }
    if content.size is not None:
        headers["Content-Length"] = str(content.size)
    return Stream(_sent(content), headers=headers, media_type="application/octet-stream")


@delete("/v1/files/{file_id:str}", status_code=200, summary="Delete a file", tags=["files"])
async def delete_file(request: CallersRequest, gateway: GatewayHere, file_id: FromPath[str]) -> FileDeleted:
    """Deletes a file. A batch that reads it reads it to its end; one that writes it has to be cancelled
    first."""
    works, tenant = gateway.works, request.auth.tenant

    def remove() -> None:
        record: FileRecord = works.files.find(tenant, file_id)
        if record.batch:
            raise Conflict(
                f"The file is being written by {record.batch}; cancel that first.", code="file_in_use"
            )
        works.files.delete(tenant, record, is_read=file_id in works.batches.files_used())

    await in_thread(remove)
    return FileDeleted(id=file_id)


def _contents(gateway: Gateway, tenant: str) -> Contents:
    works = gateway.works
    return Contents(works.files, Outputs(works.batches, works.files, tenant), tenant)


async def _sent(content: Content) -> AsyncIterator[bytes]:
    pieces: Iterator[bytes] = content.pieces
    while (piece := await in_thread(next, pieces, b"")) != b"":
        yield piece


_FORM: Final = Schema(
    type=OpenAPIType.OBJECT,
    required=["purpose", "file"],
    properties={
        "purpose": Schema(type=OpenAPIType.STRING, enum=["batch"]),
        "file": Schema(type=OpenAPIType.STRING, content_media_type="application/octet-stream"),
        "expires_after[anchor]": Schema(type=OpenAPIType.STRING, enum=["created_at"]),
        "expires_after[seconds]": Schema(type=OpenAPIType.INTEGER, minimum=3600, maximum=2592000),
    },
)

ROUTES: Final = (upload_file, list_files, get_file, get_content, delete_file)
