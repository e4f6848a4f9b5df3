"""`python -m consumer`: one consumer process, until SIGTERM or SIGINT drains it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable

from consumer.consumer import Consumer
from consumer.engine_process import ModelNotLoaded
from consumer.settings import parse_settings
from penstock.errors import PenstockError
from penstock.installed import refuse_clash
from penstock.telemetry.logs import LogFormat, set_up

MODEL_NOT_LOADED = 3
"""Exit status that tells whoever starts consumers that another start would not help; 2 are wrong flags."""


_SAME_SIGNAL_S = 0.1


def serve(make_consumer: Callable[[], Consumer], log_format: LogFormat = "auto") -> int:
    """Run a consumer until SIGTERM or SIGINT has drained it, and give the exit status.

    1 means that it could not start or go on, 3 that the model cannot be loaded; the log says why.
    """
    set_up(log_format)
    # Texts are tokenized one by one: a pool of threads would only stand in the engine's way.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import uvloop  # absent on Windows, and not needed for anything but speed
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    try:
        refuse_clash()
        _collect_rarely()
        run(_until_stopped(make_consumer))
    except PenstockError as error:
        logging.getLogger("consumer").error("%s", error)
        return MODEL_NOT_LOADED if isinstance(error, ModelNotLoaded) else 1
    return 0


def _collect_rarely() -> None:
    """Look for reference cycles after 50,000 new containers rather than 700.

    A claim makes thousands of objects, all of which are freed by their counts; looking through them for
    cycles that are not there took a tenth of the consumer's time.
    """
    gc.freeze()  # the modules loaded so far stay for good
    gc.set_threshold(50_000, 20, 20)


async def _until_stopped(make_consumer: Callable[[], Consumer]) -> None:
    consumer = make_consumer()
    loop = asyncio.get_running_loop()
    heard_at = -_SAME_SIGNAL_S

    def stop() -> None:
        nonlocal heard_at
        # The death of one parent with several threads may be told several times, within milliseconds.
        if loop.time() - heard_at >= _SAME_SIGNAL_S:
            heard_at = loop.time()
            consumer.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await consumer.run()


def main() -> int:
    """Entry point."""
    settings = parse_settings(sys.argv[1:])
    return serve(lambda: Consumer(settings), settings.log_format)


if __name__ == "__main__":
    sys.exit(main())
