"""The engine: requests in, outputs out, one step at a time. Synchronous, without I/O after loading."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait

import torch

from engine.batch import Batch
from engine.blocks import BlockManager
from engine.config import EngineConfig
from engine.device import resolve, set_arithmetic
from engine.device_runner import DeviceRunner
from engine.errors import ModelError
from engine.grammars import GrammarConstraint, Grammars, InvalidGrammar
from engine.loading import Loaded, check_ranges, load
from engine.masks import Masks, PendingMasks
from engine.memory import kv_dtype
from engine.request import Output, Request, RequestParams
from engine.runner import PendingStep, Runner
from engine.scheduler import Limits, Scheduler
from kernels.mask import TokenMasks

log = logging.getLogger(__name__)

_COMPILE_WAIT_S = 0.02


class Engine:
    """One loaded model and everything that runs on it."""

    def __init__(self, config: EngineConfig, on_phase: Callable[[str], None] = lambda phase: None) -> None:
        """Loads the model. Raises EngineError; `on_phase` hears what is being done, in words."""
        check_ranges(config)
        config = resolve(config)
        check_ranges(config)
        set_arithmetic("cuda" if config.device == "cuda" else "cpu")
        self.config = config
        """With everything chosen that the given one left open."""
        loaded = load(config, on_phase)
        self.model_path = loaded.folder
        self.vocab_size = loaded.model.vocab_size
        self.eos_token_ids = loaded.eos_token_ids
        self.sizes = loaded.sizes
        self.fingerprint = loaded.fingerprint
        self.runner = self._make_runner(loaded, on_phase)
        self.scheduler = Scheduler(
            Limits(
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_model_len=self.sizes.max_model_len,
                vocab_size=self.vocab_size,
                eos_token_ids=self.eos_token_ids,
            ),
            BlockManager(self.sizes.num_blocks, self.sizes.block_size, config.prefix_cache),
        )
        self._grammars = Grammars(self.model_path, self.vocab_size, self.eos_token_ids)
        self._masks = Masks(self.vocab_size, self.eos_token_ids)
        self._arriving: deque[tuple[Request, Future[GrammarConstraint] | None]] = deque()
        self._in_flight: tuple[Batch, PendingStep] | None = None
        self._outputs: list[Output] = []
        self.num_steps = 0
        """Steps that had something to compute."""
        self.num_computed_tokens = 0
        """Tokens that went through the model in them."""
        self.busy_ns = 0
        """What they took."""
        on_phase("warming up")
        self._warm_up()

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or say something."""
        return self.scheduler.has_work or bool(self._outputs or self._arriving or self._in_flight)

    def add(self, requests: Iterable[Request], *, last: bool = False) -> None:
        """Takes requests, in order. Those that cannot run end in the next step's outputs.

        `last`: nothing more is to be expected soon, see `Submit`.
        """
        for request in requests:
            grammar = request.params.grammar
            compiling = None if grammar is None else self._grammars.compile(grammar)
            self._arriving.append((request, compiling))
        self.scheduler.backlog_ends = last
        self._take_arrived()

    def abort(self, request_ids: Iterable[str], samples: Iterable[tuple[str, int]] = ()) -> None:
        """Drops requests, or samples of them; unknown and finished ones are ignored."""
        dropped = set(request_ids)
        if dropped:
            for request, compiling in self._arriving:
                if compiling is not None and request.request_id in dropped:
                    compiling.cancel()
            self._arriving = deque(item for item in self._arriving if item[0].request_id not in dropped)
        for request_id in dropped:
            self.scheduler.abort(request_id)
        for request_id, index in samples:
            self.scheduler.abort_sample(request_id, index)

    def step(self) -> list[Output]:
        """Runs one batch and returns what has become known: with overlap, of the batch before it."""
        started_ns = time.perf_counter_ns()
        self._take_arrived()
        if self._arriving and not self.scheduler.has_work:
            self._await_arrival()
        batch = self.scheduler.schedule()
        overlapped = bool(self.config.overlap)
        masks = None
        if batch.rows:
            if not overlapped:
                masks = self._start_masks(batch)
            self.runner.forward(batch)
        self._retire()
        if batch.rows:
            if overlapped:  # the tokens of the step before are known only now
                masks = self._start_masks(batch)
            pending = self.runner.sample(batch.sampled_rows, self._wait_for(masks, batch))
            self._in_flight = (batch, pending)
            if not overlapped:
                self._retire()
            self.num_steps += 1
            self.num_computed_tokens += sum(batch.num_scheduled_tokens)
            self.busy_ns += time.perf_counter_ns() - started_ns
        outputs, self._outputs = self._outputs, []
        return outputs

    def _make_runner(self, loaded: Loaded, on_phase: Callable[[str], None]) -> Runner | DeviceRunner:
        """The host's runner computes when it is called; kernels that are launched have another."""
        config = self.config
        if config.device == "cpu" and config.ops != "triton":
            return Runner(
                loaded.model,
                loaded.sizes,
                loaded.eos_token_ids,
                kv_dtype=kv_dtype(config),
                records=not config.enforce_eager,
            )
        on_phase("compiling kernels and recording decode steps")
        runner = DeviceRunner(loaded.model, loaded.sizes, loaded.eos_token_ids, kv_dtype=kv_dtype(config))
        if config.device == "cuda" and config.ops == "triton":
            runner.compile_steps(min(config.max_num_batched_tokens, loaded.sizes.max_model_len))
        if not config.enforce_eager and loaded.model.is_recordable:
            runner.record_decodes()
        return runner

    def _retire(self) -> None:
        """Takes the results of the step in flight, if there is one."""
        if self._in_flight is not None:
            batch, pending = self._in_flight
            self._in_flight = None
            self._outputs += self.scheduler.update(batch, pending.wait())

    def _start_masks(self, batch: Batch) -> PendingMasks | None:
        constraints = [self.scheduler.constraint_of(row) for row in batch.sampled_rows]
        return self._masks.start(constraints) if any(constraints) else None

    def _wait_for(self, masks: PendingMasks | None, batch: Batch) -> TokenMasks | None:
        """Masks as the sampler takes them, once they are filled; one that could not be ends its request."""
        if masks is None:
            return None
        filled = masks.wait()
        for place, words in filled.failures.items():
            self._outputs += self.scheduler.fail_row(batch.sampled_rows[place], words)
        return TokenMasks(torch.from_numpy(filled.index), torch.from_numpy(filled.bits))

    def _take_arrived(self) -> None:
        """Hands requests whose grammars are compiled to the scheduler; those behind a slow one don't wait."""
        compiling: deque[tuple[Request, Future[GrammarConstraint] | None]] = deque()
        for request, future in self._arriving:
            if future is not None and not future.done():
                compiling.append((request, future))
                continue
            try:
                constraint = None if future is None else future.result()
            except InvalidGrammar as error:
                self._outputs.append(
                    Output(
                        request_id=request.request_id,
                        token_ids=[],
                        error=f"`structured_outputs`: {error}",
                        error_type="invalid_job",
                    )
                )
                continue
            self._outputs += self.scheduler.add(request, constraint)
        self._arriving = compiling

    def _await_arrival(self) -> None:
        """Nothing else to do: waits for the next grammar, but not so long that commands would wait for it."""
        futures = [future for _, future in self._arriving if future is not None]
        wait(futures, timeout=_COMPILE_WAIT_S, return_when=FIRST_COMPLETED)
        self._take_arrived()

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
        # Nobody asked for these.
        self.num_steps = self.num_computed_tokens = self.busy_ns = 0
        self.scheduler.num_prompt_tokens = self.scheduler.num_cached_tokens = 0
