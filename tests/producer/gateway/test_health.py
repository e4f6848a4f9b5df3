"""Probes, models, and the form of errors that no route raises itself."""

from __future__ import annotations

import asyncio

import httpx
import pytest


async def test_alive_without_a_consumer_but_not_ready(http: httpx.AsyncClient) -> None:
    assert (await http.get("/health")).json() == {"ok": True, "reasons": []}
    ready = await http.get("/health/ready")
    assert ready.status_code == 503
    assert "no consumer is alive" in ready.json()["reasons"][0]


@pytest.mark.usefixtures("consumer")
async def test_ready_with_a_consumer_and_its_model_listed(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while (await http.get("/health/ready")).status_code != 200:  # noqa: ASYNC110 - it is asked, it tells nobody
            await asyncio.sleep(0.1)
    listed = (await http.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["scripted"]
    assert (await http.get("/v1/models/scripted")).json()["object"] == "model"


async def test_an_unknown_model_and_an_unknown_path_are_404_in_openais_form(http: httpx.AsyncClient) -> None:
    missing = await http.get("/v1/models/org/nobody")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"
    path = await http.get("/v1/nothing")
    assert path.status_code == 404
    assert path.json()["error"]["type"] == "invalid_request_error"


async def test_a_wrong_method_is_405_in_openais_form(http: httpx.AsyncClient) -> None:
    reply = await http.delete("/v1/models")
    assert reply.status_code == 405
    assert "message" in reply.json()["error"]
