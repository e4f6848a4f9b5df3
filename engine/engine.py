"""The engine: requests in, outputs out, one step at a time. Synchronous, without I/O after loading."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable

import torch

from engine.blocks import BlockManager
from engine.config import EngineConfig
from engine.errors import ConfigError, ModelError
from engine.models.checkpoint import fingerprint
from engine.models.families import spec_of
from engine.models.folder import eos_token_ids, read_config, resolve_folder
from engine.models.load import load_decoder
from engine.models.spec import DecoderSpec
from engine.request import Output, Request, RequestParams
from engine.runner import Runner, RunnerSizes
from engine.scheduler import Limits, Scheduler

log = logging.getLogger(__name__)

PARAMETERS_PER_THREAD = 16_000_000
BYTES_PER_ELEMENT = 4
"""The KV cache is fp32."""


class Engine:
    """One loaded model and everything that runs on it."""

    def __init__(self, config: EngineConfig, on_phase: Callable[[str], None] = lambda phase: None) -> None:
        """Loads the model. Raises EngineError; `on_phase` hears what is being done, in words."""
        self.config = config
        check_ranges(config)
        on_phase(f"finding {config.model}")
        dummy = config.load_format == "dummy"
        self.model_path = resolve_folder(config.model, on_phase, with_weights=not dummy)
        hf_config = read_config(self.model_path)
        spec = spec_of(hf_config)
        torch.set_num_threads(num_threads(config, spec.num_parameters))
        self.vocab_size = spec.vocab_size
        self.eos_token_ids = eos_token_ids(self.model_path, hf_config)
        self.sizes = runner_sizes(config, spec)
        model = load_decoder(self.model_path, spec, config, self.sizes.max_model_len, on_phase)
        self.fingerprint = fingerprint(self.model_path, config.precision, dummy=dummy)
        self.runner = Runner(model, self.sizes)
        self.scheduler = Scheduler(
            Limits(
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_model_len=self.sizes.max_model_len,
                vocab_size=spec.vocab_size,
                eos_token_ids=self.eos_token_ids,
            ),
            BlockManager(self.sizes.num_blocks, self.sizes.block_size),
        )
        self._refused: list[Output] = []
        on_phase("warming up")
        self._warm_up()

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or say something."""
        return self.scheduler.has_work or bool(self._refused)

    def add(self, requests: Iterable[Request]) -> None:
        """Takes requests, in order. Those that cannot run end in the next step's outputs."""
        for request in requests:
            output = self.scheduler.add(request)
            if output is not None:
                self._refused.append(output)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Drops requests; unknown and finished ids are ignored."""
        for request_id in request_ids:
            self.scheduler.abort(request_id)

    def step(self) -> list[Output]:
        """Runs one batch and returns what it added to each request."""
        outputs, self._refused = self._refused, []
        batch = self.scheduler.schedule()
        if batch.rows:
            self.runner.forward(batch)
            pending = self.runner.sample(batch.sampled_rows)
            outputs += self.scheduler.update(batch, pending.wait())
        return outputs

    def _warm_up(self) -> None:
        """A prefill and a decode, so that a model that cannot step fails to load. Raises ModelError."""
        params = RequestParams(max_tokens=2, seed=0, ignore_eos=True)
        self.add([Request(request_id="warm-up", prompt_token_ids=[0], params=params)])
        outputs: list[Output] = []
        try:
            while self.has_work:
                outputs += self.step()
        except Exception as error:
            raise ModelError(f"{self.config.model} was loaded but cannot run: {error!r}") from error
        if outputs[-1].error is not None:  # a window of one token, or a token that nobody trained
            log.warning("the warm-up ended early: %s", outputs[-1].error)


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
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens is {config.max_num_batched_tokens}: at least max_num_seqs "
            f"({config.max_num_seqs}) is needed, or a step has no room for a token of each sequence"
        )


def runner_sizes(config: EngineConfig, spec: DecoderSpec) -> RunnerSizes:
    """Window and cache that suit settings and model. Raises ConfigError where they contradict each other.

    A window that was not asked for shrinks until one sequence fits the cache.
    """
    window = config.max_model_len or spec.max_position_embeddings
    if window > spec.max_position_embeddings:
        reason = f" ({spec.window_reason})" if spec.window_reason else ""
        raise ConfigError(
            f"max_model_len is {window}, but the model was made for {spec.max_position_embeddings} tokens"
            f"{reason}"
        )
    block_bytes = (
        2 * spec.num_layers * config.block_size * spec.num_kv_heads * spec.head_dim * BYTES_PER_ELEMENT
    )
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
