"""Which tokens end an output, from the files of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import ModelError
from engine.models.folder import eos_token_ids


def write(folder: Path, **files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def ids(folder: Path, eos_token_id: Any) -> list[int]:
    return eos_token_ids(folder, SimpleNamespace(eos_token_id=eos_token_id))


@pytest.mark.parametrize(("named", "expected"), [(None, []), (2, [2]), ([5, 2], [2, 5])])
def test_an_id_or_a_list_of_them(tmp_path: Path, named: Any, expected: list[int]) -> None:
    assert ids(tmp_path, named) == expected


def test_both_configs_count(tmp_path: Path) -> None:
    write(tmp_path, generation_config={"eos_token_id": [3, 2]})
    assert ids(tmp_path, 2) == [2, 3]


@pytest.mark.parametrize("eos_token", ["<|im_end|>", {"content": "<|im_end|>", "special": True}])
@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer": {"added_tokens": [{"id": 7, "content": "<|im_end|>"}, {"id": 8, "content": "x"}]}},
        {"tokenizer": {"added_tokens": [], "model": {"vocab": {"a": 0, "<|im_end|>": 7}}}},
        {"tokenizer": {"model": {"vocab": [*[["a", 0.0]] * 7, ["<|im_end|>", 0.0]]}}},
    ],
    ids=["added", "vocabulary", "unigram"],
)
def test_the_tokenizers_end_token_counts(tmp_path: Path, eos_token: Any, files: dict[str, Any]) -> None:
    write(tmp_path, tokenizer_config={"eos_token": eos_token}, **files)
    assert ids(tmp_path, 2) == [2, 7]


def test_the_tokenizers_end_token_is_found_in_its_config(tmp_path: Path) -> None:
    added = {"7": {"content": "<|im_end|>"}, "8": {"content": "x"}}
    write(tmp_path, tokenizer_config={"eos_token": "<|im_end|>", "added_tokens_decoder": added})
    assert ids(tmp_path, 2) == [2, 7]


@pytest.mark.parametrize("eos_token", [None, "<unheard of>"])
def test_a_tokenizer_without_an_end_token_adds_none(tmp_path: Path, eos_token: Any) -> None:
    write(tmp_path, tokenizer_config={"eos_token": eos_token}, tokenizer={"model": {"vocab": {"a": 0}}})
    assert ids(tmp_path, 2) == [2]


def test_what_the_model_cannot_generate_does_not_count(tmp_path: Path) -> None:
    added = {"7": {"content": "<|im_end|>"}}
    write(tmp_path, tokenizer_config={"eos_token": "<|im_end|>", "added_tokens_decoder": added})
    assert eos_token_ids(tmp_path, SimpleNamespace(eos_token_id=2, vocab_size=7)) == [2]
    assert eos_token_ids(tmp_path, SimpleNamespace(eos_token_id=2, vocab_size=8)) == [2, 7]


def test_what_the_vocabulary_does_not_have_ends_nothing(tmp_path: Path) -> None:
    config = SimpleNamespace(eos_token_id=[3, 500, -1], vocab_size=468)
    assert eos_token_ids(tmp_path, config) == [3]


@pytest.mark.parametrize("named", ["1", ["1"], [[1]], [5.0, None], True])
def test_what_is_no_id_is_refused_in_words(tmp_path: Path, named: Any) -> None:
    with pytest.raises(ModelError, match=r"config\.json: eos_token_id is .*; it must be an id or a list"):
        ids(tmp_path, named)
