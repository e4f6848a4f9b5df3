"""A row's bits do not depend on its batch, its chunk or its padding: what "exact" stands on.

These hold for torch with oneDNN and MKL. Where a build lacks them the engine runs and says so in its log.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from kernels.activation import Activation, act_and_mul, activate
from kernels.attention import AttentionShape
from kernels.linear import linear, pack_linear
from kernels.moe import moe, pack_experts, route
from kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from kernels.opset import OpSet
from kernels.rotary import rotary
from kernels.sample import SamplingTensors, sample
from tests.kernels.paged import make

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()),
    reason="exact batches need oneDNN and MKL",
)

TOTAL = 300
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
BATCHES = (1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 33, 64, 100, 177)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}-threads")
def threads(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(request.param)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shape", [(256, 768), (688, 256), (256, 260), (100, 36), (48, 199)])
def test_linear(shape: tuple[int, int], cpu: OpSet) -> None:
    weight = pack_linear(cpu, torch.randn(shape[1], shape[0]), torch.randn(shape[1]))
    x = torch.randn(TOTAL, shape[0])
    whole = linear(cpu, x, weight)
    for rows in BATCHES:
        for start in (0, 5, TOTAL - rows):
            part = linear(cpu, x[start : start + rows].contiguous(), weight)
            assert torch.equal(part, whole[start : start + rows]), f"{rows} rows from {start}"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("width", [4, 36, 88, 100, 344, 688, 2732])
def test_elementwise(width: int, cpu: OpSet) -> None:
    x, gate_up = torch.randn(TOTAL, width) * 3, torch.randn(TOTAL, 2 * width) * 3
    residual = torch.randn(TOTAL, width)
    angles = torch.randn(TOTAL, width // 4)
    weight, bias = torch.randn(width), torch.randn(width)
    heads = x.view(TOTAL, 2, width // 2)
    few = angles[:, : max(1, width // 12)]

    def run(start: int, end: int) -> list[torch.Tensor]:
        part = slice(start, end)
        mine = x[part].contiguous()
        return [
            rms_norm(cpu, x[part], weight, 1e-5),
            rms_norm(cpu, heads[part], weight.view(2, -1), 1e-5),
            add_rms_norm(cpu, mine, residual[part].clone(), weight, 1e-5),
            layer_norm(cpu, x[part], weight, bias, 1e-5),
            layer_norm(cpu, x[part], weight, None, 1e-5),
            layer_norm(cpu, heads[part], weight.view(2, -1), bias.view(2, -1), 1e-5),
            add_layer_norm(cpu, mine, residual[part].clone(), weight, bias, 1e-5),
            rotary(cpu, heads[part], angles[part].cos(), angles[part].sin()),
            rotary(cpu, heads[part], few[part].cos(), few[part].sin()),
            *(act_and_mul(cpu, gate_up[part].contiguous(), activation) for activation in ACTIVATIONS),
            *(activate(cpu, mine, activation) for activation in ACTIVATIONS),
        ]

    whole = run(0, TOTAL)
    for rows in BATCHES:
        for start in (0, 5, TOTAL - rows):
            for i, (part, of) in enumerate(zip(run(start, start + rows), whole, strict=True)):
                assert torch.equal(part, of[start : start + rows]), f"operation {i}, {rows} rows from {start}"


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("width", range(1, 70, 7))
def test_activations_of_odd_widths_and_counts(width: int, cpu: OpSet) -> None:
    """What is left over at the end of a vector or of a thread's share may go another way in torch."""
    x = torch.randn(2001, width) * 4
    for activation in ACTIVATIONS:
        whole, gated = activate(cpu, x, activation), act_and_mul(cpu, torch.cat((x, x), 1), activation)
        for start, end in ((0, 1), (7, 8), (1, 4), (3, 24), (500, 1499), (1000, 2001)):
            part = x[start:end].contiguous()
            assert torch.equal(activate(cpu, part, activation), whole[start:end]), activation
            both = torch.cat((part, part), 1)
            assert torch.equal(act_and_mul(cpu, both, activation), gated[start:end]), activation


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("num_experts", "top_k", "activation"), [(3, 1, "relu"), (8, 2, "silu"), (33, 5, "gelu_tanh")]
)
def test_moe(num_experts: int, top_k: int, activation: Activation, cpu: OpSet) -> None:
    """An expert has from none to all of the rows, so a row's company changes with its batch."""
    hidden, width = 36, 44
    experts = pack_experts(
        cpu, torch.randn(num_experts, 2 * width, hidden), torch.randn(num_experts, hidden, width), activation
    )
    x, router_logits = torch.randn(TOTAL, hidden), torch.randn(TOTAL, num_experts) * 2
    router_logits[:, 1] += 2  # everyone's favourite

    def run(part: slice) -> torch.Tensor:
        weights, ids = route(cpu, router_logits[part], top_k, renormalize=True)
        return moe(cpu, x[part].contiguous(), weights, ids, experts)

    whole = run(slice(0, TOTAL))
    for rows in BATCHES:
        for start in (0, 5, TOTAL - rows):
            part = slice(start, start + rows)
            assert torch.equal(run(part), whole[part]), f"{rows} rows from {start}"


CONTEXTS = [3, 16, 60, 130, 250, 257, 300, 383, 384, 500, 513, 700, 1030]
SOME_CONTEXTS = [3, 60, 257, 384, 513, 1030]
SLOPES = tuple(0.7 ** (i + 1) for i in range(8))
FEATURES = {
    "plain": {},
    "window-5": {"window": 5},
    "window-129": {"window": 129},
    "cap": {"soft_cap": 2.0},
    "window-and-cap": {"window": 77, "soft_cap": 2.0},
    "slopes": {"alibi_slopes": SLOPES},
    "window-and-slopes": {"window": 77, "alibi_slopes": SLOPES},
}
HEADS = [(4, 2, 32), (3, 3, 20), (8, 1, 64)]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("feature", FEATURES)
def test_attention_alone_in_a_batch_and_in_any_chunk(
    feature: str, heads: tuple[int, int, int], cpu: OpSet
) -> None:
    wishes = FEATURES[feature]
    contexts = SOME_CONTEXTS if wishes else CONTEXTS
    if "alibi_slopes" in wishes:
        wishes = wishes | {"alibi_slopes": SLOPES[: heads[0]]}
    shape = AttentionShape(*heads, heads[2] ** -0.5, **wishes)
    paged = make([(context, context) for context in contexts], shape)
    whole = paged.run(cpu)

    def queries(picks: list[tuple[int, int, int]]) -> None:
        """Attention of (sequence, first query, last query + 1) alone in a batch."""
        part, index = paged.pick(picks)
        assert torch.equal(part.run(cpu), whole[index]), f"(sequence, from, to): {picks}"

    everyone = list(enumerate(contexts))
    queries([(b, context - 1, context) for b, context in everyone])  # a batch of decodes
    for b, context in everyone:
        queries([(b, context - 1, context)])  # one decode
        queries([(b, context // 2, context)])  # the second chunk of a prompt
        queries([(b, 0, max(1, context // 3))])  # the first
    queries([(b, context - 1 - context // 2 * (b % 2), context) for b, context in everyone])  # a mixed step


@pytest.mark.parametrize("block_size", [1, 16, 24, 256])
@pytest.mark.parametrize("window", [1, 5, 16, 100, 128, 129, 500])
def test_a_windowed_prompt_in_chunks_of_any_size_equals_decodes(
    window: int, block_size: int, cpu: OpSet
) -> None:
    """A tile's first key follows from its first query: no cut of a prompt may show in the sums."""
    context = 700
    paged = make([(context, context)], AttentionShape(4, 2, 32, 0.2, window=window), block_size)
    whole = paged.run(cpu)
    for chunk in (37, 128, 129, 300):
        for start in range(0, context, chunk):
            part, index = paged.pick([(0, start, min(start + chunk, context))])
            assert torch.equal(part.run(cpu), whole[index]), f"chunk of {chunk} from {start}"
    for position in [*range(0, context, 13), *range(120, 136), *range(250, 262)]:
        part, index = paged.pick([(0, position, position + 1)])
        assert torch.equal(part.run(cpu), whole[index]), f"decode at {position}"


def test_sampling(cpu: OpSet) -> None:
    logits = torch.randn(64, 1000) * 3
    uniforms = torch.rand(64)
    top_k = torch.randint(0, 50, (64,))
    top_p, min_p = torch.rand(64) * 0.5 + 0.5, torch.rand(64) * 0.1
    temperature = torch.rand(64) + 0.1

    def run(part: slice) -> torch.Tensor:
        params = SamplingTensors(temperature[part], top_k[part], top_p[part], min_p[part], True, True, True)
        return sample(cpu, logits[part], uniforms[part], params)

    whole = run(slice(0, 64))
    for rows in (1, 2, 7, 33):
        for start in (0, 64 - rows):
            assert torch.equal(run(slice(start, start + rows)), whole[start : start + rows])
