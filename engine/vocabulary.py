"""A model's tokens as bytes, in the form that the grammar compiler walks over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from llguidance import LLTokenizer


class VocabularyUnavailable(Exception):
    """What bytes this model's tokens stand for cannot be told: its grammars cannot be followed."""


def load_vocabulary(folder: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """From the folder's tokenizer.json: 0.02 s for a small vocabulary, 0.6 s for 150,000 tokens.

    vocab_size is the logits' width: ids that the tokenizer does not have are padding, which no grammar
    allows. Understood are the decoders ByteLevel and ByteFallback, that is byte-level BPE and what comes from
    SentencePiece. Raises VocabularyUnavailable.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise VocabularyUnavailable(f"{folder} has no tokenizer.json")
    if not eos_token_ids:
        raise VocabularyUnavailable("the model names no end token, so that no output could end")
    try:
        text = _prepared(path.read_bytes(), vocab_size)
        # An absent slice list means the library's own, which fit most grammars.
        return LLTokenizer(text, n_vocab=vocab_size, eos_token=list(eos_token_ids))
    except (msgspec.DecodeError, ValueError) as error:
        raise VocabularyUnavailable(f"the tokens in {path} cannot be read as bytes: {error}") from error


def _prepared(data: bytes, vocab_size: int) -> str:
    """The file without what only disturbs: truncation, padding, and added tokens that have no logit.

    Everything else stays as it is, undecoded: a file may have tens of megabytes.
    """
    parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    parts["truncation"] = parts["padding"] = msgspec.Raw(b"null")
    if "added_tokens" in parts:
        added = msgspec.json.decode(parts["added_tokens"], type=list[dict[str, Any]])
        kept = [token for token in added if token["id"] < vocab_size]
        parts["added_tokens"] = msgspec.Raw(msgspec.json.encode(kept))
    return msgspec.json.encode(parts).decode()
