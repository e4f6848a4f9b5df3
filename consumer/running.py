"""A job between its claim and its end: what has come out of the engine, and what was published of it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from consumer.detokenizer import Detokenizer
from consumer.lease import Ending, Lease, Progress
from consumer.tokenizer import Defaults, PromptTokenizer, PromptTooLong
from engine.messages import Ready
from engine.request import FinishReason, Output, Request, RequestParams
from penstock.errors import InvalidJob, JobTooLarge
from penstock.messages import (
    Completion,
    Done,
    Error,
    Failed,
    Job,
    Tokens,
    Usage,
    decode_event,
    decode_job,
    decode_labels,
    encode_event,
)

log = logging.getLogger(__name__)

_LEAST_UNFINISHED_TTL_MS = 24 * 3600 * 1000
"""An unfinished stream is a checkpoint: a short result TTL must not eat it while the job runs."""


class JobRefused(Exception):
    """The job cannot be run as it stands; `ending` is its terminal event, ready to be committed."""

    def __init__(self, ending: Ending) -> None:
        super().__init__()
        self.ending = ending


class EngineRefused(Exception):
    """The engine could not run this request; the message is the engine's."""


class Served(Struct, frozen=True, kw_only=True):
    """The model that this consumer serves, and how its results are kept."""

    model: str
    """Its name to clients."""
    ready: Ready
    tokenizer: PromptTokenizer
    defaults: Defaults
    result_ttl_s: int

    def ttl_ms(self, job: Job | None) -> int:
        """How long this job's result is kept."""
        wanted = job.result_ttl_s if job is not None else None
        return (wanted or self.result_ttl_s) * 1000


class RunningJob:
    """One admitted job. Its text is touched by one thread at a time, see `TokenizerThreads`."""

    def __init__(self, lease: Lease, job: Job, request: Request, served: Served) -> None:
        self.lease = lease
        self.job = job
        self.request = request
        self.next_progress_at = 0.0
        self._served = served
        stop = job.sampling_params.stop_strings
        self._text = Detokenizer(served.tokenizer.tokenizer, request.prompt_token_ids, stop)
        self._finish: FinishReason | None = None
        self._stop_token_id: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the last output has come, or a stop string ended it."""
        return self._finish is not None

    @property
    def stopped_early(self) -> bool:
        """Whether a stop string ended it: the engine does not know and has to be told."""
        return self._text.stopped_by is not None

    def replay(self, token_ids: Sequence[int]) -> None:
        """Take over tokens that an earlier run published: their text is out already."""
        for token_id in token_ids:
            self._text.push(token_id)
        # All of it, although the tail alone might look like the beginning of a stop string: the run that
        # published it had seen what follows.
        self._text.take_all()

    def add(self, output: Output) -> None:
        """Take a step's output; tokens behind a stop string are dropped.

        Raises:
            EngineRefused: the engine could not run this request.
        """
        if output.error is not None:
            raise EngineRefused(output.error)
        ids = output.token_ids
        for position, token_id in enumerate(ids):
            if output.stop_token_id is not None and position == len(ids) - 1:
                self._text.push_silent(token_id)
            else:
                self._text.push(token_id)
            if self._text.stopped_by is not None:
                self._finish = "stop"
                return
        if output.finish_reason is not None:
            self._text.flush()
            self._finish = "stop" if self._text.stopped_by is not None else output.finish_reason
            self._stop_token_id = output.stop_token_id

    def resumed_request(self) -> Request:
        """The request to admit again after an engine's death: it goes on after the tokens so far."""
        return Request(
            request_id=self.request.request_id,
            prompt_token_ids=self.request.prompt_token_ids,
            params=self.request.params,
            output_token_ids=self._text.token_ids,
        )

    def take_progress(self) -> Progress | None:
        """The next `tokens` event, if some text became safe since the last one."""
        num_before = self._text.num_taken
        event = self._tokens_event(*self._text.take_safe())
        if event is None:
            return None
        return Progress(
            lease=self.lease,
            num_before=num_before,
            event_id=f"{self._text.num_taken}-0",
            event=event,
            ttl_ms=max(self._served.ttl_ms(self.job), _LEAST_UNFINISHED_TTL_MS),
        )

    def ending(self) -> Ending:
        """The `done` event with, for a streamed job, the last `tokens` event before it."""
        assert self._finish is not None
        tokens = self._tokens_event(*self._text.take_all()) if self.job.stream else None
        total = self._text.num_tokens
        completion = Completion(
            text=self._text.text,
            finish_reason=self._finish,
            stop_reason=self._stop_reason(),
            token_ids=self._text.token_ids if self.job.return_token_ids else None,
        )
        done = Done(
            outputs=[completion],
            usage=Usage(prompt_tokens=len(self.request.prompt_token_ids), completion_tokens=total),
            model=self._served.model,
            fingerprint=self._served.ready.fingerprint,
            custom_id=self.job.custom_id,
        )
        return Ending(
            lease=self.lease,
            terminal_id=f"{total}-1",
            terminal=encode_event(done),
            completed=True,
            result_ttl_ms=self._served.ttl_ms(self.job),
            tokens_id=f"{total}-0" if tokens else "",
            tokens=tokens or b"",
            batch=self.job.batch,
            row=self.job.row,
        )

    def failure(self, error: Error) -> Ending:
        """A `failed` event for this job."""
        failed = Failed(error=error, custom_id=self.job.custom_id)
        return Ending(
            lease=self.lease,
            terminal_id=f"{self._text.num_taken}-1",
            terminal=encode_event(failed),
            completed=False,
            result_ttl_ms=self._served.ttl_ms(self.job),
            batch=self.job.batch,
            row=self.job.row,
        )

    def _tokens_event(self, token_ids: list[int], text: str, offset: int) -> bytes | None:
        if not token_ids:
            return None
        fingerprint = self._served.ready.fingerprint
        return encode_event(
            Tokens(text=text, token_ids=token_ids, text_offset=offset, fingerprint=fingerprint)
        )

    def _stop_reason(self) -> str | int | None:
        if self._text.stopped_by is not None:
            return self._text.stopped_by
        # An end token is the usual end and no reason worth naming; vLLM reports it the same way.
        is_end = self._stop_token_id in self._served.ready.eos_token_ids
        named = self._stop_token_id in self.job.sampling_params.stop_token_ids
        return None if is_end and not named else self._stop_token_id


class Admission:
    """Turns leases into running jobs: decodes, checks against the model, tokenizes."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def admit(self, lease: Lease, published: Sequence[tuple[str, bytes]]) -> RunningJob:
        """A running job that goes on after what earlier runs have `published`.

        Raises:
            JobRefused: with the `failed` event to commit.
        """
        try:
            if lease.job is None:
                raise InvalidJob(
                    "the entry has no field `job`; add one with: XADD LANE * job '{\"prompt\": …}'"
                )
            job = decode_job(lease.job)
        except JobTooLarge as error:
            raise self._refused(lease, Error(type="job_too_large", message=str(error))) from None
        except InvalidJob as error:
            raise self._refused(lease, Error(type="invalid_job", message=str(error))) from None
        try:
            self._check(job)
            prompt = self._served.tokenizer.encode(job, self._served.ready.max_model_len - 1)
            params = self._params(lease, job, len(prompt))
        except InvalidJob as error:
            raise self._refused(lease, Error(type="invalid_job", message=str(error)), job) from None
        except PromptTooLong as error:
            raise self._refused(lease, Error(type="prompt_too_long", message=str(error)), job) from None
        except _Unservable as error:
            raise self._refused(lease, Error(type="model_not_served", message=str(error)), job) from None
        done = checkpoint(published, self._served.ready.fingerprint) if job.stream else []
        request = Request(
            request_id=lease.request_id, prompt_token_ids=prompt, params=params, output_token_ids=done
        )
        running = RunningJob(lease, job, request, self._served)
        running.replay(done)
        return running

    def _check(self, job: Job) -> None:
        ready = self._served.ready
        if job.model is not None and job.model != self._served.model:
            raise _Unservable(f"this queue serves {self._served.model!r}, not {job.model!r}")
        unknown = [token for token in job.sampling_params.stop_token_ids if token >= ready.vocab_size]
        if unknown:
            raise InvalidJob(
                f"`stop_token_ids` has {unknown[0]}; this model's ids go from 0 to {ready.vocab_size - 1}"
            )

    def _params(self, lease: Lease, job: Job, prompt_tokens: int) -> RequestParams:
        wanted, defaults = job.sampling_params, self._served.defaults
        room = self._served.ready.max_model_len - prompt_tokens
        top_k = defaults.top_k if wanted.top_k is None else max(wanted.top_k, 0)
        return RequestParams(
            max_tokens=min(wanted.max_tokens or room, room),
            seed=_seed_of(lease) if wanted.seed is None else wanted.seed % 2**64,
            temperature=defaults.temperature if wanted.temperature is None else wanted.temperature,
            top_p=defaults.top_p if wanted.top_p is None else wanted.top_p,
            top_k=top_k,
            min_p=defaults.min_p if wanted.min_p is None else wanted.min_p,
            stop_token_ids=tuple(wanted.stop_token_ids),
            ignore_eos=wanted.ignore_eos,
        )

    def _refused(self, lease: Lease, error: Error, job: Job | None = None) -> JobRefused:
        labels = job or decode_labels(lease.job or b"")
        failed = Failed(error=error, custom_id=labels.custom_id)
        ending = Ending(
            lease=lease,
            terminal_id="0-1",
            terminal=encode_event(failed),
            completed=False,
            result_ttl_ms=self._served.ttl_ms(job),
            batch=labels.batch,
            row=labels.row,
        )
        return JobRefused(ending)

    def broken(self, lease: Lease, error: Exception) -> Ending:
        """The end of a job whose admission failed in a way that nobody foresaw."""
        return self._refused(lease, Error(type="engine_error", message=f"internal error: {error!r}")).ending


class _Unservable(Exception):
    """A sound job for another model."""


def checkpoint(published: Sequence[tuple[str, bytes]], fingerprint: str) -> list[int]:
    """Output tokens in a result stream's events, as far as they follow each other from the first one on.

    A server that lost its last second may have kept an event and not the one before it: what is behind the
    hole is generated again.
    """
    token_ids: list[int] = []
    text_length = 0
    for event_id, data in published:
        try:
            event = decode_event(data)
        except msgspec.DecodeError:
            break  # of a newer consumer, perhaps
        if not isinstance(event, Tokens):
            break
        count = len(token_ids) + len(event.token_ids)
        if event_id != f"{count}-0" or event.text_offset != text_length:
            break
        if event.fingerprint != fingerprint:
            log.warning("going on with tokens of %r, and this is %r", event.fingerprint, fingerprint)
        token_ids += event.token_ids
        text_length += len(event.text)
    return token_ids


def _seed_of(lease: Lease) -> int:
    """64 bits of the job id's SHA-256: the same seed wherever and however often the job runs."""
    return int.from_bytes(hashlib.sha256(lease.key.encode()).digest()[:8], "little")
