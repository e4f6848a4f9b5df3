"""How long a window is and how many KV cache blocks there are, by settings, model and memory."""

from __future__ import annotations

import ctypes
import gc
import logging
from typing import Final, Protocol

import torch

from engine.config import EngineConfig
from engine.device import CPU_KV_CACHE_BYTES
from engine.dry_run import dry_run, sampling_of
from engine.errors import ConfigError
from engine.kv_cache import KVStorage, block_bytes
from engine.models.load import DTYPES
from engine.models.model import Model
from engine.prompts import num_prompt_logits
from engine.runner import RunnerSizes
from kernels.attention import FP8
from kernels.sample import sample

log = logging.getLogger(__name__)

_RESERVE_BYTES: Final = 512 * 1024**2
"""For recorded graphs, kernels' code and what allocators cut off."""
_KV_DTYPES: Final = {"bf16": torch.bfloat16, "fp8": FP8, "int8": torch.int8}
_LOGITS_COPIES: Final = 3
"""Of a full batch's logits, or of those that prompt log-probabilities look at together, that are held at
most: raw, changed, and one in the making."""


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


def kv_dtype(config: EngineConfig) -> torch.dtype:
    """The type of a resolved config's KV cache."""
    return _KV_DTYPES.get(config.kv_cache_dtype) or DTYPES[config.precision]


def window(config: EngineConfig, model: ModelSizes) -> int:
    """The window that was asked for, or the model's. Raises ConfigError for one that the model lacks."""
    asked = config.max_model_len or model.max_position_embeddings
    if asked > model.max_position_embeddings:
        raise ConfigError(
            f"max_model_len is {asked}, but the model was made for {model.max_position_embeddings} tokens"
            + (f" ({model.window_reason})" if model.window_reason else "")
        )
    return asked


def runner_sizes(config: EngineConfig, model: ModelSizes, kv_cache_bytes: int) -> RunnerSizes:
    """Window and cache that suit settings and model. Raises ConfigError where they contradict each other.

    kv_cache_bytes: what there is, unless num_blocks is given. A window that was not asked for shrinks until
    one sequence fits the cache.
    """
    num_tokens = window(config, model)
    of_block = block_bytes(
        model.num_layers, model.num_kv_heads, model.head_dim, config.block_size, kv_dtype(config)
    )
    blocks_per_seq = -(-num_tokens // config.block_size)
    num_blocks = config.num_blocks or min(config.max_num_seqs * blocks_per_seq, kv_cache_bytes // of_block)
    if num_blocks < 1:
        raise ConfigError(f"kv_cache_bytes is {kv_cache_bytes}: one block takes {of_block}")
    if num_blocks < blocks_per_seq:
        fitting = num_blocks * config.block_size
        if config.max_model_len:
            raise ConfigError(
                f"max_model_len is {num_tokens}, but the KV cache holds {fitting} tokens "
                f"({num_blocks} blocks of {config.block_size}): raise num_blocks or kv_cache_bytes"
            )
        log.warning("the KV cache holds %d tokens: the window shrinks from %d to that", fitting, num_tokens)
        num_tokens = fitting
    return RunnerSizes(config.max_num_seqs, num_tokens, num_blocks, config.block_size)


def kv_cache_bytes(config: EngineConfig, model: Model, num_tokens: int) -> int:
    """What the cache may take. num_tokens: the window. Raises ConfigError where a GPU has no room for one."""
    if config.kv_cache_bytes or config.num_blocks:
        return config.kv_cache_bytes
    if config.device != "cuda":
        return CPU_KV_CACHE_BYTES
    step_bytes = _measure_step(config, model, num_tokens)
    free, total = torch.cuda.mem_get_info()
    allowed = int(total * config.gpu_memory_utilization)
    left = allowed - (total - free) - step_bytes - _RESERVE_BYTES
    log.info(
        "of %.1f GiB, %.1f are in use, a step takes %.1f, and the KV cache %.1f",
        *(size / 1024**3 for size in (total, total - free, step_bytes, max(left, 0))),
    )
    if left <= 0:
        raise ConfigError(
            f"gpu_memory_utilization is {config.gpu_memory_utilization}: of {allowed / 1024**3:.1f} GiB "
            f"nothing is left for a KV cache ({(total - free) / 1024**3:.1f} GiB in use, weights among them, "
            f"{step_bytes / 1024**3:.1f} GiB for a step of {config.max_num_batched_tokens} tokens)"
        )
    return left


@torch.inference_mode()
def _measure_step(config: EngineConfig, model: Model, num_tokens: int) -> int:
    """Bytes that the greatest step takes beside weights and cache, by running it."""
    gc.collect()  # of an engine before this one, whose runner and graphs hold each other
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    storage = KVStorage(model, 0, config.block_size, kv_dtype(config))
    lengths = _prompts(config.max_num_batched_tokens, min(num_tokens, config.max_num_batched_tokens))
    hidden = dry_run(model, storage.layers, config.block_size, lengths)
    forward_bytes = torch.cuda.max_memory_allocated() - before
    logits = model.logits(hidden[-config.max_num_seqs :])
    sample(
        model.ops,
        logits,
        torch.zeros_like(logits[:, 0]),
        sampling_of(len(logits), model.device, filters=True),
    )
    peak = torch.cuda.max_memory_allocated() - before
    num_logits = max(logits.numel(), num_prompt_logits(model.device))
    extra = _LOGITS_COPIES * num_logits * logits.itemsize
    del storage, hidden, logits
    torch.cuda.empty_cache()
    return max(forward_bytes, peak) + extra


def _prompts(num_tokens: int, longest: int) -> list[int]:
    """Lengths of prompts that fill a step."""
    lengths = [longest] * (num_tokens // longest)
    return lengths if num_tokens % longest == 0 else [*lengths, num_tokens % longest]


def keep_freed_memory() -> None:
    """A step's tensors are the next step's again: given back to the system and asked for anew, their pages
    cost up to a tenth of a long prompt's time. Tensors up to 32 MiB, 512 MiB in all; GNU's C library. To be
    called when a model is loaded: what loading it took goes back."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    trim_threshold, mmap_threshold = -1, -3  # as malloc.h numbers them
    library.malloc_trim(0)
    library.mallopt(trim_threshold, 512 * 1024**2)
    library.mallopt(mmap_threshold, 32 * 1024**2)
