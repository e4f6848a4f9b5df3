"""What a device's runner is made of: packed copies, padded decodes, a cache of another type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.graphs import DecodeGraphs, DecodeInputs, ladder
from engine.inputs import StepArrays
from engine.kv_cache import KVStorage, block_bytes
from engine.request import Request, RequestParams, Sample
from engine.transfer import Download, Uploader, pack, unpack
from kernels.attention import FP8
from tests.engine.on_device import engine_on_device
from tests.engine.run import engine_of, greedy, run, tokens_of
from tests.engine.tiny_models import random_prompts


def test_arrays_are_copied_as_one_and_come_out_as_they_were() -> None:
    arrays = [
        np.arange(7, dtype=np.int64),
        np.array([True, False, True]),
        np.zeros((0, 4), dtype=np.float32),
        np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
        np.array([1.5, -2.0], dtype=np.float32),
    ]
    packed = pack(arrays, pinned=False)
    copies = [tensor.clone() for tensor in unpack(packed, arrays)]
    uploaded = Uploader(torch.device("cpu"))(*arrays)
    for array, copy, tensor in zip(arrays, copies, uploaded, strict=True):
        assert tensor.shape == array.shape
        assert tensor.is_contiguous()
        np.testing.assert_array_equal(copy.numpy(), array)
        np.testing.assert_array_equal(tensor.numpy(), array)
    arrays[0][:] = 0
    assert uploaded[0].tolist() == list(range(7))  # a copy: the host goes on writing to its own
    with pytest.raises(AssertionError, match="expected"):
        unpack(packed, arrays[:2])


def test_downloads_come_in_order() -> None:
    tensors = [torch.arange(3), torch.ones(2, 2)]
    assert all(torch.equal(a, b) for a, b in zip(Download(tensors).wait(), tensors, strict=True))
    assert Download([]).wait() == []


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 8, 15, 16, 17, 256, 300])
def test_every_batch_has_a_graph_that_is_not_much_greater(max_num_seqs: int) -> None:
    sizes = ladder(max_num_seqs)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_num_seqs
    for num_seqs in range(1, max_num_seqs + 1):
        size = next(size for size in sizes if size >= num_seqs)
        assert size < 2 * num_seqs or size <= num_seqs + 15


def test_decodes_are_padded_with_rows_that_belong_to_nobody() -> None:
    seen: list[dict[str, list[int]]] = []

    def remember(inputs: DecodeInputs) -> torch.Tensor:
        names = ("token_ids", "sources", "positions", "slots", "rows", "context_lens")
        seen.append({name: getattr(inputs, name).tolist() for name in names})
        return inputs.slots[:, None].float()

    graphs = DecodeGraphs(remember, 6, torch.device("cpu"))
    graphs.record()
    assert [len(inputs["rows"]) for inputs in seen] == [6, 4, 2, 1]
    rows = np.array([5, 0, 3])
    arrays = StepArrays(
        rows=rows,
        bounds=np.arange(4),
        ends=np.array([9, 2, 33]),
        token_rows=rows,
        token_ids=np.array([7, 8, 9]),
        positions=np.array([8, 1, 32]),
        slots=np.array([40, 50, 60]),
        last_tokens=np.arange(3),
    )
    assert arrays.decodes_only
    hidden = graphs.replay(arrays, np.array([5, -1, 3]))
    assert hidden.tolist() == [[40.0], [50.0], [60.0]]
    assert seen[-1] == {
        "token_ids": [7, 8, 9, 0],
        "sources": [5, -1, 3, -1],
        "positions": [8, 1, 32, 0],
        "slots": [40, 50, 60, 0],
        "rows": [5, 0, 3, 6],
        "context_lens": [9, 2, 33, 1],
    }


@pytest.mark.parametrize("graphs", [False, True])
def test_overlapped_steps_give_what_the_plain_runner_gives(
    graphs: bool, tiny_model: Callable[[str], Path]
) -> None:
    """Samples share a partial block, which is copied; rows come and go, so that theirs differ from places."""

    def requests() -> list[Request]:
        return [
            Request(
                request_id=str(i),
                prompt_token_ids=prompt,
                params=RequestParams(
                    max_tokens=4 + 3 * (i % 4), seed=i, temperature=1.0, repetition_penalty=1.5
                ),
                samples=[Sample(index=index) for index in range(1 + i % 2)],
            )
            for i, prompt in enumerate(random_prompts(10, longest=14))
        ]

    settings = {"block_size": 4, "max_num_seqs": 5, "max_num_batched_tokens": 12, "num_blocks": 24}
    folder = tiny_model("qwen3")
    plain = run(engine_of(folder, **settings), requests())
    device = run(engine_on_device(folder, graphs=graphs, overlap=1, **settings), requests())
    for request in requests():
        for sample in request.samples:
            want = tokens_of(plain[request.request_id], sample.index)
            assert tokens_of(device[request.request_id], sample.index) == want


@pytest.mark.parametrize(
    ("ops", "kv_cache_dtype", "dtype"), [("reference", "fp8", FP8), ("cpu", "int8", torch.int8)]
)
def test_a_cache_of_8_bits_answers_almost_as_the_exact_one(
    ops: str, kv_cache_dtype: str, dtype: torch.dtype, tiny_model: Callable[[str], Path]
) -> None:
    """Rounding keys and values moves logits a little: most first tokens stay."""
    requests = [
        Request(request_id=str(i), prompt_token_ids=prompt, params=greedy(6))
        for i, prompt in enumerate(random_prompts(24, longest=40))
    ]

    def answers(kv_cache_dtype: str, dtype: torch.dtype) -> list[list[int]]:
        engine = engine_of(tiny_model("qwen3"), ops=ops, kv_cache_dtype=kv_cache_dtype, block_size=4)
        assert engine.runner.cache[0].keys.dtype == dtype
        outputs = run(engine, requests)
        return [tokens_of(outputs[request.request_id]) for request in requests]

    exact, rounded = answers("auto", torch.float32), answers(kv_cache_dtype, dtype)
    same = sum(a[0] == b[0] for a, b in zip(exact, rounded, strict=True))
    assert same >= 18
    assert exact != rounded, "nothing was rounded"


def test_blocks_are_copied_in_every_layer_with_their_scales(tiny_model: Callable[[str], Path]) -> None:
    model = engine_of(tiny_model("qwen3"), ops="reference").runner.model
    storage = KVStorage(model, 3, 4, FP8)
    shape = model.attention_shapes[0]
    for i, layer in enumerate(storage.layers):
        assert layer.key_scales is not None
        assert layer.value_scales is not None
        layer.keys.view(torch.uint8)[1] = 10 + i
        layer.values.view(torch.uint8)[1] = 20 + i
        layer.key_scales[1], layer.value_scales[1] = 0.5 + i, 0.25 + i
    storage.copy_blocks(torch.tensor([1]), torch.tensor([3]))
    for i, layer in enumerate(storage.layers):
        assert (layer.keys.view(torch.uint8)[3] == 10 + i).all()
        assert (layer.values.view(torch.uint8)[3] == 20 + i).all()
        assert (layer.key_scales[3] == 0.5 + i).all()
        assert (layer.value_scales[3] == 0.25 + i).all()
        assert not layer.keys.view(torch.uint8)[2].any()
    storage.clear_blocks(torch.tensor([3]))
    for layer in storage.layers:
        assert layer.key_scales is not None
        assert layer.value_scales is not None
        assert not layer.key_scales[3].any()
        assert not layer.value_scales[3].any()
        assert layer.key_scales[1].all()
    held = sum(
        tensor.numel() * tensor.itemsize
        for layer in storage.layers
        for tensor in (layer.keys, layer.values, layer.key_scales, layer.value_scales)
    )
    assert held == 4 * block_bytes(model.num_layers, shape.num_kv_heads, shape.head_dim, 4, FP8)
