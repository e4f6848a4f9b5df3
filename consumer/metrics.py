"""The consumer's metrics, see docs/metrics.md: counted in plain numbers, in Prometheus's form when asked.

What vLLM has a name for has that name, prefix and all, and its meaning; the rest begins with `penstock_`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from consumer.engine_counts import EngineCounts, Moment
from consumer.job_watch import JobTimes, Sink
from consumer.lease import Ending, Lease
from consumer.tally import Tally
from penstock.messages import ERROR_TYPES, Failed, decode_terminal

if TYPE_CHECKING:
    from consumer.broker import FailureOutcome

_FIRST_TOKEN_S: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5)
_FIRST_TOKEN_BOUNDS: Final = (*_FIRST_TOKEN_S, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_TOKEN_S: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75)
_TOKEN_BOUNDS: Final = (*_TOKEN_S, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_JOB_BOUNDS: Final = (
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
    7680,
)
_COUNT_BOUNDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_ITERATION_BOUNDS: Final = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_STEP_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BATCH_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Times and token counts: the bounds that vLLM has, so that its dashboards' quantiles mean the same.

FINISHED_REASONS: Final = ("stop", "length", "repetition", "abort", "error")


class ConsumerMetrics(Sink):
    """Counts, and collects for Prometheus. All of it on the event loop: nothing is locked."""

    def __init__(self, model_name: str, moment: Callable[[], Moment]) -> None:
        """All 0. `moment` tells what can be read off at any time."""
        self._model_name = model_name
        self._moment = moment
        self._first_token, self._between = Tally(_FIRST_TOKEN_BOUNDS), Tally(_TOKEN_BOUNDS)
        self._per_token = Tally(_TOKEN_BOUNDS)
        self._whole, self._queue, self._inference = Tally(_JOB_BOUNDS), Tally(_JOB_BOUNDS), Tally(_JOB_BOUNDS)
        self._prefill, self._decode = Tally(_JOB_BOUNDS), Tally(_JOB_BOUNDS)
        self._prompts, self._generations = Tally(_COUNT_BOUNDS), Tally(_COUNT_BOUNDS)
        self._iterations, self._steps = Tally(_ITERATION_BOUNDS), Tally(_STEP_BOUNDS)
        self._publishes, self._commits = Tally(_BATCH_BOUNDS), Tally(_BATCH_BOUNDS)
        self._reasons = Counter[str](dict.fromkeys(FINISHED_REASONS, 0))
        self._attempts = Counter[str]()
        self._dead = Counter[str]()
        self._failed = Counter[str]()
        self._num_claimed = self._num_reclaimed = self._num_lost = 0
        self._num_events = self._num_checkpoints = 0
        self._seen = (0, 0, 0)  # steps, tokens and microseconds already in the tallies

    # What happens

    def claimed(self, leases: Sequence[Lease]) -> None:
        self._num_claimed += len(leases)
        for lease in leases:
            if lease.deliveries == 1:
                self._queue.add(lease.waited_ms / 1000)
            else:
                self._num_reclaimed += 1

    def stepped(self, counts: EngineCounts) -> None:
        """The engine has reported: steps since the last report count as equally long and full."""
        steps, tokens, busy_us = self._seen
        num = counts.num_steps - steps
        if num:
            self._iterations.add((counts.num_computed_tokens - tokens) / num, num)
            self._steps.add((counts.busy_us - busy_us) / 1e6 / num, num)
            self._seen = (counts.num_steps, counts.num_computed_tokens, counts.busy_us)

    def first_output(self, times: JobTimes) -> None:
        # Of a job that was handed out before, nobody knows here when its first token came.
        if times.lease.deliveries == 1 and times.job.job.kind == "generate":
            assert times.first_at is not None
            self._first_token.add(times.first_at - times.enqueued_at)

    def next_tokens(self, gap_s: float, count: int) -> None:
        self._between.add(gap_s, count)

    def published(self, num_events: int, num_checkpoints: int) -> None:
        self._publishes.add(num_events)
        self._num_events += num_events
        self._num_checkpoints += num_checkpoints

    def committed(self, num_ends: int) -> None:
        self._commits.add(num_ends)

    def finished(self, ending: Ending, times: JobTimes | None, now: float) -> None:
        self._whole.add(now - ending.lease.claimed_at + ending.lease.waited_ms / 1000)
        if not ending.completed:
            self._reasons["error"] += 1
            self._failed[_error_type(ending)] += 1
        elif times is None:  # all that was missing was its end
            self._reasons["stop"] += 1
        else:
            self._done(times)

    def failed(self, ending: Ending, times: JobTimes | None, outcome: FailureOutcome, now: float) -> None:
        assert ending.failure is not None
        if outcome != "lost":
            self._attempts[_known(ending.failure.error.type)] += 1
        if outcome == "dead":
            self._dead[_known(ending.failure.error.type)] += 1
            self._reasons["error"] += 1
            self._whole.add(now - ending.lease.claimed_at + ending.lease.waited_ms / 1000)

    def dropped(self, times: JobTimes) -> None:
        self._reasons["abort"] += 1

    def lost(self) -> None:
        self._num_lost += 1

    def _done(self, times: JobTimes) -> None:
        for reason in times.job.finish_reasons or ("stop",):
            self._reasons[reason] += 1
        num_prompt_tokens = len(times.job.request.prompt_token_ids)
        num_generated = times.job.num_tokens - num_prompt_tokens
        self._prompts.add(num_prompt_tokens)
        first_at, last_at = times.first_at, times.last_output_at
        if first_at is None or last_at is None:
            return
        self._prefill.add(first_at - times.started_at)
        self._inference.add(last_at - times.started_at)
        if times.job.job.kind != "generate":
            return
        self._generations.add(num_generated)
        self._decode.add(last_at - first_at)
        per_sample = num_generated / max(1, len(times.last_at))
        if per_sample > 1:
            self._per_token.add((last_at - first_at) / (per_sample - 1))

    # What Prometheus gets

    def collect(self) -> Iterator[Metric]:
        """All families, for a registry."""
        moment = self._moment()
        yield from self._of_engine(moment)
        yield from self._of_jobs()
        yield from self._of_queue(moment)

    def _of_engine(self, moment: Moment) -> Iterator[Metric]:
        counts = moment.counts
        yield self._gauge("vllm:num_requests_running", "Sequences that the engine runs.", counts.num_running)
        yield self._gauge(
            "vllm:num_requests_waiting", "Sequences in the engine that wait for room.", counts.num_waiting
        )
        yield self._gauge(
            "vllm:kv_cache_usage_perc",
            "Part of the KV cache that is in use, from 0 to 1.",
            counts.kv_usage(moment.num_blocks),
        )
        yield self._count(
            "vllm:prefix_cache_queries", "Prompt tokens looked up in the cache.", counts.num_prompt_tokens
        )
        yield self._count("vllm:prefix_cache_hits", "Those of them that it had.", counts.num_cached_tokens)
        yield self._count(
            "vllm:num_preemptions", "Sequences set back for want of cache.", counts.num_preemptions
        )
        yield self._count(
            "vllm:prompt_tokens", "Tokens of prompts, cached ones included.", counts.num_prompt_tokens
        )
        yield self._count("vllm:generation_tokens", "Tokens generated.", counts.num_generation_tokens)
        yield self._histogram("vllm:iteration_tokens_total", "Tokens per engine step.", self._iterations)
        yield self._histogram("penstock_engine_step_seconds", "Time that an engine step took.", self._steps)
        yield self._count("penstock_engine_restarts", "Engine processes that died.", counts.num_deaths)
        yield self._gauge(
            "penstock_engine_ready", "1 while a model is loaded and takes jobs.", int(moment.ready)
        )
        yield self._gauge(
            "penstock_engine_max_sequences", "Sequences that may run at once.", moment.max_num_seqs
        )
        yield self._gauge("penstock_kv_cache_blocks", "Blocks of the KV cache.", moment.num_blocks)

    def _of_jobs(self) -> Iterator[Metric]:
        named: list[tuple[str, str, Tally]] = [
            ("time_to_first_token_seconds", "From enqueue to the first token.", self._first_token),
            ("inter_token_latency_seconds", "Between two tokens of a sample.", self._between),
            ("request_time_per_output_token_seconds", "Its mean over a job.", self._per_token),
            ("e2e_request_latency_seconds", "From enqueue until the end is written.", self._whole),
            ("request_queue_time_seconds", "From enqueue to the first claim.", self._queue),
            ("request_inference_time_seconds", "From the engine's door to the last token.", self._inference),
            ("request_prefill_time_seconds", "From the engine's door to the first token.", self._prefill),
            ("request_decode_time_seconds", "From the first token to the last.", self._decode),
            ("request_prompt_tokens", "Prompt tokens of a job.", self._prompts),
            ("request_generation_tokens", "Generated tokens of a job.", self._generations),
        ]
        for name, words, tally in named:
            yield self._histogram(f"vllm:{name}", words, tally)
        yield self._labelled("vllm:request_success", "Outputs that ended.", "finished_reason", self._reasons)

    def _of_queue(self, moment: Moment) -> Iterator[Metric]:
        yield self._gauge("penstock_leases", "Jobs that this consumer holds.", moment.num_leases)
        yield self._count("penstock_claimed_jobs", "Jobs claimed.", self._num_claimed)
        yield self._count(
            "penstock_reclaimed_jobs", "Claimed jobs that were handed out before.", self._num_reclaimed
        )
        yield self._count("penstock_lost_leases", "Leases that were lost.", self._num_lost)
        yield self._labelled(
            "penstock_failed_attempts", "Failed attempts, the last included.", "error_type", self._attempts
        )
        yield self._labelled(
            "penstock_dead_lettered_jobs", "Jobs that became dead letters.", "error_type", self._dead
        )
        yield self._labelled(
            "penstock_failed_jobs", "Jobs ended for a fault of their own.", "error_type", self._failed
        )
        yield self._count("penstock_published_events", "Events of unfinished jobs written.", self._num_events)
        yield self._count("penstock_checkpoints", "Those that are checkpoints.", self._num_checkpoints)
        yield self._histogram("penstock_publish_batch_size", "Events per publishing call.", self._publishes)
        yield self._histogram("penstock_commit_batch_size", "Ends per committing call.", self._commits)

    def _gauge(self, name: str, words: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, words, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _count(self, name: str, words: str, value: float) -> Metric:
        family = CounterMetricFamily(name, words, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _labelled(self, name: str, words: str, label: str, counts: Counter[str]) -> Metric:
        family = CounterMetricFamily(name, words, labels=["model_name", label])
        for value, count in counts.items():
            family.add_metric([self._model_name, value], count)
        return family

    def _histogram(self, name: str, words: str, tally: Tally) -> Metric:
        family = HistogramMetricFamily(name, words, labels=["model_name"])
        family.add_metric([self._model_name], tally.buckets, tally.total)
        return family


def _error_type(ending: Ending) -> str:
    event = decode_terminal(ending.terminal)
    return _known(event.error.type) if isinstance(event, Failed) else "other"


def _known(kind: str) -> str:
    """A label must not take any value that comes along."""
    return kind if kind in ERROR_TYPES else "other"
