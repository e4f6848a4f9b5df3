"""`penstock run`: what surrounds a dataset run, from the files' checks to the last words."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from msgspec import Struct

from producer.answers import Output, RunState, Tally, check_state, load_state
from producer.errors import UsageError
from producer.progress import Progress, open_progress
from producer.rows import read_rows, survey
from producer.run import Plan, Run
from producer.serving import (
    Site,
    Stop,
    consumer_beside,
    first_of,
    model_flags,
    open_site,
    refuse_other_model,
    require_suitable,
    until_ready,
)
from producer.where import Where

ALL_ANSWERED = 0
SOME_FAILED = 3
INTERRUPTED = 130


Beside = Callable[[str, Stop], AbstractAsyncContextManager[object]]
"""What runs beside a run, of the server's URL and the stop that ends it."""


class Outcome(Struct, frozen=True):
    """How a run ended."""

    finished: bool
    tally: Tally
    total: int
    """Lines of the input."""
    was_finished: bool = False
    """Everything was there when this process came."""
    seconds: float = 0.0
    """From when a consumer was ready, or this process began to send, to the end."""


def run_dataset(plan: Plan, where: Where, model: str | None) -> int:
    """Answer every row of the plan's input; the exit status says how it ended.

    Raises:
        PenstockError: it could not finish; what is written is kept.
    """
    outcome = answer_dataset(plan, where, model, open_progress())
    tally = outcome.tally
    if not outcome.finished:
        left = max(outcome.total - tally.rows, 0)
        print(
            f"penstock: stopped; {tally.rows:,} rows are in {plan.output}, {left:,} are to come. "
            "The same command goes on from here.",
            file=sys.stderr,
        )
        return INTERRUPTED
    _tell_end(plan.output, tally, "was finished already" if outcome.was_finished else "finished")
    return SOME_FAILED if tally.failed else ALL_ANSWERED


def answer_dataset(
    plan: Plan, where: Where, model: str | None, progress: Progress, beside: Beside | None = None
) -> Outcome:
    """Run a plan as far as it goes: to its end, or until Ctrl-C.

    Args:
        beside: what else is to run meanwhile, as `penstock demo` has a gateway.

    Raises:
        PenstockError: it could not finish; what is written is kept.
    """
    if plan.window < 1:
        raise UsageError(f"--window is {plan.window}; it must be 1 or more")
    if _same_file(plan.input, plan.output):
        raise UsageError(f"{plan.output} is the input; name another output")
    found = survey(plan.input)
    with Output(plan.output) as output:
        state = load_state(plan.output)
        check_state(state, output, found.fingerprint, plan.lane)
        state = state or RunState(input=found.fingerprint, batch="", lane=plan.lane)
        if state.finished:
            missing = sum(number not in output.rows for number, _ in read_rows(plan.input))
            if not missing:
                return Outcome(True, output.tally, found.lines, was_finished=True)
            progress.say(
                f"this run was finished, but {plan.output} lacks {missing:,} rows; they are asked again"
            )
            # The batch was deleted at the end; the rows need one of their own.
            state = RunState(input=found.fingerprint, batch="", lane=plan.lane)
        flags = None if where.redis is not None else model_flags(model)
        with progress, open_site(where, flags, progress.say, share=True, log="consumer.log") as site:
            run = Run(plan, site.url, output, state, found.lines, progress)
            finished, seconds = asyncio.run(_drive(run, site, progress, model, beside))
        return Outcome(finished, output.tally, found.lines, seconds=seconds)


def _same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one existing file."""
    return one.exists() and other.exists() and one.samefile(other)


async def _drive(
    run: Run, site: Site, progress: Progress, model: str | None, beside: Beside | None
) -> tuple[bool, float]:
    """Run to the end, or until asked to stop; whether the end was reached, and in how many seconds."""
    await require_suitable(site.url, progress.say)
    if model:
        await refuse_other_model(site.url, model)
    began = time.monotonic()
    with Stop().listening() as stop:
        async with (
            consumer_beside(site, stop, progress.say) as consumer,
            beside(site.url, stop) if beside is not None else nullcontext(),
        ):
            driving = asyncio.create_task(run.finish())
            ready = asyncio.create_task(_time_of_readiness(site.url))
            waiting = (driving, consumer) if consumer is not None else (driving,)
            try:
                await first_of(*waiting, stop.asked.wait())
                ended, seconds = driving.done(), time.monotonic() - began
            finally:
                for task in (driving, ready):
                    task.cancel()
                await asyncio.gather(driving, ready, return_exceptions=True)
            if not ended and consumer is not None:
                progress.say(
                    "stopping: the consumer finishes or hands back what it runs; Ctrl-C again: at once"
                )
    if not ready.cancelled() and ready.exception() is None:
        seconds -= max(ready.result() - began, 0)
    return ended, seconds


async def _time_of_readiness(url: str) -> float:
    await until_ready(url)
    return time.monotonic()


def _tell_end(output: Path, tally: Tally, how: str) -> None:
    words = f"penstock: {how}: {tally.rows:,} rows in {output}"
    if tally.checked:
        words += f"; {tally.correct:,} of {tally.checked:,} as expected"
    if tally.failed:
        words += f"; {tally.failed:,} ended in an error, each said in its line"
    print(words, file=sys.stderr)
