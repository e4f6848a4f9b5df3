"""`penstock demo`: a dataset run of the shipped questions, and a table of what came of it."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from producer import locks
from producer.answers import Answer, load_state, read_answers, state_path
from producer.dataset import INTERRUPTED, Beside, Outcome, answer_dataset
from producer.errors import UsageError
from producer.gateway.command import gateway_beside
from producer.gateway.flags import settings_beside, settings_of
from producer.progress import Progress, open_progress
from producer.rows import Row, parse_row, read_rows, survey
from producer.run import Plan
from producer.serving import Stop
from producer.shipped import demo_prompts
from producer.where import Where, short

ENOUGH_RIGHT: Final = 0.95
SHOWN: Final = 18


def run_demo(folder: Path) -> int:
    """Run the demo; 0 if every question was answered and enough of them rightly."""
    questions, output = demo_prompts(), folder / "answers.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UsageError(f"{folder} can't be made: {error.strerror}") from None
    # Held to this process's end: a second demo would remove the output that the first one has just made.
    if (lock := locks.open_locked(folder / "demo.lock")) is None:
        raise UsageError(f"another demo runs in {folder}; wait for it, or name another folder with --data")
    with lock:
        return _run(folder, questions, output)


def _run(folder: Path, questions: Path, output: Path) -> int:
    _begin_anew(questions, output)
    progress = open_progress()
    progress.say(f"{survey(questions).lines} questions from {short(questions)}, through a server in {folder}")
    where = Where(data=folder)
    outcome = answer_dataset(
        Plan(questions, output, 1024, "standard"), where, None, progress, _page(where, progress)
    )
    if not outcome.finished:
        print("penstock: the demo was stopped; `penstock demo` goes on from here", file=sys.stderr)
        return INTERRUPTED
    good = outcome.tally.failed == 0 and outcome.tally.correct >= ENOUGH_RIGHT * outcome.tally.checked
    _show(questions, output, outcome, good=good)
    return int(not good)


def _page(where: Where, progress: Progress) -> Beside:
    """A gateway while the demo runs, and the URL of its page."""

    @asynccontextmanager
    async def beside(url: str, stop: Stop) -> AsyncGenerator[None]:
        settings = settings_of(settings_beside(), where, url)
        async with gateway_beside(settings, stop, progress.say) as page:
            if page is not None:
                progress.say(f"watch it at {page} while it runs")
            yield

    return beside


def _begin_anew(questions: Path, output: Path) -> None:
    """Drop the output of an earlier demo, unless that was stopped in the middle of these same questions."""
    state = load_state(output)
    if state is None or state.finished or state.input != survey(questions).fingerprint:
        output.unlink(missing_ok=True)
        state_path(output).unlink(missing_ok=True)


def _show(questions: Path, output: Path, outcome: Outcome, *, good: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, tally = Console(highlight=False), outcome.tally
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("question", "answer", "expected", ""):
        table.add_column(title)
    for row, answer in _sample(questions, output):
        text = answer.text if answer.text is not None else f"({answer.error.type if answer.error else ''})"
        mark = Text("right", "green") if answer.correct else Text("wrong", "red")
        table.add_row(Text(_question(row)), Text(text), Text(row.expected or ""), mark)
    console.print(table)
    verdict = Text.assemble(
        "\n",
        (f"{tally.correct} of {tally.checked} right", "bold green" if good else "bold red"),
        f" ({tally.correct / max(tally.checked, 1):.1%})",
        f", {tally.failed} unanswered" if tally.failed else ", every one answered",
    )
    console.print(verdict)
    tokens = tally.prompt_tokens, tally.completion_tokens
    console.print(
        f"{outcome.seconds:.1f} s, {tally.rows / outcome.seconds:,.0f} rows/s, "
        f"{tokens[1] / outcome.seconds:,.0f} output tokens/s ({tokens[0]:,} tokens in, {tokens[1]:,} out)"
    )
    console.print(f"All answers: {output}", soft_wrap=True)


def _sample(questions: Path, output: Path) -> Iterator[tuple[Row, Answer]]:
    """One row of each kind of question, then wrong ones, as far as there is room."""
    answers = {answer.row: answer for answer in read_answers(output)}
    rows = [row for number, line in read_rows(questions) if isinstance(row := parse_row(number, line), Row)]
    kinds: dict[str, Row] = {}
    for row in rows:
        kinds.setdefault((row.job.custom_id or "").rpartition("-")[0], row)
    shown = list(kinds.values())
    shown += [row for row in rows if not answers[row.number].correct and row not in shown]
    for row in shown[:SHOWN]:
        yield row, answers[row.number]


def _question(row: Row) -> str:
    content = row.job.messages[-1].content if row.job.messages else row.job.prompt
    return content if isinstance(content, str) else ""
