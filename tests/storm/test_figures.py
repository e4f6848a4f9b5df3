"""The storm's figures: tokens counted through a SIGKILL, and how long jobs stood still."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

from engine.request import Output
from penstock.messages import Completion, Job
from tests.storm.faults import Blow
from tests.storm.ledger import Ledger
from tests.storm.pool import Question, Spec
from tests.storm.report import percentiles, recomputed, recoveries
from tests.storm.tally import Run, Tally, read_runs

ANSWER = Question(Spec("plain", Job(prompt="p")), [Completion(text="t", finish_reason="stop")])


def count_and_die(folder: Path) -> None:
    tally = Tally(folder)
    for _ in range(3):
        tally.add(
            [
                Output(request_id="a/1", token_ids=[1, 2]),
                Output(request_id="a/1", token_ids=[1], sample=1),
                Output(request_id="b/2", token_ids=[]),
            ]
        )
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_tally_outlives_its_process(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=count_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    found = {(run.request_id, run.sample): run.num_tokens for run in read_runs(tmp_path)}
    assert found == {("a/1", 0): 6, ("a/1", 1): 3, ("b/2", 0): 0}


def ledger_of(**ended: float) -> Ledger:
    """Jobs of ten tokens, by when they ended."""
    ledger = Ledger()
    for job_id, at in ended.items():
        record = ledger.accepted(job_id, ANSWER)
        record.ended_at, record.num_tokens = at, 10
    return ledger


def test_tokens_beyond_the_answer_are_recomputed() -> None:
    runs = [Run("a/1", 0, 1.0, 7), Run("a/2", 0, 2.0, 5), Run("b/1", 0, 1.0, 10), Run("gone/1", 0, 1.0, 99)]
    assert recomputed(ledger_of(a=3.0, b=3.0), runs)["all"] == {
        "needed": 20,
        "recomputed": 2,
        "share": round(2 / 22, 5),
    }


def test_recovery_is_from_the_last_blow_to_the_next_token_or_the_end() -> None:
    ledger = ledger_of(a=9.0, b=4.5)
    runs = [Run("a/1", 0, 0.5, 3), Run("a/2", 0, 6.0, 7), Run("b/1", 0, 0.5, 10)]
    blows = [
        Blow("SIGKILL", 1.0, ["a"]),
        Blow("SIGSTOP", 4.0, ["a", "b"]),
        Blow("server SIGKILL", 8.0, ["a"], 8.5),
    ]
    found = recoveries(ledger, runs, blows)
    assert "SIGKILL" not in found, "who took its job over was struck before the job got anywhere"
    assert found["SIGSTOP"] == {"count": 2, "p50": 0.5, "p99": 2.0, "max": 2.0}
    assert found["from the first blow"] == {"count": 3, "p50": 2.0, "p99": 5.0, "max": 5.0}
    assert found["server, from its kill to the next end"]["max"] == 1.0


def test_percentiles_by_nearest_rank() -> None:
    assert percentiles([]) == {"count": 0}
    assert percentiles(range(1, 101)) == {"count": 100, "p50": 50, "p99": 99, "max": 100}
