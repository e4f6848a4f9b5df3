"""What every precision promises: the same logits to the bit however requests are batched, cut and resumed;
and 8 bits that are as far from float32 as rounding explains."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.config import EngineConfig
from engine.device import resolve
from engine.engine import Engine
from engine.errors import ConfigError
from engine.memory import kv_dtype
from engine.models.checkpoint import SINGLE, Checkpoint
from engine.models.decoder import Decoder
from engine.models.families import spec_of
from engine.models.folder import read_config
from engine.models.model import Model
from engine.request import Request, RequestParams
from kernels import reference
from kernels.cpu import native
from kernels.cpu.moe import CpuExperts
from kernels.linear import LinearWeight
from tests.engine.fallback_models import save_fallback_model
from tests.engine.paged import all_logits, load, new_cache, new_rows, step
from tests.engine.run import engine_of, resumed, run, tokens_of
from tests.engine.seen_logits import seen_logits
from tests.engine.tiny_models import FAMILIES, random_prompts

MAX_TOKENS = 16
PROMPTS = [[i, *prompt] for i, prompt in enumerate(random_prompts(24, longest=60, seed=1))]
FAMILY_PROMPTS = random_prompts(6, longest=90, seed=2)

EXACT = [
    ("native", "fp32"),
    ("native", "bf16"),
    ("native", "fp16"),
    ("native", "int8"),
    ("torch", "fp32"),
]
"""Plain torch promises nothing in half precision, and has no 8 bits."""
SOME_FAMILIES = ["qwen3", "gemma2", "mixtral", "falcon-40b", "bloom", "gpt2", "llama-tied-one-kv-head"]

needs_library = pytest.mark.skipif(native.load() is None, reason="the C++ kernels were not built")
needs_torch_libraries = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()),
    reason="exact batches need oneDNN and MKL",
)
each_exact = pytest.mark.parametrize(
    ("implementation", "precision"),
    [
        pytest.param(*way, marks=needs_library if way[0] == "native" else needs_torch_libraries)
        for way in EXACT
    ],
)


@contextmanager
def running(implementation: str, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models loaded meanwhile compute by the C++ kernels, or by plain torch."""
    with patch.context() as patched:
        if implementation == "torch":
            patched.setattr(native, "load", lambda: None)
        yield


def params(i: int) -> RequestParams:
    """A different way to sample for every request; every eighth is greedy."""
    temperature = 0.0 if i % 8 == 0 else random.Random(i).uniform(0.3, 3.0)
    return RequestParams(max_tokens=MAX_TOKENS, seed=i, temperature=temperature, top_p=0.95, top_k=50)


def requests(begun: list[list[int]] | None = None) -> list[Request]:
    return [
        Request(
            request_id=str(i),
            prompt_token_ids=prompt,
            params=params(i),
            samples=resumed(begun[i] if begun else []),
        )
        for i, prompt in enumerate(PROMPTS)
    ]


@each_exact
@pytest.mark.parametrize("family", ["llama-biases-no-gqa", "qwen3"])
def test_logits_are_the_same_to_the_bit(
    family: str,
    implementation: str,
    precision: str,
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What equal tokens rest on: sampling only shows a difference where two tokens are nearly tied."""

    def engine(**settings: Any) -> Engine:
        with running(implementation, monkeypatch):
            return engine_of(tiny_model(family), precision=precision, **settings)

    crowd = engine(block_size=8)
    whole, tokens = seen_logits(crowd, requests())
    assert len(whole) == len(PROMPTS) * MAX_TOKENS
    again, _ = seen_logits(crowd, requests())
    assert crowd.scheduler.num_cached_tokens > 500, "the second time prefixes come out of the cache"
    chunked, _ = seen_logits(engine(max_num_batched_tokens=23, max_num_seqs=16), requests())
    preempting = engine(num_blocks=20, block_size=4, max_model_len=80)
    preempted, _ = seen_logits(preempting, requests())
    assert preempting.scheduler.num_preemptions > 5
    kept = [answer[: i % MAX_TOKENS] for i, answer in enumerate(tokens)]
    rest, more = seen_logits(engine(), requests(kept))
    assert [begun + answer for begun, answer in zip(kept, more, strict=True)] == tokens
    alone = [seen_logits(engine(), [request])[0] for request in requests()[::5]]
    for other in (again, chunked, preempted, rest, *alone):
        for key, values in other.items():
            assert torch.equal(values, whole[key]), f"(request, output index) {key}"


def in_parts(model: Model, dtype: torch.dtype) -> list[Tensor]:
    """All logits of each prompt, computed in chunks beside the others'. dtype: of keys and values."""
    rows = new_rows(FAMILY_PROMPTS, 0)
    cache = new_cache(model, 1 + sum(len(row.table) for row in rows), dtype)
    parts: list[list[Tensor]] = [[] for _ in rows]
    size = 1
    while left := [i for i, row in enumerate(rows) if row.num_computed < len(row.token_ids)]:
        counts = [min(len(FAMILY_PROMPTS[i]) - rows[i].num_computed, size + i) for i in left]
        with torch.inference_mode():
            logits = step(model, cache, [rows[i] for i in left], counts)
        for i, part in zip(left, logits.split(counts), strict=True):
            parts[i].append(part)
        size = size % 17 + 3
    return [torch.cat(part) for part in parts]


def at_once(model: Model, prompt: list[int], dtype: torch.dtype) -> Tensor:
    (row,) = new_rows([prompt], 0)
    with torch.inference_mode():
        return step(model, new_cache(model, 1 + len(row.table), dtype), [row], [len(prompt)])


@pytest.mark.parametrize(
    ("implementation", "precision", "family"),
    [
        pytest.param(*way, family, marks=needs_library if way[0] == "native" else needs_torch_libraries)
        for way in EXACT
        for family in (FAMILIES if way[1] == "fp32" else SOME_FAMILIES)
    ],
)
def test_logits_are_the_same_to_the_bit_in_chunks_and_batches(
    implementation: str,
    precision: Any,
    family: str,
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running(implementation, monkeypatch):
        model = load(tiny_model(family), precision=precision)
    dtype = kv_dtype(resolve(EngineConfig(model="x", precision=precision)))
    for i, parts in enumerate(in_parts(model, dtype)):
        whole = at_once(model, FAMILY_PROMPTS[i], dtype)
        assert torch.equal(parts, whole), f"{family}, request {i}"


def rounded(x: Tensor) -> Tensor:
    """Each row as whole numbers of -127 to 127 times a 127th of its largest. In float32 up to there: in the
    numbers that bfloat16 has, many lie just between two steps."""
    top = x.abs().amax(-1, keepdim=True)
    factor = torch.where(top > 0, 127 / top, 0.0)
    return (x * factor).round().double() * (top / 127).double()


def rounding_model(folder: Path) -> Decoder:
    """The reference in float32, whose linear layers, but for the router, round what they multiply to 8 bits
    and multiply it in double precision."""

    def pack(weight: Tensor, bias: Tensor | None) -> LinearWeight:
        return LinearWeight(
            rounded(weight), bias, weight.shape[1], weight.shape[0], weight.dtype, weight.device
        )

    def pack_whole(weight: Tensor, bias: Tensor | None) -> LinearWeight:
        return replace(pack(weight, bias), data=weight.double())

    def linear(x: Tensor, weight: LinearWeight) -> Tensor:
        assert isinstance(weight.data, Tensor)
        whole = spec.moe is not None and weight.out_features == spec.moe.num_experts
        product = (x.double() if whole else rounded(x)) @ weight.data.T
        return (product if weight.bias is None else product + weight.bias).float()

    def rows(weight: LinearWeight, ids: Tensor) -> Tensor:
        assert isinstance(weight.data, Tensor)
        return weight.data[ids].float()

    checkpoint = Checkpoint(folder)
    spec = checkpoint.fit(spec_of(read_config(folder)))
    plain = reference.make_op_set()
    experts = CpuExperts(pack, linear, plain.act_and_mul)
    ops = replace(
        plain,
        pack_linear=pack,
        linear=linear,
        rows=rows,
        pack_router=pack_whole,
        pack_experts=experts.pack,
        moe=experts.run,
    )
    with torch.inference_mode():
        return Decoder(spec, ops, checkpoint, spec.max_position_embeddings)


def off(ours: Tensor, theirs: Tensor) -> float:
    """Root of the mean squared difference, in standard deviations."""
    return float(((ours - theirs).square().mean() / theirs.var()).sqrt())


@needs_library
@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_8_bits_are_as_far_from_float32_as_their_rounding(
    family: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """What the same model gives whose weights and activations are rounded, and nothing else, says how far
    that is. Not to the bit: an activation that lies between two steps rounds up here and down there, and all
    that comes after it is rounded by chance."""
    folder = Path(shutil.copytree(tiny_model(family), tmp_path / family))
    weights = {n: t.bfloat16().float() for n, t in load_file(folder / SINGLE).items()}
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})  # so that nothing is rounded to 16 bits
    prompt = max(FAMILY_PROMPTS, key=len)
    exact = all_logits(load(folder), prompt)
    ours = all_logits(load(folder, precision="int8"), prompt)
    rounding = all_logits(rounding_model(folder), prompt)
    assert 0.5 < off(ours, exact) / off(rounding, exact) < 1.3
    assert off(rounding, exact) < 0.2, "the bound says nothing"


@pytest.mark.parametrize("ops", ["reference", "triton"])
def test_8_bits_are_refused_where_there_are_none(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ConfigError, match=rf"precision is 'int8': the op set '{ops}' has no such layers"):
        resolve(EngineConfig(model="x", ops=ops, precision="int8"))


def test_8_bits_are_refused_for_models_that_transformers_runs(tmp_path: Path) -> None:
    folder = save_fallback_model("OPTForCausalLM", tmp_path)
    with pytest.raises(ConfigError, match="precision is 'int8': OPTForCausalLM runs by transformers' own"):
        engine_of(folder, precision="int8")


def test_without_the_library_16_bits_are_said_to_stand_in_for_8(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running("torch", monkeypatch):
        engine = engine_of(tiny_model("qwen3"), precision="int8")
    assert "linear layers in 8 bits need the C++ kernels" in caplog.text
    (outputs,) = run(engine, [Request(request_id="a", prompt_token_ids=[1], params=params(0))]).values()
    assert len(tokens_of(outputs)) == MAX_TOKENS
