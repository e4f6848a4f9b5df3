"""What requests wish to know of their prompts: log-probabilities of the tokens, or one vector of all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from engine.batch import NewRow
from engine.inputs import StepArrays
from engine.logprobs import prompt_logprobs
from engine.models.model import Model
from engine.pooling import Pooler
from engine.request import TokenLogprobs
from engine.rows import Rows
from engine.transfer import Upload

_PROMPT_LOGITS: Final = {"cuda": 1 << 26, "cpu": 1 << 23}
"""Logits that are held at once: a GPU reads the whole output matrix for each such piece."""


def num_prompt_logits(device: torch.device) -> int:
    """Logits that log-probabilities of prompts hold at once."""
    return _PROMPT_LOGITS[device.type]


@dataclass(slots=True)
class PromptResults:
    """By row, of those that wish."""

    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict[int, list[TokenLogprobs]])
    embeddings: dict[int, list[float]] = field(default_factory=dict[int, list[float]])


class PromptWishes:
    """Rows that wish for something, and what is needed to fulfil it. Results are waited for."""

    def __init__(self, model: Model, upload: Upload) -> None:
        self._model = model
        self._upload = upload
        self._pooler = Pooler()
        self._scored: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._scored or self._pooler)

    def set_row(self, new: NewRow) -> None:
        """A sequence starts in a row, or starts again."""
        self._pooler.set_row(new)
        self._scored.pop(new.row, None)
        if new.params.prompt_logprobs is not None:
            self._scored[new.row] = new.params.prompt_logprobs

    def look(self, arrays: StepArrays, hidden: Tensor, state: Rows) -> PromptResults:
        """hidden: [T, hidden_size], of the step's tokens."""
        found = PromptResults()
        for i, row in enumerate(arrays.rows.tolist()):
            first, last = int(arrays.bounds[i]), int(arrays.bounds[i + 1])
            end = int(arrays.ends[i])
            vector = self._pooler.add(row, hidden[first:last], end)
            if vector is not None:
                found.embeddings[row] = vector
            if row not in self._scored:
                continue
            start = end - (last - first)
            num_prompt_tokens = int(state.num_prompt_tokens[row])
            (targets,) = self._upload(
                state.tokens[row, start + 1 : min(end + 1, num_prompt_tokens)].astype(np.int64)
            )
            found.logprobs[row] = self._score(
                hidden[first : first + len(targets)], targets, self._scored[row]
            )
            if end + 1 >= num_prompt_tokens:
                del self._scored[row]
        return found

    def _score(self, hidden: Tensor, targets: Tensor, num_top: int) -> list[TokenLogprobs]:
        step = max(1, num_prompt_logits(self._model.device) // self._model.vocab_size)
        found: list[TokenLogprobs] = []
        for start in range(0, len(targets), step):
            logits = self._model.logits(hidden[start : start + step])
            found += prompt_logprobs(self._model.ops, logits, targets[start : start + step], num_top)
        return found
