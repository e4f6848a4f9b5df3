"""The chunks of a streamed text completion."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from penstock.messages import Done, TokenLogprob, Tokens
from producer.gateway.openai.chat_reply import FINISH
from producer.gateway.openai.completion_reply import TextChoice, TextCompletion
from producer.gateway.openai.form import CompletionForm
from producer.gateway.openai.identity import created
from producer.gateway.openai.logprobs import TextLogprobs, text_logprobs
from producer.gateway.openai.usage import CompletionUsage, UsageSoFar, usage_of


class CompletionTranscript:
    """Turns the events of a request's jobs into chunks. See `ChatTranscript`."""

    def __init__(self, form: CompletionForm, job_ids: list[str], model: str) -> None:
        self._form = form
        self._job_id = job_ids[0]
        self._model = model
        self._created = created(self._job_id)
        self._fingerprint: str | None = None
        self._num_jobs = len(job_ids)
        self._so_far = UsageSoFar(len(job_ids))
        self._ends: list[Done] = []
        self._num_characters = [0] * (form.n * len(job_ids))
        self._num_tokens = [0] * (form.n * len(job_ids))

    @property
    def n(self) -> int:
        """Samples of each job."""
        return self._form.n

    def begin(self) -> list[TextCompletion]:
        """What comes before the first event: nothing."""
        return []

    def take(self, job: int, event: Tokens) -> list[TextCompletion]:
        """A stretch of one sample of a job, by the job's place in the request."""
        self._fingerprint = event.fingerprint or None
        self._so_far.take(job, event)
        index = job * self._form.n + event.sample
        choice = self._choice(index, event.text, event.logprobs, event.token_ids)
        return [self._chunk(choice)]

    def end(self, job: int, done: Done) -> list[TextCompletion]:
        """A job's end; that of the last job is followed by the usage of all."""
        self._fingerprint = done.fingerprint or None
        self._ends.append(done)
        self._so_far.end(job, done)
        chunks = [self._finish(job, done, number) for number in range(len(done.outputs))]
        if len(self._ends) == self._num_jobs and self._form.include_usage:
            chunks.append(self._chunk(usage=usage_of(self._ends)))
        return chunks

    def _finish(self, job: int, done: Done, number: int) -> TextCompletion:
        output, index = done.outputs[number], job * self._form.n + number
        told = self._num_tokens[index]
        logprobs = None if output.logprobs is None else output.logprobs[told:] or None
        text = output.text[self._num_characters[index] :]
        choice = self._choice(index, text, logprobs, (output.token_ids or [])[told:])
        return self._chunk(
            TextChoice(
                index=index,
                text=choice.text,
                logprobs=choice.logprobs,
                finish_reason=FINISH[output.finish_reason],
                stop_reason=output.stop_reason,
                token_ids=choice.token_ids,
                prompt_token_ids=UNSET if done.prompt_token_ids is None else done.prompt_token_ids,
            )
        )

    def _choice(
        self, index: int, text: str, logprobs: list[TokenLogprob] | None, token_ids: list[int]
    ) -> TextChoice:
        offset = self._num_characters[index]
        self._num_characters[index] += len(text)
        self._num_tokens[index] += len(token_ids)
        told: TextLogprobs | None = None
        if logprobs is not None:
            told = text_logprobs(logprobs, offset=offset, as_token_ids=self._form.as_token_ids)
        ids = token_ids if self._form.token_ids else UNSET
        return TextChoice(index=index, text=text, logprobs=told, token_ids=ids)

    def _chunk(
        self, choice: TextChoice | None = None, usage: CompletionUsage | None = None
    ) -> TextCompletion:
        return TextCompletion(
            id=f"cmpl-{self._job_id}",
            created=self._created,
            model=self._model,
            choices=[] if choice is None else [choice],
            system_fingerprint=self._fingerprint,
            usage=self._usage(usage),
        )

    def _usage(self, usage: CompletionUsage | None) -> CompletionUsage | UnsetType | None:
        if usage is None and self._form.continuous_usage:
            return self._so_far.usage
        return usage if self._form.include_usage else UNSET
