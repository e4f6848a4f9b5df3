"""Every operation alone, at the sizes of real models: `python -m benchmarks.kernels` or `make bench-kernels`.

Measures what the device's copies, reads and matrix products reach, then each operation's time, and prints it
beside its floor: the bytes that it must move at the copy's rate or its operations at the product's, whichever
takes longer. Speeds are printed only of operations whose tests passed in the same run (`--verdict FILE`, from
`benchmarks.gpu`). Without a GPU it ends with status 2; `--cpu` times the processor's operations at small
sizes, and `--predict` prints the floors of an H100 without measuring anything.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine.shapes import TINY
from benchmarks.gpu.device import nvidia_smi
from benchmarks.gpu.verdict import load_verdict
from benchmarks.kernels import table
from benchmarks.kernels.cases import FEW_EXPERTS, Case, all_cases
from benchmarks.kernels.ceilings import DTYPES, PREDICTED, Ceilings, Copies, measure_ceilings
from benchmarks.kernels.inputs import Inputs
from benchmarks.kernels.timing import num_sets, seconds_of
from benchmarks.surroundings import surroundings
from kernels.opset import load_op_set

RESULTS = Path(__file__).parents[1] / "results"
NO_GPU = (
    "no GPU here: torch sees no CUDA device (--cpu times the processor's operations, --predict the floors)"
)
SET_BYTES = 24 * 1024**3
"""At most so much of the device's memory for the inputs of one case."""
CPU_CASES = {
    "shapes": (TINY,),
    "batches": (1, 8),
    "prefills": (32,),
    "contexts": (64,),
    "e": 4,
    "cache_bytes": (4,),
    "experts": FEW_EXPERTS,
}


def main() -> int:
    args = _parse()
    if args.predict:
        print("\n".join(table.floors(all_cases(), PREDICTED)))
        return 0
    if not args.cpu and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 2
    device = torch.device("cpu" if args.cpu else "cuda")
    dtype = torch.float32 if args.cpu else DTYPES[args.precision]
    cases = all_cases(**CPU_CASES) if args.cpu else all_cases()
    chosen = [case for case in cases if not args.ops or case.op in args.ops]
    inputs = Inputs(load_op_set(args.op_set or ("cpu" if args.cpu else "triton")), device, dtype)
    end = time.monotonic() + args.seconds
    ceilings = measure_ceilings(device, dtype, 0.25 if args.cpu else 1.0)
    copies = Copies(device)
    verdict = load_verdict(args.verdict)
    result: dict[str, Any] = {
        "benchmark": "kernels",
        **surroundings("torch", "triton"),
        "gpu": nvidia_smi(),
        "op_set": inputs.ops.name,
        "dtype": str(dtype),
        "ceilings": asdict(ceilings),
        "verdict": asdict(verdict),
        "rows": [],
    }
    for case in chosen:
        if time.monotonic() > end:
            result["not_run"] = len(chosen) - len(result["rows"])
            break
        result["rows"].append(_measured(case, inputs, (ceilings, copies), args.budget))
        _write(result, args.out)
    print("\n".join(table.lines(result["rows"], verdict)))
    print(
        f"copy {ceilings.copy_bytes_per_s / 1e12:.3f}, read {ceilings.read_bytes_per_s / 1e12:.3f} TB/s, "
        f"product {ceilings.matmul_flops_per_s / 1e12:.2f} TFLOP/s; "
        f"{len(result['rows'])} of {len(chosen)} cases; written to {args.out}"
    )
    return 1 if all("error" in row for row in result["rows"]) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="the processor's operations at small sizes")
    parser.add_argument("--predict", action="store_true", help="print the floors of an H100 as Markdown")
    parser.add_argument("--ops", nargs="+", help="names of operations; default: all")
    parser.add_argument("--op-set", choices=("triton", "cpu", "reference"))
    parser.add_argument("--precision", choices=DTYPES, default="bf16")
    parser.add_argument("--seconds", type=float, default=600, help="no case starts later")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds of timing for a case")
    parser.add_argument("--verdict", type=Path, help="what the tests of this run found")
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.json")
    return parser.parse_args()


@torch.inference_mode()
def _measured(case: Case, inputs: Inputs, bounds: tuple[Ceilings, Copies], budget_s: float) -> dict[str, Any]:
    """A row of the results; of an operation that fails, its error."""
    ceilings, copies = bounds
    row: dict[str, Any] = {
        "op": case.op,
        "file": case.file,
        "model": case.shape,
        "size": case.size,
        "bytes": case.cost.num_bytes,
        "flops": case.cost.flops,
        "floor_s": ceilings.least_seconds(case.cost.num_bytes, case.cost.flops),
    }
    set_bytes = int(case.cost.num_bytes)
    count = min(num_sets(set_bytes, inputs.device), max(1, SET_BYTES // max(1, set_bytes)))
    try:
        calls = [inputs.make(case.op, case.sizes) for _ in range(count)]
        seconds, method = seconds_of(calls, inputs.device, budget_s)
    except Exception as error:  # one operation's failure costs that operation's figures
        return {**row, "error": f"{type(error).__name__}: {error}"[:1000]}
    return {
        **row,
        "seconds": seconds,
        "method": method,
        "input_sets": count,
        "of_copy": case.cost.num_bytes / ceilings.copy_bytes_per_s / seconds,
        "of_matmul": case.cost.flops / ceilings.matmul_flops_per_s / seconds,
        "of_floor": row["floor_s"] / seconds,
        "of_equal_copy": copies.seconds(case.cost.num_bytes) / seconds,
    }


def _write(result: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("ended by Ctrl-C", file=sys.stderr)
        sys.exit(130)
