"""Traces of jobs: a span for each job that ends, and in it wait, prefill, decode and commit.

Made all at once when a job's end is written, from times that were kept: a running job has no spans. Their
attributes are those of OpenTelemetry's conventions for generative AI, and never a prompt or an output.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from consumer.job_watch import JobTimes, Sink
from consumer.lease import Ending
from penstock.messages import Failed, decode_terminal
from penstock.telemetry.tracing import context_of

if TYPE_CHECKING:
    from consumer.broker import FailureOutcome

_UNSAMPLED: Final = "-00"
"""The end of a traceparent whose trace nobody keeps."""


class _Carrier(Struct, frozen=True):
    """What is read of a job that was refused."""

    traceparent: str | None = None


_carrier_decoder = msgspec.json.Decoder(_Carrier)


class Spans(Sink):
    """Draws the traces of what ends."""

    def __init__(self, tracer: Tracer, consumer: str, model: str) -> None:
        self._tracer = tracer
        self._consumer = consumer
        self._model = model

    def finished(self, ending: Ending, times: JobTimes | None, now: float) -> None:
        if ending.completed:
            self._draw(ending, times, now, None)
        else:
            event = decode_terminal(ending.terminal)
            self._draw(ending, times, now, event.error.type if isinstance(event, Failed) else "other")

    def failed(self, ending: Ending, times: JobTimes | None, outcome: FailureOutcome, now: float) -> None:
        assert ending.failure is not None
        self._draw(ending, times, now, ending.failure.error.type)

    def _draw(self, ending: Ending, times: JobTimes | None, now: float, error: str | None) -> None:
        traceparent = times.job.job.traceparent if times is not None else _traceparent(ending)
        if traceparent is not None and traceparent.endswith(_UNSAMPLED):
            return
        lease, ended_at = ending.lease, (times.ended_at if times is not None else None) or now
        clock = _Clock()
        enqueued_ns = clock.ns(lease.claimed_at - lease.waited_ms / 1000)
        operation = _OPERATIONS.get(times.job.job.kind, "chat") if times is not None else "text_completion"
        if times is not None and times.job.job.kind == "generate" and times.job.job.messages is None:
            operation = "text_completion"
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=context_of(traceparent),
            kind=SpanKind.CONSUMER,
            start_time=enqueued_ns,
        )
        if span.is_recording():
            self._describe(span, ending, times, operation)
            phases = [("wait", enqueued_ns, clock.ns(lease.claimed_at))]
            if times is not None and times.first_at is not None:
                phases.append(("prefill", clock.ns(times.started_at), clock.ns(times.first_at)))
                if times.job.job.kind == "generate":
                    last_at = times.last_output_at or ended_at
                    phases.append(("decode", clock.ns(times.first_at), clock.ns(last_at)))
            phases.append(("commit", clock.ns(ended_at), clock.ns(now)))
            inside = set_span_in_context(span)
            for name, start, end in phases:
                self._tracer.start_span(name, context=inside, start_time=start).end(max(start, end))
            if error is not None:
                span.set_attribute("error.type", error)
                span.set_status(Status(StatusCode.ERROR))
        span.end(clock.ns(now))

    def _describe(self, span: Span, ending: Ending, times: JobTimes | None, operation: str) -> None:
        lease = ending.lease
        span.set_attributes(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "penstock",
                "gen_ai.request.model": self._model,
                "gen_ai.response.id": lease.key,
                "messaging.system": "penstock",
                "messaging.destination.name": lease.job_id.lane,
                "messaging.message.id": lease.key,
                "penstock.job.id": lease.key,
                "penstock.job.deliveries": lease.deliveries,
                "penstock.consumer": self._consumer,
            }
        )
        if times is None:
            return
        job, params = times.job, times.job.request.params
        if job.job.batch is not None:
            span.set_attribute("penstock.batch.id", job.job.batch)
            if job.job.row is not None:
                span.set_attribute("penstock.batch.row", job.job.row)
        num_prompt_tokens = len(job.request.prompt_token_ids)
        span.set_attributes(
            {
                "gen_ai.response.model": self._model,
                "gen_ai.request.temperature": params.temperature,
                "gen_ai.request.top_p": params.top_p,
                "gen_ai.request.top_k": params.top_k,
                "gen_ai.request.max_tokens": params.max_tokens,
                "gen_ai.request.choice.count": max(1, len(job.request.samples)),
                "gen_ai.usage.input_tokens": num_prompt_tokens,
                "gen_ai.usage.output_tokens": job.num_tokens - num_prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": job.num_cached_tokens,
                "gen_ai.response.finish_reasons": job.finish_reasons,
            }
        )


_OPERATIONS: Final = {"embed": "embeddings", "score": "text_completion"}


class _Clock:
    """From monotonic seconds to Unix nanoseconds, as they are related now."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def ns(self, at: float) -> int:
        """Unix time."""
        return int(at * 1e9) + self._offset_ns


def _traceparent(ending: Ending) -> str | None:
    try:
        return _carrier_decoder.decode(ending.lease.job or b"{}").traceparent
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
