"""A row's bits do not depend on its batch, its chunk or its padding: what "exact" stands on.

These hold for torch with oneDNN and MKL. Where a build lacks them the engine runs and says so in its log.
"""

from __future__ import annotations

import pytest
import torch

from kernels.activation import act_and_mul
from kernels.attention import AttentionMetadata, AttentionShape, attention, plan_attention
from kernels.linear import linear, pack_linear
from kernels.norm import rms_norm
from kernels.opset import OpSet
from kernels.rotary import rotary
from kernels.sample import SamplingTensors, sample
from tests.kernels.test_attention import make

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()),
    reason="exact batches need oneDNN and MKL",
)

TOTAL = 300
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
@pytest.mark.parametrize("width", [36, 88, 100, 344, 688])
def test_elementwise(width: int, cpu: OpSet) -> None:
    x, gate_up = torch.randn(TOTAL, width), torch.randn(TOTAL, 2 * width) * 3
    angles = torch.randn(TOTAL, width // 4)
    weight = torch.randn(width)
    heads = x.view(TOTAL, 2, width // 2)

    def run(start: int, end: int) -> list[torch.Tensor]:
        part = slice(start, end)
        return [
            rms_norm(cpu, x[part], weight, 1e-5),
            act_and_mul(cpu, gate_up[part].contiguous(), "silu"),
            rotary(cpu, heads[part], angles[part].cos(), angles[part].sin()),
        ]

    whole = run(0, TOTAL)
    for rows in BATCHES:
        for start in (0, 5, TOTAL - rows):
            for i, (part, of) in enumerate(zip(run(start, start + rows), whole, strict=True)):
                assert torch.equal(part, of[start : start + rows]), f"operation {i}, {rows} rows from {start}"


CONTEXTS = [3, 16, 60, 130, 250, 257, 300, 383, 384, 500, 513, 700, 1030]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    "shape",
    [
        AttentionShape(4, 2, 32, 32**-0.5),
        AttentionShape(3, 3, 20, 20**-0.5),
        AttentionShape(8, 1, 64, 64**-0.5),
    ],
)
def test_attention_alone_in_a_batch_and_in_any_chunk(shape: AttentionShape, cpu: OpSet) -> None:
    paged = make([(context, context) for context in CONTEXTS], shape)
    whole = paged.run(cpu)
    bounds = paged.metadata.cu_seqlens_q.tolist()

    def queries(picks: list[tuple[int, int, int]]) -> torch.Tensor:
        """Attention of (sequence, first query, last query + 1) alone in a batch."""
        rows = [torch.arange(bounds[b] + start, bounds[b] + end) for b, start, end in picks]
        counts = torch.tensor([0] + [end - start for _, start, end in picks])
        index = torch.cat(rows)
        metadata = AttentionMetadata(
            cu_seqlens_q=counts.cumsum(0).int(),
            context_lens=torch.tensor([end for _, _, end in picks], dtype=torch.int32),
            block_tables=paged.metadata.block_tables[[b for b, _, _ in picks]],
            slot_mapping=paged.metadata.slot_mapping[index],
            block_size=paged.metadata.block_size,
        )
        out = torch.full((len(index), shape.num_heads, shape.head_dim), torch.nan)
        plan = plan_attention(cpu, metadata, shape)
        attention(cpu, paged.q[index], paged.k_cache, paged.v_cache, plan, out)
        assert torch.equal(out, whole[index]), f"(sequence, from, to): {picks}"
        return out

    everyone = list(enumerate(CONTEXTS))
    queries([(b, context - 1, context) for b, context in everyone])  # a batch of decodes
    for b, context in everyone:
        queries([(b, context - 1, context)])  # one decode
        queries([(b, context // 2, context)])  # the second chunk of a prompt
        queries([(b, 0, max(1, context // 3))])  # the first
    queries([(b, context - 1 - context // 2 * (b % 2), context) for b, context in everyone])  # a mixed step


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
