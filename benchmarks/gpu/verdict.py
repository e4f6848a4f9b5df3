"""What the tests of this run say of operations and engine: a speed is printed only of what they passed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.gpu.outcomes import Outcome

NOT_VERIFIED = "not verified"
TESTED_IN = {
    **dict.fromkeys(("argmax", "logprob", "mask", "penalty", "philox"), "logits"),
    "linear": "rotary",
}
"""Operations whose tests are in a file of another name: tests/kernels/triton/test_logits.py, for one."""


@dataclass(frozen=True)
class Verdict:
    """True: its tests ran and passed; False: one did not. What is missing was not tested."""

    ops: dict[str, bool] = field(default_factory=dict)
    """By the name of the test file: of the operation's file in kernels/, or what `TESTED_IN` says."""
    engine: dict[str, bool] = field(default_factory=dict)
    """By precision: fp32, bf16, fp16, and `fp8 KV` beside it."""

    def of_op(self, name: str) -> bool:
        """name: of the operation's file in kernels/."""
        # The processor's tests, which --cpu runs, have a file for each.
        return self.ops.get(TESTED_IN.get(name, name), self.ops.get(name, False))

    def of_engine(self, precision: str, kv_cache_dtype: str = "auto") -> bool:
        """Whether a run of this precision, and of this cache, may name its speed."""
        return self.engine.get(precision, False) and (
            kv_cache_dtype == "auto" or self.engine.get(f"{kv_cache_dtype} KV", False)
        )

    def merged(self, other: Verdict) -> Verdict:
        """Both; where both speak, both must have passed."""
        return Verdict(_both(self.ops, other.ops), _both(self.engine, other.engine))

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")


def load_verdict(path: Path | None) -> Verdict:
    """What `Verdict.save` wrote; of no file, or one that is not there, that nothing was tested."""
    if path is None or not path.is_file():
        return Verdict()
    return Verdict(**json.loads(path.read_text()))


def verdict_on_ops(outcomes: Iterable[Outcome]) -> Verdict:
    """By the names of the test files: those of one operation are test_OP.py and test_OP_MORE.py."""
    ops: dict[str, bool] = {}
    for outcome in outcomes:
        op = outcome.file.removeprefix("test_").removesuffix(".py").split("_")[0]
        if outcome.result != "skipped":
            ops[op] = ops.get(op, True) and not outcome.is_bad
    return Verdict(ops=ops)


def verdict_on_engine(outcomes: Iterable[Outcome]) -> Verdict:
    """By what the tests record that they verify. One that ended before it could speaks against all."""
    engine: dict[str, bool] = {}
    all_told = True
    for outcome in outcomes:
        verifies = outcome.properties.get("verifies")
        if verifies is None:
            all_told = all_told and not outcome.is_bad
        elif outcome.result != "skipped":
            engine[str(verifies)] = engine.get(str(verifies), True) and not outcome.is_bad
    return Verdict(engine={name: passed and all_told for name, passed in engine.items()})


def _both(one: dict[str, bool], other: dict[str, bool]) -> dict[str, bool]:
    return {name: one.get(name, True) and other.get(name, True) for name in {**one, **other}}
