"""Which custom_ids a batch has had: 8 bytes of a hash each, by open addressing, the table at most half full.

A million take 16 MB, and 24 MB for a moment while the table grows; strings in a set would take some 150 MB.
Two different ids of a million are taken for one with a probability of 3 in 100 million (n²/2⁶⁵).
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import Final

_SMALLEST: Final = 1 << 10


class CustomIds:
    """A set that only grows."""

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * _SMALLEST))
        self._count = 0

    def add(self, custom_id: str) -> bool:
        """Put it in; whether it is new."""
        # 0 is an empty place.
        data = custom_id.encode("utf-8", "surrogatepass")
        key = int.from_bytes(blake2b(data, digest_size=8).digest(), "little") or 1
        if not _put(self._table, key):
            return False
        self._count += 1
        if 2 * self._count > len(self._table):
            grown = array("Q", bytes(16 * len(self._table)))
            for known in self._table:
                if known:
                    _put(grown, known)
            self._table = grown
        return True


def _put(table: array[int], key: int) -> bool:
    mask = len(table) - 1
    at = key & mask
    while table[at]:
        if table[at] == key:
            return False
        at = (at + 1) & mask
    table[at] = key
    return True
