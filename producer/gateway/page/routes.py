"""All routes of the page."""

from __future__ import annotations

from typing import Final

from litestar import Router

from producer.gateway.page import actions, login, pages
from producer.gateway.page.assets import asset
from producer.gateway.page.login import on_page_error
from producer.gateway.replies import HANDLERS

ROUTES: Final = (
    Router(
        path="/",
        route_handlers=[*pages.ROUTES, *actions.ROUTES, *login.ROUTES],
        exception_handlers=dict.fromkeys(HANDLERS, on_page_error),
    ),
    asset,
)
