"""A consumer process with the scripted engine: `URL MODEL SETTINGS [--die-at POINT NTH] [--jump-clock]`.

SETTINGS is a JSON object of `Settings` fields. SIGTERM drains, as in `python -m consumer`. `--die-at` names a
point of `failpoints`; `--jump-clock` has the wall clock jump by hours with every look at it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

from consumer.__main__ import serve
from consumer.broker import Broker
from tests.consumer.running import make_consumer
from tests.recovery.failpoints import dying_at

HOUR_S = 3600


def jump_clock() -> None:
    """From now on no two looks at the wall clock agree: hours ahead, hours behind, years off."""
    real, real_ns = time.time, time.time_ns
    jumps = itertools.cycle([0, 5 * HOUR_S, -7 * HOUR_S, 20_000 * HOUR_S, -20_000 * HOUR_S, HOUR_S // 2])
    time.time = lambda: real() + next(jumps)
    time.time_ns = lambda: real_ns() + next(jumps) * 1_000_000_000


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model", type=Path)
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("--die-at", nargs=2, metavar=("POINT", "NTH"))
    parser.add_argument("--jump-clock", action="store_true")
    args = parser.parse_args()
    broker_type = Broker if args.die_at is None else dying_at(args.die_at[0], int(args.die_at[1]))
    if args.jump_clock:
        jump_clock()
    sys.exit(serve(lambda: make_consumer(args.url, args.model, broker_type=broker_type, **args.settings)))


if __name__ == "__main__":
    main()
