"""A validation that is cancelled at any moment leaves nothing open and nothing half-written."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path

import pytest

from producer.gateway.batches.lines import Checker
from producer.gateway.batches.validation import Validation
from producer.gateway.storage import Folder


async def test_cancelled_while_the_input_is_being_opened(tmp_path: Path) -> None:
    opening, go_on = threading.Event(), threading.Event()
    opened = io.BytesIO(b"{}\n")

    def open_input() -> io.BytesIO:
        opening.set()
        assert go_on.wait(10)
        return opened

    storage = Folder(tmp_path)
    checker = Checker("/v1/completions", {})
    validation = asyncio.create_task(Validation("b", open_input, checker, storage, "b").run())
    assert await asyncio.to_thread(opening.wait, 10)
    validation.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await validation
    assert opened.closed
    assert files_in(tmp_path) == []


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
