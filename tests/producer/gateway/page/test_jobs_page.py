"""A job's life on the page, and the box to try a prompt."""

from __future__ import annotations

import html
import re
from pathlib import Path

import httpx
import pytest

from penstock.client import Client
from penstock.messages import Job, Message
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.producer.gateway.page.reading import HTML, watching
from tests.producer.gateway.running import serving

HX = {"HX-Request": "true"}


async def test_a_prompt_is_tried_and_its_answer_streams(
    redis_url: str, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model", {"says": "a <b> &\n\r c  d", "step_s": 0.02})
    async with consuming(redis_url, model):
        reply = await http.post(
            "/page/try", data={"prompt": "say it", "max_tokens": "", "lane": ""}, headers=HX
        )
        assert reply.status_code == 200
        connect = re.search(r'sse-connect="(/page/jobs/[^"]+/events)"', reply.text)
        assert connect is not None
        async with watching(http, connect[1]) as life:
            shown = await life.until(lambda now: "over" in now)
    assert "a &lt;b&gt; &amp;\n&#13; c  d" in shown["life"]
    assert ">done</span>" in shown["life"]
    assert life.names[-1] == "over"
    assert life.names.count("life") >= 2
    assert '<span class="hidden" role="status">Job done</span>' in shown["life"]
    page = (await http.get(connect[1].removesuffix("/events"), headers=HTML)).text
    assert "a &lt;b&gt; &amp;" in page.partition("</section>")[0]  # also without the stream


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "x", "max_tokens": "many"}, "must be a number"),
        ({"prompt": "x", "max_tokens": "0"}, "max_tokens"),
        ({"prompt": "x", "temperature": "-1"}, "temperature"),
        ({"prompt": "x", "temperature": "nan"}, "temperature"),
        ({"prompt": "x", "lane": "No Lane"}, "lane"),
        ({"prompt": "x", "lane": "a" * 65}, "lane: Expected `str` of length"),
    ],
)
async def test_what_cannot_be_tried_is_told(
    http: httpx.AsyncClient, wrong: dict[str, str], words: str
) -> None:
    reply = await http.post("/page/try", data=wrong, headers=HX)
    assert reply.status_code == 400
    assert reply.text.startswith('<div class="banner bad" role="alert">')
    assert words in html.unescape(reply.text)


async def test_a_body_that_is_too_large_is_told_in_words(redis_url: str, tmp_path: Path) -> None:
    async with (
        serving(redis_url, tmp_path, max_body_bytes=1000) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        reply = await http.post("/page/try", data={"prompt": "x" * 1000}, headers=HX)
    assert reply.status_code == 413
    assert reply.text.startswith('<div class="banner bad" role="alert">')


async def test_a_waiting_job_is_shown_found_and_cancelled(redis_url: str, http: httpx.AsyncClient) -> None:
    async with Client(redis_url) as client:
        job_id = await client.submit(
            Job(messages=[Message("user", "<script>alert(1)</script>")], custom_id="mine")
        )
        found = await http.get("/page/jobs", params={"id": f" {job_id} "})
        assert (found.status_code, found.headers["location"]) == (303, f"/page/jobs/{job_id}")
        short = await http.get(f"/page/jobs/{job_id.rpartition('.')[0]}")
        assert (short.status_code, short.headers["location"]) == (303, f"/page/jobs/{job_id}")
        page = (await http.get(f"/page/jobs/{job_id}", headers=HTML)).text
        assert "queued, next in its lane" in page
        assert "user: &lt;script&gt;alert(1)" in page
        assert "called mine" in page
        async with watching(http, f"/page/jobs/{job_id}/events") as life:
            await life.until(lambda now: "queued" in now.get("life", ""))
            reply = await http.post(f"/page/jobs/{job_id}/cancel", headers=HX)
            assert "The job is cancelled" in reply.text
            shown = await life.until(lambda now: "over" in now)
        assert "failed: cancelled" in shown["life"]
        assert "had ended already" in (await http.post(f"/page/jobs/{job_id}/cancel", headers=HX)).text
        after = (await http.get(f"/page/jobs/{job_id}", headers=HTML)).text
        assert "failed: cancelled" in after


async def test_attempts_are_told_while_a_job_is_tried_again(
    redis_url: str, http: httpx.AsyncClient, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "broken", {"fails": ord("!"), "fail_runs": 99})
    async with Client(redis_url) as client, consuming(redis_url, model, max_attempts=3, retry_delay_s=0.5):
        job_id = await client.submit("fail!")
        async with watching(http, f"/page/jobs/{job_id}/events") as life:
            shown = await life.until(lambda now: "attempt 1 failed on" in now.get("life", ""))
            assert "engine_error" in shown["life"]
            shown = await life.until(lambda now: "over" in now)
        assert "failed: engine_error" in shown["life"]
        assert "attempt 3 failed on" in shown["life"]
        page = (await http.get(f"/page/jobs/{job_id}", headers=HTML)).text
        assert ">fail!</pre>" in page  # which its letter holds
        act = re.search(r'hx-post="(/page/dead/[0-9-]+/requeue)"', page)
        assert act is not None
        assert "Requeued as a new job" in (await http.post(act[1], headers=HX)).text
    after = (await http.get(f"/page/jobs/{job_id}", headers=HTML)).text
    assert "failed: engine_error" in after
    assert "It is a dead letter" not in after


async def test_ids_that_are_none(http: httpx.AsyncClient) -> None:
    for path in ("/page/jobs/nonsense", "/page/jobs?id=", "/page/jobs/nonsense/events"):
        reply = await http.get(path, headers=HTML)
        assert reply.status_code == 404, path
        assert "is not a job id" in reply.text
    unknown = await http.get("/page/jobs/standard.1-0.9f86d081884c7d65", headers=HTML)
    assert unknown.status_code == 200
    assert "unknown: this server never gave out this id" in unknown.text
    assert "enqueued in" not in unknown.text
    async with watching(http, "/page/jobs/standard.1-0.9f86d081884c7d65/events") as life:
        await life.until(lambda now: "over" in now)
