"""A consumer process with the scripted engine: its arguments are URL, MODEL and SETTINGS.

SETTINGS is a JSON object of `Settings` fields. SIGTERM drains, as in `python -m consumer`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from consumer.__main__ import serve
from tests.consumer.running import make_consumer


def main() -> None:
    """Entry point."""
    url, model, settings = sys.argv[1:]
    sys.exit(serve(lambda: make_consumer(url, Path(model), **json.loads(settings))))


if __name__ == "__main__":
    main()
