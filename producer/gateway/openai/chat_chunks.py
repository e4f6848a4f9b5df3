"""The chunks of a streamed chat completion."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType, structs

from penstock.messages import Completion, Done, TokenLogprob, Tokens
from producer.gateway.openai.answer import AnswerParser
from producer.gateway.openai.chat_reply import ChatFinish, finish_reason
from producer.gateway.openai.dialect import Dialect
from producer.gateway.openai.form import ChatForm
from producer.gateway.openai.identity import call_id, created
from producer.gateway.openai.logprobs import ChatLogprobs, chat_logprobs
from producer.gateway.openai.parsers.pieces import CallArguments, CallStart, Content, Piece, Reasoning
from producer.gateway.openai.usage import CompletionUsage, UsageSoFar, usage_of


class FunctionDelta(Struct, frozen=True, kw_only=True):
    """More of what the model wants called."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDelta(Struct, frozen=True, kw_only=True):
    """More of one tool call."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class Delta(Struct, frozen=True, kw_only=True):
    """More of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True, kw_only=True):
    """Of one sample."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinish | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, frozen=True, kw_only=True):
    """One message of the stream."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str | None = None
    usage: CompletionUsage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class _Sample:
    """What was told of one sample."""

    def __init__(self, parser: AnswerParser) -> None:
        self.parser = parser
        self.num_characters = 0
        self.num_tokens = 0
        self.num_calls = 0


class ChatTranscript:
    """Turns a job's events into chunks. Made anew, and given the same events, it gives the same chunks."""

    def __init__(self, form: ChatForm, job_id: str, model: str, n: int) -> None:
        self._form = form
        self._dialect = form.dialect or Dialect()
        self._job_id = job_id
        self._model = model
        self._created = created(self._job_id)
        self._fingerprint: str | None = None
        self._so_far = UsageSoFar(1)
        self._samples = [_Sample(AnswerParser.of(form, self._dialect)) for _ in range(n)]

    @property
    def n(self) -> int:
        """Samples of the job."""
        return len(self._samples)

    def learn(self, dialect: Dialect) -> None:
        """Before the first event: how the model writes, where it was not known when the request came."""
        self._dialect = dialect
        self._samples = [_Sample(AnswerParser.of(self._form, dialect)) for _ in self._samples]

    def begin(self) -> list[ChatChunk]:
        """What comes before the first event."""
        content = self._form.prefix
        return [
            self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content=content)))
            for index in range(len(self._samples))
        ]

    def take(self, job: int, event: Tokens) -> list[ChatChunk]:
        """A stretch of one sample; there is one job."""
        self._fingerprint = event.fingerprint or None
        self._so_far.take(job, event)
        sample = self._samples[event.sample]
        sample.num_characters += len(event.text)
        sample.num_tokens += len(event.token_ids)
        return self._tell(event.sample, sample.parser.feed(event.text), event.logprobs, event.token_ids)

    def end(self, job: int, done: Done) -> list[ChatChunk]:
        """The job's end: what was not told yet, why each sample ended, and the usage."""
        self._fingerprint = done.fingerprint or None
        self._so_far.end(job, done)
        chunks: list[ChatChunk] = []
        for output in done.outputs:
            chunks += self._finish(output)
        if chunks and done.prompt_token_ids is not None:
            chunks[-1] = structs.replace(chunks[-1], prompt_token_ids=done.prompt_token_ids)
        if self._form.include_usage:
            chunks.append(self._chunk(usage=usage_of([done])))
        return chunks

    def _finish(self, output: Completion) -> list[ChatChunk]:
        sample = self._samples[output.index]
        logprobs = None if output.logprobs is None else output.logprobs[sample.num_tokens :]
        rest = sample.parser.feed(output.text[sample.num_characters :]) + sample.parser.end()
        chunks = self._tell(
            output.index, rest, logprobs or None, (output.token_ids or [])[sample.num_tokens :]
        )
        last = ChunkChoice(
            index=output.index,
            delta=Delta(),
            finish_reason=finish_reason(output, sample.num_calls),
            stop_reason=output.stop_reason,
        )
        return [*chunks, self._chunk(last)]

    def _tell(
        self, index: int, pieces: list[Piece], logprobs: list[TokenLogprob] | None, token_ids: list[int]
    ) -> list[ChatChunk]:
        """One chunk for each piece; what belongs to the tokens is told with the first."""
        deltas = [delta for piece in pieces if (delta := self._delta(index, piece)) is not None]
        told = None if logprobs is None else chat_logprobs(logprobs, as_token_ids=self._form.as_token_ids)
        ids = token_ids if self._form.token_ids and token_ids else UNSET
        if not deltas and (told is not None or ids is not UNSET):
            deltas = [Delta()]
        choices = [ChunkChoice(index=index, delta=delta) for delta in deltas]
        if choices:
            choices[0] = ChunkChoice(index=index, delta=deltas[0], logprobs=told, token_ids=ids)
        return [self._chunk(choice) for choice in choices]

    def _delta(self, index: int, piece: Piece) -> Delta | None:
        sample = self._samples[index]
        match piece:
            case Content(text):
                return Delta(content=text)
            case Reasoning(text):
                return Delta(reasoning=text, reasoning_content=text) if self._form.include_reasoning else None
            case CallStart(name):
                sample.num_calls += 1
                return self._call(index, FunctionDelta(name=name, arguments=""), begins=True)
            case CallArguments(text):
                return self._call(index, FunctionDelta(arguments=text), begins=False)

    def _call(self, index: int, function: FunctionDelta, *, begins: bool) -> Delta | None:
        number = self._samples[index].num_calls - 1
        if number and not self._form.parallel_calls:
            return None
        if not begins:
            return Delta(tool_calls=[ToolCallDelta(index=number, function=function)])
        name = call_id(self._job_id, index, number, self._dialect.tool_format)
        return Delta(tool_calls=[ToolCallDelta(index=number, id=name, type="function", function=function)])

    def _chunk(self, choice: ChunkChoice | None = None, usage: CompletionUsage | None = None) -> ChatChunk:
        return ChatChunk(
            id=f"chatcmpl-{self._job_id}",
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
