"""Who may see the page, and whose requests may change something by its cookie."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from producer.gateway.page import sending
from tests.producer.gateway.page.reading import HTML, watching
from tests.producer.gateway.running import serving
from tests.producer.gateway.tenants import add_key, ring


class Doors:
    """A gateway with keys."""

    def __init__(self, url: str, folder: Path, operator: str, tenant: str, key_id: str) -> None:
        self.url, self.folder, self.operator, self.tenant, self.key_id = url, folder, operator, tenant, key_id
        self.own = {"Origin": url}

    def browser(self) -> httpx.AsyncClient:
        """A client that keeps cookies."""
        return httpx.AsyncClient(base_url=self.url, timeout=20, headers=HTML)


@pytest_asyncio.fixture
async def doors(redis_url: str, tmp_path: Path) -> AsyncIterator[Doors]:
    operator, key = await add_key(tmp_path, "ops", is_operator=True)
    tenant, _ = await add_key(tmp_path, "alice")
    async with serving(redis_url, tmp_path) as url:
        bare = (one["Authorization"].removeprefix("Bearer ") for one in (operator, tenant))
        yield Doors(url, tmp_path, *bare, key.id)


async def test_an_operators_key_opens_the_page_and_its_cookie_nothing_else(doors: Doors) -> None:
    async with doors.browser() as browser:
        closed = await browser.get("/")
        assert closed.status_code == 401
        assert 'name="key" type="password"' in closed.text
        assert "Lanes" not in closed.text
        assert "banner bad" not in closed.text.partition("<main")[2]
        assert (await browser.get("/login")).text == closed.text
        entered = await browser.post("/login", data={"key": f" {doors.operator} "}, headers=doors.own)
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"]
        for flag in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"):
            assert flag.lower() in cookie.lower()
        assert "secure" not in cookie.lower()  # there is no TLS here
        assert "Lanes" in (await browser.get("/")).text
        assert (await browser.get("/login")).headers["location"] == "/"
        assert (await browser.get("/v1/penstock/lanes")).status_code == 401
        assert (await browser.post("/v1/penstock/queue/pause")).status_code == 401
        left = await browser.post("/logout", headers=doors.own)
        assert left.status_code == 303
        assert (await browser.get("/")).status_code == 401


async def test_a_login_leads_to_the_job_that_was_asked_for(doors: Doors) -> None:
    async with doors.browser() as browser:
        path = "/page/jobs/standard.1-0.9f86d081884c7d65"
        closed = await browser.get(path)
        assert closed.status_code == 401
        assert f'name="to" value="{path}"' in closed.text
        for to, place in ((path, path), ("//elsewhere.example", "/"), ("/page/jobs/\r\nX: 1", None)):
            form = {"key": doors.operator, "to": to}
            entered = await browser.post("/login", data=form, headers=doors.own)
            assert entered.headers["location"] == (place or "/page/jobs/%0D%0AX%3A%201")


async def test_other_keys_do_not(doors: Doors) -> None:
    async with doors.browser() as browser:
        for key, status, words in (
            ("psk_wrong", 401, "Incorrect API key"),
            ("", 401, "Enter a key."),
            (doors.tenant, 403, "not an operator"),
        ):
            reply = await browser.post("/login", data={"key": key}, headers=doors.own)
            assert reply.status_code == status
            assert words in reply.text
            assert 'type="password"' in reply.text
            assert "set-cookie" not in reply.headers
        browser.cookies.set("penstock_key", doors.tenant)
        assert (await browser.get("/")).status_code == 403
        assert (await browser.get("/page/events")).status_code == 403


async def test_a_revoked_key_is_out_at_once(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "WELCOME_S", 0.2)
    async with doors.browser() as browser:
        browser.cookies.set("penstock_key", doors.operator)
        assert (await browser.get("/")).status_code == 200
        async with watching(browser) as parts:
            await parts.until(lambda now: "letters" in now)
            await ring(doors.folder).revoke(doors.key_id)
            with pytest.raises(AssertionError, match="the stream ended"):
                await parts.until(lambda now: False)
        for _ in range(100):
            if (reply := await browser.get("/")).status_code != 200:
                break
        assert reply.status_code == 401
        assert "was revoked" in reply.text
        part = await browser.post("/page/queue/pause", headers={**doors.own, "HX-Request": "true"})
        assert (part.status_code, part.headers["HX-Redirect"]) == (401, "/")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_another_sites_form_changes_nothing(doors: Doors, headers: dict[str, str]) -> None:
    async with doors.browser() as browser:
        browser.cookies.set("penstock_key", doors.operator)
        if "Sec-Fetch-Site" in headers:
            headers = {**headers, **doors.own}
        reply = await browser.post("/page/queue/pause", headers=headers)
        assert reply.status_code == 403
        own = {**doors.own, "Sec-Fetch-Site": "same-origin"}
        assert (await browser.post("/page/queue/resume", headers=own)).status_code == 200
        if headers:
            assert (
                await browser.post("/login", data={"key": doors.operator}, headers=headers)
            ).status_code == 403
        shown = {"Authorization": f"Bearer {doors.operator}"}
        assert (await browser.get("/v1/penstock/queue", headers=shown)).json()["paused"] is False


async def test_a_key_in_the_header_opens_it_too(doors: Doors) -> None:
    async with httpx.AsyncClient(base_url=doors.url) as client:
        shown = {"Authorization": f"Bearer {doors.operator}"}
        assert (await client.get("/", headers=shown)).status_code == 200
        assert (await client.post("/page/queue/resume", headers=shown)).status_code == 200
        assert (await client.get("/")).json()["error"]["type"] == "authentication_error"


async def test_a_gateway_without_keys_needs_no_login_but_refuses_foreign_pages(
    http: httpx.AsyncClient,
) -> None:
    page = await http.get("/", headers=HTML)
    assert page.status_code == 200
    assert "Log out" not in page.text
    assert (
        await http.post("/page/queue/resume", headers={"Origin": "http://evil.example"})
    ).status_code == 403
    assert (await http.get("/", headers={**HTML, "Host": "evil.example"})).status_code == 403
