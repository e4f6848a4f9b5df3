"""Text to token ids: the model's tokenizer.json and its chat template.

Reads the model's folder with `tokenizers` and jinja2 alone: neither torch nor transformers is imported.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from penstock.errors import InvalidJob, PenstockError
from penstock.messages import Job, Message


class TokenizerMissing(PenstockError):
    """The model's folder has no tokenizer that can be loaded."""


class PromptTooLong(Exception):
    """The prompt does not fit the model's window; the message says by how much."""


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
        self._template = ChatTemplate.load(folder, config)

    def encode(self, job: Job, limit: int) -> list[int]:
        """Token ids of the job's prompt, special tokens included as the model wants them.

        Raises:
            InvalidJob: the template refuses the messages, or a token id is not in the vocabulary.
            PromptTooLong: there are more than `limit` tokens.
        """
        if job.prompt_token_ids is not None:
            ids = self._checked(job.prompt_token_ids)
        elif job.messages is not None:
            text = self._render(job.messages, job.chat_template_kwargs, answered=job.kind == "generate")
            ids = self._tokenize(text, limit, add_special_tokens=False)
        else:
            assert job.prompt is not None
            ids = self._tokenize(job.prompt, limit, add_special_tokens=True)
        if not ids:
            raise InvalidJob("the prompt has no tokens; it needs at least one")
        if len(ids) > limit:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens; the model's window takes {limit}")
        return ids

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

    def _tokenize(self, text: str, limit: int, *, add_special_tokens: bool) -> list[int]:
        if self._longest_token is not None:
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

    def _render(self, messages: list[Message], variables: dict[str, Any], *, answered: bool) -> str:
        if self._template is None:
            raise InvalidJob("this model has no chat template; send `prompt` instead of `messages`")
        return self._template.render(messages, variables, answered=answered)


class ChatTemplate:
    """A model's chat template in a sandbox, with the helpers that templates of the field expect."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        helpers: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.globals.update(helpers)
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any]) -> ChatTemplate | None:
        """From chat_template.jinja, else from tokenizer_config.json; None where the model has none."""
        path = folder / "chat_template.jinja"
        source = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
        if isinstance(source, list):  # several named templates
            named = {entry["name"]: entry["template"] for entry in source}
            source = named.get("default")
        if not isinstance(source, str):
            return None
        return cls(source, _special_tokens(config))

    def render(self, messages: list[Message], variables: dict[str, Any], *, answered: bool = True) -> str:
        """The conversation as one text; where it is to be `answered`, ready for the assistant's turn.

        Raises:
            InvalidJob: with the template's own words where it refuses the conversation.
        """
        reserved = {"messages", "add_generation_prompt", *self._special_tokens} & variables.keys()
        if reserved:
            raise InvalidJob(f"`chat_template_kwargs` may not set {', '.join(sorted(reserved))}")
        try:
            return self._template.render(
                **self._special_tokens,
                **variables,
                messages=[_as_dict(message) for message in messages],
                add_generation_prompt=answered,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise InvalidJob(f"the chat template refuses these messages: {error}") from None


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


def _as_dict(message: Message) -> dict[str, str]:
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    fields = {"role": message.role, "content": text}
    return fields if message.name is None else {**fields, "name": message.name}


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            tokens[name] = value
    return tokens


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def _tojson(value: Any, indent: int | None = None) -> str:
    # Not jinja's own filter, which escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
