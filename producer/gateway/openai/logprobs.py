"""Log-probabilities in OpenAI's two forms and in vLLM's for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from msgspec import Struct

from penstock.messages import TokenLogprob, TopLogprob

UNKNOWN = "\ufffd"
"""In a token's text: it is a part of a character, whose bytes the text does not tell."""


class ChatTopLogprob(Struct, frozen=True, kw_only=True):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(Struct, frozen=True, kw_only=True):
    """One token of a message."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(Struct, frozen=True, kw_only=True):
    """Of a message."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class TextLogprobs(Struct, frozen=True, kw_only=True):
    """Of a text completion: lists of one length."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class PromptLogprob(Struct, frozen=True, kw_only=True):
    """vLLM's."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By token id; null for the first token, which nothing comes before."""


def chat_logprobs(tokens: Sequence[TokenLogprob], *, as_token_ids: bool) -> ChatLogprobs:
    """Of a stretch of a message."""
    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                token=_name(one, as_token_ids=as_token_ids),
                logprob=one.logprob,
                bytes=_bytes(one.token),
                top_logprobs=[
                    ChatTopLogprob(
                        token=_name(top, as_token_ids=as_token_ids),
                        logprob=top.logprob,
                        bytes=_bytes(top.token),
                    )
                    for top in one.top_logprobs
                ],
            )
            for one in tokens
        ]
    )


def text_logprobs(
    tokens: Sequence[TokenLogprob],
    *,
    offset: int = 0,
    first: str | None = None,
    first_length: int = 0,
    as_token_ids: bool,
) -> TextLogprobs:
    """Of a stretch of a text completion.

    Args:
        offset: characters of the text before it.
        first: a token before those, whose probability nothing can tell: a prompt's first.
        first_length: characters of the text that it stands for; none where the text leaves it out.
    """
    names = [] if first is None else [first]
    unknown: list[None] = [None] * len(names)
    lengths = [first_length] * len(names) + [len(one.token) for one in tokens]
    return TextLogprobs(
        text_offset=[*accumulate(lengths[:-1], initial=offset)] if lengths else [],
        token_logprobs=[*unknown, *(one.logprob for one in tokens)],
        tokens=[*names, *(_name(one, as_token_ids=as_token_ids) for one in tokens)],
        top_logprobs=[*unknown, *(_top(one, as_token_ids=as_token_ids) for one in tokens)],
    )


def prompt_logprobs(tokens: Sequence[TokenLogprob]) -> PromptLogprobs:
    """Of a prompt's tokens from the second on."""
    return [None, *(_candidates(one) for one in tokens)]


def _top(one: TokenLogprob, *, as_token_ids: bool) -> dict[str, float]:
    """The most likely tokens, and the one that is there, as OpenAI has it."""
    top = {_name(other, as_token_ids=as_token_ids): other.logprob for other in reversed(one.top_logprobs)}
    top = dict(reversed(top.items()))  # of tokens with one text the likelier stays
    top.setdefault(_name(one, as_token_ids=as_token_ids), one.logprob)
    return top


def _candidates(one: TokenLogprob) -> dict[str, PromptLogprob]:
    found = {
        str(one.token_id): PromptLogprob(logprob=one.logprob, rank=one.rank, decoded_token=one.token),
    }
    for rank, top in enumerate(one.top_logprobs, 1):
        found.setdefault(
            str(top.token_id), PromptLogprob(logprob=top.logprob, rank=rank, decoded_token=top.token)
        )
    return found


def _name(one: TokenLogprob | TopLogprob, *, as_token_ids: bool) -> str:
    return f"token_id:{one.token_id}" if as_token_ids else one.token


def _bytes(token: str) -> list[int] | None:
    return None if UNKNOWN in token else list(token.encode())
