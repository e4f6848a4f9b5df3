"""The gateway's flags, made from its settings: one for each, with the settings' own words as help."""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Mapping
from dataclasses import field, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_origin

import msgspec
from cyclopts import Group, Parameter

from producer.errors import UsageError
from producer.gateway.settings import GatewaySettings
from producer.where import Where

GATEWAY: Final = Group("Gateway", sort_key=9)

_ELSEWHERE: Final = frozenset({"redis", "folder"})
_PREFIX: Final = "PENSTOCK_GATEWAY_"

Folder = Annotated[Path | None, Parameter(env_var=f"{_PREFIX}FOLDER", group=GATEWAY)]
"""The gateway's folder."""


def _field_docs() -> dict[str, str]:
    """By setting, the docstring below it."""
    (definition,) = ast.parse(inspect.getsource(GatewaySettings)).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for setting, below in pairwise(definition.body):
        match setting, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                docs[name] = " ".join(words.split())
            case _:
                pass
    return docs


def _plain(kind: Any) -> Any:
    """A setting's type without its range, which is checked by msgspec."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _flags() -> type[Any]:
    docs = _field_docs()
    made: list[tuple[str, Any, Any]] = []
    for setting in msgspec.structs.fields(GatewaySettings):
        if setting.name in _ELSEWHERE:
            continue
        words = Parameter(env_var=_PREFIX + setting.name.upper(), help=docs.get(setting.name), negative=())
        made.append((setting.name, Annotated[_plain(setting.type), words], field(default=setting.default)))
    # Of this module: cyclopts looks into no class of `types`, which is where they are made otherwise.
    here = {"__module__": __name__}
    flags = make_dataclass("GatewayFlags", made, frozen=True, kw_only=True, namespace=here)
    return Parameter(name="*", group=GATEWAY)(flags)


if TYPE_CHECKING:

    class GatewayFlags:
        """Every setting of a gateway that is not the server or the folder, by name."""

else:
    GatewayFlags = _flags()


def settings_of(
    values: Mapping[str, Any], where: Where, url: str, folder: Path | None = None
) -> GatewaySettings:
    """Settings from flags.

    Args:
        url: of the server.
        folder: the gateway's; by default `gateway` in the data folder.

    Raises:
        UsageError: a value is out of range, or two don't go together.
    """
    named = folder or os.environ.get(f"{_PREFIX}FOLDER")
    place = Path(named or where.folder / "gateway").expanduser().absolute()
    try:
        return msgspec.convert(
            {**values, "redis": url, "folder": place}, GatewaySettings, strict=False, dec_hook=_path
        )
    except msgspec.ValidationError as error:
        words, _, path = str(error).partition(" - at `$.")
        flag = path.rstrip("`").partition("[")[0].replace("_", "-")
        variable = f"{_PREFIX}{flag.upper().replace('-', '_')}"
        raise UsageError(f"--{flag}: {words}; the variable is {variable}" if flag else words) from None


def settings_beside(port: int | None = None) -> dict[str, Any]:
    """Settings of a gateway beside a consumer: by environment variables, the port also by its flag."""
    found: dict[str, Any] = {} if port is None else {"port": port}
    for setting in msgspec.structs.fields(GatewaySettings):
        value = os.environ.get(_PREFIX + setting.name.upper())
        if value and setting.name not in (*_ELSEWHERE, *found):
            found[setting.name] = value.split() if get_origin(setting.type) is tuple else value
    return found


def _path(kind: type[Any], value: Any) -> Any:
    return kind(value)
