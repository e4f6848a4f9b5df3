"""A batch's part of the tokens that its key's batches may have in the queue at once.

All batches of a key that are under way, whichever gateways drive them, have equal parts of the key's limit.
They are members of a sorted set on the server; one whose gateway died is forgotten after a minute. Parts grow
as others end, and where a further batch comes they shrink as rows end: nothing that was sent is taken back.
"""

from __future__ import annotations

from typing import Final

from penstock.link import Link
from penstock.presence import server_time_ms

KEEP_S: Final = 60.0
"""A batch that nobody speaks for counts for so long."""


class Share:
    """One batch's."""

    def __init__(self, link: Link, key: str, batch_id: str, limit: float | None) -> None:
        """Args:
        key: of the sorted set.
        limit: of the key, for all its batches; None for none, which asks the server nothing.
        """
        self._link = link
        self._key = key
        self._id = batch_id
        self._limit = limit
        self._num_batches = 1

    def tokens(self, without_limit: float) -> float:
        """What it may have in the queue, as it was when it was renewed last."""
        return without_limit if self._limit is None else self._limit / self._num_batches

    async def renew(self) -> None:
        """Count, and see how many others do.

        Raises:
            ServerError: the server can't be asked.
        """
        if self._limit is None:
            return
        now_ms = await server_time_ms(self._link)
        await self._link.command("ZADD", self._key, now_ms + int(KEEP_S * 1000), self._id)
        await self._link.command("ZREMRANGEBYSCORE", self._key, "-inf", now_ms)
        await self._link.command("PEXPIRE", self._key, 2 * int(KEEP_S * 1000))
        self._num_batches = max(1, int(await self._link.command("ZCARD", self._key)))

    async def leave(self) -> None:
        """Count no more.

        Raises:
            ServerError: the server can't be told; it forgets by itself.
        """
        if self._limit is not None:
            await self._link.command("ZREM", self._key, self._id)
