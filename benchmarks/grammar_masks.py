"""What masks add to a step: `python -m benchmarks.grammar_masks`.

Fills masks for a full batch of different JSON schemas over a byte-level vocabulary of Qwen3's width, made of
the words in Python's own library, while random tokens that the masks allow are fed. Prints the milliseconds
of a step's masks (start to wait, nothing else running), of feeding the tokens, and of clearing the logits
and the dearest mask of a single row. Then decodes full batches of a model of Qwen3-0.6B's shape (dummy
weights, fp32) by turns with and without grammars, and prints what a step takes. Writes all of it, with
device, versions and commit, to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from benchmarks.surroundings import surroundings
from engine.config import EngineConfig
from engine.constraint import ConstraintViolated
from engine.engine import Engine
from engine.grammars import GrammarConstraint, Grammars
from engine.masks import Masks
from engine.request import Grammar, Request, RequestParams
from kernels.cpu.mask import apply_bitmask
from kernels.mask import TokenMasks

RESULTS = Path(__file__).parent / "results"
VOCAB_SIZE = 151_936
NUM_TOKENS = 151_643
END = "<|im_end|>"
WORDS = re.compile(r" ?[A-Za-z]+| ?\d{1,3}| ?[^\sA-Za-z\d]+|\s+")


def save_tokenizer(folder: Path) -> int:
    """A vocabulary of words and their beginnings, the most frequent first; returns the end token's id."""
    counts: Counter[str] = Counter()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        counts.update(word for word in WORDS.findall(path.read_text(errors="ignore")) if len(word) <= 16)
        if len(counts) > 200_000:
            break
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for word, _ in counts.most_common():
        token = byte_level.pre_tokenize_str(word)[0][0]
        for length in range(2, len(token) + 1):
            if len(vocabulary) < NUM_TOKENS:
                vocabulary.setdefault(token[:length], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.token_to_id(END)


def schema(number: int) -> dict[str, Any]:
    """One of unlimited many different ones, in eight kinds."""
    name = f"field_{number}"
    string = {"type": "string"}
    kinds: list[dict[str, Any]] = [
        {"type": "object", "properties": {name: string, "age": {"type": "integer", "minimum": number}}},
        {"type": "string", "minLength": number, "maxLength": 2000},
        {"type": "array", "items": {"type": "string", "pattern": f"^[a-z]{{{number + 1},40}}-[0-9]{{2,8}}$"}},
        {"$defs": {name: {"type": "array", "items": {"$ref": f"#/$defs/{name}"}}}, "$ref": f"#/$defs/{name}"},
        {"type": "array", "items": {"enum": [f"value {number * i * 7919 % 10007}" for i in range(1, 500)]}},
        {"type": "object", "additionalProperties": {"type": "array", "items": string, "minItems": number}},
        {"type": "array", "items": {"type": "number", "minimum": -number - 0.5, "maximum": number + 98.765}},
        {"type": "array", "items": {"anyOf": [{"type": "object", "properties": {f"{name}_{i}": string},
         "required": [f"{name}_{i}"]} for i in range(20)]}},
    ]  # fmt: skip
    return kinds[number % len(kinds)] | {"title": name}


class Row:
    """One output, begun again whenever it ends."""

    def __init__(self, start: GrammarConstraint, end: int, seed: int) -> None:
        self.start = start
        self.constraint = start.fork()
        self._end = end
        self._rng = np.random.default_rng(seed)

    def choose(self, bits: Any) -> int:
        allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
        others = allowed[allowed != self._end]
        return int(self._rng.choice(others)) if len(others) else self._end

    def accept(self, token_id: int) -> None:
        try:
            complete = self.constraint.accept(token_id)
        except ConstraintViolated:
            complete = True
        if complete:
            self.constraint = self.start.fork()


def measure(folder: Path, end: int, num_rows: int, steps: int) -> dict[str, Any]:
    """Milliseconds: of whole steps, and of the masks of single rows."""
    grammars, masks = Grammars(folder, VOCAB_SIZE, [end]), Masks(VOCAB_SIZE, [end])
    first_s = timed(lambda: grammars.compile(Grammar(kind="regex", text="a")).result())[0]
    compiled = [
        timed(grammars.compile(Grammar(kind="json_schema", text=json.dumps(schema(i)))).result)
        for i in range(num_rows)
    ]
    rows = [Row(constraint, end, seed) for seed, (_, constraint) in enumerate(compiled)]
    logits = torch.randn(num_rows, VOCAB_SIZE)
    times: dict[str, list[float]] = {"fill": [], "fill_cpu": [], "accept": [], "apply": [], "row": []}
    for step in range(steps):
        one_step(rows, masks, logits, times)
        one = rows[step % num_rows].constraint
        times["row"].append(timed(lambda one=one: masks.start([one]).wait())[0])
    grammars.close()
    masks.close()
    return {
        "rows": num_rows,
        "steps": steps,
        "vocab_size": VOCAB_SIZE,
        "tokenizer_ms": round(first_s * 1e3, 1),
        "compile_ms": spread([seconds for seconds, _ in compiled]),
        **{f"{part}_ms": spread(found) for part, found in times.items() if found},
    }


def one_step(rows: list[Row], masks: Masks, logits: torch.Tensor, times: dict[str, list[float]]) -> None:
    """Masks for all rows, and one token each."""
    cpu = time.process_time()
    seconds, filled = timed(lambda: masks.start([row.constraint for row in rows]).wait())
    times["fill_cpu"].append(time.process_time() - cpu)  # the same however busy the machine is
    assert not filled.failures
    times["fill"].append(seconds)
    tensors = TokenMasks(torch.from_numpy(filled.index), torch.from_numpy(filled.bits))
    times["apply"].append(timed(lambda: apply_bitmask(logits, tensors))[0])
    chosen = [row.choose(bits) for row, bits in zip(rows, filled.bits, strict=True)]
    seconds, _ = timed(lambda: [row.accept(token_id) for row, token_id in zip(rows, chosen, strict=True)])
    times["accept"].append(seconds)


QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}


def measure_in_engine(folder: Path, end: int, num_rows: int, steps: int, turns: int) -> dict[str, Any]:
    """Milliseconds of decode steps, with a different grammar in every row and with none, by turns."""
    (folder / "config.json").write_text(json.dumps({**QWEN3_06B, "eos_token_id": end}))
    engine = Engine(
        EngineConfig(model=str(folder), load_format="dummy", max_num_seqs=num_rows, max_model_len=256)
    )
    times: dict[str, list[float]] = {"plain": [], "constrained": []}
    for turn in range(turns):
        for name, found in times.items():
            requests = [
                Request(
                    request_id=f"{name} {turn} {row}",
                    prompt_token_ids=[(97 * row + i) % 1000 for i in range(40)],
                    params=RequestParams(
                        max_tokens=200,
                        seed=row,
                        min_tokens=200 if name == "plain" else 0,
                        grammar=None
                        if name == "plain"
                        else Grammar(kind="json_schema", text=json.dumps(LASTING | {"title": str(row)})),
                    ),
                )
                for row in range(num_rows)
            ]
            engine.add(requests)
            while engine.scheduler.num_waiting or engine.scheduler.num_running < num_rows:
                engine.step()
            engine.step()
            found += [timed(engine.step)[0] for _ in range(steps)]
            assert engine.scheduler.num_running == num_rows, "an output ended: the batch was not full"
            engine.abort([request.request_id for request in requests])
            while engine.has_work:
                engine.step()
    plain, constrained = (statistics.median(found) for found in times.values())
    return {
        "threads": torch.get_num_threads(),
        **{f"{name}_ms": spread(found) for name, found in times.items()},
        "added_percent": round((constrained / plain - 1) * 100, 1),
    }


LASTING: dict[str, Any] = {
    "type": "array",
    "minItems": 60,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "size": {"type": "number", "minimum": -2.5}},
        "required": ["name", "size"],
        "additionalProperties": False,
    },
}
"""Outputs that don't end while they are timed."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work gave."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def spread(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    mean, median, worst = statistics.fmean(seconds), statistics.median(seconds), max(seconds)
    return {"mean": round(mean * 1e3, 3), "median": round(median * 1e3, 3), "worst": round(worst * 1e3, 3)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grammar_masks", description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=RESULTS / "grammar_masks.json")
    parser.add_argument("--engine-steps", type=int, default=10, help="decode steps per turn; 0: no engine")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        end = save_tokenizer(Path(folder))
        figures = measure(Path(folder), end, args.rows, args.steps)
        torch.set_num_threads(threads)
        if args.engine_steps:
            figures["engine"] = measure_in_engine(Path(folder), end, args.rows, args.engine_steps, turns=4)
    for name, value in figures.items():
        print(f"{name:>14} {value}")
    found = {**surroundings("torch", "llguidance"), "figures": figures}
    args.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
