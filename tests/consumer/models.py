"""Tiny model folders that a consumer can load without an engine: a byte-level tokenizer and little else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

BOS, EOS = 256, 257
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _byte_characters() -> dict[str, int]:
    """GPT-2's map of printable stand-ins for bytes, turned round: character to byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    stand_ins = printable + [256 + n for n in range(len(rest))]
    return {chr(stand_in): byte for stand_in, byte in zip(stand_ins, printable + rest, strict=True)}


def byte_tokenizer(special: Sequence[str] = ()) -> Tokenizer:
    """Token id is byte value; 256 begins and 257 ends a text; `special` tokens are from 258 on."""
    tokenizer = Tokenizer(models.BPE(vocab=_byte_characters() | {"<s>": BOS, "</s>": EOS}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", *special])
    return tokenizer


def save_model(
    folder: Path,
    script: dict[str, Any] | None = None,
    template: str | None = TEMPLATE,
    special: Sequence[str] = (),
) -> Path:
    """A folder for the scripted engine: tokenizer, template and the engine's script."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_tokenizer(special).save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "script.json").write_text(json.dumps(script or {}))
    return folder
