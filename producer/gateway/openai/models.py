"""GET /v1/models: what the queue serves."""

from __future__ import annotations

from typing import Literal

from litestar import get
from litestar.params import FromPath
from msgspec import Struct

from penstock.messages import Heartbeat
from producer.gateway.errors import NotFound
from producer.gateway.gateway import GatewayHere


class Model(Struct, frozen=True, kw_only=True):
    """OpenAI's model object."""

    id: str
    created: int = 0
    """When its consumer started."""
    object: Literal["model"] = "model"
    owned_by: str = "penstock"


class ModelList(Struct, frozen=True, kw_only=True):
    """OpenAI's list of them."""

    data: list[Model]
    object: Literal["list"] = "list"


@get("/v1/models", summary="List models")
async def list_models(gateway: GatewayHere) -> ModelList:
    """The models of the consumers that are alive."""
    return ModelList(data=[_model(name, beat) for name, beat in (await gateway.served.models()).items()])


@get("/v1/models/{model:path}", summary="Retrieve a model")
async def get_model(gateway: GatewayHere, model: FromPath[str]) -> Model:
    """One of them."""
    name = model.lstrip("/")
    beat = (await gateway.served.models()).get(name)
    if beat is None:
        raise NotFound(f"The model {name!r} does not exist", param="model", code="model_not_found")
    return _model(name, beat)


def _model(name: str, beat: Heartbeat) -> Model:
    return Model(id=name, created=(beat.started_ms or beat.at_ms) // 1000)
