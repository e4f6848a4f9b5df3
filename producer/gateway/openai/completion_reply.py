"""The reply to a text completion, and the chunks of one that is streamed: both have one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from penstock.messages import Completion, Done, TokenLogprob
from producer.gateway.openai.chat_reply import FINISH
from producer.gateway.openai.form import CompletionForm
from producer.gateway.openai.identity import created
from producer.gateway.openai.logprobs import PromptLogprobs, TextLogprobs, prompt_logprobs, text_logprobs
from producer.gateway.openai.usage import CompletionUsage, usage_of


class TextChoice(Struct, frozen=True, kw_only=True):
    """One sample of one prompt; in a stream, a stretch of it, the last with a `finish_reason`."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class TextCompletion(Struct, frozen=True, kw_only=True):
    """The reply, and a chunk."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None = None
    usage: CompletionUsage | UnsetType | None = UNSET


def text_completion(form: CompletionForm, ends: Sequence[tuple[str, Done]]) -> TextCompletion:
    """Made of the ends of a request's jobs, one for each prompt; choices are in the order of the prompts."""
    job_id, done = ends[0]
    choices: list[TextChoice] = []
    for _, end in ends:
        choices += _choices(form, end, len(choices))
    return TextCompletion(
        id=f"cmpl-{job_id}",
        created=created(job_id),
        model=done.model,
        choices=choices,
        system_fingerprint=done.fingerprint or None,
        usage=usage_of(end for _, end in ends),
    )


def _choices(form: CompletionForm, done: Done, first: int) -> list[TextChoice]:
    prompt_tokens = done.prompt_logprobs if done.score is None else done.score.tokens
    # A job that scores its prompt has no output, and ends as one with no tokens to generate would.
    outputs = done.outputs or [Completion(text="", finish_reason="length", logprobs=[])]
    return [
        TextChoice(
            index=first + number,
            text=(done.prompt or "") + output.text if form.echo else output.text,
            logprobs=_logprobs(form, done, prompt_tokens or [], output),
            finish_reason=FINISH[output.finish_reason],
            stop_reason=output.stop_reason,
            token_ids=(output.token_ids or []) if form.token_ids else UNSET,
            prompt_token_ids=UNSET if done.prompt_token_ids is None else done.prompt_token_ids,
            prompt_logprobs=prompt_logprobs(prompt_tokens or []) if form.prompt_logprobs else UNSET,
        )
        for number, output in enumerate(outputs)
    ]


def _logprobs(
    form: CompletionForm, done: Done, prompt_tokens: Sequence[TokenLogprob], output: Completion
) -> TextLogprobs | None:
    if form.logprobs is None:
        return None
    first, length = None, 0
    if form.echo and done.prompt_tokens:
        ids, first = done.prompt_token_ids, done.prompt_tokens[0]
        length = len(first) if (done.prompt or "").startswith(first) else 0  # not of one that begins a text
        first = f"token_id:{ids[0]}" if form.as_token_ids and ids else first
    return text_logprobs(
        [*(prompt_tokens if form.echo else []), *(output.logprobs or [])],
        first=first,
        first_length=length,
        as_token_ids=form.as_token_ids,
    )
