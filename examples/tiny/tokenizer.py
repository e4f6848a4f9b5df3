"""The tiny model's tokenizer: single bytes, special tokens, and the fixed words of the questions.

A word of the question templates is one token where it stands alone; every other text is its UTF-8 bytes,
so digits are single tokens, letters can be reversed and counted, and any text round-trips.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from wording import TEMPLATE_WORDS

PAD, BOS, END, SYSTEM, USER, ASSISTANT = (
    "<|pad|>",
    "<|bos|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
SPECIAL_TOKENS = (PAD, BOS, END, SYSTEM, USER, ASSISTANT)
CONTEXT = 512

CHAT_TEMPLATE = (
    "{{ '<|bos|>' }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def chat_text(messages: list[tuple[str, str]]) -> str:
    """The text of a whole conversation, as the chat template renders it."""
    return BOS + "".join(f"<|{role}|>{content}{END}" for role, content in messages)


def _vocabulary() -> dict[str, int]:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    space = byte_level.pre_tokenize_str(" ")[0][0]
    tokens = list(SPECIAL_TOKENS) + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += [prefix + word for word in sorted(TEMPLATE_WORDS) for prefix in ("", space)]
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> Tokenizer:
    """The tokenizer, made from nothing but the word list; it has no trained merges."""
    # ignore_merges looks a whole pre-token up before anything else: a template word becomes one token,
    # and with no merges at all every other pre-token falls apart into bytes.
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(), merges=[], ignore_merges=True))
    specials = [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, the chat template included."""
    build_tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        # Named, so that no loader rebuilds the pre-tokenizer after the model's family.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
