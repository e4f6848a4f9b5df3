"""Every message that crosses Redis, and the codecs for them.

A `Job` (penstock/job.py, with the chat messages of penstock/chat.py and the parameters of
penstock/sampling.py) travels as JSON in the field `job` of a lane's stream entry; an `Event`
(penstock/events.py) travels as JSON in the field `event` of a result stream's entry; a consumer's `Heartbeat`
is in penstock/heartbeat.py. New fields have defaults, and no field is ever retyped.

Field names follow OpenAI and vLLM where those have one.
"""

from __future__ import annotations

from penstock.chat import (
    FunctionCall,
    FunctionDefinition,
    Message,
    TextPart,
    Tool,
    ToolCall,
)
from penstock.events import (
    ERROR_TYPES,
    Completion,
    Done,
    Error,
    Event,
    Failed,
    FinishReason,
    Score,
    TerminalEvent,
    TokenLogprob,
    Tokens,
    TopLogprob,
    Usage,
    decode_event,
    decode_terminal,
    encode_error,
    encode_event,
)
from penstock.heartbeat import (
    Heartbeat,
    ReasoningMarkers,
    decode_heartbeat,
    encode_heartbeat,
)
from penstock.job import (
    BATCH_ID_PATTERN,
    DEFAULT_RESULT_TTL_S,
    MAX_JOB_BYTES,
    BatchId,
    Job,
    JobLabels,
    RowNumber,
    decode_job,
    decode_labels,
    encode_job,
)
from penstock.sampling import (
    PoolingParams,
    RepetitionDetection,
    SamplingParams,
    StructuredOutputs,
    TokenId,
)

__all__ = [
    "BATCH_ID_PATTERN",
    "DEFAULT_RESULT_TTL_S",
    "ERROR_TYPES",
    "MAX_JOB_BYTES",
    "BatchId",
    "Completion",
    "Done",
    "Error",
    "Event",
    "Failed",
    "FinishReason",
    "FunctionCall",
    "FunctionDefinition",
    "Heartbeat",
    "Job",
    "JobLabels",
    "Message",
    "PoolingParams",
    "ReasoningMarkers",
    "RepetitionDetection",
    "RowNumber",
    "SamplingParams",
    "Score",
    "StructuredOutputs",
    "TerminalEvent",
    "TextPart",
    "TokenId",
    "TokenLogprob",
    "Tokens",
    "Tool",
    "ToolCall",
    "TopLogprob",
    "Usage",
    "decode_event",
    "decode_heartbeat",
    "decode_job",
    "decode_labels",
    "decode_terminal",
    "encode_error",
    "encode_event",
    "encode_heartbeat",
    "encode_job",
]
