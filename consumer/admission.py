"""From a lease to a running job: decoded, checked against the model, tokenized, its parameters resolved."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from consumer.checkpoint import Checkpoint, PublishedEvent, checkpoint, count_of
from consumer.failures import error_of
from consumer.lease import DROP_TOKENS, Ending, Failure, Lease
from consumer.running import TOO_LATE, RunningJob, deadline_of
from consumer.served import Served
from consumer.tokenizer import PromptTooLong
from engine.request import Grammar, RepetitionDetection, Request, RequestParams, Sample
from penstock.errors import InvalidJob, JobTooLarge
from penstock.messages import (
    Error,
    Failed,
    Job,
    SamplingParams,
    decode_job,
    decode_labels,
    encode_event,
)

log = logging.getLogger(__name__)


class JobRefused(Exception):
    """The job cannot be run as it stands; `ending` is its terminal event, ready to be committed."""

    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self.ending = ending


class Admission:
    """Turns leases into running jobs."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def admit(self, lease: Lease, published: Sequence[PublishedEvent]) -> RunningJob:
        """A running job that goes on after what earlier runs have `published`.

        Raises:
            JobRefused: with the `failed` event to commit.
        """
        job = None
        try:
            job = _decode(lease)
            self._check_deadline(lease, job)
            request, text = self._request(lease, job)
            running = RunningJob(lease, job, request, self._served, text)
        except (InvalidJob, PromptTooLong, _Unservable, _TooLate) as error:
            kind = next(kind for refusal, kind in _KINDS.items() if isinstance(error, refusal))
            raise JobRefused(self._ending(lease, error_of(kind, str(error)), job, published)) from None
        if job.kind == "generate":
            fingerprint = self._served.ready.fingerprint
            found = checkpoint(published, fingerprint, job)
            _log_foreign(lease, found, fingerprint)
            running.replay(found)
        return running

    def broken(self, lease: Lease, error: Exception, published: Sequence[PublishedEvent]) -> Ending:
        """The end, at its last attempt, of a job whose admission failed in a way that nobody foresaw."""
        job = None
        with contextlib.suppress(InvalidJob):
            job = _decode(lease)
        failed = error_of("engine_error", f"internal error: {error!r}")
        ending = self._ending(lease, failed, job, published)
        failure = Failure(error=failed, max_attempts=self._served.attempts(job))
        return msgspec.structs.replace(ending, failure=failure)

    def _check_deadline(self, lease: Lease, job: Job) -> None:
        deadline = deadline_of(lease, job)
        if deadline is not None and time.monotonic() >= deadline:
            raise _TooLate(f"{TOO_LATE}: `deadline_s` is {job.deadline_s:g}, and it had to wait longer")

    def _request(self, lease: Lease, job: Job) -> tuple[Request, str | None]:
        """What the engine is asked for, and the prompt's text, where there is more of it than its tokens."""
        ready, wanted = self._served.ready, job.sampling_params
        if job.model is not None and job.model != self._served.model:
            raise _Unservable(f"this queue serves {self._served.model!r}, not {job.model!r}")
        self._check_ids("logit_bias", wanted.logit_bias)
        self._check_ids("stop_token_ids", wanted.stop_token_ids)
        self._check_ids("allowed_token_ids", wanted.allowed_token_ids or ())
        # What generates needs room for one token at least.
        limit = ready.max_model_len - (job.kind == "generate")
        prompt = self._served.tokenizer.encode(job, limit)
        params = self._params(lease, job, ready.max_model_len - len(prompt.token_ids))
        samples = [Sample(index=index) for index in range(wanted.n)]
        request = Request(
            request_id=lease.request_id,
            prompt_token_ids=prompt.token_ids,
            params=params,
            samples=samples,
            kind=job.kind,
        )
        return request, prompt.text

    def _check_ids(self, name: str, token_ids: Collection[int]) -> None:
        size = self._served.ready.vocab_size
        if token_ids and (largest := max(token_ids)) >= size:
            raise InvalidJob(f"`{name}` has {largest}; this model's ids go from 0 to {size - 1}")

    def _params(self, lease: Lease, job: Job, room: int) -> RequestParams:
        wanted, defaults = job.sampling_params, self._served.defaults
        top_k = defaults.top_k if wanted.top_k is None else max(wanted.top_k, 0)
        penalty = wanted.repetition_penalty
        return RequestParams(
            max_tokens=self._max_tokens(wanted, room) if job.kind == "generate" else 0,
            seed=_seed_of(lease) if wanted.seed is None else wanted.seed % 2**64,
            temperature=defaults.temperature if wanted.temperature is None else wanted.temperature,
            top_p=defaults.top_p if wanted.top_p is None else wanted.top_p,
            top_k=top_k,
            min_p=defaults.min_p if wanted.min_p is None else wanted.min_p,
            presence_penalty=wanted.presence_penalty,
            frequency_penalty=wanted.frequency_penalty,
            repetition_penalty=defaults.repetition_penalty if penalty is None else penalty,
            logit_bias=wanted.logit_bias,
            min_tokens=wanted.min_tokens,
            stop_token_ids=tuple(wanted.stop_token_ids),
            ignore_eos=wanted.ignore_eos,
            bad_words=self._served.tokenizer.bad_words(wanted.bad_words),
            allowed_token_ids=tuple(wanted.allowed_token_ids or ()),
            logprobs=wanted.logprobs,
            prompt_logprobs=(wanted.prompt_logprobs or 0) if job.kind == "score" else wanted.prompt_logprobs,
            repetition=_repetition(wanted),
            grammar=_grammar(wanted),
            pooling=job.pooling_params.pooling,
            normalize=job.pooling_params.normalize,
        )

    def _max_tokens(self, wanted: SamplingParams, room: int) -> int:
        default = self._served.defaults.max_tokens
        given = wanted.max_tokens or default or room
        if wanted.min_tokens > min(given, room):
            limit = (
                f"the prompt leaves room for {room} tokens"
                if given >= room
                else f"the model's own `max_tokens` is {given}, where a job has none"
            )
            raise InvalidJob(f"`min_tokens` is {wanted.min_tokens}; {limit}")
        return min(given, room)

    def _ending(
        self, lease: Lease, error: Error, job: Job | None, published: Sequence[PublishedEvent]
    ) -> Ending:
        labels = job or decode_labels(lease.job or b"")
        has_checkpoints = bool(published) and job is not None and not job.stream
        return Ending(
            lease=lease,
            terminal_id=f"{count_of(published)}-1",
            terminal=encode_event(Failed(error=error, custom_id=labels.custom_id)),
            completed=False,
            result_ttl_ms=self._served.ttl_ms(job),
            tokens_id=DROP_TOKENS if has_checkpoints else "",
            num_before=count_of(published) if job is not None and job.stream else 0,
            batch=labels.batch,
            row=labels.row,
        )


class _Unservable(Exception):
    """A sound job for another model."""


class _TooLate(Exception):
    """A sound job whose deadline is over."""


_KINDS: Final[dict[type[Exception], str]] = {
    JobTooLarge: "job_too_large",
    InvalidJob: "invalid_job",
    PromptTooLong: "prompt_too_long",
    _Unservable: "model_not_served",
    _TooLate: "deadline_exceeded",
}
"""Error types by exception; the first that fits."""


def _decode(lease: Lease) -> Job:
    if lease.job is None:
        raise InvalidJob("the entry has no field `job`; add one with: XADD LANE * job '{\"prompt\": …}'")
    return decode_job(lease.job)


def _log_foreign(lease: Lease, found: Checkpoint, fingerprint: str) -> None:
    if found.other_fingerprints:
        words = "job %s goes on after tokens of %s, which it has published; this is %r"
        log.warning(
            words,
            lease.key,
            " and ".join(map(repr, found.other_fingerprints)),
            fingerprint,
            extra={"job": lease.key},
        )
    elif found.stale:
        words = "job %s starts anew: its checkpoints are of another model, or not whole; this is %r"
        log.warning(words, lease.key, fingerprint, extra={"job": lease.key})


def _repetition(wanted: SamplingParams) -> RepetitionDetection | None:
    asked = wanted.repetition_detection
    if asked is None:
        return None
    return RepetitionDetection(
        max_pattern_size=asked.max_pattern_size,
        min_pattern_size=asked.min_pattern_size,
        min_count=asked.min_count,
    )


def _grammar(wanted: SamplingParams) -> Grammar | None:
    if wanted.structured_outputs is None:
        return None
    from consumer.structured import grammar_of  # loads a schema validator, for those who need one

    return grammar_of(wanted.structured_outputs)


def _seed_of(lease: Lease) -> int:
    """64 bits of the job id's SHA-256: the same seed wherever and however often the job runs."""
    return int.from_bytes(hashlib.sha256(lease.key.encode()).digest()[:8], "little")
