"""Lets Litestar read a body as `read_body` does: with its errors in OpenAI's words."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from litestar.dto import AbstractDTO
from litestar.dto.data_structures import DTOFieldDefinition
from litestar.typing import FieldDefinition
from msgspec import Struct

from producer.gateway.openai.body import read_body


class BodyReader(AbstractDTO[Any]):
    """A handler's `dto`, made by `reads`. The schema of the body is its struct's, as without one."""

    kind: type[Struct]

    def decode_bytes(self, value: bytes) -> Any:
        """The body.

        Raises:
            BadRequest: it breaks the contract.
        """
        return read_body(value, self.kind)

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: Any = None
    ) -> None:
        """Nothing is transferred between models here."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: Any
    ) -> Any:
        """The struct's."""
        return schema_creator.for_field_definition(field_definition)

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[DTOFieldDefinition]:
        """None: see `create_for_field_definition`."""
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """Never."""
        return False


def reads(struct: type[Struct]) -> type[BodyReader]:
    """For a handler whose `data` is this struct."""
    return type(f"{struct.__name__}Reader", (BodyReader,), {"kind": struct})
