"""What earlier runs of a job have published, read back from its result stream."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from penstock.messages import SamplingParams, TokenLogprob, Tokens, decode_event

log = logging.getLogger(__name__)


class PublishedSample(Struct):
    """One sample's tokens, as far as they are out. Their text is out as well."""

    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    """One for each token, where the job asks for them."""
    text_length: int = 0


def checkpoint(
    published: Sequence[tuple[str, bytes]], fingerprint: str, params: SamplingParams
) -> dict[int, PublishedSample]:
    """By sample, what a result stream's events hold, as far as they follow each other from the first on.

    A server that lost its last second may have kept an event and not the one before it: what is behind the
    hole is generated again.
    """
    samples: dict[int, PublishedSample] = {}
    count = 0
    for event_id, data in published:
        try:
            event = decode_event(data)
        except msgspec.DecodeError:
            break  # of a newer consumer, perhaps
        if not isinstance(event, Tokens) or not 0 <= event.sample < params.n:
            break
        sample = samples.get(event.sample) or PublishedSample()
        count += len(event.token_ids)
        if event_id != f"{count}-0" or event.text_offset != sample.text_length:
            break
        logprobs = event.logprobs or []
        if params.logprobs is not None and len(logprobs) != len(event.token_ids):
            break  # of an older consumer: a sample has all of its log-probabilities or is generated again
        if event.fingerprint != fingerprint:
            log.warning("going on with tokens of %r, and this is %r", event.fingerprint, fingerprint)
        sample.token_ids += event.token_ids
        sample.logprobs += logprobs
        sample.text_length += len(event.text)
        samples[event.sample] = sample
    return samples
