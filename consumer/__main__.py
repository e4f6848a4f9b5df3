"""`python -m consumer`: one consumer process, until SIGTERM or SIGINT drains it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from consumer.consumer import Consumer
from consumer.settings import Settings, parse_settings
from penstock.errors import PenstockError


async def _serve(settings: Settings) -> None:
    consumer = Consumer(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, consumer.stop)
    await consumer.run()


def main() -> int:
    """Run; the exit status is 1 where the consumer could not start or go on."""
    settings = parse_settings(sys.argv[1:])
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        import uvloop  # absent on Windows, and not needed for anything but speed
    except ImportError:
        runner = asyncio.run
    else:
        runner = uvloop.run
    try:
        runner(_serve(settings))
    except PenstockError as error:
        logging.getLogger("consumer").error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
