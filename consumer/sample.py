"""One output of a running job: what has come of it from the engine, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence

from consumer.checkpoint import PublishedSample
from consumer.detokenizer import Detokenizer, TextRules
from consumer.served import Served
from consumer.token_logprobs import token_logprobs
from engine.request import FinishReason, Output, Request, Sample
from penstock.messages import Completion, Job, TokenLogprob, Tokens


class RunningSample:
    """One of a job's outputs. Its text is touched by one thread at a time, see `TokenizerThreads`."""

    def __init__(self, index: int, job: Job, request: Request, served: Served) -> None:
        self.index = index
        params = self._params = job.sampling_params
        self._served = served
        rules = TextRules(
            stop=params.stop_strings,
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            skip_special_tokens=params.skip_special_tokens,
            dropped_token_ids=served.markers.dropped(job),
        )
        self._num_prompt_tokens = len(request.prompt_token_ids)
        self._text = Detokenizer(served.tokenizer.tokenizer, request.prompt_token_ids, rules)
        self._logprobs: list[TokenLogprob] = []
        self.finish_reason: FinishReason | None = None
        self._stop_token_id: int | None = None
        self._answer_length: int | None = None  # of the text without an end token's own

    @property
    def finished(self) -> bool:
        """Whether its last output has come, or a stop string ended it."""
        return self.finish_reason is not None

    @property
    def stopped_early(self) -> bool:
        """Whether a stop string ended it: the engine does not know and has to be told."""
        return self._text.stopped_by is not None

    @property
    def whole(self) -> bool:
        """Whether the model ended it, rather than a limit, a stop string or a stop token of the job's."""
        cut = self._stop_token_id is not None and self._stop_token_id not in self._served.ready.eos_token_ids
        return self.finish_reason == "stop" and not self.stopped_early and not cut

    @property
    def num_tokens(self) -> int:
        """How many tokens there are so far."""
        return self._text.num_tokens

    @property
    def token_ids(self) -> list[int]:
        """All tokens so far."""
        return self._text.token_ids

    @property
    def answer(self) -> str:
        """The text that the model gave as its answer: that of an end token is not part of it."""
        return self._text.text[: self._answer_length]

    def replay(self, published: PublishedSample) -> None:
        """Take over tokens that an earlier run published: their text is out already."""
        self._logprobs += published.logprobs
        # Where the last one is an end token, the engine will say at once that the sample has ended.
        self._push(published.token_ids, ended=self._ended_by_token(published.token_ids))
        # All of it, although the tail alone might look like the beginning of a stop string: the run that
        # published it had seen what follows.
        self._text.take_all()

    def add(self, output: Output) -> None:
        """Take a step's output; tokens behind a stop string are dropped."""
        if self._params.logprobs is not None:
            self._logprobs += token_logprobs(output.token_ids, output.logprobs, self._served.token_texts)
        self._push(output.token_ids, ended=output.stop_token_id is not None)
        if output.finish_reason is not None and not self.finished:
            self._text.flush()
            self.finish_reason = "stop" if self.stopped_early else output.finish_reason
            self._stop_token_id = output.stop_token_id

    def remaining(self) -> Sample:
        """For the engine: to go on after the tokens so far."""
        return Sample(index=self.index, output_token_ids=self._text.token_ids)

    def take(self) -> Tokens | None:
        """The next `tokens` event, if some text became safe since the last one, or the sample ended."""
        before = self._text.num_taken
        ids, text, offset = self._text.take_all() if self.finished else self._text.take_safe()
        if not ids:
            return None
        return Tokens(
            text=text,
            token_ids=ids,
            text_offset=offset,
            sample=self.index,
            fingerprint=self._served.ready.fingerprint,
            prompt_tokens=None if before else self._num_prompt_tokens,
            logprobs=self._logprobs[before : before + len(ids)] if self._wants_logprobs else None,
        )

    def completion(self, *, with_token_ids: bool) -> Completion:
        """The whole of it, once it has ended."""
        assert self.finish_reason is not None
        return Completion(
            text=self._text.text,
            finish_reason=self.finish_reason,
            index=self.index,
            stop_reason=self._stop_reason(),
            token_ids=self._text.token_ids if with_token_ids else None,
            logprobs=self._logprobs if self._wants_logprobs else None,
        )

    @property
    def _wants_logprobs(self) -> bool:
        return self._params.logprobs is not None

    def _push(self, token_ids: Sequence[int], *, ended: bool) -> None:
        """Turn tokens into text, up to a stop string; where they have `ended`, the last is an end token."""
        for position, token_id in enumerate(token_ids, 1):
            if ended and position == len(token_ids):
                self._text.flush()
                self._answer_length = len(self._text.text)
                if not self.stopped_early:
                    self._text.push_end(token_id)
            else:
                self._text.push(token_id)
            if self.stopped_early:
                self.finish_reason = "stop"
                del self._logprobs[self.num_tokens :]
                return

    def _ended_by_token(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of a sample's tokens is one that ends it, as the engine sees it."""
        if not token_ids:
            return False
        params, last = self._params, token_ids[-1]
        if last in params.stop_token_ids and len(token_ids) >= params.min_tokens:
            return True
        ends = not params.ignore_eos or params.structured_outputs is not None
        return ends and last in self._served.ready.eos_token_ids

    def _stop_reason(self) -> str | int | None:
        if self._text.stopped_by is not None:
            return self._text.stopped_by
        if self.finish_reason == "repetition":
            return "repetition_detected"  # vLLM's word
        # An end token is the usual end and no reason worth naming, unless it ends the output only because the
        # job lists it among its stop tokens; vLLM reports it the same way.
        is_end = self._stop_token_id in self._served.ready.eos_token_ids
        named = self._params.ignore_eos and self._stop_token_id in self._params.stop_token_ids
        return None if is_end and not named else self._stop_token_id
