"""What a decode step costs around the model: `python -m benchmarks.step_overhead` (or `make bench-step`).

Runs an engine on random weights, decodes a full batch, and prints the median time of each part of a step:
schedule, input preparation, forward, sample, update. Overhead is all of it but forward, of which the
attention's plan is a part, as it is of a recorded step.
Writes the figures, with device, versions and commit, to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.surroundings import surroundings
from engine.batch import Batch
from engine.config import EngineConfig
from engine.engine import Engine
from engine.request import Request, RequestParams

RESULTS = Path(__file__).parent / "results"
MAX_CONTEXT = 8192
PARTS = ("schedule", "prepare", "forward", "sample", "update")

SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "vocab_size": 260,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "medium": {
        "vocab_size": 32_000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}

SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "filters": {"temperature": 0.8, "top_p": 0.95, "top_k": 50, "min_p": 0.02},
    "penalties": {"temperature": 0.8, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "logprobs": 5},
}


FIRST_SAMPLING = ("greedy",)
"""At the contexts after the first: sampling does not look at them."""


def save_random_model(shape: str, folder: Path) -> None:
    """A Llama of random weights, as transformers saves it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPES[shape], max_position_embeddings=MAX_CONTEXT, bos_token_id=None, eos_token_id=None
    )
    LlamaForCausalLM(config).save_pretrained(folder)


class StepTimer:
    """Times the parts of an engine's steps, in seconds."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.times: dict[str, list[float]] = {part: [] for part in PARTS}
        self._prepare = engine.runner.prepare
        engine.runner.prepare = self._timed_prepare  # by forward, whose time it is taken out of

    def step(self) -> None:
        """One step by its verbs, as Engine.step runs it."""
        scheduler, runner = self.engine.scheduler, self.engine.runner
        batch = self._timed("schedule", scheduler.schedule)
        self._timed("forward", lambda: runner.forward(batch))
        self.times["forward"][-1] -= self.times["prepare"][-1]
        token_ids = self._timed("sample", lambda: runner.sample(batch.sampled_rows).wait())
        self._timed("update", lambda: scheduler.update(batch, token_ids))

    def _timed_prepare(self, batch: Batch) -> Any:
        return self._timed("prepare", lambda: self._prepare(batch))

    def _timed(self, part: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        self.times[part].append(time.perf_counter() - start)
        return result


def measure(
    folder: Path, num_seqs: int, sampling: str, context: int, steps: int, threads: int
) -> dict[str, Any]:
    """Median milliseconds of each part over `steps` decode steps of a full batch."""
    engine = Engine(
        EngineConfig(
            model=str(folder),
            max_num_seqs=num_seqs,
            max_num_batched_tokens=8192,
            max_model_len=context + steps + 32,
            num_threads=threads,
        )
    )
    engine.add(
        Request(
            request_id=str(i),
            prompt_token_ids=[(i + j) % engine.vocab_size for j in range(context)],
            params=RequestParams(seed=i, max_tokens=steps + 20, ignore_eos=True, **SAMPLING[sampling]),
        )
        for i in range(num_seqs)
    )
    while engine.scheduler.num_waiting:
        engine.step()
    timer = StepTimer(engine)
    for _ in range(10):  # warm up
        timer.step()
    timer.times.update({part: [] for part in PARTS})
    for _ in range(steps):
        timer.step()
    medians = {part: statistics.median(times) * 1e3 for part, times in timer.times.items()}
    return {
        "num_seqs": num_seqs,
        "sampling": sampling,
        "context": context,
        "steps": steps,
        "threads": torch.get_num_threads(),
        "median_ms": {part: round(value, 4) for part, value in medians.items()},
        "overhead_ms": round(sum(medians.values()) - medians["forward"], 4),
        "output_tokens_per_s": round(num_seqs / sum(medians.values()) * 1e3),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line per measurement."""
    print(
        f"{'rows':>5} {'context':>7} {'sampling':>12} "
        + " ".join(f"{part:>9}" for part in PARTS)
        + "  overhead  tok/s"
    )
    for row in rows:
        parts = " ".join(f"{row['median_ms'][part]:9.3f}" for part in PARTS)
        figures = f"{row['overhead_ms']:9.3f} {row['output_tokens_per_s']:6d}"
        print(f"{row['num_seqs']:5d} {row['context']:7d} {row['sampling']:>12} {parts} {figures}")
    print("milliseconds per decode step, medians; overhead is all but forward")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_overhead", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--num-seqs", type=int, nargs="+", default=[32, 64, 256])
    parser.add_argument("--context", type=int, nargs="+", default=[64, 1024], help="prompt tokens")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=0, help="0: as the engine chooses")
    parser.add_argument("--out", type=Path, default=None, help="a JSON file; default benchmarks/results/…")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save_random_model(args.shape, Path(folder))
        rows = [
            measure(Path(folder), num_seqs, sampling, context, args.steps, args.threads)
            for context in args.context
            for num_seqs in args.num_seqs
            for sampling in (SAMPLING if context == args.context[0] else FIRST_SAMPLING)
        ]
    print_table(rows)
    out = args.out or RESULTS / f"step_overhead-{args.shape}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "benchmark": "step_overhead",
        "shape": SHAPES[args.shape],
        **surroundings("torch"),
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
