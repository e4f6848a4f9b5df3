"""Templates, and what goes with every page that is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import MediaType, Response

from producer.gateway.page.assets import asset_url
from producer.gateway.page.words import clock, number, percent, seconds, shortened

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""No script but our own files, nothing from elsewhere, in nobody's frame, in no cache."""


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    filters, names = cast("dict[str, Any]", made.filters), cast("dict[str, Any]", made.globals)
    filters.update(number=number, seconds=seconds, clock=clock, percent=percent, shortened=shortened)
    names.update(asset_url=asset_url)
    return made


_ENVIRONMENT: Final = _environment()


def render(template: str, **values: Any) -> str:
    """HTML of a template by its name, without `.html`."""
    return _ENVIRONMENT.get_template(f"{template}.html").render(values)


def page(template: str, status: int = 200, **values: Any) -> Response[str]:
    """A template as a reply."""
    return Response(
        render(template, **values), status_code=status, media_type=MediaType.HTML, headers=HEADERS
    )
