"""Webhooks of a key's tenant: make, list, delete."""

from __future__ import annotations

from typing import Annotated, Literal

from litestar import delete, get, post
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from producer.gateway.errors import NotFound
from producer.gateway.gateway import CallersRequest, GatewayHere
from producer.gateway.webhooks.endpoints import EVENT_TYPES, EventType, Url, Webhook


class WebhookRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A webhook that is wanted."""

    url: Url
    events: Annotated[list[EventType], Meta(min_length=1, max_length=len(EVENT_TYPES))] | None = None
    """By default all."""


class WebhookReply(Struct, frozen=True, kw_only=True):
    """One webhook."""

    id: str
    object: Literal["penstock.webhook"] = "penstock.webhook"
    url: str
    events: list[EventType]
    created_at: int


class NewWebhookReply(Struct, frozen=True, kw_only=True):
    """A webhook that was just made."""

    id: str
    object: Literal["penstock.webhook"] = "penstock.webhook"
    url: str
    events: list[EventType]
    created_at: int
    secret: str
    """For checking signatures; told here and never again."""


class WebhookList(Struct, frozen=True, kw_only=True):
    """A tenant's webhooks, oldest first."""

    data: list[WebhookReply]
    object: Literal["list"] = "list"


class WebhookDeleted(Struct, frozen=True, kw_only=True):
    """A webhook that is gone."""

    id: str
    object: Literal["penstock.webhook.deleted"] = "penstock.webhook.deleted"
    deleted: bool = True


@post("/v1/penstock/webhooks", status_code=201, summary="Create a webhook", tags=["webhooks"])
async def create_webhook(
    request: CallersRequest, gateway: GatewayHere, data: JSONBody[WebhookRequest]
) -> NewWebhookReply:
    """Have the tenant told of ends at a URL. The reply alone has the secret."""
    made = await gateway.webhooks.create(request.auth.tenant, data.url, data.events)
    return NewWebhookReply(
        id=made.id, url=made.url, events=made.events, created_at=made.created_at, secret=made.secret
    )


@get("/v1/penstock/webhooks", summary="List webhooks", tags=["webhooks"])
async def list_webhooks(request: CallersRequest, gateway: GatewayHere) -> WebhookList:
    """The tenant's own."""
    own = [one for one in (await gateway.webhooks.all()).values() if one.tenant == request.auth.tenant]
    return WebhookList(data=[_reply(one) for one in sorted(own, key=lambda one: (one.created_at, one.id))])


@delete(
    "/v1/penstock/webhooks/{webhook_id:str}", status_code=200, summary="Delete a webhook", tags=["webhooks"]
)
async def delete_webhook(
    request: CallersRequest, gateway: GatewayHere, webhook_id: FromPath[str]
) -> WebhookDeleted:
    """What is still to be delivered to it is dropped."""
    if not await gateway.webhooks.delete(webhook_id, request.auth.tenant):
        raise NotFound(f"there is no webhook {webhook_id[:100]!r}", code="webhook_not_found")
    return WebhookDeleted(id=webhook_id)


def _reply(webhook: Webhook) -> WebhookReply:
    return WebhookReply(id=webhook.id, url=webhook.url, events=webhook.events, created_at=webhook.created_at)


ROUTES = (create_webhook, list_webhooks, delete_webhook)
