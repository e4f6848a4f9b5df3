"""One line of an input: what is sent for it, or what is wrong with it, in OpenAI's codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from penstock.errors import InvalidJob
from penstock.messages import MAX_JOB_BYTES, Job, encode_job
from producer.gateway.batches.objects import BatchError
from producer.gateway.errors import ApiError
from producer.gateway.openai.endpoints import CHAT, COMPLETIONS, Models, read_row
from producer.gateway.openai.form import Form

MAX_CUSTOM_ID: Final = 512
_FIELDS: Final = ("custom_id", "method", "url", "body")
_PROMPT_OF: Final = {CHAT: "messages", COMPLETIONS: "prompt"}
_TOO_LONG: Final = MAX_JOB_BYTES + 1


class BadLine(Struct, frozen=True):
    """A line that is not sent."""

    error: BatchError
    custom_id: str | None = None


class Asked(Struct, frozen=True):
    """A line that is a request."""

    custom_id: str
    job: Job
    form: Form
    model: str


class Checker:
    """Reads the lines of one batch."""

    def __init__(self, endpoint: str, models: Models) -> None:
        self._endpoint = endpoint
        self._models = models

    def read(self, number: int, line: bytes, batch: str) -> Asked | BadLine:
        """A line, counted from 0, of a batch; whether its custom_id is the first one is not looked at."""
        custom_id: str | None = None
        try:
            fields = _decode(line)
            custom_id = _custom_id(fields)
            body = self._body_of(fields)
            job, form = read_row(self._endpoint, body, self._models)
            job = msgspec.structs.replace(job, custom_id=custom_id, batch=batch, row=number, stream=False)
            encode_job(job)  # what the queue would refuse is refused here
            assert custom_id is not None
            return Asked(custom_id, job, form, str(body["model"]))
        except _Wrong as wrong:
            return bad(number, wrong.code, str(wrong), wrong.param, custom_id)
        except ApiError as error:
            param = "body" if error.param is None else f"body.{error.param}"
            return bad(number, error.code or "invalid_request", str(error), param, custom_id)
        except InvalidJob as error:
            return bad(number, "invalid_request", str(error), "body", custom_id)

    def _body_of(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        for name in _FIELDS:
            if fields.get(name) is None:
                raise _Wrong("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
        if fields["method"] != "POST":
            raise _Wrong("invalid_method", "The HTTP method of a request must be 'POST'.", "method")
        if fields["url"] != self._endpoint:
            raise _Wrong(
                "invalid_url",
                f"The URL provided for this request does not match the batch endpoint, {self._endpoint}.",
                "url",
            )
        body = fields["body"]
        if not isinstance(body, dict):
            raise _Wrong("invalid_request", "The body of a request must be a JSON object.", "body")
        for name in ("model", _PROMPT_OF.get(self._endpoint, "input")):
            if body.get(name) is None:
                raise _Wrong("invalid_request", f"Missing required parameter: 'body.{name}'.", f"body.{name}")
        if body.get("stream"):
            raise _Wrong(
                "streaming_unsupported", "Streaming is not supported in the Batch API.", "body.stream"
            )
        return body


class _Wrong(Exception):
    def __init__(self, code: str, message: str, param: str | None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def bad(number: int, code: str, message: str, param: str | None, custom_id: str | None) -> BadLine:
    """A line, counted from 0, that is not sent."""
    return BadLine(BatchError(code=code, message=message, param=param, line=number + 1), custom_id)


def custom_id_of(line: bytes) -> str | None:
    """A line's custom_id, where it can be read."""
    try:
        return _custom_id(_decode(line))
    except _Wrong:
        return None


def _decode(line: bytes) -> dict[str, Any]:
    if len(line) > _TOO_LONG:
        raise _Wrong("request_too_large", f"This line has more than {MAX_JOB_BYTES} bytes.", None)
    try:
        fields = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _Wrong("invalid_json_line", "This line is not parseable as valid JSON.", None) from None
    if not isinstance(fields, dict):
        raise _Wrong("invalid_json_line", "This line is not a JSON object.", None)
    return fields


def _custom_id(fields: Mapping[str, Any]) -> str | None:
    custom_id = fields.get("custom_id")
    if custom_id is None:
        return None
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        raise _Wrong(
            "invalid_request", f"custom_id must be a string of 1 to {MAX_CUSTOM_ID} characters.", "custom_id"
        )
    return custom_id
