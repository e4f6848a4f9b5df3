"""What a precision has to reach before its speed is printed. Figures come from `accuracy.py`.

Agreement and logit errors are of a model of random weights, whose best tokens lie much closer together than a
trained model's: they tell a wrong computation from a coarse one. Whether a coarse one is good enough, the
trained model's answers say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.verdict import Verdict

TASK_POINTS = 0.5
"""By how many points of a hundred the task accuracy may be lower than the base's."""


@dataclass(frozen=True)
class Bounds:
    """Of one precision."""

    forced_agreement: float
    free_agreement: float
    """After the first other token a sequence goes its own way, so this is far below the one above."""
    logit_error: float
    """In deviations of the logits of a position."""


BOUNDS = {
    "fp32": Bounds(0.999, 0.95, 1e-4),
    "fp16": Bounds(0.98, 0.8, 0.02),
    "bf16": Bounds(0.97, 0.7, 0.03),
    "int8": Bounds(0.93, 0.5, 0.06),
}


def failures(precision: str, figures: dict[str, Any]) -> list[str]:
    """In words, which of its bounds a precision misses; none: it has passed."""
    if "error" in figures:
        return [str(figures["error"])]
    bounds = BOUNDS[precision]
    found: list[str] = []
    for name, words in (
        ("forced_agreement", "greedy agreement with the same tokens before"),
        ("free_agreement", "greedy agreement, free-running"),
    ):
        if not figures[name] >= getattr(bounds, name):
            found.append(f"{words} {figures[name]:.1%}, at least {getattr(bounds, name):.1%} is needed")
    if not figures["logit_error"] <= bounds.logit_error:
        found.append(f"logit error {figures['logit_error']:.2g}, at most {bounds.logit_error:g} is allowed")
    if not 100 * (figures["task_accuracy_base"] - figures["task_accuracy"]) <= TASK_POINTS + 1e-9:
        found.append(
            f"task accuracy {figures['task_accuracy']:.2%} against {figures['task_accuracy_base']:.2%}, "
            f"at most {TASK_POINTS} points less are allowed"
        )
    return found


def gate_verdict(gates: dict[str, list[dict[str, Any]]]) -> Verdict:
    """gates: of each precision, its figures for each model. All of them have to pass."""
    return Verdict(
        engine={
            precision: bool(figures) and not any(failures(precision, one) for one in figures)
            for precision, figures in gates.items()
        }
    )


def lines(gates: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A table, and below it what failed."""
    head = (
        f"{'accuracy':<10} {'model':<15} {'against':<10} {'positions':>9} {'forced':>7} {'free':>7} "
        f"{'logits':>8} {'worst':>8} {'questions':>9} {'task':>7} {'base':>7}"
    )
    rows = [(precision, figures) for precision, all_of_it in gates.items() for figures in all_of_it]
    told = [head, *(_line(precision, figures) for precision, figures in rows if "error" not in figures)]
    for precision, figures in rows:
        of = f"gate of {precision}, {figures['model']}"
        told += [f"{of}: {words}" for words in failures(precision, figures)]
    return told


def _line(precision: str, figures: dict[str, Any]) -> str:
    return (
        f"{precision:<10} {figures['model']:<15} {figures['base']:<10} {figures['positions']:>9} "
        f"{figures['forced_agreement']:>7.1%} {figures['free_agreement']:>7.1%} "
        f"{figures['logit_error']:>8.1e} {figures['worst_logit_error']:>8.1e} {figures['questions']:>9} "
        f"{figures['task_accuracy']:>7.2%} {figures['task_accuracy_base']:>7.2%}"
    )


def failed_words(precision: str, gates: dict[str, list[dict[str, Any]]]) -> Sequence[str]:
    """Why a speed of this precision is not printed."""
    return [words for figures in gates.get(precision, []) for words in failures(precision, figures)]
