"""What a run shows of itself: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from msgspec import Struct

from producer.answers import Tally

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL_S: Final = 10.0


class Progress(Protocol):
    """A place for words and figures; a context, so that a terminal is left in order."""

    def say(self, words: str) -> None:
        """Tell something once."""
        ...

    def wait(self, why: str | None) -> None:
        """Show why nothing comes, if that is known."""
        ...

    def update(self, tally: Tally, total: int) -> None:
        """Show how far the run is."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Speed(Struct):
    """Rates since the first answer that this process saw: neither what was there before it, nor the time in
    which the model was loaded, counts."""

    found: int | None = None
    began: float = 0.0
    rows: int = 0
    tokens: int = 0

    def figures(self, tally: Tally, total: int, now: float) -> tuple[float, float, float | None]:
        """Rows per second, output tokens per second, and seconds to go (None while unknown)."""
        if self.found is None:
            self.found = tally.rows
        if not self.began and tally.rows > self.found:
            self.began, self.rows, self.tokens = now, tally.rows, tally.completion_tokens
        rows, seconds = tally.rows - self.rows, now - self.began
        if not self.began or rows <= 0 or seconds < 0.2:
            return 0.0, 0.0, None
        tokens = tally.completion_tokens - self.tokens
        return rows / seconds, tokens / seconds, max(total - tally.rows, 0) * seconds / rows


def describe(tally: Tally, total: int, speed: Speed, now: float) -> str:
    """The line that is shown elsewhere than on a terminal."""
    rows_s, tokens_s, left_s = speed.figures(tally, total, now)
    words = f"{tally.rows:,} of {total:,} rows"
    if left_s is not None:
        words += f", {rows_s:,.1f} rows/s, {tokens_s:,.0f} tokens/s, {clock(left_s)} to go"
    return words + (f", {tally.failed:,} failed" if tally.failed else "")


def clock(seconds: float) -> str:
    """`H:MM:SS`, or `M:SS` under an hour."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def open_progress() -> Progress:
    """The kind that suits standard error."""
    return TerminalProgress() if sys.stderr.isatty() else PlainProgress()


class PlainProgress:
    """Lines for a log: one every ten seconds while something changes."""

    def __init__(self, interval_s: float = PLAIN_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._speed = Speed()
        self._next = time.monotonic() + interval_s
        self._shown = -1
        self._waiting = ""

    def say(self, words: str) -> None:
        """Print the words."""
        print(f"penstock: {words}", file=sys.stderr, flush=True)

    def wait(self, why: str | None) -> None:
        """Print the reason, once: what a consumer does before it is ready is one reason."""
        reason = (why or "").partition(":")[0]
        if why and reason != self._waiting:
            self.say(f"waiting: {why}")
        self._waiting = reason

    def update(self, tally: Tally, total: int) -> None:
        """Print a line if it is time for one."""
        now = time.monotonic()
        line = describe(tally, total, self._speed, now)
        if now >= self._next and tally.rows != self._shown:
            self._next, self._shown = now + self._interval_s, tally.rows
            self.say(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class TerminalProgress:
    """A bar by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._speed = Speed()
        self._latest: tuple[Tally, int] | None = None
        self._next = 0.0
        self._progress: RichProgress = Progress(
            TextColumn("{task.fields[rows]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rates]}"),
            console=Console(stderr=True, highlight=False),
            expand=True,
        )
        self._task: TaskID | None = None

    def say(self, words: str) -> None:
        """Print the words above the bar."""
        self._progress.console.print(f"[dim]penstock:[/dim] {_plain(words)}", soft_wrap=True)

    def wait(self, why: str | None) -> None:
        """Show the reason behind the bar, in place of the rates."""
        if self._latest is not None:
            self._show(*self._latest, f"waiting: {why}" if why else None)

    def update(self, tally: Tally, total: int) -> None:
        """Move the bar, ten times a second at most."""
        self._latest = tally, total
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.1
            self._show(tally, total, None)

    def _show(self, tally: Tally, total: int, why: str | None) -> None:
        rows_s, tokens_s, left_s = self._speed.figures(tally, total, time.monotonic())
        rates = f"{rows_s:,.1f} rows/s · {tokens_s:,.0f} tokens/s"
        rates += f" · {clock(left_s)} to go" if left_s else ""
        failed = f" [red]{tally.failed:,} failed[/red]" if tally.failed else ""
        fields: dict[str, Any] = {
            "rows": f"{tally.rows:,}/{total:,} rows{failed}",
            "rates": _plain(why or rates),
        }
        if self._task is None:
            self._task = self._progress.add_task("", total=total, completed=tally.rows, **fields)
        else:
            self._progress.update(self._task, total=total, completed=tally.rows, **fields)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._latest is not None:
            self._show(*self._latest, None)
        self._progress.stop()


def _plain(words: str) -> str:
    from rich.markup import escape

    return escape(words)
