"""Traces of a consumer's jobs, by OpenTelemetry's in-memory exporter; off, they need nothing of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from penstock.client import Client
from penstock.errors import JobFailed, PenstockError
from penstock.messages import Job, Message, SamplingParams
from penstock.telemetry.tracing import Tracing, exporter_wanted
from tests.consumer.models import save_model
from tests.consumer.running import consuming

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
WAIT_S = 20


async def spans_of(redis_url: str, model: Path, jobs: Sequence[Job], num_ended: int) -> list[ReadableSpan]:
    """All spans once so many jobs have theirs."""
    exporter = InMemorySpanExporter()
    tracing = Tracing("test", exporter, at_once=True)
    async with Client(redis_url) as client, consuming(redis_url, model, tracing=tracing, retry_delay_s=0.01):
        for job in jobs:
            job_id = await client.submit(job)
            if job.batch is not None:  # its end is in the batch's stream
                continue
            try:
                await client.result(job_id, timeout=WAIT_S)
            except JobFailed:
                continue
        async with asyncio.timeout(WAIT_S):
            while True:
                spans = exporter.get_finished_spans()
                if sum(span.kind == SpanKind.CONSUMER for span in spans) >= num_ended:
                    break
                await asyncio.sleep(0.02)
    return list(exporter.get_finished_spans())


def job(text: str, *, flags: str = "01", **fields: object) -> Job:
    params = SamplingParams(max_tokens=5, temperature=0.5, n=2)
    traceparent = f"00-{TRACE}-{SPAN}-{flags}"
    return Job(messages=[Message("user", text)], sampling_params=params, traceparent=traceparent, **fields)  # pyright: ignore[reportArgumentType]


async def test_a_jobs_span_has_its_phases_and_hangs_on_its_callers(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "scripted", {"step_s": 0.01})
    async with Client(redis_url) as client:
        batch = await client.create_batch()
    row = job("secret", batch=batch.id, row=3)
    spans = {span.name: span for span in await spans_of(redis_url, model, [row], 1)}
    whole = spans.pop("chat scripted")
    assert whole.context is not None
    assert whole.parent is not None
    assert (f"{whole.parent.trace_id:032x}", f"{whole.parent.span_id:016x}") == (TRACE, SPAN)
    assert list(spans) == ["wait", "prefill", "decode", "commit"]
    ends: list[int] = []
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == whole.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
        ends.append(span.end_time)
    assert ends == sorted(ends)
    assert (spans["wait"].start_time, spans["commit"].end_time) == (whole.start_time, whole.end_time)
    told = dict(whole.attributes or {})
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "scripted"
    assert told["gen_ai.request.max_tokens"] == 5
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.usage.input_tokens"] == len("<user>secret<assistant>")
    assert told["gen_ai.usage.output_tokens"] == 10
    assert told["gen_ai.response.finish_reasons"] == ("length", "length")
    assert told["messaging.destination.name"] == "standard"
    assert (told["penstock.batch.id"], told["penstock.batch.row"]) == (batch.id, 3)
    assert "secret" not in whole.to_json()


async def test_an_embedding_has_no_decode(redis_url: str, tmp_path: Path) -> None:
    spans = await spans_of(redis_url, save_model(tmp_path / "scripted"), [Job(prompt="a", kind="embed")], 1)
    assert sorted(span.name for span in spans) == ["commit", "embeddings scripted", "prefill", "wait"]


async def test_what_is_not_sampled_has_no_span_and_what_fails_says_so(redis_url: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "scripted", {"fails": ord(">"), "fail_runs": 1})
    jobs = [job("a", flags="00"), job("b", model="other"), job("c")]
    spans = [span for span in await spans_of(redis_url, model, jobs, 3) if span.kind == SpanKind.CONSUMER]
    found = [(span.status.status_code, dict(span.attributes or {}).get("error.type")) for span in spans]
    assert found == [
        (StatusCode.ERROR, "model_not_served"),
        (StatusCode.ERROR, "engine_error"),
        (StatusCode.UNSET, None),
    ]
    assert dict(spans[2].attributes or {})["penstock.job.deliveries"] == 2


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, None),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, None),
    ],
)
def test_the_standard_variables_decide(environ: dict[str, str], kind: str | None) -> None:
    assert exporter_wanted(environ) == kind


def test_an_unknown_exporter_is_refused_in_words() -> None:
    with pytest.raises(PenstockError, match="'zipkin'; it may be otlp, console or none"):
        exporter_wanted({"OTEL_TRACES_EXPORTER": "zipkin"})


def test_where_neither_is_asked_for_no_library_of_metrics_or_traces_is_needed() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = sys.modules['prometheus_client'] = None; "
        "from consumer.__main__ import parse_settings; from consumer.consumer import Consumer; "
        "Consumer(parse_settings(['--model', 'm', *sys.argv[1:]]))"
    )
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (plain.returncode, plain.stderr) == (0, "")
    measured = [sys.executable, "-c", code, "--metrics-port", "9100"]
    refused = subprocess.run(measured, capture_output=True, text=True, check=False)
    assert "InstallationError: metrics are asked for" in refused.stderr
    traced = os.environ | {"OTEL_TRACES_EXPORTER": "otlp"}
    warned = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=traced
    )
    assert warned.returncode == 0
    assert "pip install 'penstock[tracing]'" in warned.stderr
