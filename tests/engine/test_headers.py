"""The hub's real tensor names: models saved by transformers hide them, so each family keeps one header.

A fixture is a checkpoint's config.json and its tensors: names, with `{i}` for the layer and `{e}` for the
expert, and shapes; `ignored` are those that the model does not need, with their types.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import WeightsError
from engine.models.checkpoint import TensorHeader, find_sources
from engine.models.families import FAMILIES, spec_of
from engine.models.folder import read_config
from engine.models.spec import DecoderSpec

FIXTURES = {
    path.stem: path for path in sorted((Path(__file__).parent / "fixtures" / "headers").glob("*.json"))
}


def expand(pattern: str, num_layers: int, num_experts: int) -> list[str]:
    names = [pattern.replace("{i}", str(i)) for i in range(num_layers)] if "{i}" in pattern else [pattern]
    return [name.replace("{e}", str(e)) for name in names for e in range(num_experts if "{e}" in name else 1)]


def load(name: str, folder: Path) -> tuple[DecoderSpec, dict[str, TensorHeader], set[str], Any]:
    """The spec, all tensors of the header, those that the model needs, and the fixture."""
    fixture = json.loads(FIXTURES[name].read_text())
    (folder / "config.json").write_text(json.dumps(fixture["config"]))
    spec = spec_of(read_config(folder))
    num_experts = spec.moe.num_experts if spec.moe else 0
    headers: dict[str, TensorHeader] = {}
    for pattern, shape in fixture["tensors"].items():
        for tensor in expand(pattern, spec.num_layers, num_experts):
            headers[tensor] = TensorHeader(tuple(shape), fixture["dtype"])
    needed = set(headers)
    for pattern, (dtype, *shape) in fixture["ignored"].items():
        for tensor in expand(pattern, spec.num_layers, num_experts):
            headers[tensor] = TensorHeader(tuple(shape), dtype)
    return spec, headers, needed, fixture


@pytest.mark.parametrize("name", FIXTURES)
def test_the_spec_asks_for_exactly_the_tensors_of_the_header(name: str, tmp_path: Path) -> None:
    spec, headers, needed, _ = load(name, tmp_path)
    sources = find_sources(spec, headers, name)
    assert {tensor for group in sources.values() for tensor, _ in group} == needed


@pytest.mark.parametrize("name", FIXTURES)
def test_every_tensor_of_the_header_is_missed_if_it_is_gone(name: str, tmp_path: Path) -> None:
    spec, headers, _, fixture = load(name, tmp_path)
    for pattern in fixture["tensors"]:
        tensor = pattern.replace("{i}", "1").replace("{e}", "2")
        others = {other: header for other, header in headers.items() if other != tensor}
        with pytest.raises(WeightsError, match="found no such tensor"):
            find_sources(spec, others, name)


def test_every_family_has_a_header(tmp_path: Path) -> None:
    architectures = {json.loads(path.read_text())["config"]["architectures"][0] for path in FIXTURES.values()}
    assert architectures == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.1-8b", 8.03),
        ("mistral-7b-v0.1", 7.24),
        ("mixtral-8x7b", 46.7),
        ("qwen3-30b-a3b", 30.53),
        ("qwen3-0.6b", 0.596),
        ("gemma-2-2b", 2.614),
        ("gemma-3-1b", 1.0),
        ("phi-3-mini", 3.82),
        ("falcon-7b", 6.92),
        ("falcon-40b", 41.3),
        ("bloom-560m", 0.559),
        ("gpt2", 0.124),
        ("gpt-neox-20b", 20.55),
        ("starcoder", 15.52),
        ("starcoder2-3b", 3.03),
        ("olmo-2-7b", 7.3),
        ("smollm3-3b", 3.08),
    ],
)
def test_parameters_are_as_many_as_the_model_is_known_for(name: str, billions: float, tmp_path: Path) -> None:
    spec, *_ = load(name, tmp_path)
    assert spec.num_parameters / 1e9 == pytest.approx(billions, rel=0.005)
