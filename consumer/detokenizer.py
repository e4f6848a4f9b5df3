"""Token ids to text, token by token: only text that can no longer change, and no text beyond a stop string.

Two things hold text back. A character of several bytes may be spread over several tokens, which decode to
U+FFFD until the last has come. And the text's tail may be the beginning of a stop string. A token counts as
safe once all of its text is out; what is published always ends at a safe token, so that a consumer that
resumes from it generates the rest again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_UNDECIDED_TOKENS = 16
"""A character has four bytes at most: a longer run of undecodable tokens is noise and is let through."""
_CONTEXT_TOKENS = 5
"""Prompt tokens decoded in front of the first output token, as decoders treat a text's start specially."""


class TextRules(Struct, frozen=True, kw_only=True):
    """What becomes text and where it ends; see `penstock.messages.SamplingParams`."""

    stop: Sequence[str] = ()
    include_stop: bool = False
    """Leave the stop string, or the stop token's text, in the text."""
    min_tokens: int = 0
    """A stop string counts only if it ends behind the text of this many tokens, as in vLLM."""
    skip_special_tokens: bool = True
    dropped_token_ids: frozenset[int] | None = None
    """Which special tokens are left out where any are; None: all of them."""


class Detokenizer:
    """Text of one sample. `push` tokens, then read `text`, `stopped_by` and `take_safe()`."""

    def __init__(self, tokenizer: Any, prompt_token_ids: Sequence[int], rules: TextRules) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        self._ids = list(prompt_token_ids[-_CONTEXT_TOKENS:])
        self._first = len(self._ids)
        self._prefix = 0  # decoding starts here, so that the window stays short
        self._read = self._first  # tokens before this have given their text
        self._longest_stop = max(map(len, rules.stop), default=0)
        self._ends: list[int] = []  # per output token: where its text ends
        self._unscanned = 0  # stop strings that end before this do not count
        self._taken_tokens = 0
        self._taken_text = 0
        self.text = ""
        self.stopped_by: str | None = None

    @property
    def token_ids(self) -> list[int]:
        """Output tokens so far."""
        return self._ids[self._first :]

    @property
    def num_tokens(self) -> int:
        """How many output tokens there are so far."""
        return len(self._ids) - self._first

    def push(self, token_id: int) -> None:
        """Add one output token and scan the new text for stop strings."""
        self._ids.append(token_id)
        before = self._decode(self._prefix, self._read)
        window = self._decode(self._prefix, len(self._ids))
        if window.endswith(_REPLACEMENT) and len(self._ids) - self._read < _MAX_UNDECIDED_TOKENS:
            return  # an unfinished character, most likely: the next token tells
        self._advance(window[len(before) :])

    def push_end(self, token_id: int) -> None:
        """Add an end or stop token: it counts as output and gives no text, unless the rules include it."""
        if self._rules.include_stop:
            self.push(token_id)
            self.flush()
            return
        self.flush()
        self._ids.append(token_id)
        self._ends.append(len(self.text))
        self._prefix = self._read = len(self._ids)

    def flush(self) -> None:
        """Give up waiting: whatever is still undecided becomes text as it decodes."""
        if self._read < len(self._ids) and self.stopped_by is None:
            before = self._decode(self._prefix, self._read)
            self._advance(self._decode(self._prefix, len(self._ids))[len(before) :])

    def take_safe(self) -> tuple[list[int], str, int]:
        """Tokens whose text is safe and not taken yet: (token ids, their text, the text's offset)."""
        limit = len(self.text) - self._held_back()
        upto = self._taken_tokens
        while upto < len(self._ends) and self._ends[upto] <= limit:
            upto += 1
        # What an earlier run published may end in a character that is undecided to us.
        return self._take(upto, self._ends[upto - 1] if 0 < upto <= len(self._ends) else 0)

    def take_all(self) -> tuple[list[int], str, int]:
        """Everything not taken yet, once the sample has ended."""
        return self._take(self.num_tokens, len(self.text))

    @property
    def num_taken(self) -> int:
        """Tokens taken so far."""
        return self._taken_tokens

    def _take(self, upto: int, end: int) -> tuple[list[int], str, int]:
        offset = self._taken_text
        ids = self._ids[self._first + self._taken_tokens : self._first + upto]
        end = max(end, offset)
        self._taken_tokens, self._taken_text = upto, end
        return ids, self.text[offset:end], offset

    def _advance(self, new_text: str) -> None:
        scanned = max(len(self.text), self._unscanned)
        self.text += new_text
        self._prefix, self._read = self._read, len(self._ids)
        self._ends += [len(self.text)] * (self.num_tokens - len(self._ends))
        if self.num_tokens <= self._rules.min_tokens:
            self._unscanned = len(self.text)
        elif found := self._find_stops(scanned):
            # The first to begin, and of two that begin together the longer.
            at, self.stopped_by = min(found, key=lambda pair: (pair[0], -len(pair[1])))
            cut = at + (len(self.stopped_by) if self._rules.include_stop else 0)
            self.text = self.text[:cut]
            self._ends = [min(end, cut) for end in self._ends]

    def _find_stops(self, scanned: int) -> list[tuple[int, str]]:
        """Where each stop string is that ends behind the text scanned before."""
        places = ((stop, self.text.find(stop, max(0, scanned - len(stop) + 1))) for stop in self._rules.stop)
        return [(at, stop) for stop, at in places if at >= 0]

    def _held_back(self) -> int:
        """Length of the longest tail of the text that begins a stop string."""
        if self.stopped_by is not None or self._rules.include_stop:
            return 0
        for length in range(min(self._longest_stop - 1, len(self.text)), 0, -1):
            tail = self.text[-length:]
            if any(stop.startswith(tail) for stop in self._rules.stop):
                return length
        return 0

    def _decode(self, start: int, end: int) -> str:
        ids, skip = self._ids[start:end], self._rules.skip_special_tokens
        if skip and (dropped := self._rules.dropped_token_ids) is not None:
            ids, skip = [token_id for token_id in ids if token_id not in dropped], False
        return self._tokenizer.decode(ids, skip_special_tokens=skip)
