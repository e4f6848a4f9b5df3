"""All routes of the page."""

from __future__ import annotations

from typing import Final

from litestar import Router

from penstock.errors import InvalidJob, InvalidJobId, JobLost, QueueFull, ServerError
from producer.gateway.errors import ApiError
from producer.gateway.page import actions, login, pages
from producer.gateway.page.assets import asset
from producer.gateway.page.login import on_page_error

ROUTES: Final = (
    Router(
        path="/",
        route_handlers=[*pages.ROUTES, *actions.ROUTES, *login.ROUTES],
        exception_handlers=dict.fromkeys(
            (ApiError, QueueFull, InvalidJob, InvalidJobId, JobLost, ServerError), on_page_error
        ),
    ),
    asset,
)
