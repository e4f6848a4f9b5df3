"""A mend of Triton's interpreter, for versions below 3.9 with NumPy 2.4 and later."""

from __future__ import annotations

from typing import Any


def accept_runtime_bounds() -> None:
    """Let a loop's bound be a kernel's argument or a loaded value.

    The interpreter holds every scalar as an array of one element, which NumPy no longer turns into an
    integer; Triton 3.9 does the same by itself.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_with_index
