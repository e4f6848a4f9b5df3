"""Logs of consumer, engine and gateway: text for people, or one JSON object per line.

A record's fields are those that its call gave in `extra`: `job` is a job's id. Prompts and outputs are never
among them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal

LogFormat = Literal["auto", "text", "json"]
"""`auto`: as PENSTOCK_LOG_FORMAT says, else text."""

VARIABLE: Final = "PENSTOCK_LOG_FORMAT"

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# uvicorn's color_message is its message once more, for terminals.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, the record's own fields, and `exception` with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def set_up(form: LogFormat = "auto", text: str = TEXT, level: int = logging.INFO) -> None:
    """Have the whole process log to stderr, and the processes that it starts in the same form.

    Args:
        text: the form of a line of text.
    """
    if form == "auto":
        form = "json" if os.environ.get(VARIABLE, "").lower() == "json" else "text"
    else:
        os.environ[VARIABLE] = form
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(text))
    logging.basicConfig(level=level, handlers=[handler])
