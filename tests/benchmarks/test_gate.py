"""What has to hold before a speed is printed, and how near a precision is measured to be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.engine import gate
from benchmarks.engine.accuracy import Observed, compare

GOOD: dict[str, Any] = {
    "model": "tiny",
    "label": "accuracy",
    "base": "fp32",
    "positions": 500,
    "forced_agreement": 1.0,
    "free_agreement": 1.0,
    "logit_error": 0.0,
    "worst_logit_error": 0.0,
    "questions": 1500,
    "task_accuracy": 0.98,
    "task_accuracy_base": 0.98,
}


@pytest.mark.parametrize("precision", gate.BOUNDS)
def test_what_is_the_same_passes(precision: str) -> None:
    assert gate.failures(precision, GOOD) == []
    assert gate.gate_verdict({precision: [GOOD]}).of_engine(precision)


@pytest.mark.parametrize("precision", gate.BOUNDS)
@pytest.mark.parametrize(
    ("worse", "words"),
    [
        ({"forced_agreement": 0.9}, "same tokens before"),
        ({"free_agreement": 0.3}, "free-running"),
        ({"logit_error": 0.2}, "logit error"),
        ({"logit_error": float("nan")}, "logit error"),
        ({"task_accuracy": 0.974}, "task accuracy 97.40% against 98.00%"),
        ({"error": "stopped after 400 s, its limit"}, "stopped after"),
    ],
)
def test_each_gate_fails_a_bad_precision_in_words(precision: str, worse: dict[str, Any], words: str) -> None:
    bad = {**GOOD, **worse}
    (said,) = gate.failures(precision, bad)
    assert words in said
    assert not gate.gate_verdict({precision: [GOOD, bad]}).of_engine(precision)
    assert any(words in line for line in gate.lines({precision: [bad]}))


def test_half_a_point_is_allowed_and_more_is_not() -> None:
    assert gate.failures("int8", {**GOOD, "task_accuracy": 0.975}) == []
    assert gate.failures("int8", {**GOOD, "task_accuracy": 0.9749}) != []
    assert gate.failures("int8", {**GOOD, "task_accuracy": 1.0}) == []


def test_a_precision_without_figures_is_not_verified() -> None:
    assert not gate.gate_verdict({"fp32": [GOOD], "int8": []}).of_engine("int8")
    assert not gate.gate_verdict({"fp32": [GOOD]}).of_engine("bf16")


def test_errors_are_of_the_spread_and_agreement_is_of_positions() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 1.0, 0.0, 2.0]])
    off = logits.clone()
    off[1, 3] += 2.0  # its best is another one now
    found = compare(Observed([[3, 3, 1]], off), Observed([[3, 0, 1]], logits))
    assert found["positions"] == 2
    assert found["forced_agreement"] == 0.5
    assert found["free_agreement"] == pytest.approx(2 / 3)
    error = 1.0 / logits[0].std().item()  # of one position; the other one has none
    assert found["worst_logit_error"] == pytest.approx(error)
    assert found["logit_error"] == pytest.approx(error / 2)
