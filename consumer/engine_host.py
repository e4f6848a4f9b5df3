"""Keeps an engine process running: starts it, starts another after a death, says what phase it is in."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from consumer.defaults import Defaults
from consumer.engine_process import (
    EngineDied,
    EngineProcess,
    EngineStartFailed,
    ModelNotLoaded,
    start_engine,
)
from consumer.markers import OutputMarkers
from consumer.served import Served
from consumer.settings import Settings
from consumer.token_logprobs import TokenTexts
from consumer.tokenizer import PromptTokenizer
from consumer.tokenizer_threads import TokenizerThreads
from engine.messages import Fatal, Loading, Ready, Step
from engine.request import Request

log = logging.getLogger(__name__)

_MAX_FAILED_STARTS = 3
_LOOKS = 10
"""How often the watch looks within the time after which it takes an engine to hang."""


class EngineHost:
    """The engine as the consumer sees it: one that comes back."""

    def __init__(
        self,
        settings: Settings,
        threads: TokenizerThreads,
        on_phase: Callable[[], None],
        command: Sequence[str],
    ) -> None:
        self._settings = settings
        self._threads = threads
        self._on_phase = on_phase
        self._command = command
        self._process: EngineProcess | None = None
        self.served: Served | None = None
        """The model, while an engine is ready for requests."""
        self.phase = "starting"
        """For heartbeats: `ready`, or what the engine is doing before it is."""

    async def start(self) -> Served:
        """Start a process and wait until its model is loaded.

        Raises:
            ModelNotLoaded: in the engine's own words.
            EngineStartFailed: it died before it could say anything.
        """
        self._enter("starting the engine")
        process = await start_engine(self._settings.engine, command=self._command)
        try:
            ready = await self._wait_ready(process)
            self.served = await self._threads.load(lambda: self._load(ready))
        except BaseException:
            await process.stop(0.5)
            raise
        self._process = process
        self._enter("ready")
        return self.served

    def submit(self, requests: Sequence[Request], *, last: bool = False) -> None:
        """Hand requests over; without a running engine nothing happens, as `steps` asks for them later.

        `last` says that the queue holds no more for now; it may be said without a request.
        """
        if self._process is not None and (requests or last):
            self._process.submit(requests, last=last)

    def abort(self, request_ids: Sequence[str], samples: Sequence[tuple[str, int]] = ()) -> None:
        """Drop requests, and single samples of requests; their output may still arrive."""
        if self._process is not None and (request_ids or samples):
            self._process.abort(request_ids, samples)

    async def steps(
        self, on_death: Callable[[], None], survivors: Callable[[], list[Request]]
    ) -> AsyncIterator[Step]:
        """Steps, across deaths: `on_death` is told of each, and the next process is given the `survivors`.

        Raises:
            EngineStartFailed: no new engine could be started, several times in a row.
        """
        while True:
            assert self._process is not None
            try:
                async for report in self._process.reports():
                    match report:
                        case Step():
                            yield report
                        case Fatal(message):
                            log.error("the engine cannot go on: %s", message)
                        case _:
                            pass
            except EngineDied as error:
                log.error("%s; another one is started", error)
                on_death()
                await self._restart()
                # Asked for only now: jobs may have been admitted while there was no engine to take them.
                self.submit(survivors())

    async def watch(self, has_work: Callable[[], bool]) -> None:
        """Kill an engine that has work and has reported nothing for `engine_timeout_s`; for ever.

        It counts looks, not time, and none that comes late: after this process itself was stopped, the engine
        is not killed for reports that nobody has read yet.
        """
        timeout_s, num_silent = self._settings.engine_timeout_s, 0
        pause_s = timeout_s / _LOOKS
        while True:
            asleep_since = time.monotonic()
            await asyncio.sleep(pause_s)
            if time.monotonic() - asleep_since > 2 * pause_s:
                continue
            process = self._process  # None while it loads, which may take minutes
            # Of a new one `Ready` was heard: it is not charged with its predecessor's silence.
            silent = process is not None and process.take_silence() and has_work()
            num_silent = num_silent + 1 if silent else 0
            if process is not None and num_silent > _LOOKS:  # the first began before the first look
                log.error(
                    "the engine process %d has work and says nothing for %g s: it hangs, and is killed",
                    *(process.pid, timeout_s),
                )
                process.kill()
                num_silent = 0

    async def stop(self) -> None:
        """End the process."""
        process, self._process, self.served = self._process, None, None
        if process is not None:
            await process.stop()

    async def _restart(self) -> None:
        await self.stop()
        for attempt in range(1, _MAX_FAILED_STARTS + 1):
            try:
                await self.start()
                return
            except EngineStartFailed as error:
                log.error("start %d of the engine failed: %s", attempt, error)
                if attempt == _MAX_FAILED_STARTS:
                    # Not ModelNotLoaded: it was loaded before, so a later process may well load it again.
                    raise EngineStartFailed(str(error)) from None
                await asyncio.sleep(attempt)

    async def _wait_ready(self, process: EngineProcess) -> Ready:
        try:
            async for report in process.reports():
                match report:
                    case Loading(phase):
                        self._enter(phase)
                    case Ready():
                        return report
                    case Fatal(message):
                        raise ModelNotLoaded(message)
                    case Step():
                        pass
        except EngineDied as error:
            raise EngineStartFailed(f"while it was loading, {error}") from None
        raise AssertionError("reports end only by an exception")

    def _load(self, ready: Ready) -> Served:
        folder = Path(ready.model_path)
        defaults = Defaults.load(folder)
        stated = ", ".join(f"{name} {value:g}" for name, value in defaults.stated().items())
        log.info("the model's own sampling defaults: %s", stated or "none")
        tokenizer = PromptTokenizer(folder, ready.vocab_size)
        settings = self._settings
        markers = OutputMarkers.find(tokenizer, settings.tool_format, settings.reasoning_format)
        marks = markers.reasoning.start if markers.reasoning else "none"
        log.info("tool calls: %s; marker of reasoning: %s", markers.tool_format or "no known format", marks)
        return Served(
            model=self._settings.model_name,
            ready=ready,
            tokenizer=tokenizer,
            token_texts=TokenTexts(tokenizer.tokenizer),
            defaults=defaults,
            markers=markers,
            result_ttl_s=self._settings.result_ttl_s,
            max_attempts=self._settings.max_attempts,
            checkpoint_tokens=self._settings.checkpoint_tokens,
            checkpoint_s=self._settings.checkpoint_s,
        )

    def _enter(self, phase: str) -> None:
        # "loading weights, layer 3 of 28" is for heartbeats; the log says it once.
        repeated = phase.split(",")[0] == self.phase.split(",")[0]
        log.log(logging.DEBUG if repeated else logging.INFO, "engine: %s", phase)
        self.phase = phase
        self._on_phase()
