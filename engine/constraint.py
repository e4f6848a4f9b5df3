"""What a sequence's constraint is to the scheduler: something that follows its tokens and says when it ends.

Grammars implement it, see `engine.grammars`; the scheduler knows nothing of how.
"""

from __future__ import annotations

from typing import Protocol


class ConstraintViolated(Exception):
    """The token cannot follow: the output ends in an error, with these words."""


class Constraint(Protocol):
    """One sample's way through what its output must match."""

    def accept(self, token_id: int) -> bool:
        """Takes one more output token. True if the output is complete and nothing but an end can follow.

        Raises ConstraintViolated.
        """
        ...

    def fork(self) -> Constraint:
        """Another one, in the same state, for another sample."""
        ...
