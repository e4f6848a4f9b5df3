"""Delivery under random interleavings; `python -m tests.recovery.long_properties` does it for long."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.recovery.delivery_machine import DeliveryMachine
from tests.recovery.delivery_server import Connections, reclaiming_at_once

SETTINGS = settings(
    max_examples=120,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_delivery(redis_url: str) -> None:
    with reclaiming_at_once(), Connections(redis_url) as connections:
        run_state_machine_as_test(lambda: DeliveryMachine(connections), settings=SETTINGS)
