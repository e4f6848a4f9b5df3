"""Models are saved once per session, and their references loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.device import HAS_GPU, Scale
from tests.gpu.random_models import load_reference, save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Scale], Path]:
    """The folder of a random model of a family, at a scale."""
    folders: dict[tuple[str, Scale], Path] = {}

    def folder(family: str, scale: Scale) -> Path:
        if (family, scale) not in folders:
            folders[family, scale] = save_model(family, scale, tmp_path_factory.mktemp(family))
        return folders[family, scale]

    return folder


@pytest.fixture(scope="session")
def reference(model_folder: Callable[[str, Scale], Path]) -> Callable[[str, Scale, torch.dtype], Any]:
    """transformers' model of a family, at a scale, in a dtype."""
    models: dict[tuple[str, Scale, torch.dtype], Any] = {}

    def load(family: str, scale: Scale, dtype: torch.dtype) -> Any:
        if (family, scale, dtype) not in models:
            models[family, scale, dtype] = load_reference(model_folder(family, scale), dtype)
        return models[family, scale, dtype]

    return load


@pytest.fixture(autouse=True, scope="session")
def plain_float32() -> Iterator[None]:
    """No TF32 in the references, and on a processor one thread."""
    before = torch.get_num_threads()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if not HAS_GPU:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
