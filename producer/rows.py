"""Rows of a dataset file: JSON Lines in, checked jobs or reasons out. Memory is flat in the file's size."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import msgspec
from msgspec import Struct

from penstock.errors import InvalidJob
from penstock.messages import MAX_JOB_BYTES, Error, Job, decode_job, decode_labels
from producer.errors import UsageError

_CHUNK: Final = 1 << 20
_BOM: Final = b"\xef\xbb\xbf"
_OURS: Final = ("batch", "row")
"""Fields of a job that the run itself fills in."""


class Row(Struct, frozen=True):
    """A row that can be sent. `number` counts the file's lines from 0."""

    number: int
    job: Job
    expected: str | None = None
    """The right answer, where the row brings one; it is checked here and never sent."""


class BadRow(Struct, frozen=True):
    """A row that can't be sent, and why."""

    number: int
    error: Error
    custom_id: str | None = None


class Survey(Struct, frozen=True):
    """What one pass over the input finds: enough to know it again, and to say how far along we are."""

    fingerprint: str
    lines: int


_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_expected_decoder = msgspec.json.Decoder(str | None)
_encoder = msgspec.json.Encoder()


def survey(path: Path) -> Survey:
    """Read the file once, for its fingerprint and its number of lines.

    Raises:
        UsageError: the file can't be read.
    """
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    with _open(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            lines += chunk.count(b"\n")
            last = chunk
    return Survey(f"sha256:{digest.hexdigest()}", lines + (not last.endswith(b"\n")))


def read_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of each line that is not blank. Of an overlong line, only the beginning is given."""
    with _open(path) as file:
        yield from rows_of(file)


def rows_of(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """As `read_rows`, of an open file from its beginning."""
    limit = MAX_JOB_BYTES + 2  # what `parse_row` needs to see that the line is too long
    number = 0
    while line := file.readline(limit):
        rest = line
        while not rest.endswith(b"\n") and (rest := file.readline(_CHUNK)):
            pass
        line = line.removeprefix(_BOM) if number == 0 else line
        if line.strip():
            yield number, line
        number += 1


def parse_row(number: int, line: bytes) -> Row | BadRow:
    """Check one line. What `Job` refuses is refused here in the same words, before anything is sent."""
    if len(line) > MAX_JOB_BYTES + 1:
        return _bad(number, b"", f"more than {MAX_JOB_BYTES} bytes", kind="job_too_large")
    try:
        fields = _fields_decoder.decode(line)
        expected = _expected_decoder.decode(fields.pop("expected", b"null"))
        job = decode_job(_encoder.encode(fields))
    except InvalidJob as error:
        return _bad(number, line, str(error))
    except msgspec.ValidationError:
        return _bad(number, line, _shape(line))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _bad(number, line, f"not valid JSON in UTF-8: {error}")
    if ours := [name for name in _OURS if name in fields]:
        return _bad(number, line, f"`{ours[0]}` is filled in by the run; leave it out")
    if expected is not None and job.kind != "generate":
        return _bad(number, line, f"`expected` is a text, and nothing is generated for a `{job.kind}`")
    return Row(number, job, expected)


def _shape(line: bytes) -> str:
    value = msgspec.json.decode(line)
    if isinstance(value, dict):
        return "`expected` must be a string"
    return "a row is a JSON object with `prompt` or `messages`"


def _bad(number: int, line: bytes, why: str, kind: str = "invalid_job") -> BadRow:
    error = Error(type=kind, message=f"line {number + 1}: {why}")
    return BadRow(number, error, decode_labels(line).custom_id)


def _open(path: Path) -> IO[bytes]:
    try:
        # Looked at before it is opened: opening a FIFO waits for a writer, and reading one takes its rows.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path} is not a regular file; a run reads its input twice, so save it to one")
        return path.open("rb", buffering=_CHUNK)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
