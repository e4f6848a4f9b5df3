"""Train, evaluate and sample the tiny model that penstock's demo and tests run.

    python examples/tiny/train.py --minutes 40 --out examples/models/tiny
    python examples/tiny/train.py --evaluate --out examples/models/tiny
    python examples/tiny/train.py --prompts examples/prompts.jsonl

The learning rate follows the clock, so the run ends when asked to on any machine; the seeds fix the data
and the initial weights. Sampling leans towards the tasks whose validation questions still fail; the
held-out test questions are read by --evaluate alone.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from batches import IGNORED, Batch, bucket, chat_sample, raw_sample, step_batches
from evaluate import evaluate, write_prompts
from model import Shape, TinyLlama, save_model
from muon import Muon
from tasks import TASKS, distinct
from tokenizer import build_tokenizer, save_tokenizer
from torch import Tensor

SEED = 20240817
STEP_TOKENS = 4096
MUON_LR = 0.012
ADAM_LR = 2e-3
WARMUP_STEPS = 50
VALIDATION_QUESTIONS = 60
VALIDATION_SECONDS = 150.0
# Shares before adaptation: arithmetic is the slow part.
SLOW_TASKS = {"add": 6.0, "subtract": 6.0, "sort": 3.0, "compare": 1.5, "reverse": 1.0, "upper": 0.8}
BASE_WEIGHTS = {name: SLOW_TASKS.get(name, 0.7) for name in TASKS}


@dataclass
class Run:
    """Everything that a checkpoint must hold for the run to go on as if it had not stopped."""

    pool: Executor
    model: TinyLlama
    muon: Muon
    adam: torch.optim.AdamW
    rng: random.Random
    weights: dict[str, float] = field(default_factory=lambda: dict(BASE_WEIGHTS))
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0


def new_run(threads: int) -> Run:
    # One single-threaded worker per core, each taking the next batch: torch's own threads wait for each
    # other inside every operation, and a core that is busy with something else then stops them all.
    # The setting is a thread's own, hence the initializer.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    torch.manual_seed(SEED)
    model = TinyLlama(Shape(vocab=build_tokenizer().get_vocab_size()))
    embeddings = model.model.embed_tokens.weight
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embeddings]
    others = [weight for weight in model.parameters() if weight.ndim == 1 or weight is embeddings]
    adam = torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)
    return Run(pool, model, Muon(matrices, pool, lr=MUON_LR), adam, random.Random(SEED))


def save_checkpoint(run: Run, path: Path) -> None:
    state = {
        "model": run.model.state_dict(),
        "muon": run.muon.state_dict(),
        "adam": run.adam.state_dict(),
        "rng": run.rng.getstate(),
        "rest": (run.weights, run.step, run.seconds, run.tokens),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


def load_checkpoint(run: Run, path: Path) -> None:
    state = torch.load(path, weights_only=False)
    run.model.load_state_dict(state["model"])
    run.muon.load_state_dict(state["muon"])
    run.adam.load_state_dict(state["adam"])
    run.rng.setstate(state["rng"])
    run.weights, run.step, run.seconds, run.tokens = state["rest"]


def learning_rate_factor(run: Run, minutes: float) -> float:
    """Linear warmup, then 1, then linearly to 0 over the second half of the time."""
    left = 1 - run.seconds / (60 * minutes)
    return max(0.0, min(1.0, (run.step + 1) / WARMUP_STEPS, 2 * left))


def train_step(run: Run, factor: float) -> float:
    """One optimiser step; the loss is the mean over the answer tokens of all its batches."""
    batches = step_batches(run.rng, run.weights, STEP_TOKENS)
    answers = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
    parameters = list(run.model.parameters())

    def gradients(batch: Batch) -> tuple[float, tuple[Tensor, ...]]:
        wanted = batch.labels != IGNORED
        loss = F.cross_entropy(run.model(batch.ids, wanted), batch.labels[wanted], reduction="sum") / answers
        return loss.item(), torch.autograd.grad(loss, parameters)

    total = 0.0
    for loss, parts in run.pool.map(gradients, batches):
        total += loss
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part if parameter.grad is None else parameter.grad.add_(part)
    run.tokens += sum(batch.ids.numel() for batch in batches)
    for optimizer, lr in ((run.muon, MUON_LR), (run.adam, ADAM_LR)):
        for group in optimizer.param_groups:
            group["lr"] = lr * factor
        optimizer.step()
        optimizer.zero_grad()
    run.step += 1
    return total


@torch.no_grad()
def validation_errors(model: TinyLlama) -> dict[str, float]:
    """The share of each task's validation questions that greedy decoding gets wrong.

    With the right answer fed in, greedy decoding is right exactly if every argmax is.
    """
    errors = {}
    for task in TASKS.values():
        questions = distinct(task, "valid", VALIDATION_QUESTIONS, SEED)
        samples = [raw_sample(q) if i % 3 == 0 else chat_sample([q], None) for i, q in enumerate(questions)]
        wrong = 0
        for batch in bucket(samples, STEP_TOKENS):
            wanted = batch.labels != IGNORED
            missed = torch.zeros_like(wanted)
            missed[wanted] = model(batch.ids, wanted).argmax(-1) != batch.labels[wanted]
            wrong += int(missed.any(dim=1).sum())
        errors[task.name] = wrong / len(questions)
    return errors


def adapted_weights(errors: dict[str, float]) -> dict[str, float]:
    """Tasks that still fail get up to four times the share of those that are done."""
    return {name: BASE_WEIGHTS[name] * (0.4 + min(1.2, 6 * errors[name])) for name in TASKS}


def train(minutes: float, threads: int, out: Path, checkpoint: Path) -> None:
    """Train until the time is up, or until a resumed run's time is; then write the model folder."""
    run = new_run(threads)
    if checkpoint.exists():
        load_checkpoint(run, checkpoint)
    saved = run.seconds
    while run.seconds < 60 * minutes:
        started = time.perf_counter()
        loss = train_step(run, learning_rate_factor(run, minutes))
        run.seconds += time.perf_counter() - started
        if run.seconds - saved > VALIDATION_SECONDS:
            saved = run.seconds
            errors = validation_errors(run.model)
            run.weights = adapted_weights(errors)
            save_checkpoint(run, checkpoint)
            figures = " ".join(f"{name} {100 * (1 - error):.0f}" for name, error in errors.items())
            done = f"{run.seconds / 60:.1f} min, step {run.step}, {run.tokens / run.seconds:.0f} tokens/s"
            print(f"{done}, loss {loss:.4f}, validation: {figures}", flush=True)
    save_model(run.model, out)
    save_tokenizer(out)
    # A finished run is no starting point: the next one begins anew.
    checkpoint.unlink(missing_ok=True)
    training = {
        "seconds": round(run.seconds),
        "cores": os.cpu_count(),
        "threads": threads,
        "steps": run.step,
        "tokens": run.tokens,
        "seed": SEED,
    }
    evaluate(out, training)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=40.0, help="training time")
    parser.add_argument("--out", type=Path, default=Path("examples/models/tiny"), help="the model folder")
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("out/tiny-checkpoint.pt"), help="resumed from if there"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="training threads")
    parser.add_argument("--evaluate", action="store_true", help="only recompute REPORT.json")
    parser.add_argument("--prompts", type=Path, help="only write the held-out prompts to this file")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    if arguments.prompts:
        write_prompts(arguments.prompts)
    elif arguments.evaluate:
        evaluate(arguments.out)
    else:
        train(arguments.minutes, arguments.threads, arguments.out, arguments.checkpoint)


if __name__ == "__main__":
    main()
