"""When an output is right: by relative error over all of it, and element by element."""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE_LIMITS = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 6e-4}
"""Of ‖got - expected‖ / ‖expected‖. TF32 lands near 3e-4, so it fails in float32."""
ELEMENT_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Of each element's error, relative to that element plus the root mean square of all."""


def assert_close(got: Tensor, expected: Tensor, looser: float = 1.0) -> None:
    """`expected` is of a higher precision than `got`. NaN passes nowhere; `looser` multiplies the limits."""
    assert got.shape == expected.shape, f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    exact, error = expected.double(), (got.double() - expected.double())
    scale = exact.pow(2).mean().sqrt()
    relative = error.norm() / exact.norm().clamp(min=1e-30)
    assert relative <= looser * RELATIVE_LIMITS[got.dtype], f"relative error {relative:.2e}"
    worst = (error.abs() / (exact.abs() + scale).clamp(min=1e-30)).max()
    assert worst <= looser * ELEMENT_LIMITS[got.dtype], f"an element's relative error is {worst:.2e}"
