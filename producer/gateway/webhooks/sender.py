"""One attempt at one delivery."""

from __future__ import annotations

import asyncio
import time
from typing import Final
from urllib.parse import urlsplit

import httpx

from producer.gateway.webhooks.addresses import AddressRefused, Resolve, checked_address, resolve
from producer.gateway.webhooks.deliveries import Delivery
from producer.gateway.webhooks.endpoints import Webhook
from producer.gateway.webhooks.signature import signed_headers

TIMEOUT_S: Final = 10.0
_GONE: Final = 410


class NotDelivered(Exception):
    """The attempt failed; the words say how."""

    def __init__(self, words: str, *, for_good: bool = False) -> None:
        super().__init__(words)
        self.for_good = for_good
        """Another attempt would be of no use."""


class Sender:
    """Sends events to webhooks. Use it as a context."""

    def __init__(self, *, private: bool, by: Resolve = resolve) -> None:
        self._private = private
        self._resolve = by
        # No proxy of the environment: it would resolve names itself. Connections are not kept: the next one
        # is to be checked anew.
        self._client = httpx.AsyncClient(
            timeout=None,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def __aenter__(self) -> Sender:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def send(self, webhook: Webhook, delivery: Delivery) -> None:
        """Make one attempt.

        Raises:
            NotDelivered: the other side did not answer with a 2xx status.
        """
        payload = delivery.payload.encode()
        try:
            # Of the whole attempt: httpx's own holds for each byte anew.
            async with asyncio.timeout(TIMEOUT_S):
                request = await self._request(webhook, delivery, payload)
                response = await self._client.send(request, stream=True)
                await response.aclose()  # its body is of no interest, and may be endless
        except TimeoutError:
            raise NotDelivered(f"it did not answer within {TIMEOUT_S:g} s") from None
        except AddressRefused as error:
            raise NotDelivered(str(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NotDelivered(f"{type(error).__name__}: {error}".rstrip(": ")) from None
        if not response.is_success:
            raise NotDelivered(f"it answered {response.status_code}", for_good=response.status_code == _GONE)

    async def _request(self, webhook: Webhook, delivery: Delivery, payload: bytes) -> httpx.Request:
        """To the address that was checked; name and certificate are still the host's."""
        parts = urlsplit(webhook.url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await checked_address(host, port, private=self._private, by=self._resolve)
        url = httpx.URL(webhook.url)
        headers = {
            "content-type": "application/json",
            "user-agent": "penstock",
            "host": url.netloc.decode(),
            **signed_headers(webhook.secret, delivery.event_id, int(time.time()), payload),
        }
        return self._client.build_request(
            "POST",
            url.copy_with(host=address),
            content=payload,
            headers=headers,
            extensions={"sni_hostname": host},
        )
