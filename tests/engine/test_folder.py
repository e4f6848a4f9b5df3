"""Finding a model: a folder, or a hub id; and what is fetched of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from engine.errors import ModelNotFound, WeightsError
from engine.models.folder import resolve_folder

SINGLE = "model.safetensors"


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        resolve_folder(str(tmp_path))
    with pytest.raises(ModelNotFound, match="there is no folder"):
        resolve_folder(str(tmp_path / "nowhere"))
    with pytest.raises(ModelNotFound, match="there is no folder just-a-name"):
        resolve_folder("just-a-name")
    (tmp_path / "file").touch()
    with pytest.raises(ModelNotFound, match="is a file"):
        resolve_folder(str(tmp_path / "file"))


def test_hub_offline_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"not in the local hub cache.*HF_HUB_OFFLINE"):
        resolve_folder("penstock-tests/no-such-model")


WANTED = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "merges.txt",
    "chat_template.jinja",
]
UNWANTED = [
    "pytorch_model.bin",
    "tokenizer_pkl.bin",
    "weights.pth",
    "tokenizer.py",
    "modeling_custom.py",
    "model.gguf",
    "consolidated.safetensors",
    "consolidated.00.pth",
    "original/consolidated.00.pth",
    "onnx/x.safetensors",
    "onnx/config.json",
    "model.fp16.safetensors",
    "model.fp16-00001-of-00002.safetensors",
    "model-00001-of-00002.fp16.safetensors",
]


def test_hub_models_are_fetched_without_pickles_code_or_copies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {}

    def fetching(repo_id: str, **patterns: list[str]) -> str:
        asked.update(repo_id=repo_id, patterns=patterns)
        return str(tmp_path)

    (tmp_path / SINGLE).touch()
    phases: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetching)
    assert resolve_folder("owner/name", phases.append) == tmp_path
    assert phases == ["downloading owner/name"]
    assert asked["repo_id"] == "owner/name"
    assert list(filter_repo_objects(WANTED + UNWANTED, **asked["patterns"])) == WANTED


def test_a_hub_model_without_safetensors_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo_id, **patterns: str(tmp_path))
    with pytest.raises(WeightsError, match=r"owner/name .*no weights as \.safetensors; \.bin \(pickle\)"):
        resolve_folder("owner/name")


class ReadTimeout(Exception):
    """Like httpx's errors, whose package has been renamed: no OSError, and often without a text."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError("refused", response=MagicMock()), "owner/name is gated: accept its terms"),
        (RepositoryNotFoundError("refused", response=MagicMock()), "that you may see"),
        (OSError("disk full"), "could not be downloaded from the hub: disk full .*HF_TOKEN"),
        (ReadTimeout("no route"), "could not be downloaded from the hub: no route .*local folder"),
        (ReadTimeout(), "could not be downloaded from the hub: ReadTimeout"),
        (RuntimeError("Data processing error: CAS service error"), "CAS service error"),  # Xet's
    ],
    ids=lambda value: type(value).__name__,
)
def test_hub_models_that_are_not_handed_out(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refusing(repo_id: str, **patterns: list[str]) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", refusing)
    with pytest.raises(ModelNotFound, match=words):
        resolve_folder("owner/name")


def test_dummy_weights_need_only_the_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def fetching(repo_id: str, **patterns: list[str]) -> str:
        asked.append(patterns["allow_patterns"])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetching)
    assert resolve_folder("owner/name", with_weights=False) == tmp_path
    assert asked == [["*.json", "*.jinja"]]
