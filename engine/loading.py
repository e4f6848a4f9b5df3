"""From settings to a model in memory: which one, how large, on how many threads."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from engine.config import EngineConfig
from engine.errors import ConfigError, NoSpec
from engine.models.checkpoint import fingerprint
from engine.models.fallback import load_fallback
from engine.models.fallback_config import FallbackSizes, fallback_sizes
from engine.models.families import spec_of
from engine.models.folder import eos_token_ids, read_config, resolve_folder
from engine.models.load import DTYPES, load_decoder
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


class ModelSizes(Protocol):
    """What has to be known of a model before it is loaded; a spec says it, and so does the fallback."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def window_reason(self) -> str:
        """Why the window ends where it does, if the config promises more."""
        ...


def load(config: EngineConfig, on_phase: Callable[[str], None]) -> Loaded:
    """Finds and reads the configured model. Raises EngineError."""
    on_phase(f"finding {config.model}")
    is_dummy = config.load_format == "dummy"
    folder = resolve_folder(config.model, on_phase, with_weights=not is_dummy)
    hf_config = read_config(folder)
    described = describe(hf_config)
    torch.set_num_threads(num_threads(config, described.num_parameters))
    sizes = runner_sizes(config, described)
    model: Model
    if isinstance(described, DecoderSpec):
        model = load_decoder(folder, described, config, sizes.max_model_len, on_phase)
    else:
        model = load_fallback(folder, hf_config, config, load_op_set(config.ops), on_phase)
    return Loaded(
        folder=folder,
        model=model,
        sizes=sizes,
        eos_token_ids=eos_token_ids(folder, hf_config),
        fingerprint=fingerprint(folder, config.precision, dummy=is_dummy),
    )


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, max(1, num_parameters // PARAMETERS_PER_THREAD))


def check_ranges(config: EngineConfig) -> None:
    """Raises ConfigError for a setting that no model could be run with."""
    for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_bytes"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}: at least 1 is needed")
    for name in ("max_model_len", "num_blocks", "num_threads"):
        if getattr(config, name) < 0:
            raise ConfigError(
                f"{name} is {getattr(config, name)}: 0 (derived at load) or at least 1 is needed"
            )
    if config.num_threads > MAX_THREADS:
        raise ConfigError(f"num_threads is {config.num_threads}: at most {MAX_THREADS} are started")
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens is {config.max_num_batched_tokens}: at least max_num_seqs "
            f"({config.max_num_seqs}) is needed, or a step has no room for a token of each sequence"
        )


def runner_sizes(config: EngineConfig, spec: ModelSizes) -> RunnerSizes:
    """Window and cache that suit settings and model. Raises ConfigError where they contradict each other.

    A window that was not asked for shrinks until one sequence fits the cache.
    """
    window = config.max_model_len or spec.max_position_embeddings
    if window > spec.max_position_embeddings:
        raise ConfigError(
            f"max_model_len is {window}, but the model was made for {spec.max_position_embeddings} tokens"
            + (f" ({spec.window_reason})" if spec.window_reason else "")
        )
    element_bytes = DTYPES[config.precision].itemsize
    block_bytes = 2 * spec.num_layers * config.block_size * spec.num_kv_heads * spec.head_dim * element_bytes
    blocks_per_seq = -(-window // config.block_size)
    num_blocks = config.num_blocks or min(
        config.max_num_seqs * blocks_per_seq, config.kv_cache_bytes // block_bytes
    )
    if num_blocks < 1:
        raise ConfigError(f"kv_cache_bytes is {config.kv_cache_bytes}: one block takes {block_bytes}")
    if num_blocks < blocks_per_seq:
        fitting = num_blocks * config.block_size
        if config.max_model_len:
            raise ConfigError(
                f"max_model_len is {window}, but the KV cache holds {fitting} tokens "
                f"({num_blocks} blocks of {config.block_size}): raise num_blocks or kv_cache_bytes"
            )
        log.warning("the KV cache holds %d tokens: the window shrinks from %d to that", fitting, window)
        window = fitting
    return RunnerSizes(config.max_num_seqs, window, num_blocks, config.block_size)
