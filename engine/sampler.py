"""Sampling parameters by row, and one batched pass over the rows of a step.

In vLLM's order: raw log-probabilities; allowed ids, bad words, the grammar's mask; logit_bias; penalties;
then argmax for greedy rows, and for the others temperature, filters and a draw, see `kernels.sample`.
min_tokens is applied last of the masks, see `Sampler._change`.
A row's result depends on nothing but its own logits, parameters and tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.batch import NO_TOKEN, NOTHING_ALLOWED, NewRow
from engine.logprobs import token_logprobs
from engine.penalties import Bools, Ints, Penalties, TokenBuffer
from engine.request import TokenLogprobs
from engine.token_limits import BannedEnds, TokenLimits
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


class Sampled:
    """What a step's rows sampled."""

    def __init__(self, token_ids: Tensor, found: TopLogprobs | None, rows: Ints, num_top: Ints) -> None:
        self.token_ids = token_ids
        """[R] int64, in the order of the rows; NO_TOKEN and NOTHING_ALLOWED are negative."""
        self._found = found
        self._rows = rows
        self._num_top = num_top

    @property
    def logprobs(self) -> dict[int, TokenLogprobs]:
        """By row, of those that asked for it and sampled a token."""
        if self._found is None:
            return {}
        of_rows = token_logprobs(self._found, self._num_top.tolist())
        return dict(zip(self._rows.tolist(), of_rows, strict=True))


class Sampler:
    """Owns the parameters of every row; a row is set when a sequence starts and then only read.

    Tokens are the runner's: what penalties, bad words, min_tokens and the draw's counter need of the past is
    read from its buffer at every step, so that preempted and resumed sequences need nothing replayed.
    """

    def __init__(self, ops: OpSet, num_rows: int, eos_token_ids: Sequence[int] = ()) -> None:
        self._ops = ops
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
        self._limits = TokenLimits(eos_token_ids)
        self._penalties = Penalties(num_rows)

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
        """One token for each of `rows`.

        logits: [R, V] float32, raw, in the order of the rows; they may be overwritten. A row whose best raw
        logit is not finite has NO_TOKEN: the model overflowed on it. A row that may sample nothing has
        NOTHING_ALLOWED. Where a grammar leaves only what min_tokens bans, the grammar wins: the text is
        complete, so its end comes early. Allowed ids and bad words are not lifted for a grammar.
        """
        best, tokens = self._best(logits)
        finite = best.isfinite()
        asking = np.flatnonzero(self._num_top[rows] != NO_LOGPROBS)
        changed = self._limited[rows] | self._penalized[rows]
        if masks is None and len(asking) == 0 and self._greedy[rows].all() and not changed.any():
            return Sampled(tokens.masked_fill_(~finite, NO_TOKEN), None, asking, asking)
        if masks is not None:
            changed[masks.index.numpy()] = True
        raw = logits
        if len(asking) < len(rows):
            raw = logits.index_select(0, torch.from_numpy(asking))
        elif changed.any():
            raw = logits.clone()
        if changed.any():
            logits = logits.contiguous()
            ends = self._change(logits, rows, buffer, masks)
            self._find_best(logits, changed, best, tokens)
            if ends is not None and masks is not None:
                stuck = _lift(logits, ends, masks, best)
                self._find_best(logits, stuck, best, tokens)
        drawable = ~self._greedy[rows] & (finite & best.isfinite()).numpy()
        if drawable.all():
            tokens = self._draw(logits, rows, buffer)
        elif drawable.any():
            drawn = torch.from_numpy(np.flatnonzero(drawable))
            tokens[drawn] = self._draw(logits.index_select(0, drawn), rows[drawable], buffer)
        tokens.masked_fill_(~best.isfinite(), NO_TOKEN).masked_fill_(best == -math.inf, NOTHING_ALLOWED)
        tokens.masked_fill_(~finite, NO_TOKEN)
        return self._with_logprobs(raw, tokens, rows, asking)

    def _change(
        self, logits: Tensor, rows: Ints, buffer: TokenBuffer, masks: TokenMasks | None
    ) -> BannedEnds | None:
        """Masks, biases and penalties, in place. What min_tokens banned comes back: it is applied last, which
        gives the same as before the others, and can be undone."""
        limited = np.flatnonzero(self._limited[rows])
        penalized = np.flatnonzero(self._penalized[rows])
        if len(limited) > 0:
            self._limits.mask(logits, limited, rows[limited], buffer)
        if masks is not None:
            apply_bitmask(self._ops, logits, masks)
        if len(limited) > 0:
            self._limits.bias(logits, limited, rows[limited])
        if len(penalized) > 0:
            seen = self._penalties.seen(penalized, rows[penalized], buffer, logits.shape[1])
            if seen is not None:
                apply_penalties(self._ops, logits, seen)
        if len(limited) > 0:
            return self._limits.ban_ends(logits, limited, rows[limited], buffer)
        return None

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The greatest logit of each row, and its token."""
        tokens = argmax(self._ops, logits)
        return logits.gather(1, tokens[:, None])[:, 0], tokens

    def _find_best(self, logits: Tensor, which: Bools, best: Tensor, tokens: Tensor) -> None:
        """Writes the greatest logit and its token of the rows in `which` to `best` and `tokens`."""
        index = torch.from_numpy(np.flatnonzero(which))
        part = logits if which.all() else logits.index_select(0, index)
        best[index], tokens[index] = self._best(part)

    def _draw(self, logits: Tensor, rows: Ints, buffer: TokenBuffer) -> Tensor:
        top_k, top_p, min_p = self._top_k[rows], self._top_p[rows], self._min_p[rows]
        params = SamplingTensors(
            temperature=torch.from_numpy(self._temperature[rows]),
            top_k=torch.from_numpy(top_k),
            top_p=torch.from_numpy(top_p),
            min_p=torch.from_numpy(min_p),
            any_top_k=bool(top_k.any()),
            any_top_p=bool((top_p < 1).any()),
            any_min_p=bool(min_p.any()),
        )
        uniforms = uniform(
            self._ops,
            torch.from_numpy(self._seeds[rows]),
            torch.from_numpy(buffer.num_tokens[rows] - buffer.num_prompt_tokens[rows]),
            torch.from_numpy(self._samples[rows]),
        )
        return sample(self._ops, logits, uniforms, params)

    def _with_logprobs(self, raw: Tensor, tokens: Tensor, rows: Ints, asking: Ints) -> Sampled:
        """raw: [A, V], of the rows at `asking`; rows without a token have no log-probabilities."""
        chosen = tokens[torch.from_numpy(asking)]
        found = chosen >= 0
        if not bool(found.all()):
            raw, chosen, asking = raw[found], chosen[found], asking[found.numpy()]
        if len(asking) == 0:
            return Sampled(tokens, None, asking, asking)
        num_top = self._num_top[rows[asking]]
        return Sampled(
            tokens, top_logprobs(self._ops, raw, chosen, int(num_top.max())), rows[asking], num_top
        )


def _lift(logits: Tensor, ends: BannedEnds, masks: TokenMasks, best: Tensor) -> Bools:
    """Gives their end tokens back to rows whose grammar allows nothing but what min_tokens banned: [R]."""
    stuck = np.zeros(logits.shape[0], dtype=np.bool_)
    stuck[masks.index.numpy()] = True
    stuck &= (best == -math.inf).numpy()
    lifted = torch.from_numpy(stuck[ends.positions])
    logits.view(-1)[ends.index[lifted]] = ends.logits[lifted]
    return stuck
