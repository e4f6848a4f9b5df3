"""The output of a dataset run: one JSON line per row, in the order in which rows finish.

A row is written once. A line that was being written when the machine died is cut off at the next start, and
its row is then written from the batch's done stream, which is trimmed only after `sync`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec
from msgspec import Struct

from penstock.messages import Completion, Error, FinishReason, Score, TerminalEvent, TokenLogprob, Usage
from penstock.messages import Failed as FailedEvent
from producer import locks
from producer.errors import RunError, UsageError
from producer.rows import BadRow


class Answer(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the output: `text` and what belongs to it, `score`, `embedding`, or `error`."""

    row: int
    """The input's line, counted from 0."""
    custom_id: str | None = None
    text: str | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    usage: Usage | None = None
    token_ids: list[int] | None = None
    logprobs: list[TokenLogprob] | None = None
    outputs: list[Completion] | None = None
    """All of them, where the row asked for more than one; the fields above are the first one's."""
    prompt_logprobs: list[TokenLogprob] | None = None
    score: Score | None = None
    embedding: list[float] | None = None
    correct: bool | None = None
    """Whether the text is what the row expected; absent where it expected nothing."""
    error: Error | None = None


class Tally(Struct):
    """Counts over the answers so far."""

    answered: int = 0
    failed: int = 0
    checked: int = 0
    correct: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def rows(self) -> int:
        """Rows that ended, either way."""
        return self.answered + self.failed

    def add(self, answer: Answer) -> None:
        """Count one more."""
        if answer.error is not None:
            self.failed += 1
        else:
            self.answered += 1
        if answer.correct is not None:
            self.checked += 1
            self.correct += answer.correct
        if answer.usage is not None:
            self.prompt_tokens += answer.usage.prompt_tokens
            self.completion_tokens += answer.usage.completion_tokens


class RowSet:
    """A set of row numbers, one bit each: a million rows in 125 KB."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, row: int) -> None:
        """Put the row in."""
        at = row >> 3
        if at >= len(self._bits):
            self._bits.extend(bytes(at + 1 - len(self._bits)))
        self._bits[at] |= 1 << (row & 7)

    def __contains__(self, row: int) -> bool:
        at = row >> 3
        return at < len(self._bits) and bool(self._bits[at] >> (row & 7) & 1)


_decoder = msgspec.json.Decoder(Answer)
_encoder = msgspec.json.Encoder()


def answer_of(row: int, event: TerminalEvent, expected: str | None) -> Answer:
    """The output line of a row that ended."""
    if isinstance(event, FailedEvent):
        correct = None if expected is None else False
        return Answer(row=row, custom_id=event.custom_id, error=event.error, correct=correct)
    answer = Answer(
        row=row,
        custom_id=event.custom_id,
        usage=event.usage,
        prompt_logprobs=event.prompt_logprobs,
        score=event.score,
        embedding=event.embedding,
    )
    if not event.outputs:
        return answer
    first = event.outputs[0]
    return msgspec.structs.replace(
        answer,
        text=first.text,
        finish_reason=first.finish_reason,
        stop_reason=first.stop_reason,
        token_ids=first.token_ids,
        logprobs=first.logprobs,
        outputs=event.outputs if len(event.outputs) > 1 else None,
        correct=None if expected is None else first.text.strip() == expected.strip(),
    )


def answer_of_bad(row: BadRow) -> Answer:
    """The output line of a row that was never sent."""
    return Answer(row=row.number, custom_id=row.custom_id, error=row.error)


def read_answers(path: Path) -> Iterator[Answer]:
    """The answers of a finished output."""
    with path.open("rb") as file:
        for line in file:
            yield _decoder.decode(line)


class Output:
    """The output file, held by one process at a time. Opening it finds what is there and cuts a torn end."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            UsageError: the file can't be written, or another run is writing it.
            RunError: the file holds lines that no run wrote.
        """
        self.path = path
        self.rows = RowSet()
        self.tally = Tally()
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a file; a run reads what it wrote, so name a file to write to")
        self._made = not path.exists()
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise UsageError(f"{path} can't be written: {error.strerror}") from None
        try:
            # An unlinked file can be locked too: another run removed it, empty, after we had opened it.
            if not locks.take(self._file) or not os.fstat(self._file.fileno()).st_nlink:
                raise UsageError(f"another run is writing {path}; wait for it, or name another output")
            self._recover()
        except BaseException:
            self._file.close()
            raise

    def write(self, answer: Answer) -> bool:
        """Add a line, unless the row has one; whether it was added."""
        if answer.row in self.rows:
            return False
        self.rows.add(answer.row)
        self.tally.add(answer)
        self._file.write(_encoder.encode(answer) + b"\n")
        return True

    def sync(self) -> None:
        """Return when everything written is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self.sync()
            # A run that never began, for want of a server or a model, leaves nothing behind.
            if self._made and not self.tally.rows and not state_path(self.path).exists():
                self.path.unlink(missing_ok=True)

    def _recover(self) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            answer = self._read(line, number)
            self.rows.add(answer.row)
            self.tally.add(answer)
            end += len(line)
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def _read(self, line: bytes, number: int) -> Answer:
        try:
            return _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{self.path} has a line that no run wrote (line {number}: {error}); name another output"
            ) from None


class RunState(Struct, frozen=True, kw_only=True):
    """The sidecar `OUT.state`: which batch on the server belongs to the output, and of which input."""

    input: str
    """Fingerprint of the input."""
    batch: str
    lane: str
    finished: bool = False
    version: Literal[1] = 1


_state_decoder = msgspec.json.Decoder(RunState)


def state_path(output: Path) -> Path:
    """Where the sidecar of an output lies."""
    return output.with_name(output.name + ".state")


def load_state(output: Path) -> RunState | None:
    """The output's sidecar, None where there is none.

    Raises:
        RunError: it is not readable as one.
    """
    path = state_path(output)
    try:
        return _state_decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not the state of a run ({error}); name another output") from None


def check_state(state: RunState | None, output: Output, fingerprint: str, lane: str) -> None:
    """Refuse to go on from an output that does not belong to this input and lane.

    Raises:
        RunError: says what differs.
    """
    path = output.path
    anew = f"name another output, or delete {path} and {state_path(path).name} to begin anew"
    if state is None and output.tally.rows:
        raise RunError(f"{path} has answers, and {state_path(path).name} is gone, which says whose; {anew}")
    if state is not None and state.input != fingerprint:
        raise RunError(f"the input is not what it was when {path} was begun; {anew}")
    if state is not None and state.lane != lane and not state.finished:
        raise RunError(f"{path} was begun on lane {state.lane!r}; go on with --lane {state.lane}, or {anew}")


def save_state(output: Path, state: RunState) -> None:
    """Replace the sidecar, whole or not at all; on disk when this returns."""
    path = state_path(output)
    draft = path.with_name(path.name + ".new")
    with draft.open("wb") as file:
        file.write(msgspec.json.format(_encoder.encode(state)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
