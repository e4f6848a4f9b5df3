"""From settings to a model in memory: which one, how large, on how many threads."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.config import EngineConfig
from engine.cores import usable_cores
from engine.device import CPU_KV_CACHE_BYTES
from engine.errors import ConfigError, NoSpec
from engine.memory import keep_freed_memory, kv_cache_bytes, runner_sizes, window
from engine.models.checkpoint import fingerprint
from engine.models.fallback import load_fallback
from engine.models.fallback_config import FallbackSizes, fallback_sizes
from engine.models.families import spec_of
from engine.models.folder import eos_token_ids, read_config, resolve_folder
from engine.models.load import STORED, load_decoder
from engine.models.model import Model
from engine.models.spec import DecoderSpec
from engine.runner import RunnerSizes
from kernels.opset import load_op_set

log = logging.getLogger(__name__)

MAX_THREADS = 1024
PARAMETERS_PER_THREAD = 16_000_000


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model and what its folder says of it."""

    folder: Path
    model: Model
    sizes: RunnerSizes
    eos_token_ids: list[int]
    fingerprint: str


def load(config: EngineConfig, on_phase: Callable[[str], None]) -> Loaded:
    """Finds and reads the model of a resolved config. Raises EngineError."""
    on_phase(f"finding {config.model}")
    is_dummy = config.load_format == "dummy"
    folder = resolve_folder(config.model, on_phase, with_weights=not is_dummy)
    hf_config = read_config(folder)
    described = describe(hf_config)
    torch.set_num_threads(num_threads(config, described.num_parameters))
    num_tokens = window(config, described)
    early = None  # where memory need not be measured, contradictions are found before weights are read
    if config.device != "cuda":
        early = runner_sizes(config, described, config.kv_cache_bytes or CPU_KV_CACHE_BYTES)
        num_tokens = early.max_model_len
    model: Model
    if isinstance(described, DecoderSpec):
        model = load_decoder(folder, described, config, num_tokens, on_phase)
    else:
        if config.precision == "int8":
            raise ConfigError(
                f"precision is 'int8': {described.architecture} runs by transformers' own code, "
                "which is checked against itself and would fail with weights in 8 bits"
            )
        ops = load_op_set(config.ops, STORED[config.precision], described.head_dim)
        model = load_fallback(folder, hf_config, config, ops, on_phase)
    if config.device == "cpu":
        keep_freed_memory()
    if early is None:
        on_phase("measuring memory")
    sizes = early or runner_sizes(config, described, kv_cache_bytes(config, model, num_tokens))
    return Loaded(
        folder=folder,
        model=model,
        sizes=sizes,
        eos_token_ids=eos_token_ids(folder, hf_config),
        fingerprint=fingerprint(folder, _numeric_class(config), dummy=is_dummy),
    )


def _numeric_class(config: EngineConfig) -> str:
    cache = "" if config.kv_cache_dtype == "auto" else f" with {config.kv_cache_dtype} keys and values"
    return f"{config.precision}{cache}"


def describe(hf_config: Any) -> DecoderSpec | FallbackSizes:
    """The spec of a transformers config, or what the fallback says of it. Raises UnsupportedModel."""
    try:
        return spec_of(hf_config)
    except NoSpec:
        return fallback_sizes(hf_config)


def num_threads(config: EngineConfig, num_parameters: int) -> int:
    """Compute threads: as configured, else OMP_NUM_THREADS, else the cores that this process may use, but no
    more than the model has work for.

    An operation of a small model is over in microseconds. Where one of its threads shares a core with
    anything else, the others wait a scheduler's slice for it, each time: a 3 M parameter model took 266 ms a
    step on two threads beside a busy process, 26 ms on one.
    """
    if config.num_threads > 0:
        return config.num_threads
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if named.isdecimal() and int(named) > 0:
        return int(named)
    return min(usable_cores(), max(1, num_parameters // PARAMETERS_PER_THREAD))


def check_ranges(config: EngineConfig) -> None:
    """Raises ConfigError for a setting that no model could be run with."""
    if config.block_size < 1:
        raise ConfigError(f"block_size is {config.block_size}: at least 1 is needed")
    derived = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "num_blocks", "kv_cache_bytes")
    for name in (*derived, "num_threads"):
        if getattr(config, name) < 0:
            raise ConfigError(
                f"{name} is {getattr(config, name)}: 0 (derived at load) or at least 1 is needed"
            )
    if config.num_threads > MAX_THREADS:
        raise ConfigError(f"num_threads is {config.num_threads}: at most {MAX_THREADS} are started")
    if 0 < config.max_num_batched_tokens < config.max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens is {config.max_num_batched_tokens}: at least max_num_seqs "
            f"({config.max_num_seqs}) is needed, or a step has no room for a token of each sequence"
        )
