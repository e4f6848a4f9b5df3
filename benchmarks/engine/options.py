"""What the command line of the engine benchmark says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.engine import plans
from benchmarks.engine.llama_cpp_peer import program_at
from benchmarks.engine.session import Session
from benchmarks.engine.shapes import SHAPES
from benchmarks.engine.workloads import WORKLOADS

RESULTS = Path(__file__).parents[1] / "results"
PEERS = "'transformers', 'generate', 'vllm[=PYTHON]', 'llama.cpp=PLACE'"
KV_CACHE_DTYPES = ("auto", "bf16", "fp8", "int8")
QUESTIONS = 1500


def parse(description: str | None) -> argparse.Namespace:
    """Prints usage and exits with status 2 where an argument is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=description)
    parser.add_argument(
        "--plan",
        choices=plans.PLANS,
        help="a list of sessions; `cpu` takes --peer, --precision, --model and --workload as its limits",
    )
    parser.add_argument("--predict", action="store_true", help="print the ceilings of an H100 as Markdown")
    parser.add_argument("--model", choices=SHAPES, help="default: qwen3-0.6b, or tiny for the tiny workload")
    parser.add_argument(
        "--workload", nargs="+", choices=WORKLOADS, help="default: nano-vllm; without a GPU, the plan smoke"
    )
    parser.add_argument("--ops", choices=("auto", "triton", "cpu", "reference"), default="auto")
    parser.add_argument("--precision", nargs="+", choices=plans.PRECISIONS)
    parser.add_argument("--kv-cache-dtype", nargs="+", choices=KV_CACHE_DTYPES, default=["auto"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="further engine settings")
    parser.add_argument("--peer", nargs="*", default=["transformers"], help=PEERS.replace("'", ""))
    parser.add_argument("--repeat", type=int, default=1, help="times, in alternating order; prints medians")
    parser.add_argument("--seconds", type=float, default=3600, help="for all sessions together")
    parser.add_argument("--verify", action="store_true", help="run the equality tests first")
    parser.add_argument("--verify-limit", type=float, default=300, help="seconds for them")
    parser.add_argument("--verdict", type=Path, help="what the equality tests of this run found")
    parser.add_argument(
        "--gate", action="store_true", help="on a processor: measure each precision's accuracy first"
    )
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="of the trained model, for --gate")
    parser.add_argument("--profile", action="store_true", help="of a step, in each precision")
    parser.add_argument("--redis", action="store_true", help="the first workload as jobs, too")
    parser.add_argument("--out", type=Path, default=RESULTS / "engine.json")
    args = parser.parse_args()
    _check(parser, args)
    return args


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.verdict is not None and not args.verdict.is_file():
        parser.error(f"argument --verdict: there is no file {args.verdict}")
    if args.repeat < 1:
        parser.error("argument --repeat: at least 1 is needed")
    if args.questions < 1:
        parser.error("argument --questions: at least 1 is needed")
    for peer in args.peer:
        name, _, place = peer.partition("=")
        if name not in plans.PEERS:
            parser.error(f"argument --peer: invalid choice: {peer!r} (choose from {PEERS})")
        if name == "llama.cpp":
            try:
                program_at(place)
            except FileNotFoundError as error:
                parser.error(f"argument --peer: {peer}: {error}")
        if name == "vllm" and place and not Path(place).is_file():
            parser.error(f"argument --peer: {peer}: there is no file {place}, which is to be its Python")
    for item in args.set:
        name, is_one, value = item.partition("=")
        try:
            json.loads(value)
        except json.JSONDecodeError:
            is_one = ""
        if not (name and is_one):
            parser.error(f"argument --set: {item!r} is not NAME=JSON, such as max_num_seqs=32")


def sessions_of(args: argparse.Namespace) -> list[Session]:
    """What to run, most important first."""
    settings = {name: json.loads(value) for name, value in (item.split("=", 1) for item in args.set)}
    if args.plan == "cpu":
        precisions = args.precision or list(plans.PRECISIONS)
        chosen = plans.cpu_plan(precisions, args.peer, settings, args.questions)
        return plans.narrowed(chosen, args.model, args.workload)
    if args.plan:
        return plans.PLANS[args.plan]()
    device = "cuda" if args.ops in ("auto", "triton") and _has_gpu() else "cpu"
    if not args.workload and device == "cpu":
        return plans.smoke_plan()  # the other would take hours
    workloads = args.workload or ["nano-vllm"]
    options = [{"ops": args.ops, "kv_cache_dtype": kv, **settings} for kv in args.kv_cache_dtype]
    model = args.model or ("tiny" if workloads == ["tiny"] else "qwen3-0.6b")
    precisions = args.precision or (["bf16"] if device == "cuda" else ["fp32"])
    chosen = plans.chosen_plan(model, workloads, device, precisions, options, args.peer)
    extras = {"accuracy": args.gate, "redis": args.redis, "profile": args.profile}
    wanted = [system for system, is_wanted in extras.items() if is_wanted and device == "cpu"]
    return plans.with_extras(chosen, wanted, args.questions)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
