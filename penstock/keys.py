"""Every key, stream, group and field name. Nothing else in the project spells one.

The braces are a Redis Cluster hash tag: all keys of one shard live in one slot, so that one script may
touch any of them. See docs/wire.md for what each key holds.
"""

from __future__ import annotations

import os
import re
from typing import Final

from msgspec import Struct

from penstock.errors import InvalidJobId

GROUP: Final = "penstock"
"""The consumer group on every lane."""

DEFAULT_SHARD: Final = "default"
DEFAULT_LANE: Final = "standard"

# Fields of a lane's entry.
JOB: Final = "job"
NONCE: Final = "nonce"
# Fields of a result stream's entry and of a batch's done stream's entry.
EVENT: Final = "event"
JOB_ID: Final = "job_id"
# A dead letter has also `job`, `job_id` and `event`.
ATTEMPTS: Final = "attempts"
ROW: Final = "row"
# Fields of the control stream's entries.
CANCEL: Final = "cancel"
LANE: Final = "lane"
WAKE: Final = "wake"
# Fields of a batch's hash.
TOTAL: Final = "total"
COMPLETED: Final = "completed"
FAILED: Final = "failed"
EXPECTED: Final = "expected"
CURSOR: Final = "cursor"
EPOCH: Final = "epoch"
DRIVEN_UNTIL_MS: Final = "driven_until_ms"

WHOLE_QUEUE: Final = "*"
"""In the place of a lane's name: the settings of the queue, and in `deficits` the lane whose turn it is."""

_LANE = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NONCE = re.compile(r"[0-9a-f]{16}")
_JOB_ID = re.compile(
    r"(?P<lane>[a-z][a-z0-9_-]{0,63})\.(?P<entry>[0-9]{1,20}-[0-9]{1,20})(?:\.(?P<nonce>[0-9a-f]{16}))?"
)


class Keys(Struct, frozen=True):
    """Key names of one shard of a queue."""

    shard: str = DEFAULT_SHARD
    webhooks: str = ""
    """Of which gateway's folder webhooks are; empty for those that are kept on the server."""

    def _key(self, *parts: str) -> str:
        return ":".join((f"penstock:{{{self.shard}}}", *parts))

    def jobs(self, lane: str) -> str:
        """Stream of the lane's outstanding jobs."""
        return self._key("jobs", lane)

    def result(self, job_id: str) -> str:
        """Stream of one job's events."""
        return f"penstock:{{{self.shard}}}:result:{job_id}"  # one for each job: not put together from parts

    def batch(self, batch_id: str) -> str:
        """Hash of a batch's counters, its cursor, and who drives it."""
        return self._key("batch", batch_id)

    def batch_done(self, batch_id: str) -> str:
        """Stream of a batch's finished rows."""
        return self._key("batch", batch_id, "done")

    def idempotency(self, key: str) -> str:
        """String that remembers which job was enqueued under a client's idempotency key."""
        return self._key("idempotency", key)

    @property
    def lanes(self) -> str:
        """Hash of declared lane to its settings, JSON; those of the whole queue are under `*`."""
        return self._key("lanes")

    @property
    def deficits(self) -> str:
        """Hash of lane to the tokens that it may still take in its turn, and LANE:cost to a job's average."""
        return self._key("deficits")

    @property
    def attempts(self) -> str:
        """Hash of job id to its failed attempts: each a JSON object and a newline."""
        return self._key("attempts")

    @property
    def dead(self) -> str:
        """Stream of dead letters: jobs that failed at their last attempt."""
        return self._key("dead")

    @property
    def control(self) -> str:
        """Stream of notices to consumers: cancelled jobs, lanes declared or set, leases released."""
        return self._key("control")

    @property
    def consumers(self) -> str:
        """Hash of consumer name to heartbeat."""
        return self._key("consumers")

    @property
    def gateway_keys(self) -> str:
        """Hash of key id to what the gateway knows of it, where keys are kept on the server."""
        return self._key("gateway", "keys")

    @property
    def gateway_secret(self) -> str:
        """String by which gateways sign the ids of jobs that they give to tenants."""
        return self._key("gateway", "secret")

    def gateway_rate(self, key_id: str) -> str:
        """String: when a key's requests, each put off by its share of a minute, are used up."""
        return self._key("gateway", "rate", key_id)

    def gateway_held(self, key_id: str) -> str:
        """Sorted set of what a key has under way, by when it is forgotten unless somebody says otherwise."""
        return self._key("gateway", "held", key_id)

    def gateway_held_tokens(self, key_id: str) -> str:
        """String: the sum of the tokens that a key has under way."""
        return self._key("gateway", "held", key_id, "tokens")

    def gateway_batches(self, key_id: str) -> str:
        """Sorted set of a key's batches that are under way, by when they are forgotten."""
        return self._key("gateway", "batches", key_id)

    def gateway_reader(self, job_id: str) -> str:
        """String: the sign of who took up a streamed job's events last."""
        return self._key("gateway", "reader", job_id)

    @property
    def gateway_webhooks(self) -> str:
        """Hash of a webhook's id to its URL, events and secret, where keys are kept on the server."""
        return self._key("gateway", "webhooks")

    @property
    def gateway_watched(self) -> str:
        """Sorted set of jobs whose end is to be told, by when somebody has to look after them."""
        return self._of_webhooks("watched")

    @property
    def gateway_due(self) -> str:
        """Sorted set of deliveries that are to be made, by when."""
        return self._of_webhooks("due")

    @property
    def gateway_undelivered(self) -> str:
        """Sorted set of deliveries that were given up, by when."""
        return self._of_webhooks("undelivered")

    def gateway_delivery(self, delivery_id: str) -> str:
        """String: one delivery."""
        return self._key("gateway", "delivery", delivery_id)

    def _of_webhooks(self, name: str) -> str:
        return self._key("gateway", name, *([self.webhooks] if self.webhooks else []))


class JobId(Struct, frozen=True):
    """A job id is a locator: `LANE.ENTRY` for a raw entry, `LANE.ENTRY.NONCE` for one from a client.

    ENTRY is the stream id that the server gave. Entry ids alone repeat between lanes and after a failover;
    the lane and the client's 8 random bytes make the id unique.
    """

    lane: str
    entry: str
    nonce: str | None = None

    @classmethod
    def parse(cls, text: str) -> JobId:
        """Parse a job id.

        Raises:
            InvalidJobId: the text is of another form.
        """
        match = _JOB_ID.fullmatch(text)
        if match is None or any(int(part) >= 2**64 for part in match["entry"].split("-")):
            raise InvalidJobId(
                f"{text[:100]!r} is not a job id; one looks like `standard.1763820000000-0.9f86d081884c7d65`"
            )
        return cls(match["lane"], match["entry"], match["nonce"])

    def __str__(self) -> str:
        head = f"{self.lane}.{self.entry}"
        return f"{head}.{self.nonce}" if self.nonce else head


def new_nonce() -> str:
    """8 random bytes as 16 hexadecimal digits."""
    return os.urandom(8).hex()


def is_nonce(text: str) -> bool:
    """Whether the text has the form that `new_nonce` gives."""
    return _NONCE.fullmatch(text) is not None


def check_lane(lane: str) -> str:
    """Give the lane's name back.

    Raises:
        ValueError: the name is not lower-case letters, digits, `_` and `-`, letter first, 64 at most.
    """
    if _LANE.fullmatch(lane) is None:
        raise ValueError(f"{lane!r} is not a lane name; use a-z, 0-9, _ and -, a letter first, 64 at most")
    return lane


def check_idempotency_key(key: str) -> str:
    """Give the key back.

    Raises:
        ValueError: it is not 1 to 255 printable ASCII characters without spaces.
    """
    if _IDEMPOTENCY_KEY.fullmatch(key) is None:
        raise ValueError(
            f"{key[:100]!r} is not an idempotency key; use 1 to 255 printable ASCII characters, no spaces"
        )
    return key
