"""Sampling parameters by row, and one batched pass over the rows of a step.

In vLLM's order: raw log-probabilities; allowed ids, bad words, the grammar's mask; logit_bias; penalties;
then argmax for greedy rows, and for the others temperature, filters and a draw, see `kernels.sample`.
min_tokens is applied last of the masks, see `Sampler._change`.
A row's result depends on nothing but its own logits, parameters and tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batch import NO_TOKEN, NOTHING_ALLOWED, NewRow
from engine.logprobs import token_logprobs
from engine.penalties import Bools, Ints, Penalties, TokenBuffer
from engine.request import TokenLogprobs
from engine.token_limits import BannedEnds, TokenLimits
from engine.transfer import Upload, share
from kernels.argmax import argmax
from kernels.logprob import TopLogprobs, top_logprobs
from kernels.mask import TokenMasks, apply_bitmask
from kernels.opset import OpSet
from kernels.penalty import apply_penalties
from kernels.philox import uniform
from kernels.sample import SamplingTensors, sample

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy, as in vLLM: dividing by them would overflow."""
NO_LOGPROBS = -1


@dataclass(frozen=True, slots=True)
class Asking:
    """Which of a step's R rows ask for log-probabilities."""

    places: Ints
    """[A]: theirs among the R."""
    num_top: Ints
    """[A]: of how many of the most likely tokens."""


class Sampled:
    """What a step's rows sampled."""

    def __init__(self, token_ids: Tensor, found: TopLogprobs | None, rows: Ints, asking: Asking) -> None:
        self.token_ids = token_ids
        """[R] int64, in the order of the rows; NO_TOKEN and NOTHING_ALLOWED are negative."""
        self._found = found
        self._rows = rows
        self._asking = asking

    @property
    def tensors(self) -> list[Tensor]:
        """All that is on the sampler's device."""
        found = self._found
        return [self.token_ids] + (
            [] if found is None else [found.chosen, found.ranks, found.top_ids, found.top]
        )

    def with_tensors(self, tensors: list[Tensor]) -> Sampled:
        """The same, of copies of `tensors`."""
        found = None if self._found is None else TopLogprobs(*tensors[1:])
        return Sampled(tensors[0], found, self._rows, self._asking)

    @property
    def logprobs(self) -> dict[int, TokenLogprobs]:
        """By row, of those that asked for it and sampled a token."""
        if self._found is None:
            return {}
        places = self._asking.places
        of_rows = token_logprobs(self._found, self._asking.num_top.tolist())
        rows, tokens = self._rows[places].tolist(), self.token_ids.numpy()[places].tolist()
        return {
            row: logprobs for row, token, logprobs in zip(rows, tokens, of_rows, strict=True) if token >= 0
        }


class Sampler:
    """Owns the parameters of every row; a row is set when a sequence starts and then only read.

    Tokens are the runner's: what penalties, bad words, min_tokens and the draw's counter need of the past is
    read from its buffer at every step, so that preempted and resumed sequences need nothing replayed.
    """

    def __init__(
        self, ops: OpSet, num_rows: int, eos_token_ids: Sequence[int] = (), upload: Upload = share
    ) -> None:
        """upload: to where the logits will be."""
        self._ops = ops
        self._upload = upload
        self._greedy = np.ones(num_rows, dtype=np.bool_)
        self._temperature = np.ones(num_rows, dtype=np.float32)
        self._top_p = np.ones(num_rows, dtype=np.float32)
        self._top_k = np.zeros(num_rows, dtype=np.int64)
        self._min_p = np.zeros(num_rows, dtype=np.float32)
        self._seeds = np.zeros(num_rows, dtype=np.int64)
        self._samples = np.zeros(num_rows, dtype=np.int64)
        self._num_top = np.full(num_rows, NO_LOGPROBS, dtype=np.int64)
        self._limited = np.zeros(num_rows, dtype=np.bool_)
        self._penalized = np.zeros(num_rows, dtype=np.bool_)
        self._limits = TokenLimits(eos_token_ids, upload)
        self._penalties = Penalties(num_rows, upload)

    def set_row(self, new: NewRow) -> None:
        """A sequence starts in a row."""
        row, params = new.row, new.params
        self._greedy[row] = params.temperature < GREEDY_BELOW
        self._temperature[row] = 1.0 if params.temperature < GREEDY_BELOW else params.temperature
        self._top_p[row] = params.top_p
        self._top_k[row] = params.top_k
        self._min_p[row] = params.min_p
        self._seeds[row] = params.seed - (1 << 64) if params.seed >= 1 << 63 else params.seed
        self._samples[row] = new.sample
        self._num_top[row] = NO_LOGPROBS if params.logprobs is None else params.logprobs
        self._limited[row] = self._limits.set_row(row, params)
        self._penalized[row] = self._penalties.set_row(row, params)

    def sample(
        self, logits: Tensor, rows: Ints, buffer: TokenBuffer, masks: TokenMasks | None = None
    ) -> Sampled:
        """One token for each of `rows`. Waits for nothing that a device computes.

        logits: [R, V] float32, raw, in the order of the rows; they may be overwritten. masks: on the host.
        A row whose best raw logit is not finite has NO_TOKEN: the model overflowed on it. A row that may
        sample nothing has NOTHING_ALLOWED. Where a grammar leaves only what min_tokens bans, the grammar
        wins: the text is complete, so its end comes early. Allowed ids and bad words are not lifted for a
        grammar.
        """
        best, tokens = self._best(logits)
        finite = best.isfinite()
        asking = np.flatnonzero(self._num_top[rows] != NO_LOGPROBS)
        changed = self._limited[rows] | self._penalized[rows]
        if masks is None and len(asking) == 0 and self._greedy[rows].all() and not changed.any():
            return Sampled(tokens.masked_fill_(~finite, NO_TOKEN), None, rows, Asking(asking, asking))
        if masks is not None:
            changed[masks.index.numpy()] = True
        raw = logits
        if len(asking) < len(rows):
            raw = logits.index_select(0, self._upload(asking)[0])
        elif changed.any():
            raw = logits.clone()
        if changed.any():
            logits = logits.contiguous()
            self._change(logits, rows, buffer, masks)
            self._find_best(logits, changed, best, tokens)
        drawn = ~self._greedy[rows]
        if drawn.all():
            tokens = self._draw(logits, rows, buffer)
        elif drawn.any():
            (index,) = self._upload(np.flatnonzero(drawn))
            tokens[index] = self._draw(logits.index_select(0, index), rows[drawn], buffer)
        tokens.masked_fill_(~best.isfinite(), NO_TOKEN).masked_fill_(best == -math.inf, NOTHING_ALLOWED)
        tokens.masked_fill_(~finite, NO_TOKEN)
        return self._with_logprobs(raw, tokens, rows, asking)

    def _change(self, logits: Tensor, rows: Ints, buffer: TokenBuffer, masks: TokenMasks | None) -> None:
        """Masks, biases and penalties, in place. What min_tokens bans is banned last, which gives the same as
        before the others, and is given back where nothing else is left."""
        limited = np.flatnonzero(self._limited[rows])
        penalized = np.flatnonzero(self._penalized[rows])
        if len(limited) > 0:
            self._limits.mask(logits, limited, rows[limited], buffer)
        constrained: Tensor | None = None
        if masks is not None:
            constrained, bits = self._upload(masks.index.numpy(), masks.bits.numpy())
            apply_bitmask(self._ops, logits, TokenMasks(constrained, bits))
        if len(limited) > 0:
            self._limits.bias(logits, limited, rows[limited])
        if len(penalized) > 0:
            seen = self._penalties.seen(penalized, rows[penalized], buffer, logits.shape[1])
            if seen is not None:
                apply_penalties(self._ops, logits, seen)
        ends = None
        if len(limited) > 0:
            ends = self._limits.ban_ends(logits, limited, rows[limited], buffer)
        if ends is not None and constrained is not None:
            self._lift(logits, ends, constrained)

    def _lift(self, logits: Tensor, ends: BannedEnds, constrained: Tensor) -> None:
        """Gives their end tokens back to rows whose grammar allows nothing but what min_tokens banned."""
        best, _ = self._best(logits.index_select(0, constrained))
        stuck = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
        stuck[constrained] = best == -math.inf
        flat = logits.view(-1)
        flat[ends.index] = torch.where(stuck[ends.positions], ends.logits, flat[ends.index])

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The greatest logit of each row, and its token."""
        tokens = argmax(self._ops, logits)
        return logits.gather(1, tokens[:, None])[:, 0], tokens

    def _find_best(self, logits: Tensor, which: Bools, best: Tensor, tokens: Tensor) -> None:
        """Writes the greatest logit and its token of the rows in `which` to `best` and `tokens`."""
        (index,) = self._upload(np.flatnonzero(which))
        part = logits if which.all() else logits.index_select(0, index)
        best[index], tokens[index] = self._best(part)

    def _draw(self, logits: Tensor, rows: Ints, buffer: TokenBuffer) -> Tensor:
        top_k, top_p, min_p = self._top_k[rows], self._top_p[rows], self._min_p[rows]
        seeds, output_indices, samples, k, temperature, p, least = self._upload(
            self._seeds[rows],
            buffer.num_tokens[rows] - buffer.num_prompt_tokens[rows],
            self._samples[rows],
            top_k,
            self._temperature[rows],
            top_p,
            min_p,
        )
        params = SamplingTensors(
            temperature=temperature,
            top_k=k,
            top_p=p,
            min_p=least,
            any_top_k=bool(top_k.any()),
            any_top_p=bool((top_p < 1).any()),
            any_min_p=bool(min_p.any()),
        )
        return sample(self._ops, logits, uniform(self._ops, seeds, output_indices, samples), params)

    def _with_logprobs(self, raw: Tensor, tokens: Tensor, rows: Ints, places: Ints) -> Sampled:
        """raw: [A, V], of the rows at `places`; what is found for rows without a token is passed over."""
        asking = Asking(places, self._num_top[rows[places]])
        if len(places) == 0:
            return Sampled(tokens, None, rows, asking)
        chosen = tokens if len(places) == len(rows) else tokens[self._upload(places)[0]]
        found = top_logprobs(self._ops, raw, chosen.clamp_min(0), int(asking.num_top.max()))
        return Sampled(tokens, found, rows, asking)
