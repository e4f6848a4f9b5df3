"""`python -m consumer` with the counting engine: `python -m tests.storm.counted_consumer FOLDER FLAGS…`."""

from __future__ import annotations

import sys

from consumer.__main__ import serve
from consumer.consumer import Consumer
from consumer.settings import parse_settings


def main() -> None:
    """Entry point."""
    folder, *flags = sys.argv[1:]
    settings = parse_settings(flags)
    engine = [sys.executable, "-m", "tests.storm.counting_engine", folder]
    sys.exit(serve(lambda: Consumer(settings, engine_command=engine)))


if __name__ == "__main__":
    main()
