"""Lines of a batch's output and of its errors, as OpenAI writes them.

A line's id holds its row, so that a line alone says which line of the input it answers.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from penstock.messages import Done, Failed, TerminalEvent
from producer.gateway.batches.lines import BadLine
from producer.gateway.batches.objects import BatchError
from producer.gateway.batches.segments import Totals
from producer.gateway.openai.endpoints import Models, tell
from producer.gateway.openai.form import Form

_ROW_DIGITS = 10
_HEAD = len('{"id":"batch_req_') + 16


class _Response(Struct):
    status_code: int
    request_id: str
    body: Any


class _Error(Struct, omit_defaults=True):
    code: str
    message: str
    param: str | None = None
    line: int | None = None


class _Line(Struct):
    id: str
    custom_id: str | None
    response: _Response | None = None
    error: _Error | None = None


def row_of(line: bytes) -> int:
    """The row that a line is the end of."""
    return int(line[_HEAD : _HEAD + _ROW_DIGITS], 16)


class ReplyLines:
    """Makes the lines of one batch."""

    def __init__(self, batch_id: str) -> None:
        self._tail = batch_id[-16:]

    def answer(
        self, number: int, job_id: str, asked: tuple[str, Form], event: TerminalEvent, models: Models
    ) -> tuple[bytes, Totals]:
        """Of a row that ran: an HTTP reply, whichever way it ended."""
        custom_id, form = asked
        status, body = tell(form, job_id, event, models)
        response = _Response(status, f"req_{self._tail}{number:0{_ROW_DIGITS}x}", body)
        return self._encode(_Line(self._id(number), custom_id, response)), _totals(event, status)

    def unsent(self, number: int, bad: BadLine) -> tuple[bytes, Totals]:
        """Of a row that was never run, or not to its end."""
        error = bad.error
        told = _Error(error.code, error.message, error.param, error.line)
        return self._encode(_Line(self._id(number), bad.custom_id, error=told)), Totals(failed=1)

    def _id(self, number: int) -> str:
        return f"batch_req_{self._tail}{number:0{_ROW_DIGITS}x}"

    def _encode(self, line: _Line) -> bytes:
        return msgspec.json.encode(line) + b"\n"


def _totals(event: Done | Failed, status: int) -> Totals:
    if isinstance(event, Failed) or status != 200:
        return Totals(failed=1)
    usage = event.usage
    return Totals(
        completed=1,
        input_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def unfinished(number: int, custom_id: str | None, *, expired: bool) -> BadLine:
    """Of a row that had not ended when its batch did."""
    code, message = (
        ("batch_expired", "This request could not be executed before the completion window expired.")
        if expired
        else ("batch_cancelled", "This request was not executed: the batch was cancelled.")
    )
    return BadLine(BatchError(code=code, message=message), custom_id)
