"""A job's prompt to token ids: the model's tokenizer.json, and its chat template where there are messages.

Reads the model's folder with `tokenizers` and jinja2 alone: neither torch nor transformers is imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from tokenizers import Tokenizer

from consumer.chat_template import ChatTemplate
from penstock.errors import InvalidJob, PenstockError
from penstock.messages import Job


class TokenizerMissing(PenstockError):
    """The model's folder has no tokenizer that can be loaded."""


class PromptTooLong(Exception):
    """The prompt does not fit the model's window; the message says by how much."""


class Prompt(Struct, frozen=True, kw_only=True):
    """What the model is prompted with."""

    token_ids: list[int]
    text: str | None
    """As given or rendered; None where only the tokens tell."""


class PromptTokenizer:
    """Encodes jobs' prompts. `tokenizer` may decode in another thread meanwhile."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerMissing(
                f"{folder} has no tokenizer.json; save one with transformers' "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
            )
        self.tokenizer: Any = Tokenizer.from_file(str(path))  # typed as Any: its stubs are partial
        self.tokenizer.no_truncation()  # a file may ask for it, and a prompt is never cut unasked
        self.tokenizer.no_padding()
        self._vocab_size = vocab_size
        self._longest_token = _longest_token(path)
        config = _read_json(folder / "tokenizer_config.json")
        self.template = ChatTemplate.load(folder, config)
        """None where the model has none."""

    def encode(self, job: Job, limit: int) -> Prompt:
        """The job's prompt as tokens, special tokens included as the model, or the job, wants them.

        Raises:
            InvalidJob: the template refuses the messages, or a token id is not in the vocabulary.
            PromptTooLong: there are more than `limit` tokens.
        """
        kept = _num_kept(job, limit)
        if job.prompt_token_ids is not None:
            text, ids = None, self._checked(job.prompt_token_ids)
        else:
            text = job.prompt if job.prompt is not None else self._render(job)
            add = job.messages is None if job.add_special_tokens is None else job.add_special_tokens
            ids = self._tokenize(text, None if kept else limit, add_special_tokens=add)
        if kept is not None and len(ids) > kept:
            text, ids = None, ids[-kept:]
        if not ids:
            raise InvalidJob("the prompt has no tokens; it needs at least one")
        if len(ids) > limit:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens; the model's window takes {limit}")
        return Prompt(token_ids=ids, text=text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt's tokens, special tokens included."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)

    def bad_words(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token sequences of words that are not to be written, as vLLM makes them.

        Each word is taken as it begins a text, and, where that is as many tokens and another first one, as
        it follows a space. Sources: vLLM's `SamplingParams.update_from_tokenizer` and its documentation.

        Raises:
            InvalidJob: a word is blank, or has a token that the model does not.
        """
        sequences: list[tuple[int, ...]] = []
        for word in words:
            bare, spaced = (self._bad_word(space + word.lstrip(), word) for space in ("", " "))
            sequences.append(bare)
            if spaced[0] != bare[0] and len(spaced) == len(bare):
                sequences.append(spaced)
        return tuple(sequences)

    def _bad_word(self, text: str, word: str) -> tuple[int, ...]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids if text.strip() else []
        if not ids or max(ids) >= self._vocab_size:
            raise InvalidJob(f"`bad_words` has {word!r}, which is no word to this model's tokenizer")
        return tuple(ids)

    def _tokenize(self, text: str, limit: int | None, *, add_special_tokens: bool) -> list[int]:
        if self._longest_token is not None and limit is not None:
            # Megabytes that cannot fit are not worth seconds of tokenizing.
            least = len(text.encode()) // self._longest_token
            if least > limit:
                raise PromptTooLong(
                    f"the prompt has at least {least} tokens; the model's window takes {limit}"
                )
        # A batch of one: unlike `encode`, it lets go of the interpreter's lock, so that a long prompt does
        # not stop the event loop and with it the renewal of leases.
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def _checked(self, ids: list[int]) -> list[int]:
        largest = max(ids)
        if largest >= self._vocab_size:
            raise InvalidJob(
                f"`prompt_token_ids` has {largest}; this model's ids go from 0 to {self._vocab_size - 1}"
            )
        return ids

    def _render(self, job: Job) -> str:
        if self.template is None:
            raise InvalidJob("this model has no chat template; send `prompt` instead of `messages`")
        return self.template.render(job)


def _num_kept(job: Job, limit: int) -> int | None:
    """To how many tokens, its last, the prompt is cut; None where it is not."""
    wanted = job.truncate_prompt_tokens
    if wanted is None or wanted > 0:
        return wanted
    params = job.sampling_params
    kept = limit
    if job.kind == "generate":  # the limit leaves room for one new token
        kept = limit + 1 - (params.max_tokens or params.min_tokens or 1)
    if kept < 1:
        raise InvalidJob(
            "`truncate_prompt_tokens` is -1, and the output's tokens leave no room for a prompt in the "
            f"model's window of {limit + 1}"
        )
    return kept


def _longest_token(path: Path) -> int | None:
    """Most bytes of text that one token may stand for; None where that cannot be told from the file.

    A byte-level vocabulary writes each byte as one character, and drops none. Of the normalizers, NFC is
    known to shrink a text to no less than a quarter.
    """
    config = _read_json(path)
    normalizer = (config.get("normalizer") or {}).get("type")
    if (config.get("decoder") or {}).get("type") != "ByteLevel" or normalizer not in (None, "NFC"):
        return None
    added = [len(token["content"].encode()) for token in config.get("added_tokens", ())]
    longest = max([*map(len, config["model"]["vocab"]), *added])
    return longest * (4 if normalizer else 1)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))
