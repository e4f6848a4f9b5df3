"""How many tokens each engine process made of each request, kept so that a SIGKILL loses none of it.

The counts are in a shared memory map: its pages are the kernel's, and stay when the process is gone. Which
slot is whose is in a text file beside it, written without a buffer.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from engine.request import Output

SLOTS = 1 << 20
"""Samples of requests in one engine's life; the file is sparse."""
COUNT = struct.Struct("<I")


class Run(Struct, frozen=True):
    """What one engine process made of one sample of one request."""

    request_id: str
    sample: int
    first_at: float
    """When its first output came, by the machine's monotonic clock, which all processes share."""
    num_tokens: int


class Tally:
    """The writing side: one per engine process."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"{time.monotonic_ns()}-{os.getpid()}"
        self._slots: dict[tuple[str, int], int] = {}
        self._counts: list[int] = []
        self._names = os.open(f"{path}.names", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        counts = os.open(f"{path}.counts", os.O_CREAT | os.O_RDWR)
        os.ftruncate(counts, SLOTS * COUNT.size)
        self._map = mmap.mmap(counts, SLOTS * COUNT.size)

    def add(self, outputs: list[Output]) -> None:
        """Count a step's tokens."""
        for output in outputs:
            key = (output.request_id, output.sample)
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = len(self._slots)
                self._counts.append(0)
                os.write(self._names, f"{slot} {key[0]} {key[1]} {time.monotonic()}\n".encode())
            self._counts[slot] += len(output.token_ids)
            COUNT.pack_into(self._map, slot * COUNT.size, self._counts[slot])


def read_runs(folder: Path) -> Iterator[Run]:
    """All runs of all engines that counted into this folder."""
    for names in folder.glob("*.names"):
        lines = names.read_text().splitlines()
        with names.with_suffix(".counts").open("rb") as file:
            counts = file.read(len(lines) * COUNT.size)
        for line in lines:
            slot, request_id, sample, first_at = line.split()
            (num_tokens,) = COUNT.unpack_from(counts, int(slot) * COUNT.size)
            yield Run(request_id, int(sample), float(first_at), num_tokens)
