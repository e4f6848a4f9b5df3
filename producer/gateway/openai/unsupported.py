"""What a request may name but not ask for: the engine could not honour it, and it would change the answer.

The fields exist in the request structs with the one value that changes nothing. Any other is refused with
these words rather than silently left out.
"""

from __future__ import annotations

import re
from typing import Final

_REASONS: Final = {
    "audio": "the model writes text alone",
    "best_of": "outputs are not ranked; ask for `n` and choose",
    "cache_salt": "the prefix cache holds no secrets to keep apart; leave it out",
    "chat_template": "the template is the model's own; `chat_template_kwargs` are given to it",
    "function_call": "use `tool_choice`",
    "functions": "use `tools`",
    "kv_transfer_params": "there is no such transfer here",
    "length_penalty": "there is no beam search here; 1 is what it can be",
    "logits_processors": "no code is taken from requests; use `logit_bias`, `allowed_token_ids`, `bad_words`",
    "mm_processor_kwargs": "the model reads text alone",
    "modalities": 'the model reads and writes text: `["text"]`',
    "moderation": "nothing is moderated here",
    "prediction": "there are no predicted outputs here",
    "priority": "priorities are lanes, and a key has its own; 0 is what it can be",
    "prompt_cache_options": "the prefix cache keeps what it can; leave it out",
    "prompt_embeds": "prompts are text or token ids",
    "service_tier": "there is one tier: `auto` or `default`",
    "store": "nothing is stored but the job's result, for as long as the queue keeps it",
    "suffix": "the engine completes, it does not insert",
    "use_beam_search": "there is no beam search here",
    "verbosity": "say it in the prompt; `medium` is what it can be",
    "vllm_xargs": "they would have no effect",
    "web_search_options": "the model has no web search",
}

_PARTS: Final = re.compile(r"messages\[\d+\]\.content\[\d+\]\.type")


def reason_against(path: str) -> str | None:
    """Why a field with this path can't be honoured; None where its value is just wrong."""
    if _PARTS.fullmatch(path):
        return "the model reads text alone; a content part is of type `text`"
    return _REASONS.get(re.split(r"[.\[]", path, maxsplit=1)[0])
