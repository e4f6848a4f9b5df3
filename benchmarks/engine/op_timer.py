"""An op set whose operations are timed: where a step's time goes, by the names of the operations."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from kernels.linear import LinearWeight
from kernels.opset import OpSet

GEMM = ("linear", "moe")
ATTENTION = ("attention",)


@dataclass
class StepTimes:
    """Seconds of one step, and what it computed."""

    step_s: float
    ops_s: dict[str, float]
    """By operation. None of them calls another one through the op set, so nothing counts twice."""
    linear_calls: list[tuple[int, LinearWeight]]
    """Rows and weight of each, in order."""
    contexts: int
    """Tokens whose keys and values each layer reads."""

    @property
    def gemm_s(self) -> float:
        return sum(self.ops_s.get(name, 0.0) for name in GEMM)

    @property
    def attention_s(self) -> float:
        return sum(self.ops_s.get(name, 0.0) for name in ATTENTION)

    @property
    def rest_s(self) -> float:
        """All else, with what the engine does around the operations."""
        return self.step_s - self.gemm_s - self.attention_s


@dataclass
class OpTimer:
    """Wraps an op set; `step` runs a step and says what it took."""

    seconds: dict[str, float] = field(default_factory=dict[str, float])
    """By operation, of the step that runs."""
    _linear_calls: list[tuple[int, LinearWeight]] = field(default_factory=list)
    _metadata: Any = None

    def wrap(self, ops: OpSet) -> OpSet:
        """The same operations with a clock around each: about a quarter of a microsecond a call."""
        members = {one.name: getattr(ops, one.name) for one in fields(ops)}
        timed = {
            name: self._timed(name, member)
            for name, member in members.items()
            if callable(member) and name != "record"  # which calls the others
        }
        return replace(ops, **timed)

    def step(self, run: Callable[[], object]) -> StepTimes:
        """Of one call of `run`."""
        self._linear_calls, self._metadata = [], None
        self.seconds.clear()
        start = time.perf_counter()
        run()
        step_s = time.perf_counter() - start
        contexts = 0 if self._metadata is None else int(self._metadata.context_lens.sum())
        return StepTimes(step_s, dict(self.seconds), self._linear_calls, contexts)

    def _timed(self, name: str, op: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = op(*args, **named)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            if name == "linear":
                self._linear_calls.append((args[0].shape[0], args[1]))
            elif name == "plan_attention":
                self._metadata = args[0]
            return result

        return call
