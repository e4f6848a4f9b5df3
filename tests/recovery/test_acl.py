"""The rights that docs/operations.md names are enough, for all that consumers and clients do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

from penstock.client import Client
from penstock.keys import Keys
from penstock.messages import Job, SamplingParams
from tests.conftest import Server
from tests.consumer.models import save_model
from tests.consumer.running import consuming

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


def rights() -> list[str]:
    """The documented ACL SETUSER command, as arguments."""
    found = re.search(
        r"^    (ACL SETUSER (?:.*\\\n)*.*)$", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found is not None
    return shlex.split(found[1].replace("\\\n", " "))


async def test_the_documented_rights_are_enough(make_server: Callable[..., Server], tmp_path: Path) -> None:
    server = make_server(tcp=True)
    model = save_model(tmp_path / "scripted", {})
    with server.client() as admin:
        admin.execute_command(*rights())
    url = server.url.replace("redis://", "redis://penstock:SECRET@")
    params = SamplingParams(max_tokens=3)
    async with Client(url) as client, consuming(url, model, name="worker"):
        ids = await client.submit_many(
            [Job(prompt="x", stream=n % 2 == 0, sampling_params=params) for n in range(8)]
        )
        ids.append(await client.submit("once", lane="tenant", idempotency_key="k"))
        assert await client.submit("twice", lane="tenant", idempotency_key="k") == ids[-1]
        for job_id in ids:
            await client.result(job_id, 20)
        assert len([event async for event in client.stream(ids[0])]) > 1
        batch = await client.create_batch("rows")
        await batch.enqueue_rows([Job(prompt="row", row=0)], cursor="", new_cursor="1")
        rows = [row async for row in batch.done(block_s=3)]
        assert len(rows) == 1
        await batch.trim(rows[0].entry_id)
        await batch.delete()
        await client.set_lane("tenant", weight=2)
        await client.pause()
        waiting = await client.submit("never")
        assert (await client.status(waiting)).waits_for == "resume"  # pyright: ignore[reportAttributeAccessIssue] - Queued
        assert await client.cancel(waiting)
        await client.resume()
        assert {lane.name for lane in await client.lanes()} == {"standard", "tenant"}
        assert await client.dead_letters() == []
    with server.client() as admin:
        assert admin.xinfo_consumers(Keys().jobs("standard"), "penstock") == []
        assert admin.acl_log() == []
