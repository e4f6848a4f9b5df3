"""Every route there is: that it takes a key, and that the OpenAPI document is true of it.

Written over what the application's router and its document name, whichever parts they come from.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import jsonschema
import pytest
import schemathesis
from litestar import Litestar
from litestar.routes import HTTPRoute

from producer.gateway.app import make_app
from producer.gateway.openapi import document_of
from producer.gateway.settings import GatewaySettings
from tests.producer.gateway.running import serving
from tests.producer.gateway.tenants import add_key

PUBLIC = {"/health", "/health/live", "/health/ready"}


def app(tmp_path: Path) -> Litestar:
    return make_app(GatewaySettings(redis="redis://nowhere", folder=tmp_path))


def routes(app: Litestar) -> list[tuple[str, str]]:
    """Method and path of every route of the router, parameters filled in."""
    found: list[tuple[str, str]] = []
    for route in app.routes:
        assert isinstance(route, HTTPRoute), f"{route.path}: shown to be closed by no test of this file"
        path = re.sub(r"\{[^}]*\}", "x", route.path_format)
        found += [(method, path) for method in route.methods if method != "OPTIONS"]
    return found


async def test_every_route_without_a_key_is_401_but_health(redis_url: str, tmp_path: Path) -> None:
    walked = routes(app(tmp_path))
    assert len(walked) >= 20
    async with serving(redis_url, tmp_path, auth="keys") as url, httpx.AsyncClient(base_url=url) as client:
        for method, path in walked:
            for headers in (
                {},
                {"Authorization": "Bearer psk_x"},
                {"Authorization": "Basic eDp4"},
                {"Cookie": "a=b"},
                {"Cookie": "penstock_key=psk_x", "Origin": url},
            ):
                reply = await client.request(method, path, headers=headers)
                if path in PUBLIC:
                    assert reply.status_code in (200, 503), path
                elif path.startswith("/assets/"):  # the files of the page that asks for a key
                    assert reply.status_code == 404
                else:
                    assert reply.status_code == 401, (method, path, headers)
                    assert reply.json()["error"]["type"] == "authentication_error"


async def test_the_router_has_what_the_document_says(redis_url: str, tmp_path: Path) -> None:
    headers, _ = await add_key(tmp_path, "alice")
    async with (
        serving(redis_url, tmp_path) as url,
        httpx.AsyncClient(base_url=url, headers=headers) as client,
    ):
        reply = await client.get("/schema/openapi.json")
        assert reply.headers["content-type"].startswith("application/vnd.oai.openapi+json")
        document = reply.json()
    assert document["openapi"].startswith("3.1.")
    named = {
        (method.upper(), re.sub(r"\{[^}]*\}", "x", path))
        for path, item in document["paths"].items()
        for method in item
    }
    assert named <= set(routes(app(tmp_path)))
    api = {(method, path) for method, path in routes(app(tmp_path)) if path.startswith(("/v1/", "/health"))}
    assert api <= named
    not_ready = document["paths"]["/health/ready"]["get"]["responses"]["503"]["content"]["application/json"]
    assert not_ready["schema"]["$ref"].endswith("/Health")
    assert "struct:" not in json.dumps(document)
    assert document == json.loads(json.dumps(document_of(app(tmp_path))))


def test_its_types_are_json_schemas_that_say_what_we_check(tmp_path: Path) -> None:
    document = document_of(app(tmp_path))
    for name, component in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(component)
        assert component.get("title") == name or "title" in component or "anyOf" in component, name
    submission = {"$ref": "#/components/schemas/Submission", "components": document["components"]}
    validator = jsonschema.Draft202012Validator(submission)
    assert validator.is_valid({"prompt": "x", "webhook": True})
    assert not validator.is_valid({"prompt": "x", "prmpt": 1})
    assert not validator.is_valid({"prompt": "x", "sampling_params": {"top_p": 7}})
    for item in document["paths"].values():
        for operation in item.values():
            assert "default" in operation["responses"]


def test_it_is_an_openapi_document(tmp_path: Path) -> None:
    schemathesis.openapi.from_dict(document_of(app(tmp_path))).validate()


def test_it_describes_every_body_and_every_status(tmp_path: Path) -> None:
    document = document_of(app(tmp_path))
    for path, item in document["paths"].items():
        for method, operation in item.items():
            told = {int(status) for status in operation["responses"] if status != "default"}
            assert path.startswith("/health") or told >= {401, 403, 429, 503}, path
            assert "{" not in path or told >= {400, 404}, path
            assert method not in ("patch", "put") or "requestBody" in operation, path
            assert "requestBody" not in operation or told >= {400, 408, 413, 415}, path
            for response in operation["responses"].values():
                if "$ref" in response:
                    assert response["$ref"].rpartition("/")[2] in document["components"]["responses"]
    responses = document["components"]["responses"]
    assert "Retry-After" in responses["TooManyRequests"]["headers"]
    assert "Retry-After" in responses["Unavailable"]["headers"]
    upload = document["paths"]["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert upload["required"] == ["purpose", "file"]
    chat = document["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert {"404", "409", "500", "504"} <= chat.keys()


@pytest.mark.parametrize("path", ["/schema", "/schema/", "/schema/nothing", "/schema/openapi.yaml", "/docs"])
async def test_nothing_that_is_served_comes_from_elsewhere(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.get(path)
    assert "cdn" not in reply.text
    assert "<script" not in reply.text
