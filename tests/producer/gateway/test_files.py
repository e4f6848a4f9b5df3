"""/v1/files by OpenAI's own client, and by hand where that is too well-behaved."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from producer.errors import UsageError
from producer.gateway.files.objects import FileObject, FileRecord, new_file_id
from producer.gateway.files.store import FileStore
from producer.gateway.storage import DRAFTS, Folder, ObjectStorage, Storage, open_storage
from tests.producer.gateway.batching import answers_of, ended, input_of, make_batch, request_line, upload
from tests.producer.gateway.running import serving
from tests.producer.gateway.tenants import add_key


@pytest_asyncio.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's client of the gateway."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Where the gateway keeps its files."""
    return tmp_path / "gateway" / "files"


def written(storage: Path) -> list[str]:
    """Names of all files in the storage."""
    return sorted(path.name for path in storage.rglob("*") if path.is_file())


async def test_a_file_from_upload_to_deletion(client: AsyncOpenAI, storage: Path) -> None:
    data = b"\r\n--\r\n" * 300_000 + b"end"
    file = await client.files.create(file=("of mine.jsonl", data), purpose="batch")
    assert (file.object, file.bytes, file.filename, file.purpose, file.status) == (
        "file",
        len(data),
        "of mine.jsonl",
        "batch",
        "processed",
    )
    assert abs(file.created_at - time.time()) < 60
    assert await client.files.wait_for_processing(file.id) == file
    assert await client.files.retrieve(file.id) == file
    assert (await client.files.content(file.id)).read() == data
    assert (await client.files.delete(file.id)).model_dump() == {
        "id": file.id,
        "object": "file",
        "deleted": True,
    }
    for asking in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="No such File object"):
            await asking(file.id)
    assert written(storage) == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fine-tune"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "batch", "expires_after[anchor]": "now"}, "expires_after.anchor"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
            "expires_after.seconds",
        ),
    ],
)
async def test_what_is_refused_leaves_nothing(
    http: httpx.AsyncClient, storage: Path, fields: dict[str, str], param: str
) -> None:
    reply = await http.post("/v1/files", data=fields, files={"file": ("x", b"{}")})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert written(storage) == []


async def test_what_is_no_form_is_refused(http: httpx.AsyncClient, storage: Path) -> None:
    for sent in (
        {"json": {"purpose": "batch"}},
        {"files": {"other": b"x"}, "data": {"purpose": "batch"}},
        {"content": b"--b\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        {"content": b"nothing", "headers": {"Content-Type": "multipart/form-data"}},
        {"files": [("file", b"x"), ("file", b"y")], "data": {"purpose": "batch"}},
        {"files": {"file": b"x"}, "data": {"purpose": "b" * 5000}},
    ):
        reply = await http.post("/v1/files", **sent)  # pyright: ignore[reportArgumentType] - several kinds
        assert reply.status_code == 400, sent
        assert reply.json()["error"]["type"] == "invalid_request_error"
    assert written(storage) == []


async def test_a_file_too_long_is_refused_before_and_while_it_comes(redis_url: str, tmp_path: Path) -> None:
    async with (
        serving(redis_url, tmp_path / "gateway", max_file_bytes=100_000) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        for size in (100_001, 1_000_000):
            reply = await http.post(
                "/v1/files", data={"purpose": "batch"}, files={"file": ("x", b"x" * size)}
            )
            assert reply.status_code == 413
            assert reply.json()["error"]["code"] == "file_too_large"
        form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n{}\r\n--b--\r\n'
        for around in ((b"x" * 200_000 + b"\r\n", b""), (b"", b"x" * 200_000)):
            reply = await http.post(  # with no length announced, and too much in no part of the form
                "/v1/files",
                content=_slices(form.join(around)),
                headers={"Content-Type": "multipart/form-data; boundary=b"},
            )
            assert (reply.status_code, reply.json()["error"]["code"]) == (413, "file_too_large")
        reply = await http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("x", b"x" * 100_000)})
        assert reply.status_code == 200
    assert len(written(tmp_path / "gateway" / "files")) == 2


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 10_000):
        yield data[at : at + 10_000]


async def test_an_upload_that_breaks_off_leaves_nothing(url: str, storage: Path) -> None:
    host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()  # type: ignore[union-attr]
    _, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 90000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    )
    writer.write(head.encode() + b"{}\n" * 1_000_000)
    await writer.drain()
    async with asyncio.timeout(20):
        while not written(storage):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
    assert await asyncio.to_thread(written, storage / DRAFTS) == await asyncio.to_thread(written, storage)
    writer.transport.abort()
    async with asyncio.timeout(20):
        while written(storage):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_files_are_listed_by_pages_in_both_orders(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    made = [await upload(client, b"x" * n) for n in range(5)]
    assert [file.id async for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id async for file in client.files.list(limit=2, order="asc")] == made
    page = (await http.get("/v1/files", params={"limit": 2, "after": made[3]})).json()
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
        "list",
        made[2],
        made[1],
        True,
    )
    assert [file["bytes"] for file in page["data"]] == [2, 1]
    assert (await client.files.list(purpose="batch_output")).data == []
    with pytest.raises(openai.BadRequestError, match="there is no file"):
        await client.files.list(after="file-none")
    for wrong in ({"limit": 0}, {"order": "up"}):
        assert (await http.get("/v1/files", params=wrong)).status_code == 400


async def test_content_from_a_line_on(client: AsyncOpenAI, http: httpx.AsyncClient) -> None:
    file_id = await upload(client, b"a\nbb\n\nccc")
    for offset, rest in enumerate((b"a\nbb\n\nccc", b"bb\n\nccc", b"\nccc", b"ccc", b"", b"")):
        reply = await http.get(
            f"/v1/files/{file_id}/content?offset={offset}", headers={"Accept": "application/binary"}
        )
        assert (reply.status_code, reply.content) == (200, rest)
        assert (reply.headers["X-Incomplete"], reply.headers["X-Last-Line"]) == ("false", "4")
    assert (await http.get(f"/v1/files/{file_id}/content?offset=-1")).status_code == 400


async def test_an_expired_file_is_gone_from_sight_at_once_and_from_the_storage_soon(
    client: AsyncOpenAI, http: httpx.AsyncClient, storage: Path
) -> None:
    expiring = await client.files.create(
        file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert expiring.expires_at == expiring.created_at + 3600
    kept = await upload(client, b"y")
    files = FileStore(Folder(storage))
    record = files.find("default", expiring.id)
    over = msgspec.structs.replace(record.file, expires_at=int(time.time()) - 1)
    files.save("default", msgspec.structs.replace(record, file=over))
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(expiring.id)
    assert [file.id async for file in client.files.list()] == [kept]
    files.sweep(lambda file_id: file_id == expiring.id)
    assert expiring.id in written(storage), "a batch reads it"
    files.sweep(lambda _: False)
    assert written(storage) == [kept, f"{kept}.json"]


async def test_another_tenants_file_is_none(redis_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "gateway"
    mine, _ = await add_key(folder, "alice")
    others, _ = await add_key(folder, "bob", is_operator=True)
    async with (
        serving(redis_url, folder, auth="keys") as url,
        httpx.AsyncClient(base_url=url, headers=mine) as alice,
        httpx.AsyncClient(base_url=url, headers=others) as bob,
    ):
        sent = {"data": {"purpose": "batch"}, "files": {"file": ("x", b"{}")}}
        file_id = (await alice.post("/v1/files", **sent)).json()["id"]  # type: ignore[arg-type]
        asked = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch_id = (await alice.post("/v1/batches", json=asked)).json()["id"]
        stolen = (await bob.post("/v1/batches", json=asked)).json()
        for method, path in (
            ("GET", f"/v1/files/{file_id}"),
            ("GET", f"/v1/files/{file_id}/content"),
            ("DELETE", f"/v1/files/{file_id}"),
            ("GET", f"/v1/batches/{batch_id}"),
            ("POST", f"/v1/batches/{batch_id}/cancel"),
            ("POST", f"/v1/batches/{batch_id}/retry"),
            ("GET", "/v1/files/..%2Falice"),
        ):
            assert (await bob.request(method, path)).status_code == 404, path
            assert (await alice.request(method, path)).status_code != 500, path
        assert (await bob.get("/v1/files")).json()["data"] == []
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=others["Authorization"][7:]) as client:
            seen = await ended(client, stolen["id"])
        assert seen.status == "failed"
        assert seen.errors is not None
        assert seen.errors.data is not None
        assert seen.errors.data[0].param == "file_id"


# Storages


@pytest.mark.usefixtures("consumer")
async def test_everything_in_a_storage_that_is_no_folder(redis_url: str, tmp_path: Path) -> None:
    """fsspec's memory, as one that can't append and knows no folders."""
    async with (
        serving(redis_url, tmp_path / "gateway", storage=f"memory://{tmp_path.name}") as url,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        lines: list[Any] = [request_line(f"c{n}") for n in range(300)]
        batch = await make_batch(client, input_of([*lines, "{"]))
        done = await ended(client, batch.id)
        replies, failed = await answers_of(client, done)
        assert len(replies) == 300
        assert sorted(failed) == [300]
        assert len([file async for file in client.files.list()]) == 3
        assert (await client.files.delete(batch.input_file_id)).deleted
        assert len([file async for file in client.files.list()]) == 2


@pytest.fixture(params=["folder", "objects"])
def any_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    storage = open_storage(str(tmp_path) if request.param == "folder" else f"memory://{tmp_path.name}")
    assert isinstance(storage, Folder if request.param == "folder" else ObjectStorage)
    return storage


def test_a_storage_shows_what_is_whole(any_storage: Storage) -> None:
    assert any_storage.names("a") == []
    with any_storage.writing("a/long") as file:
        file.write(b"one\n")
        assert any_storage.names("a") == []
        file.write(b"two")
    any_storage.write("a/short", b"1")
    any_storage.write("a/short", b"2")
    any_storage.write("a/b/deep", b"3")
    assert any_storage.names("a") == ["b", "long", "short"]
    assert any_storage.read("a/short") == b"2"
    with any_storage.open("a/long") as file:
        assert list(file) == [b"one\n", b"two"]
    with pytest.raises(TypeError), any_storage.writing("a/long") as file:
        file.write("no bytes")  # pyright: ignore[reportArgumentType]
    assert any_storage.read("a/long") == b"one\ntwo"
    assert any_storage.names(DRAFTS) == []
    any_storage.delete("a/short")
    any_storage.delete("a/short")
    any_storage.delete_folder("a")
    any_storage.delete_folder("a")
    assert any_storage.names("a") == []
    for read in (any_storage.read, any_storage.open):
        with pytest.raises(FileNotFoundError):
            read("a/long")


def test_a_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """Prompts and answers lie there."""
    files = FileStore(open_storage((tmp_path / "files").as_uri()))
    files.save(
        "t",
        FileRecord(file=FileObject(id=new_file_id(), bytes=1, created_at=0, filename="x", purpose="batch")),
    )
    assert (tmp_path / "files").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("a file")
    with pytest.raises(UsageError, match="files can't be kept at"):
        open_storage((tmp_path / "files" / "deeper").as_uri())


def test_bytes_without_an_object_are_swept_after_a_day(any_storage: Storage) -> None:
    """What a gateway left that was killed between a file's bytes and its object."""
    files = FileStore(any_storage)
    old = f"file-{int((time.time() - 90_000) * 1000):012x}{'0' * 16}"
    whole = FileObject(id=new_file_id(), bytes=1, created_at=0, filename="x", purpose="batch")
    for file_id in (old, new_file_id(), whole.id):
        any_storage.write(f"tenants/t/files/{file_id}", b"x")
    files.save("t", FileRecord(file=whole))
    files.sweep(lambda _: False)
    left = any_storage.names("tenants/t/files")
    assert len(left) == 3
    assert old not in left
