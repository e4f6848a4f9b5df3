"""A shape's dummy weights as llama.cpp reads them: the same numbers that our engine is given.

Names of tensors and metadata: gguf-py's constants in github.com/ggml-org/llama.cpp, for its architectures
`qwen3` and `llama`. There is no tokenizer: token ids are all that a benchmark needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.engine.gguf_file import GGUFTensor, TensorType, Value, write_gguf
from benchmarks.engine.shapes import ModelShape
from engine.loading import describe
from engine.models.folder import read_config
from engine.models.spec import DecoderSpec, Param
from engine.models.weights import DummyWeights

FILE_TYPES: dict[TensorType, int] = {"F32": 0, "F16": 1, "Q8_0": 7}
"""As `general.file_type` numbers what most of a file is in."""
NORMS = {
    "attention_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
}
MATRICES = {"out": "attn_output", "down": "ffn_down"}


def write_model(shape: ModelShape, folder: Path, kind: TensorType, path: Path) -> None:
    """folder: has the shape's config.json. kind: of matrices; norms are F32."""
    spec = describe(read_config(folder))
    assert isinstance(spec, DecoderSpec), "a shape of ours"
    write_gguf(path, metadata(shape, kind), _tensors(shape, spec, kind))


def metadata(shape: ModelShape, kind: TensorType) -> dict[str, Value]:
    """What llama.cpp wants to know of a model."""
    arch, config = shape.model_type, shape.config()
    return {
        "general.architecture": arch,
        "general.name": shape.name,
        "general.file_type": FILE_TYPES[kind],
        f"{arch}.vocab_size": shape.vocab_size,
        f"{arch}.context_length": shape.max_position_embeddings,
        f"{arch}.embedding_length": shape.hidden_size,
        f"{arch}.block_count": shape.num_layers,
        f"{arch}.feed_forward_length": shape.intermediate_size,
        f"{arch}.attention.head_count": shape.num_heads,
        f"{arch}.attention.head_count_kv": shape.num_kv_heads,
        f"{arch}.attention.key_length": shape.head_dim,
        f"{arch}.attention.value_length": shape.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{arch}.rope.freq_base": float(shape.rope_theta),
        f"{arch}.rope.dimension_count": shape.head_dim,
        "tokenizer.ggml.model": "none",
    }


def _tensors(shape: ModelShape, spec: DecoderSpec, kind: TensorType) -> Iterator[GGUFTensor]:
    weights = DummyWeights(torch.float32)
    outer = {param.name: param for param in spec.outer_params}

    def tensor(name: str, kind: TensorType, size: tuple[int, ...], read: Callable[[], Tensor]) -> GGUFTensor:
        return GGUFTensor(f"{name}.weight", size, kind, read)

    embedding, final_norm = outer["embedding"], outer["final_norm"]
    yield tensor("token_embd", kind, embedding.shape, partial(weights.read, embedding))
    yield tensor("output_norm", "F32", final_norm.shape, partial(weights.read, final_norm))
    if not spec.tied:
        yield tensor("output", kind, spec.lm_head.shape, partial(weights.read, spec.lm_head))
    for i, layer in enumerate(spec.layers):
        for param in layer.params:
            if param.name in NORMS:
                read = partial(weights.read, param, i)
                yield tensor(f"blk.{i}.{NORMS[param.name]}", "F32", param.shape, read)
                continue
            start = 0
            for name, rows, heads in _parts(shape, param):
                read = partial(_rows, weights, (param, i), (start, rows), heads)
                yield tensor(f"blk.{i}.{name}", kind, (rows, param.shape[1]), read)
                start += rows


def _parts(shape: ModelShape, param: Param) -> list[tuple[str, int, int]]:
    """Of a matrix that our engine has fused: each part's name, its rows, and the heads to permute, if any."""
    turned = shape.model_type == "llama"
    if param.name == "qkv":
        heads = (shape.num_heads, shape.num_kv_heads) if turned else (0, 0)
        return [
            ("attn_q", shape.q_size, heads[0]),
            ("attn_k", shape.kv_size, heads[1]),
            ("attn_v", shape.kv_size, 0),
        ]
    if param.name == "gate_up":
        return [("ffn_gate", shape.intermediate_size, 0), ("ffn_up", shape.intermediate_size, 0)]
    return [(MATRICES[param.name], param.shape[0], 0)]


def _rows(weights: DummyWeights, where: tuple[Param, int], rows: tuple[int, int], heads: int) -> Tensor:
    """heads: llama.cpp turns neighbours in its architecture `llama`, and not the halves of a head, so that
    rows have to be in another order to mean the same."""
    start, count = rows
    part = weights.read(*where)[start : start + count]
    if heads:
        part = part.view(heads, 2, -1, part.shape[1]).transpose(1, 2).reshape(part.shape)
    return part
