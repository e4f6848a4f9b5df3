"""Calls of the library's operations: made, and while something is recorded also kept."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Final


class Function(IntEnum):
    """As program.h numbers them; the names are the library's."""

    LINEAR = 0
    ATTENTION = 1
    HEADS = 2
    NORM = 3
    ACTIVATE = 4
    UNPACK = 5
    TAKE = 6
    ELEMENTS = 7
    TILES = 8


_NAMES: Final = [f"penstock_{function.name.lower()}" for function in Function]


class Calls:
    """One op set's way to its library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.kept: list[tuple[int, bytes]] | None = None
        """Every call since this was made a list, with its arguments."""

    def make(self, function: int, arguments: bytes) -> None:
        """arguments: the struct that the function takes."""
        status = getattr(self.library, _NAMES[function])(arguments)
        assert status == 0, f"{Function(function).name}: types, sizes or ids that the library does not know"
        if self.kept is not None:
            self.kept.append((function, arguments))
