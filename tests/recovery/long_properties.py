"""The state machine of tests/recovery/test_properties.py for as long as one likes.

`python -m tests.recovery.long_properties --examples 5000 --steps 80`: new examples each time; a failure is
shrunk, printed, and tried first by the next run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import Server
from tests.recovery.delivery_machine import DeliveryMachine
from tests.recovery.delivery_server import Connections, reclaiming_at_once


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--no-shrink", action="store_true", help="show the first failure as it was found")
    args = parser.parse_args()
    phases = [Phase.explicit, Phase.reuse, Phase.generate]
    limits = settings(
        max_examples=args.examples,
        stateful_step_count=args.steps,
        deadline=None,
        report_multiple_bugs=False,
        phases=phases if args.no_shrink else [*phases, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        server = Server(Path(folder)).start()
        try:
            with reclaiming_at_once(), Connections(server.url) as connections:
                run_state_machine_as_test(lambda: DeliveryMachine(connections), settings=limits)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
