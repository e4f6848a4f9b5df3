"""A job between its claim and its end: what has come out of the engine, and what was published of it."""

from __future__ import annotations

import time
from typing import Final

import msgspec

from consumer.checkpoint import Checkpoint
from consumer.failures import error_of
from consumer.lease import DROP_TOKENS, Ending, Failure, Lease, Progress
from consumer.reasoning import num_reasoning_tokens, opens_reasoning
from consumer.sample import RunningSample
from consumer.served import Served
from consumer.token_logprobs import token_logprobs
from engine.request import ErrorType, Output, Request, Sample
from penstock.messages import (
    Done,
    Error,
    Failed,
    Job,
    Score,
    TokenLogprob,
    Usage,
    encode_event,
)

_LEAST_UNFINISHED_TTL_MS: Final = 24 * 3600 * 1000
"""An unfinished stream is a checkpoint: a short result TTL must not eat it while the job runs."""


class EngineRefused(Exception):
    """The engine could not run this request; the message is the engine's."""

    def __init__(self, message: str, kind: ErrorType) -> None:
        super().__init__(message)
        self.kind: ErrorType = kind


TOO_LATE: Final = "the job had not ended by its deadline"

MAX_RESULT_BYTES = 64 * 1024 * 1024
"""A server takes no value above 512 MB and closes the connection: every other result would wait behind it."""


def deadline_of(lease: Lease, job: Job) -> float | None:
    """Monotonic time, in seconds, by which the job has to end; None where it has no deadline.

    It counts from the enqueue: up to the claim by the server's clock, then by this process's monotonic one,
    so that no wall clock but the server's matters.
    """
    if job.deadline_s is None:
        return None
    return lease.claimed_at - lease.waited_ms / 1000 + job.deadline_s


class RunningJob:
    """One admitted job. Its text is touched by one thread at a time, see `TokenizerThreads`."""

    def __init__(
        self, lease: Lease, job: Job, request: Request, served: Served, prompt_text: str | None = None
    ) -> None:
        """Nothing has come yet.

        Args:
            prompt_text: as given or rendered; where there is none, an echo is decoded from the tokens.
        """
        self.lease = lease
        self.job = job
        self.request = request
        self.deadline = deadline_of(lease, job)
        """Monotonic time, in seconds, by which it has to end; None where there is none."""
        self._served = served
        self._prompt_text = prompt_text if job.echo else None
        self._next_progress_at = 0.0 if job.stream else time.monotonic() + served.checkpoint_s
        self._num_new = 0  # tokens since the last `tokens` events
        count = job.sampling_params.n if job.kind == "generate" else 0
        self._samples = [RunningSample(index, job, request, served) for index in range(count)]
        self._num_unfinished = count  # of the samples; asked for often
        self._num_published = 0
        self._num_dropped = 0  # of these, tokens of checkpoints that are no longer there
        self._drops = False
        self._resumed_from: list[str] = []
        self._lacks_prompt = False
        self._num_cached_tokens = 0
        self._prompt_logprobs: list[TokenLogprob] = []
        self._embedding: list[float] = []
        self._pooled = False

    @property
    def finished(self) -> bool:
        """Whether all samples have ended; of a job that generates nothing, whether its result is there."""
        if self._lacks_prompt:
            return self._pooled
        return self._num_unfinished == 0 if self._samples else self._pooled

    @property
    def num_tokens(self) -> int:
        """Of the prompt and all outputs so far."""
        return len(self.request.prompt_token_ids) + sum(sample.num_tokens for sample in self._samples)

    @property
    def num_cached_tokens(self) -> int:
        """Of the prompt's tokens: how many the prefix cache had."""
        return self._num_cached_tokens

    @property
    def finish_reasons(self) -> list[str]:
        """Of the samples that have ended."""
        return [sample.finish_reason for sample in self._samples if sample.finish_reason is not None]

    @property
    def num_rows(self) -> int:
        """How many of the engine's sequences it takes."""
        return self._num_unfinished if self._samples else 1

    def replay(self, published: Checkpoint) -> None:
        """Take over what earlier runs have published."""
        self._num_published = self._num_dropped = published.num_published
        self._drops = published.stale
        self._resumed_from = published.other_fingerprints
        for index, sample in published.samples.items():
            self._samples[index].replay(sample)
            self._num_dropped -= len(sample.token_ids)
        self._num_unfinished = sum(not sample.finished for sample in self._samples)
        wants_prompt = self.job.sampling_params.prompt_logprobs is not None
        # Nothing is left to generate, and what is wanted of the prompt was never published.
        self._lacks_prompt = bool(self._samples) and wants_prompt and self.finished

    def remaining(self) -> Request:
        """The request to admit, also after an engine's death: it goes on after the tokens so far."""
        if not self._samples:
            return self.request
        if self._lacks_prompt:
            return msgspec.structs.replace(self.request, kind="score", samples=[Sample()])
        samples = [sample.remaining() for sample in self._samples if not sample.finished]
        return msgspec.structs.replace(self.request, samples=samples)

    def add(self, output: Output) -> bool:
        """Take a step's output; whether the engine has to be told that its sample has ended here.

        Raises:
            EngineRefused: the engine could not run this request.
        """
        if output.error is not None:
            raise EngineRefused(output.error, output.error_type)
        prompt = self.request.prompt_token_ids
        if output.prompt_logprobs:
            texts = self._served.token_texts
            self._prompt_logprobs = token_logprobs(prompt[1:], output.prompt_logprobs, texts)
        if output.sample == 0:
            self._num_cached_tokens = min(max(self._num_cached_tokens, output.num_cached_tokens), len(prompt))
        if not self._samples or self._lacks_prompt:
            self._embedding = output.embedding or self._embedding
            self._pooled = output.finish_reason is not None
            return False
        sample = self._samples[output.sample]
        if sample.finished:
            return False  # behind a stop string
        sample.add(output)
        self._num_new += len(output.token_ids)
        self._num_unfinished -= sample.finished
        if sample.finished and self.job.stream:
            self._next_progress_at = 0.0  # the rest of its text, held back until now, is due
        return sample.stopped_early

    def due_progress(self, now: float, interval_s: float) -> list[Progress]:
        """The `tokens` events that are due at monotonic time `now`.

        A streamed job's every `interval_s` at most. Those of any other job are checkpoints, and sparse: every
        `checkpoint_tokens` tokens or `checkpoint_s`, whichever comes first.
        """
        has_many = not self.job.stream and self._num_new >= self._served.checkpoint_tokens
        if now < self._next_progress_at and not has_many:
            return []
        progress = self.take_progress()
        if progress:
            self._num_new = 0
            self._next_progress_at = now + (interval_s if self.job.stream else self._served.checkpoint_s)
        return progress

    def take_progress(self) -> list[Progress]:
        """The next `tokens` events: of each sample, the text that became safe since its last one."""
        taken: list[Progress] = []
        for sample in self._samples:
            event = sample.take()
            if event is None:
                continue
            num_before = self._num_published
            self._num_published += len(event.token_ids)
            taken.append(
                Progress(
                    lease=self.lease,
                    num_before=num_before,
                    event_id=f"{self._num_published}-0",
                    event=encode_event(event),
                    ttl_ms=max(self._served.ttl_ms(self.job), _LEAST_UNFINISHED_TTL_MS),
                    drop=self._drops,
                )
            )
            self._drops = False
        return taken

    def end(self) -> tuple[list[Progress], Ending]:
        """The `done` event with, for a streamed job, the last `tokens` event, and those before that one."""
        assert self.finished
        words = self._invalid_output()
        if words is not None:
            return [], self.failure(error_of("invalid_output", words))
        done = self._done()
        ending = self._ending(done, self._num_dropped + done.usage.completion_tokens)
        size = len(ending.terminal)
        if size > MAX_RESULT_BYTES:
            words = f"the result has {size} bytes; the limit is {MAX_RESULT_BYTES}: ask for less in one job"
            return [], self.failure(error_of("result_too_large", words))
        progress = self.take_progress() if self.job.stream else []
        last = progress.pop() if progress else None
        if last is not None:
            last_words = {"tokens_id": last.event_id, "tokens": last.event, "num_before": last.num_before}
            ending = msgspec.structs.replace(ending, **last_words)
        return progress, ending

    def failure(self, error: Error) -> Ending:
        """A `failed` event for this job, written unless another attempt may help and one is left."""
        failed = Failed(error=error, custom_id=self.job.custom_id)
        ending = self._ending(failed, self._num_published)
        if not error.retryable:
            return ending
        allowed = self._served.attempts(self.job)
        return msgspec.structs.replace(ending, failure=Failure(error=error, max_attempts=allowed))

    def _ending(self, event: Done | Failed, count: int) -> Ending:
        has_checkpoints = not self.job.stream and self._num_published > 0
        return Ending(
            lease=self.lease,
            terminal_id=f"{count}-1",
            terminal=encode_event(event),
            completed=isinstance(event, Done),
            result_ttl_ms=self._served.ttl_ms(self.job),
            num_tokens=self.num_tokens,
            tokens_id=DROP_TOKENS if has_checkpoints else "",
            num_before=self._num_published if self.job.stream else 0,
            batch=self.job.batch,
            row=self.job.row,
        )

    def _done(self) -> Done:
        job, params = self.job, self.job.sampling_params
        prompt = self.request.prompt_token_ids
        logprobs = self._prompt_logprobs
        total = sum(token.logprob for token in logprobs)
        return Done(
            outputs=[sample.completion(with_token_ids=job.return_token_ids) for sample in self._samples],
            usage=self._usage(),
            model=self._served.model,
            score=Score(logprob=total, tokens=logprobs) if job.kind == "score" else None,
            embedding=self._embedding if job.kind == "embed" else None,
            prompt_logprobs=logprobs
            if job.kind == "generate" and params.prompt_logprobs is not None
            else None,
            fingerprint=self._served.ready.fingerprint,
            resumed_from=self._resumed_from,
            custom_id=job.custom_id,
            prompt=self._prompt() if job.echo else None,
            prompt_tokens=[self._served.token_texts[token_id] for token_id in prompt] if job.echo else None,
            prompt_token_ids=prompt if job.return_token_ids else None,
        )

    def _usage(self) -> Usage:
        prompt, markers = self.request.prompt_token_ids, self._served.markers.reasoning_ids
        num_reasoning = 0
        if markers is not None and self._samples:
            continued = self.job.continue_final_message
            opened = opens_reasoning(prompt, markers, self._served.token_texts, continued=continued)
            num_reasoning = sum(
                num_reasoning_tokens(sample.token_ids, markers, opened=opened) for sample in self._samples
            )
        return Usage(
            prompt_tokens=len(prompt),
            completion_tokens=sum(sample.num_tokens for sample in self._samples),
            cached_tokens=self._num_cached_tokens,
            reasoning_tokens=num_reasoning,
        )

    def _prompt(self) -> str:
        if self._prompt_text is not None:
            return self._prompt_text
        return self._served.tokenizer.decode(self.request.prompt_token_ids)

    def _invalid_output(self) -> str | None:
        """What is wrong with a finished output that has a form to keep; None where nothing is.

        One that was cut off is given as it is: its finish and stop reasons say that it is not whole.
        """
        wanted = self.job.sampling_params.structured_outputs
        if wanted is None:
            return None
        from consumer.structured import validate  # loads a schema validator, for those who need one

        for sample in self._samples:
            if sample.whole and (words := validate(wanted, sample.answer)) is not None:
                return f"output {sample.index}: {words}" if len(self._samples) > 1 else words
        return None
