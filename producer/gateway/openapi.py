"""The OpenAPI document, made true: types as msgspec itself describes and checks them, errors as we send them.

Litestar describes the routes. Its descriptions of structs lack tags, patterns and defaults, and its error
replies are not ours; so structs are left open, and described at the end, all together.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import msgspec
from litestar import Litestar, Request
from litestar.enums import OpenAPIMediaType
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import Components, Schema, SecurityScheme
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

from penstock.messages import MAX_JOB_BYTES
from producer.gateway import error_responses
from producer.gateway.errors import ErrorReply

_PLACE: Final = "struct:"
_COMPONENTS: Final = "#/components/schemas/"
_METHODS: Final = frozenset({"get", "post", "put", "patch", "delete", "head", "options"})

DESCRIPTION: Final = f"""\
Batch inference over Redis streams: OpenAI's API, and penstock's own under /v1/penstock.

Every route but /health takes a key: `Authorization: Bearer psk_…`. Errors have OpenAI's form. 429 and 503 say
in Retry-After when to come back. A job's JSON has {MAX_JOB_BYTES} bytes at most.
"""


class StructSchemas(OpenAPISchemaPlugin):
    """Puts a placeholder in the place of each struct, and remembers which they were."""

    def __init__(self) -> None:
        self.structs: list[type[msgspec.Struct]] = [ErrorReply]

    @staticmethod
    def is_plugin_supported_type(value: Any) -> bool:
        """Every struct."""
        return isinstance(value, type) and issubclass(value, msgspec.Struct)

    def to_openapi_schema(self, field_definition: FieldDefinition, schema_creator: Any) -> Any:
        """The placeholder."""
        struct: type[msgspec.Struct] = field_definition.annotation
        if struct not in self.structs:
            self.structs.append(struct)
        # Not a Reference: Litestar wants to look into what it was given.
        return Schema(title=f"{_PLACE}{self.structs.index(struct)}")


class OpenApiFile(OpenAPIRenderPlugin):
    """Serves the document as JSON, and nothing beside it: no viewer, which would come from elsewhere."""

    def __init__(self, schemas: StructSchemas) -> None:
        super().__init__(path="/openapi.json", media_type=OpenAPIMediaType.OPENAPI_JSON)
        self._schemas = schemas
        self._rendered: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document."""
        if self._rendered is None:
            self._rendered = msgspec.json.encode(made_true(openapi_schema, self._schemas))
        return self._rendered


class ApiDescription:
    """What the application needs to be described."""

    def __init__(self) -> None:
        self.schemas = StructSchemas()

    @cached_property
    def config(self) -> OpenAPIConfig:
        """For the application."""
        return OpenAPIConfig(
            title="penstock",
            version="1",
            description=DESCRIPTION,
            path="/schema",
            security=[{"key": []}],
            components=Components(security_schemes={"key": SecurityScheme(type="http", scheme="bearer")}),
            use_handler_docstrings=True,
            render_plugins=[OpenApiFile(self.schemas)],
        )


def document_of(app: Litestar) -> dict[str, Any]:
    """The document as it is served."""
    return made_true(app.openapi_schema.to_schema(), app.plugins.get(StructSchemas))


def made_true(document: dict[str, Any], schemas: StructSchemas) -> dict[str, Any]:
    """The document with structs described and errors as they are."""
    references, components = msgspec.json.schema_components(
        schemas.structs, ref_template=f"{_COMPONENTS}{{name}}"
    )
    whole = _resolved(document, references)
    whole["components"].setdefault("schemas", {}).update(components)
    whole["components"]["responses"] = error_responses.components(references[0])
    for path, item in whole["paths"].items():
        for method in _METHODS.intersection(item):
            error_responses.add_errors(method, path, item[method], references[0])
            if path.startswith("/health"):
                item[method]["security"] = []
    return whole


def _resolved(node: Any, references: tuple[dict[str, Any], ...]) -> Any:
    if isinstance(node, list):
        return [_resolved(one, references) for one in node]
    if not isinstance(node, dict):
        return node
    place = node.get("title")
    if isinstance(place, str) and place.startswith(_PLACE):
        return references[int(place.removeprefix(_PLACE))]
    return {name: _resolved(value, references) for name, value in node.items()}
