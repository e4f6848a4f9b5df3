"""From a model's name to a local folder: the folder itself, or a snapshot from the Hugging Face hub."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from engine.errors import ModelError, ModelNotFound, UnsupportedModel, WeightsError
from engine.models.families import FAMILIES
from engine.models.plain_config import read_plain_config

log = logging.getLogger(__name__)

ALLOW_PATTERNS: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""What is fetched from the hub: configs, weights, tokenizer and chat template. Never pickles or code."""
IGNORE_PATTERNS: Final = ("*/*", "consolidated*", "model.*.safetensors", "model-*.*.safetensors")
"""Of these, what is not: subfolders, Mistral's own copy of the weights, variants (model.fp16.safetensors)."""


def resolve_folder(
    model: str, on_phase: Callable[[str], None] = lambda phase: None, *, with_weights: bool = True
) -> Path:
    """The local folder of a model: a path, or a hub id, which is fetched (or found in the hub's local cache),
    without its weights if they are not wanted.

    The user's hub token is used where there is one (HF_TOKEN, or `hf auth login`). Raises ModelNotFound, and
    WeightsError for a hub model without safetensors.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFound(f"the folder {model} has no config.json: it is not a model folder")
        return path.resolve()
    if path.exists():
        raise ModelNotFound(f"{model} is a file: a folder with config.json and safetensors is needed")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelNotFound(f"there is no folder {model} (and a hub id looks like OWNER/NAME)")
    on_phase(f"downloading {model}")
    folder = _snapshot(model, ALLOW_PATTERNS if with_weights else ("*.json", "*.jinja"))
    if with_weights and not any(folder.glob("*.safetensors")):
        raise WeightsError(
            f"{model} on the hub has no weights as .safetensors; .bin (pickle) can run code when opened and "
            "is not read: convert it in a place that you trust, with "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER), and give FOLDER as the model"
        )
    return folder


def _snapshot(model: str, allow_patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                model, allow_patterns=list(allow_patterns), ignore_patterns=list(IGNORE_PATTERNS)
            )
        )
    except GatedRepoError as error:
        raise ModelNotFound(
            f"{model} is gated: accept its terms on https://huggingface.co/{model}, "
            "then set HF_TOKEN or run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{model} is neither a folder here nor a model on the hub that you may see "
            "(a private one needs HF_TOKEN or `hf auth login`)"
        ) from error
    except HFValidationError as error:
        raise ModelNotFound(f"{model} is neither a folder here nor a hub id: {error}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelNotFound(
            f"{model} is not in the local hub cache, and the hub cannot be reached "
            "(no network, or HF_HUB_OFFLINE is set)"
        ) from error
    except Exception as error:  # httpx, Xet and the file system each have types of their own
        raise ModelNotFound(
            f"{model} could not be downloaded from the hub: {str(error) or repr(error)} "
            "(a private or gated model needs HF_TOKEN; without a network, give a local folder)"
        ) from error


def read_config(folder: Path) -> Any:
    """The folder's config as transformers understands it, by `read_plain_config` where that can. Raises
    UnsupportedModel or ModelError."""
    path = folder / "config.json"
    _read_json(path)  # which says what is wrong
    return read_plain_config(path.read_bytes()) or transformers_config(folder)


def transformers_config(folder: Path) -> Any:
    """The folder's config by transformers itself. Raises UnsupportedModel or ModelError."""
    from transformers import AutoConfig

    raw = _read_json(folder / "config.json")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        model_type = raw.get("model_type")
        if any(family.model_type == model_type for family in FAMILIES.values()):
            raise ModelError(f"{folder / 'config.json'} is invalid: {error}") from error
        named = ", ".join(raw.get("architectures") or []) or f"of model_type {model_type!r}"
        raise UnsupportedModel(
            f"architecture {named} is not supported: transformers does not know its config "
            f"({str(error).splitlines()[0]}); supported are {', '.join(FAMILIES)}"
        ) from error
    except Exception as error:  # a config that its own class rejects: transformers raises many types
        raise ModelError(f"{folder / 'config.json'} cannot be read: {error}") from error


def eos_token_ids(folder: Path, config: Any) -> list[int]:
    """The model's end tokens, as far as its vocabulary has them: those of config.json and
    generation_config.json, each an id or a list, and the tokenizer's. Raises ModelError.

    The last is what ends an answer of many a chat model that was tuned from a base model and kept its
    configs (ChatML's `<|im_end|>`); vLLM counts all three as well.
    """
    sources: list[tuple[str, Any]] = [("config.json", config.eos_token_id)]
    path = folder / "generation_config.json"
    if path.is_file():
        sources.append((path.name, _read_json(path).get("eos_token_id")))
    sources.append(("tokenizer_config.json", _tokenizer_eos(folder)))
    ids: set[int] = set()
    for name, value in sources:
        listed: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
        for token_id in listed:
            if not isinstance(token_id, int) or isinstance(token_id, bool):
                raise ModelError(
                    f"{folder / name}: eos_token_id is {value!r}; it must be an id or a list of ids"
                )
            if 0 <= token_id < getattr(config, "vocab_size", math.inf):
                ids.add(token_id)
            else:  # the model cannot generate it
                log.warning("%s names the end token %d, which the vocabulary does not have", name, token_id)
    return sorted(ids)


def _tokenizer_eos(folder: Path) -> int | None:
    """Id of the `eos_token` that tokenizer_config.json names; None where there is none."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    config = _read_json(path)
    token = config.get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str):
        return None
    for token_id, added in (config.get("added_tokens_decoder") or {}).items():
        if added.get("content") == token:
            return int(token_id)
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    tokenizer = _read_json(path)  # some megabytes: looked at last
    for added in tokenizer.get("added_tokens") or ():
        if added.get("content") == token:
            return added["id"]
    vocab = tokenizer.get("model", {}).get("vocab")  # of a Unigram model, pairs of text and score
    if isinstance(vocab, list):
        return next((number for number, (text, _) in enumerate(vocab) if text == token), None)
    return (vocab or {}).get(token)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object")
    return content
