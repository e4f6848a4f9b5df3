"""penstock: batch inference from Redis streams. This package is the contract and the client.

    import asyncio
    from penstock import Client

    async def main():
        async with Client("redis://localhost:6379") as client:
            job_id = await client.submit("What is 2 + 2?")
            print((await client.result(job_id, timeout=60)).text)

    asyncio.run(main())

`SyncClient` is the same without asyncio. Importing this package loads msgspec alone; what needs redis-py is
loaded when it is first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from penstock.attempts import Attempt
from penstock.errors import (
    BatchExists,
    BatchUnknown,
    CursorMoved,
    InstallationError,
    InvalidJob,
    InvalidJobId,
    JobFailed,
    JobLost,
    JobTooLarge,
    NoSuchLetter,
    PenstockError,
    QueueFull,
    ResultTimeout,
    ServerError,
    ServerFull,
    ServerUnavailable,
    ServerUnsuitable,
)
from penstock.keys import JobId
from penstock.messages import (
    Completion,
    Done,
    Error,
    Event,
    Failed,
    FunctionCall,
    FunctionDefinition,
    Job,
    Message,
    PoolingParams,
    ReasoningMarkers,
    RepetitionDetection,
    SamplingParams,
    Score,
    StructuredOutputs,
    TextPart,
    TokenLogprob,
    Tokens,
    Tool,
    ToolCall,
    TopLogprob,
    Usage,
)

if TYPE_CHECKING:
    from penstock.batch import Batch, BatchCounts, FinishedRow
    from penstock.client import Client
    from penstock.dead import DeadLetter
    from penstock.lanes import Lane, LaneSettings
    from penstock.server import Finding, ServerReport, check_server
    from penstock.status import Ended, Expired, JobStatus, Leased, Lost, Queued, Released, Unknown
    from penstock.sync import SyncBatch, SyncClient

    __version__: str

_LAZY: Final = {
    "penstock.batch": ("Batch", "BatchCounts", "FinishedRow"),
    "penstock.client": ("Client",),
    "penstock.dead": ("DeadLetter",),
    "penstock.lanes": ("Lane", "LaneSettings"),
    "penstock.server": ("Finding", "ServerReport", "check_server"),
    "penstock.status": (
        "Ended",
        "Expired",
        "JobStatus",
        "Leased",
        "Lost",
        "Queued",
        "Released",
        "Unknown",
    ),
    "penstock.sync": ("SyncBatch", "SyncClient"),
}

__all__ = [
    "Attempt",
    "Batch",
    "BatchCounts",
    "BatchExists",
    "BatchUnknown",
    "Client",
    "Completion",
    "CursorMoved",
    "DeadLetter",
    "Done",
    "Ended",
    "Error",
    "Event",
    "Expired",
    "Failed",
    "Finding",
    "FinishedRow",
    "FunctionCall",
    "FunctionDefinition",
    "InstallationError",
    "InvalidJob",
    "InvalidJobId",
    "Job",
    "JobFailed",
    "JobId",
    "JobLost",
    "JobStatus",
    "JobTooLarge",
    "Lane",
    "LaneSettings",
    "Leased",
    "Lost",
    "Message",
    "NoSuchLetter",
    "PenstockError",
    "PoolingParams",
    "QueueFull",
    "Queued",
    "ReasoningMarkers",
    "Released",
    "RepetitionDetection",
    "ResultTimeout",
    "SamplingParams",
    "Score",
    "ServerError",
    "ServerFull",
    "ServerReport",
    "ServerUnavailable",
    "ServerUnsuitable",
    "StructuredOutputs",
    "SyncBatch",
    "SyncClient",
    "TextPart",
    "TokenLogprob",
    "Tokens",
    "Tool",
    "ToolCall",
    "TopLogprob",
    "Unknown",
    "Usage",
    "__version__",
    "check_server",
]


def __getattr__(name: str) -> Any:
    """Load what needs redis-py (0.2 s) when it is first asked for."""
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("penstock")
    else:
        module = next((module for module, names in _LAZY.items() if name in names), None)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
