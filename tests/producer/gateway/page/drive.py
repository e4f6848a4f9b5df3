"""The page in headless Chromium: `make test-page`, which wants a Chromium, npm, and the network once.

No part of the default tests, so its name does not begin with `test_`. PENSTOCK_SCREENSHOTS names a folder for
pictures of what it saw.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from penstock.client import Client
from penstock.messages import Job, SamplingParams
from tests.consumer.models import save_model
from tests.consumer.running import consuming
from tests.producer.gateway.batching import has_model, input_of, make_batch, request_line
from tests.producer.gateway.gateways import GatewayProcess
from tests.producer.gateway.running import serving
from tests.producer.gateway.tenants import add_key, ring

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
PHONE: Any = {"width": 360, "height": 740}
DESK: Any = {"width": 1280, "height": 900}
LIMIT_MS = 15_000


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium was found: THE PAGE WAS NOT TRIED")
    flags = [*QUIET, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    expect.set_options(timeout=LIMIT_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=flags)
        yield browser
        await browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which finds what people with a screen reader or keyboard alone can't use."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock-tests" / "axe"
    script = cache / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is missing: THE PAGE'S ACCESSIBILITY WAS NOT TRIED")
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "axe-core@4"], cwd=cache, check=True)
    return script.read_text()


@asynccontextmanager
async def opened(browser: Browser, url: str, path: str = "/", **settings: Any) -> AsyncIterator[Page]:
    """A page in a window of its own; at its end nothing may have gone wrong in it."""
    context: BrowserContext = await browser.new_context(**{"viewport": DESK, **settings})
    page = await context.new_page()
    page.set_default_timeout(LIMIT_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(url + path)
    yield page
    expected = re.compile(
        r"status of (401|403|404)|ERR_CONNECTION_REFUSED|ERR_INCOMPLETE|ERR_EMPTY|^\[object Event\]$"
        r"|^htmx:(afterRequest|sendError), "
    )
    assert [line for line in wrong if not expected.search(line)] == []
    assert [one for one in asked if not one.startswith(url)] == []
    await context.close()


async def taken(page: Page, name: str) -> None:
    """A picture of the whole page, where pictures are wanted."""
    if folder := os.environ.get("PENSTOCK_SCREENSHOTS"):
        await page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


async def test_it_is_live_and_keeps_the_focus(browser: Browser, redis_url: str, url: str) -> None:
    async with opened(browser, url) as page, Client(redis_url) as client:
        await expect(page.get_by_text("no consumer is alive")).to_be_visible()
        await client.submit("hello", lane="alice")
        row = page.get_by_role("row", name="alice")
        await expect(row).to_be_visible()
        button = page.get_by_role("button", name="Pause lane alice")
        await button.focus()
        await client.submit("hello again", lane="alice")
        await expect(row.get_by_role("cell").first).to_have_text("2")
        await expect(button).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status").filter(has_text="Lane alice is paused")).to_be_visible()
        await expect(page.get_by_role("button", name="Resume lane alice")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(button).to_be_focused()
        await page.get_by_role("button", name="Close").click()
        await expect(page.get_by_role("button", name="Close")).to_be_hidden()
        await page.get_by_role("button", name="Pause the queue").click()
        await expect(page.get_by_text("consumers take nothing more from any lane")).to_be_visible()
        await page.get_by_role("button", name="Resume the queue").click()
        await expect(page.get_by_text("consumers take nothing more from any lane")).to_be_hidden()


async def test_a_prompt_is_tried(browser: Browser, redis_url: str, url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", {"says": "It is <42>, I think.\nYes.", "step_s": 0.02})
    async with consuming(redis_url, model), opened(browser, url) as page:
        await page.get_by_role("textbox", name="Prompt").fill("What is 6 * 7?")
        await page.get_by_role("button", name="Send").click()
        answer = page.locator("#answer")
        await expect(answer.locator("pre")).to_have_text("It is <42>, I think.\nYes.")
        await expect(answer.get_by_text("done", exact=True)).to_be_visible()
        await page.get_by_role("textbox", name="Prompt").fill("again")
        await page.get_by_label("Temperature").fill("1.5")
        await page.get_by_role("button", name="Send").click()
        await expect(answer.get_by_text("done", exact=True)).to_be_visible()
        await answer.get_by_role("link").click()
        await expect(page.get_by_role("heading", name="Job")).to_be_visible()
        await expect(page.get_by_text("done by model")).to_be_visible()
        await page.get_by_label("Job id").fill("nonsense")
        await page.get_by_role("button", name="Find").click()
        await expect(page.get_by_text("is not a job id")).to_be_visible()


async def test_a_running_job_is_followed_and_cancelled(
    browser: Browser, redis_url: str, url: str, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "slow", {"says": "na " * 300, "step_s": 0.05})
    async with consuming(redis_url, model), Client(redis_url) as client, opened(browser, url) as page:
        job = Job(prompt="hello", sampling_params=SamplingParams(max_tokens=900), stream=True)
        job_id = await client.submit(job)
        await page.locator("#consumers").get_by_role("link", name=job_id.rpartition(".")[0]).click()
        await expect(page.locator("#life pre")).to_contain_text("na na na na")
        page.on("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.locator("#life")).to_contain_text("failed: cancelled")
        await expect(page.get_by_role("button", name="Cancel")).to_be_hidden()


async def test_dead_letters_by_keyboard(browser: Browser, redis_url: str, url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "broken", {"fails": ord("!"), "fail_runs": 99})
    async with opened(browser, url) as page:
        async with consuming(redis_url, model, max_attempts=1), Client(redis_url) as client:
            await client.submit("fail!")
            requeue = page.get_by_role("button", name="Requeue standard.")
            await expect(requeue).to_be_visible()
        await requeue.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status").filter(has_text="Requeued as a new job")).to_be_visible()
        await expect(requeue).to_be_hidden()
        await expect(page.get_by_role("heading", name="Dead letters")).to_be_focused()


async def test_who_logs_in_sees_it_and_who_logs_out_does_not(
    browser: Browser, redis_url: str, tmp_path: Path
) -> None:
    headers, _ = await add_key(tmp_path, "ops", is_operator=True)
    async with serving(redis_url, tmp_path) as url, opened(browser, url) as page:
        await page.get_by_label("Operator's key").fill("psk_wrong")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("alert").filter(has_text="Incorrect API key")).to_be_visible()
        await page.get_by_label("Operator's key").fill(headers["Authorization"].removeprefix("Bearer "))
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Lanes")).to_be_visible()
        await page.get_by_role("button", name="Pause the queue").click()
        await expect(page.get_by_text("The queue is paused. What runs goes on.")).to_be_visible()
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_label("Operator's key")).to_be_visible()


async def test_a_key_that_is_revoked_brings_the_login_form(
    browser: Browser, redis_url: str, tmp_path: Path
) -> None:
    headers, key = await add_key(tmp_path, "ops", is_operator=True)
    async with serving(redis_url, tmp_path) as url, opened(browser, url) as page:
        await page.get_by_label("Operator's key").fill(headers["Authorization"].removeprefix("Bearer "))
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="Lanes")).to_be_visible()
        await ring(tmp_path).revoke(key.id)
        await expect(page.get_by_text("was revoked")).to_be_visible()


async def test_a_gateway_that_comes_back_is_found_again(
    browser: Browser, redis_url: str, tmp_path: Path
) -> None:
    gateway = GatewayProcess(redis_url, tmp_path / "gateway").answers()
    async with opened(browser, gateway.url) as page, Client(redis_url) as client:
        await expect(page.get_by_role("heading", name="Lanes")).to_be_visible()
        gateway.kill()
        await expect(page.get_by_text("The connection to the gateway is lost")).to_be_visible()
        await page.get_by_role("button", name="Pause the queue").click()
        await expect(page.get_by_text("The gateway did not answer")).to_be_visible()
        await client.set_lane("back", weight=1.0)
        again = GatewayProcess(redis_url, tmp_path / "gateway", port=gateway.port)
        try:
            await expect(page.get_by_role("row", name="back")).to_be_visible()
            await expect(page.get_by_text("The connection to the gateway is lost")).to_be_hidden()
        finally:
            again.kill()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["phone", "desk"])
async def test_it_fits_and_can_be_used_by_everybody(
    browser: Browser, redis_url: str, url: str, tmp_path: Path, axe: str, scheme: Any, size: str
) -> None:
    model = save_model(tmp_path / "slow", {"says": "word " * 200, "step_s": 0.05})
    broken = save_model(tmp_path / "broken", {"fails": ord("!"), "fail_runs": 99})
    settings = {"viewport": PHONE if size == "phone" else DESK, "color_scheme": scheme, "bypass_csp": True}
    async with Client(redis_url) as client, AsyncOpenAI(base_url=f"{url}/v1", api_key="x") as api:
        async with consuming(redis_url, broken, max_attempts=1):
            await client.submit("fail!")
            async with opened(browser, url) as page:
                await expect(page.get_by_role("button", name="Requeue standard.")).to_be_visible()
        async with consuming(redis_url, model), opened(browser, url, **settings) as page:
            await has_model(api)
            await client.set_lane("an-important-customer-with-a-long-name", weight=3.0)
            await client.submit_many(["hello"] * 30, lane="an-important-customer-with-a-long-name")
            await page.get_by_role("button", name="Send").click()
            await expect(page.locator("#answer pre")).to_contain_text("word word word")
            rows = [request_line(f"c{n}", model="slow", max_tokens=20) for n in range(900)]
            await make_batch(api, input_of(rows))
            await expect(page.locator("#batches")).to_contain_text(re.compile("rows/s, about .* left"))
            await expect(page.locator("#chart-tokens .line1")).to_have_count(1)
            await page.wait_for_timeout(6000)
            await taken(page, f"overview-{size}-{scheme}")
            await fits(page, axe)
            await page.locator("#consumers a").first.click()
            await expect(page.get_by_role("heading", name="Job")).to_be_visible()
            await taken(page, f"job-{size}-{scheme}")
            await fits(page, axe)


async def fits(page: Page, axe: str) -> None:
    """Nothing is wider than the window, and axe finds nothing to complain of."""
    assert await page.evaluate("document.scrollingElement.scrollWidth - window.innerWidth") <= 0
    await page.evaluate(axe)
    found = await page.evaluate(
        "axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa', 'wcag22aa', 'best-practice']})"
    )
    told = [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found["violations"]]
    assert told == []
