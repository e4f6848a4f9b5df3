"""Loading a model by transformers: from safetensors, or with random weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator
from pathlib import Path
from typing import Any

from engine.config import EngineConfig
from engine.errors import EngineError, ModelError, WeightsError
from engine.models.checkpoint import Checkpoint
from engine.models.fallback_config import fallback_class
from engine.models.load import DTYPES


def load_whole(folder: Path, hf_config: Any, config: EngineConfig) -> Any:
    """The model with transformers' own attention, in the configured precision, not for training.

    Raises WeightsError where tensors are missing, superfluous or of another shape, else ModelError.
    """
    model_class = fallback_class(hf_config)
    hf_config = copy.deepcopy(hf_config)  # it is given another attention later
    dtype = DTYPES[config.precision]
    try:
        if config.load_format == "dummy":
            whole = model_class._from_config(hf_config, dtype=dtype, attn_implementation="eager")
        else:
            Checkpoint(folder)  # says in words what is missing, or no safetensors
            with _without_progress_bar():
                whole, loading = model_class.from_pretrained(
                    folder,
                    config=hf_config,
                    dtype=dtype,
                    attn_implementation="eager",
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are named below, with their sizes
                )
            _check(folder, model_class.__name__, loading)
    except EngineError:
        raise
    except Exception as error:  # transformers raises many types
        raise ModelError(f"transformers cannot load {folder}: {error!r}") from error
    return whole.eval().requires_grad_(False)


@contextlib.contextmanager
def _without_progress_bar() -> Generator[None]:
    """transformers draws one on standard error, which is a log here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check(folder: Path, architecture: str, loading: dict[str, Any]) -> None:
    """transformers fills what is missing with random numbers, and leaves out what it has no place for."""
    problems: list[str] = []
    for what, found in (
        ("missing", loading["missing_keys"]),
        ("of the wrong shape", loading["mismatched_keys"]),
        ("that it has no place for", loading["unexpected_keys"]),
    ):
        if found:
            names = sorted(_named(tensor) for tensor in found)
            shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            problems.append(f"{len(names)} {what} ({shown})")
    if problems:
        raise WeightsError(f"the tensors in {folder} do not fit {architecture}: {'; '.join(problems)}")


def _named(tensor: Any) -> str:
    """A name, or a name and two shapes: the file's and the model's."""
    if isinstance(tensor, str):
        return tensor
    name, found, expected = tensor
    return f"{name}: expected {list(expected)}, found {list(found)}"
