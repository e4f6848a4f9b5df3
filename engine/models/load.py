"""From a folder and a spec to a decoder in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from engine.config import EngineConfig, Precision
from engine.models.checkpoint import Checkpoint
from engine.models.decoder import Decoder
from engine.models.spec import DecoderSpec
from engine.models.weights import DummyWeights, Weights
from kernels.opset import load_op_set

DTYPES: Final[dict[Precision, torch.dtype]] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.bfloat16,
}
"""Of weights as they are read, and of keys and values."""

STORED: Final[dict[Precision, torch.dtype]] = {**DTYPES, "int8": torch.int8}
"""As what linear layers are packed."""


def load_decoder(
    folder: Path,
    spec: DecoderSpec,
    config: EngineConfig,
    num_positions: int,
    on_phase: Callable[[str], None],
) -> Decoder:
    """Reads the folder's weights, or makes dummy ones, in the layout of the op set of a resolved config.

    Raises WeightsError. Beside the weights there is at most one parameter (of experts, the two of a layer) as
    it is before the op set has packed it, and one tensor of a file where those have to be rearranged. A tied
    output matrix is held once: it is the embedding's own memory, or tokens are looked up in the packed one.
    An op set that can do neither packs a copy.
    """
    device = torch.device(config.device)
    weights: Weights
    if config.load_format == "dummy":
        weights = DummyWeights(DTYPES[config.precision], device)
    else:
        weights = checkpoint = Checkpoint(folder, DTYPES[config.precision], device)
        spec = checkpoint.fit(spec)

    def on_layer(layer: int) -> None:
        on_phase(f"loading weights, layer {layer + 1} of {spec.num_layers}")

    with torch.inference_mode():
        ops = load_op_set(config.ops, STORED[config.precision], spec.head_dim)
        return Decoder(spec, ops, weights, num_positions, on_layer)
