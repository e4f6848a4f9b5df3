"""What the device reaches at best: a large copy, a large read, a large matrix product, on random data.

`python -m benchmarks.kernels.ceilings --device cuda --precision bf16` prints them as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from benchmarks.kernels.timing import num_sets, seconds_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = {"cuda": (1 << 30, 8192), "cpu": (128 << 20, 1024)}
"""Elements of four bytes that are copied, and the side of the product's square matrices."""
BUDGET_S = 0.2
_COPY_BUDGET_S = 0.02
_COLUMNS = 8192


@dataclass(frozen=True)
class Ceilings:
    """Measured on one device, for one dtype of the product."""

    copy_bytes_per_s: float
    """Device to device, bytes read and bytes written."""
    read_bytes_per_s: float
    """The faster of two ways to read without writing: a sum, and a product of a matrix with a vector."""
    matmul_flops_per_s: float

    def least_seconds(self, num_bytes: float, flops: float) -> float:
        """The floor of an operation that moves and computes this."""
        return max(num_bytes / self.copy_bytes_per_s, flops / self.matmul_flops_per_s)


PREDICTED = Ceilings(3.0e12, 3.0e12, 798e12)
"""Of an H100 80GB HBM3: its copy and its 8192³ product in bfloat16, for predictions only."""


@torch.inference_mode()
def measure_ceilings(device: torch.device, dtype: torch.dtype, scale: float = 1.0) -> Ceilings:
    """scale: of the sizes, where memory is short."""
    count, side = SIZES[device.type]
    count = int(count * scale) // _COLUMNS * _COLUMNS
    moved = 4 * count
    return Ceilings(
        copy_bytes_per_s=2 * moved / _copy_seconds(count, device),
        read_bytes_per_s=moved / _read_seconds(count, device),
        matmul_flops_per_s=2 * side**3 / _matmul_seconds(side, device, dtype),
    )


class Copies:
    """How long copies take that move as much as an operation: of small sizes no bandwidth is left to reach,
    only the time of a launch."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: dict[int, float] = {}

    def seconds(self, num_bytes: float) -> float:
        """Of a copy that reads half of `num_bytes` and writes as much, to two digits of it."""
        digits = 10 ** max(0, len(str(int(num_bytes))) - 2)
        size = max(256, int(num_bytes) // digits * digits)
        if size not in self._known:
            self._known[size] = self._measured(size)
        return self._known[size]

    def _measured(self, size: int) -> float:
        def copy() -> Callable[[], object]:
            source = torch.empty(size // 8, device=self._device).uniform_(-1, 1)
            target = torch.empty_like(source)
            return lambda: target.copy_(source)

        calls = [copy() for _ in range(num_sets(size, self._device))]
        return seconds_of(calls, self._device, _COPY_BUDGET_S)[0]


def _copy_seconds(count: int, device: torch.device) -> float:
    source = torch.empty(count, device=device).uniform_(-1, 1)
    target = torch.empty_like(source)
    return seconds_of([lambda: target.copy_(source)], device, BUDGET_S)[0]


def _read_seconds(count: int, device: torch.device) -> float:
    source = torch.empty(count, device=device).uniform_(-1, 1)
    matrix, vector = source.view(-1, _COLUMNS), torch.rand(_COLUMNS, device=device)
    return min(
        seconds_of([lambda: source.sum()], device, BUDGET_S)[0],
        seconds_of([lambda: matrix @ vector], device, BUDGET_S)[0],
    )


def _matmul_seconds(side: int, device: torch.device, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return seconds_of([lambda: a @ b], device, BUDGET_S)[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels.ceilings", description=__doc__)
    parser.add_argument("--device", choices=SIZES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    found = measure_ceilings(torch.device(args.device), DTYPES[args.precision], args.scale)
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
