"""Trouble is told once, and its end when the last call works again."""

from __future__ import annotations

import logging

import pytest

from consumer.outage import Outage
from penstock.errors import ServerError, ServerFull, ServerUnavailable


@pytest.fixture
def lost() -> list[str]:
    """One entry for each time that the server was noticed to be unavailable."""
    return []


@pytest.fixture
def outage(lost: list[str], caplog: pytest.LogCaptureFixture) -> Outage:
    caplog.set_level(logging.WARNING)
    return Outage(lambda: lost.append("lost"))


def test_one_line_at_each_end(outage: Outage, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        outage.failed("claims", ServerUnavailable("gone"))
        outage.failed("leases", ServerUnavailable("still gone"))
    outage.worked("claims")
    outage.worked("events")
    assert [record.message for record in caplog.records] == ["waiting for the server: gone"]
    outage.worked("leases")
    outage.worked("leases")
    begin, end = caplog.records
    assert "well again" in end.message
    assert begin.levelno == end.levelno == logging.WARNING


def test_a_call_that_is_given_up_does_not_make_the_server_well(
    outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    outage.failed("claims", ServerUnavailable("gone"))
    outage.gave_up("claims")
    assert len(caplog.records) == 1
    outage.failed("leases", ServerUnavailable("gone again"))
    assert len(caplog.records) == 2


def test_reads_block_briefly_while_it_lasts(outage: Outage) -> None:
    assert outage.block_ms(5000) == 5000
    outage.failed("claims", ServerUnavailable("gone"))
    assert outage.block_ms(5000) <= 100
    assert outage.block_ms(50) == 50
    outage.worked("claims")
    assert outage.block_ms(5000) == 5000


@pytest.mark.parametrize(
    ("error", "times"), [(ServerUnavailable("gone"), 1), (ServerFull("full"), 0), (ServerError("no"), 0)]
)
def test_only_an_absent_server_pauses_reclaiming(
    outage: Outage, lost: list[str], error: ServerError, times: int
) -> None:
    outage.failed("claims", error)
    assert len(lost) == times
