"""What a reply is called, and when it was made. Both follow from its job: a resumed stream says the same."""

from __future__ import annotations

import hashlib
from typing import Final

from penstock.keys import JobId

_LETTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def created(job_id: str) -> int:
    """Unix time in seconds at which the server took the job."""
    return int(JobId.parse(job_id).entry.partition("-")[0]) // 1000


def call_id(job_id: str, choice: int, number: int, tool_format: str | None) -> str:
    """Of a choice's tool call. Mistral's templates take ids of nine letters and digits alone."""
    digest = hashlib.sha256(f"{job_id}/{choice}/{number}".encode()).digest()
    if tool_format == "mistral":
        return "".join(_LETTERS[byte % len(_LETTERS)] for byte in digest[:9])
    return f"call_{digest.hex()[:24]}"
