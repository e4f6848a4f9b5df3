"""The arguments of the library's functions, as bytes.

That costs a third of what ctypes' structures do. Fields are in the order of the header; `0P` is the padding
at the end.
"""

from __future__ import annotations

import struct
from typing import Final

LINEAR_WEIGHT: Final = struct.Struct("@4P3i")
LINEAR_INPUT: Final = struct.Struct("=iQQqi4x")
"""Behind `LINEAR_WEIGHT`, which is the same for every call: PenstockLinear of linear.h."""
UNPACK: Final = struct.Struct("@4P4i")
"""PenstockUnpack of linear.h."""
ATTENTION: Final = struct.Struct("@11P2q7i2f2i")
"""PenstockAttention of attention.h."""
TILES: Final = struct.Struct("@3P3i0P")
"""PenstockTiles of attention.h."""
TAKE: Final = struct.Struct("@3P3qi0P")
"""PenstockTake of elements.h."""
ELEMENTS: Final = struct.Struct("@2P3q2if0P")
"""PenstockElements of elements.h."""
CALL: Final = struct.Struct("@qP")
"""PenstockCall of program.h."""
NORM: Final = struct.Struct("@5P2q4if0P")
"""PenstockNorm of norm.h."""
ACTIVATION: Final = struct.Struct("@2P2q2i")
"""PenstockActivation of activation.h."""
HEADS: Final = struct.Struct("@12P3q7if")
"""PenstockHeads of heads.h."""
SAMPLE: Final = struct.Struct("@7P3q")
"""PenstockSample of logits.h."""
LOGPROBS: Final = struct.Struct("@6P4q")
"""PenstockLogprobs of logits.h."""
