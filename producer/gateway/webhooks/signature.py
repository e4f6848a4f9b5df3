"""The headers of Standard Webhooks (https://www.standardwebhooks.com): what says that an event is ours."""

from __future__ import annotations

import base64
import hashlib
import hmac


def signed_headers(secret: str, message_id: str, at: int, payload: bytes) -> dict[str, str]:
    """Id, time of the attempt, and the HMAC of both and the payload under a webhook's secret."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.new(key, f"{message_id}.{at}.".encode() + payload, hashlib.sha256).digest()
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }
