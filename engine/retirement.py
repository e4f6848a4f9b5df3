"""Retirement: what the results of a step mean for its sequences."""

from __future__ import annotations

import math

from msgspec.structs import replace

from engine.batch import NO_TOKEN, NOTHING_ALLOWED, Batch, StepResult
from engine.constraint import ConstraintViolated
from engine.endings import ending_of
from engine.request import ErrorType, Output, TokenLogprobs
from engine.running import RunningSet
from engine.sequence import Family, Sequence

NOT_FINITE = "the model's logits are not finite"


class Retirement:
    """Turns results into outputs, and ends sequences."""

    def __init__(self, running: RunningSet, families: dict[str, Family]) -> None:
        self._running = running
        self._families = families
        """By request id: those with a live sample, shared with the scheduler."""

    def retire(self, batch: Batch, result: StepResult) -> list[Output]:
        """Takes the results of the step that was scheduled longest ago."""
        assert len(result.token_ids) == len(batch.sampled_rows)
        rows = self._running.rows
        broken = set(result.broken_rows)
        broken.update(
            row
            for row, token_id in zip(batch.sampled_rows, result.token_ids, strict=True)
            if token_id == NO_TOKEN
        )
        for row, count in zip(batch.rows, batch.num_scheduled_tokens, strict=True):
            seq = rows[row]
            assert seq is not None, "a step ran a row that nothing owns"
            seq.num_in_flight -= 1
            seq.num_retired_tokens += count
            if seq.num_retired_tokens >= seq.keeps_at and row not in broken:  # others must not find those
                self._running.keep_blocks(seq)
        outputs: list[Output] = []
        for row in result.broken_rows:
            seq = rows[row]
            assert seq is not None
            if not seq.ended:
                outputs.append(self.fail(seq, NOT_FINITE))
        for row, logprobs in result.prompt_logprobs.items():
            self._gather(row, logprobs, outputs)
        for row, token_id in zip(batch.sampled_rows, result.token_ids, strict=True):
            seq = rows[row]
            assert seq is not None
            if seq.ended:  # aborted, or ended by the step before: this token is one too many
                continue
            token_ids = seq.token_ids
            if (
                seq.is_plain
                and token_id >= 0
                and token_id not in seq.end_ids
                and len(token_ids) + 1 < seq.max_num_tokens
            ):  # what `_accept` would do, for most tokens by far
                token_ids.append(token_id)
                request_id = seq.request.request_id
                outputs.append(Output(request_id=request_id, token_ids=[token_id], sample=seq.index))
            else:
                outputs.append(self._accept(seq, token_id, result.logprobs.get(row)))
        if self._running.num_unsampled:
            self._finish_unsampled(batch, result, outputs)
        self._running.free_ended()
        return outputs

    def end(self, seq: Sequence) -> None:
        """Ends one sample. Its blocks are freed by `RunningSet.free_ended`."""
        family = seq.family
        self._running.end(seq)
        if not family.live:
            del self._families[family.request.request_id]

    def end_all(self, family: Family) -> None:
        """Ends all samples of a request."""
        for seq in tuple(family.live.values()):
            self.end(seq)

    def _gather(self, row: int, logprobs: list[TokenLogprobs], outputs: list[Output]) -> None:
        """More prompt logprobs, if it is this sample that they come with, and they have not come yet."""
        seq = self._running.rows[row]
        assert seq is not None
        if seq.ended or seq.family.scorer is not seq or not seq.needs_whole_prompt:
            return
        if any(math.isnan(entry.logprob) for entry in logprobs):
            outputs.append(self.fail(seq, NOT_FINITE))
        seq.prompt_logprobs += logprobs

    def _accept(self, seq: Sequence, token_id: int, logprobs: TokenLogprobs | None) -> Output:
        """One known token more."""
        if token_id == NOTHING_ALLOWED:
            return self.fail(seq, _nothing_allowed(seq), "invalid_job")
        if token_id < 0:
            return self.fail(seq, NOT_FINITE)
        seq.token_ids.append(token_id)
        try:
            finish_reason, stop_token_id = ending_of(seq)
        except ConstraintViolated as error:
            return self.fail(seq, str(error))
        output = Output(
            request_id=seq.request.request_id,
            token_ids=[token_id],
            sample=seq.index,
            finish_reason=finish_reason,
            stop_token_id=stop_token_id,
            logprobs=[] if logprobs is None else [logprobs],
            prompt_logprobs=seq.take_prompt_logprobs(),
            num_cached_tokens=seq.take_num_cached_tokens(),
        )
        if finish_reason is not None:
            self.end(seq)
        return output

    def _finish_unsampled(self, batch: Batch, result: StepResult, outputs: list[Output]) -> None:
        """Ends sequences that only score or embed and whose last prompt token has been computed."""
        for row in batch.rows:
            seq = self._running.rows[row]
            assert seq is not None
            if seq.ended or seq.request.kind == "generate" or seq.num_retired_tokens < seq.num_tokens:
                continue
            embedding = result.embeddings[row] if seq.request.kind == "embed" else []
            if not all(map(math.isfinite, embedding)):
                outputs.append(self.fail(seq, NOT_FINITE))
                continue
            ended = seq.family.withheld or Output(
                request_id=seq.request.request_id, token_ids=[], sample=seq.index, finish_reason="stop"
            )
            outputs.append(
                replace(
                    ended,
                    prompt_logprobs=seq.take_prompt_logprobs(),
                    embedding=embedding,
                    num_cached_tokens=seq.take_num_cached_tokens(),
                )
            )
            self.end(seq)

    def fail(self, seq: Sequence, error: str, error_type: ErrorType = "engine_error") -> Output:
        """Ends all samples of a request, and no other request."""
        self.end_all(seq.family)
        return Output(
            request_id=seq.request.request_id,
            token_ids=[],
            sample=seq.index,
            error=error,
            error_type=error_type,
        )


def _nothing_allowed(seq: Sequence) -> str:
    """Which of the request's parameters leave nothing, together, and where."""
    params = seq.request.params
    limits = {
        "structured_outputs": seq.constraint,
        "allowed_token_ids": params.allowed_token_ids,
        "bad_words": params.bad_words,
        "min_tokens": params.min_tokens,
        "logit_bias": params.logit_bias,
    }
    named = ", ".join(f"`{name}`" for name, limit in limits.items() if limit)
    return (
        f"no token is allowed at output token {seq.num_output_tokens + 1}: {named or 'the logits'} leave none"
    )
