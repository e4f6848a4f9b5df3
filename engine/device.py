"""What a config leaves open, chosen for the machine: op set, device, precision, batch sizes.

A GPU that cannot be used is said in the log, never passed over: whoever has one wants to know.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from pathlib import Path
from typing import Final, Literal

import torch
from msgspec.structs import replace

from engine.config import EngineConfig, KVCacheDtype, OpSetName, Precision
from engine.errors import ConfigError

log = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]

_GPU_FILE: Final = Path("/dev/nvidia0")
_DEFAULTS: Final[dict[Device, tuple[int, int, int]]] = {"cuda": (256, 8192, 1), "cpu": (64, 1024, 0)}
"""max_num_seqs, max_num_batched_tokens, overlap."""
CPU_KV_CACHE_BYTES: Final = 2 * 1024**3


def resolve(config: EngineConfig) -> EngineConfig:
    """The config with nothing left open but what depends on the model and on free memory.

    Raises ConfigError where settings contradict each other, or ask for a GPU by name that is not there.
    """
    ops, device = _choose_ops(config)
    if config.device == "cuda" and device != "cuda":
        raise ConfigError(f"device is 'cuda', but the op set {ops!r} runs on the processor")
    if config.precision == "int8" and ops != "cpu":
        raise ConfigError(f"precision is 'int8': the op set {ops!r} has no such layers, only 'cpu' has")
    num_seqs, num_tokens, overlap = _DEFAULTS[device]
    num_seqs = config.max_num_seqs or num_seqs
    precision = _choose_precision(config, device)
    return replace(
        config,
        ops=ops,
        device=device,
        precision=precision,
        kv_cache_dtype=_choose_kv_cache_dtype(config.kv_cache_dtype, precision, ops),
        max_num_seqs=num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens or max(num_tokens, num_seqs),
        overlap=overlap if config.overlap is None else config.overlap,
    )


def set_arithmetic(device: Device) -> None:
    """Float32 products in full float32, and half precision summed in float32: explicit, because the defaults
    of TF32 and of reduced-precision sums have changed between versions of torch."""
    if device == "cuda":
        with warnings.catch_warnings():  # some versions deprecate it, though what replaces it is not in all
            warnings.simplefilter("ignore")
            torch.set_float32_matmul_precision("highest")
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def _choose_ops(config: EngineConfig) -> tuple[Literal["cpu", "reference", "triton"], Device]:
    """Op set and device; what falls back to the processor says so."""
    if config.ops == "cpu":
        return "cpu", "cpu"
    if config.ops == "reference":
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device is 'cuda': torch finds no GPU")
        return "reference", "cuda" if config.device == "cuda" else "cpu"
    if config.device == "cpu":
        if config.ops == "triton" and _interprets():
            return "triton", "cpu"
        if config.ops == "triton":
            raise ConfigError("ops is 'triton', which runs on a GPU, but device is 'cpu'")
        return "cpu", "cpu"
    missing = _missing()
    if missing is None:
        return "triton", "cuda"
    if config.device == "cuda":
        raise ConfigError(f"device is 'cuda': {missing}")
    if config.ops == "triton" and _interprets():
        log.info("Triton's interpreter runs the kernels, slowly: TRITON_INTERPRET is set, and %s", missing)
        return "triton", "cpu"
    has_gpu = _GPU_FILE.exists() or torch.cuda.is_available()
    if config.ops == "triton" or has_gpu:
        log.warning("the op set 'cpu' runs instead of 'triton': %s", missing)
    else:
        log.info("the op set 'cpu' runs: %s", missing)
    return "cpu", "cpu"


def _missing() -> str | None:
    """Why Triton cannot run on a GPU here; None where it can."""
    if not torch.cuda.is_available():
        if _GPU_FILE.exists():
            return f"this machine has a GPU, but this torch ({torch.__version__}) cannot use it"
        return "torch finds no GPU"
    if importlib.util.find_spec("triton") is None:
        return f"{torch.cuda.get_device_name()} is there, but triton is not installed"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"{torch.cuda.get_device_name()} has compute capability {major}.{minor}, and 8.0 is needed"
    return None


def _interprets() -> bool:
    named = os.environ.get("TRITON_INTERPRET", "").lower()
    return named in ("1", "true", "on", "yes", "y") and importlib.util.find_spec("triton") is not None


def _choose_precision(config: EngineConfig, device: Device) -> Literal["fp32", "bf16", "fp16", "int8"]:
    if config.precision != "auto":
        return config.precision
    return "bf16" if device == "cuda" else "fp32"


def _choose_kv_cache_dtype(asked: KVCacheDtype, precision: Precision, ops: OpSetName) -> KVCacheDtype:
    """`auto` stays where keys and values are of the weights' type."""
    if asked == "auto":
        return "int8" if precision == "int8" else asked
    if asked == precision:
        return "int8" if precision == "int8" else "auto"
    lacking = ("fp8",) if ops == "cpu" else ("bf16", "int8") if ops == "triton" else ()
    if asked in lacking:
        other = "triton" if ops == "cpu" else "cpu"
        raise ConfigError(
            f"kv_cache_dtype is {asked!r}: the op set {ops!r} has no such cache beside precision "
            f"{precision!r}, only {other!r} has"
        )
    return asked
