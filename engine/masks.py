"""Which tokens may follow, as bits, filled by a thread while the model runs.

After its schedule the engine calls `start` with the constraints of the rows it samples; then comes the
forward pass; `wait` gives the bits to the sampler. A row whose mask could not be computed allows no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from engine.constraint import Constraint
from engine.grammars import GrammarConstraint

NUM_BUFFERS: Final = 3
"""One that the sampler reads, one that waits for it, one that is filled."""


@dataclass(frozen=True, slots=True)
class RowMasks:
    """Masks of the M constrained rows among those sampled. The arrays hold until the third `start` after."""

    index: NDArray[np.int64]
    """[M]: places among the sampled rows, ascending."""
    bits: NDArray[np.int32]
    """[M, ceil(vocab_size / 32)]: bit i % 32 of word i // 32 is set if token i may follow."""
    failures: dict[int, str]
    """Why a row has no bit set, by its place."""


class PendingMasks:
    """Masks that are being filled."""

    def __init__(self, filled: Future[RowMasks]) -> None:
        self._filled = filled

    def wait(self) -> RowMasks:
        """Blocks until they are. Only then may tokens be accepted by the same constraints again."""
        return self._filled.result()


class Masks:
    """Fills masks for one model. For one thread, the engine's; `close` ends its own.

    num_threads fill at a time. One is right where the model runs on the same processor.
    """

    def __init__(self, vocab_size: int, eos_token_ids: Sequence[int], num_threads: int = 1) -> None:
        self._num_words = -(-vocab_size // 32)
        self._eos = sorted(set(eos_token_ids))
        self._executor = LLExecutor(num_threads) if num_threads > 1 else None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")
        self._buffers = [np.zeros((0, self._num_words), np.int32) for _ in range(NUM_BUFFERS)]
        self._next = 0

    def start(self, constraints: Sequence[Constraint | None]) -> PendingMasks:
        """constraints: one for each sampled row, in the batch's order; None where anything may follow."""
        places = [place for place, constraint in enumerate(constraints) if constraint is not None]
        grammars = [constraints[place] for place in places]
        bits = self._buffer(len(places))
        if not places:
            empty: Future[RowMasks] = Future()
            empty.set_result(RowMasks(np.zeros(0, np.int64), bits, {}))
            return PendingMasks(empty)
        return PendingMasks(self._pool.submit(self._fill, places, grammars, bits))

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown()

    def _buffer(self, num_rows: int) -> NDArray[np.int32]:
        self._next = (self._next + 1) % NUM_BUFFERS
        if len(self._buffers[self._next]) < num_rows:
            self._buffers[self._next] = np.zeros((num_rows, self._num_words), np.int32)
        return self._buffers[self._next][:num_rows]

    def _fill(
        self, places: list[int], constraints: list[Constraint | None], bits: NDArray[np.int32]
    ) -> RowMasks:
        bits.fill(0)
        grammars = [constraint for constraint in constraints if isinstance(constraint, GrammarConstraint)]
        assert len(grammars) == len(places), "only grammars have masks"
        failures: dict[int, str] = {}
        if self._error_of([grammar.matcher for grammar in grammars], bits) is not None:
            for row, grammar in enumerate(grammars):  # one at a time: whose is it?
                error = self._error_of([grammar.matcher], bits[row : row + 1])
                if error is not None:
                    bits[row] = 0
                    failures[places[row]] = f"the grammar failed: {error!r}"
        for row, grammar in enumerate(grammars):
            failure = None if places[row] in failures else self._check(grammar, bits[row])
            if failure is not None:
                bits[row] = 0
                failures[places[row]] = failure
        return RowMasks(np.array(places, np.int64), bits, failures)

    def _error_of(self, matchers: list[LLMatcher], bits: NDArray[np.int32]) -> BaseException | None:
        """Fills the rows. What the library raises, panics included, must not end anybody else's request."""
        try:
            self._compute(matchers, bits)
        except BaseException as error:  # in a thread of our own: nothing else is delivered here
            return error
        return None

    def _compute(self, matchers: list[LLMatcher], bits: NDArray[np.int32]) -> None:
        """Lets go of the interpreter's lock. A row's own failure is kept in its matcher."""
        row_bytes = self._num_words * bits.itemsize
        first = bits.ctypes.data
        if self._executor is None:
            for row, matcher in enumerate(matchers):
                matcher.unsafe_compute_mask_ptr(first + row * row_bytes, row_bytes)
        else:
            targets = [(matcher, row) for row, matcher in enumerate(matchers)]
            self._executor.unsafe_compute_mask_ptr(targets, first, row_bytes, len(matchers))

    def _check(self, grammar: GrammarConstraint, row: NDArray[np.int32]) -> str | None:
        """An end token ends the output, also where the grammar has it as text: so it waits for the end."""
        failure = grammar.failure()
        if failure is not None or grammar.matcher.is_accepting():
            return failure
        allowed = [token_id for token_id in self._eos if row[token_id // 32] >> (token_id % 32) & 1]
        for token_id in allowed:
            row[token_id // 32] &= np.int32(~(1 << token_id % 32) if token_id % 32 < 31 else 2**31 - 1)
        if allowed and not row.any():
            return "the grammar allows nothing but an end token where it is not complete"
        return None
