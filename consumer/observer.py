"""What happens to jobs in a consumer, told to whoever keeps numbers or draws traces: nobody, by default."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from consumer.engine_counts import EngineCounts
from consumer.lease import Ending, Lease, Progress
from engine.request import Output

if TYPE_CHECKING:
    from consumer.broker import FailureOutcome
    from consumer.running import RunningJob


class Observer:
    """Hears everything on the event loop, and must neither wait nor raise. This one does nothing."""

    def claimed(self, leases: Sequence[Lease]) -> None:
        """Jobs were claimed."""

    def started(self, jobs: Sequence[RunningJob]) -> None:
        """Admitted jobs are given to the engine."""

    def stepped(self, outputs: Sequence[tuple[RunningJob, Output]], counts: EngineCounts) -> None:
        """The engine has reported: outputs of jobs that run, and what it has done by now."""

    def ended(self, job: RunningJob, ending: Ending | None) -> None:
        """A job runs no more. None: it was cancelled, or its lease was lost; nothing is written for it."""

    def published(self, progress: Sequence[Progress]) -> None:
        """Events were written, in one call."""

    def committed(self, endings: Sequence[Ending]) -> None:
        """Ends were written, in one call, of jobs that ran and of jobs that were refused."""

    def failed(self, ending: Ending, outcome: FailureOutcome) -> None:
        """An attempt failed, and the server was told."""

    def lost(self, lease: Lease) -> None:
        """A lease was lost."""


NOBODY: Final = Observer()
