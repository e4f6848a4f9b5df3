"""What earlier runs of a job have published, read back from its result stream."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from penstock.messages import Job, TokenLogprob, Tokens, decode_event

PublishedEvent = tuple[str, bytes]
"""An event's id and its JSON."""


class PublishedSample(Struct):
    """One sample's tokens, as far as they are out. Their text is out as well."""

    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    """One for each token, where the job asks for them."""
    text_length: int = 0


class Checkpoint(Struct):
    """Where a job goes on."""

    samples: dict[int, PublishedSample] = {}
    """By index, those that have tokens."""
    num_published: int = 0
    """Tokens published so far, by the stream's ids: those that were dropped since are counted too."""
    stale: bool = False
    """The stream holds what this run does not go on after: to be removed before it publishes."""
    other_fingerprints: list[str] = []
    """Of tokens that another model, or precision, has made."""


def checkpoint(published: Sequence[PublishedEvent], fingerprint: str, job: Job) -> Checkpoint:
    """Where the job goes on after what its result stream holds.

    What a streamed job has published was read by somebody, so it stays, whoever made it. Checkpoints of a
    job that does not stream were promised to nobody: unless all of them are there and of this model, it
    starts anew.
    """
    first = 0 if job.stream or not published else _first_count(published[0])
    found, is_whole = _follow(published, first, job)
    others = dict.fromkeys(found.other_fingerprints)
    others.pop(fingerprint, None)
    found.other_fingerprints = list(others)
    if job.stream or (is_whole and not others):
        return found
    return Checkpoint(num_published=count_of(published), stale=True)


def count_of(published: Sequence[PublishedEvent]) -> int:
    """How many tokens the last event's id says were published."""
    return int(published[-1][0].partition("-")[0]) if published else 0


def _first_count(event: PublishedEvent) -> int:
    """What was counted before the first event: tokens of checkpoints that were dropped."""
    try:
        decoded = decode_event(event[1])
    except msgspec.DecodeError:
        return 0
    return max(count_of([event]) - len(decoded.token_ids), 0) if isinstance(decoded, Tokens) else 0


def _follow(published: Sequence[PublishedEvent], count: int, job: Job) -> tuple[Checkpoint, bool]:
    """What the events hold as far as they follow each other from the first on, and whether all do.

    A server that lost its last second may have kept an event and not the one before it: what is behind the
    hole is generated again.
    """
    params = job.sampling_params
    found = Checkpoint(num_published=count)
    for event_id, data in published:
        try:
            event = decode_event(data)
        except msgspec.DecodeError:
            return found, False  # of a newer consumer, perhaps
        if not isinstance(event, Tokens) or not 0 <= event.sample < params.n:
            return found, False
        sample = found.samples.get(event.sample) or PublishedSample()
        count += len(event.token_ids)
        if event_id != f"{count}-0" or event.text_offset != sample.text_length:
            return found, False
        logprobs = event.logprobs or []
        if params.logprobs is not None and len(logprobs) != len(event.token_ids):
            # Of an older consumer: a sample has all of its log-probabilities or is generated again.
            return found, False
        found.other_fingerprints.append(event.fingerprint)
        found.num_published = count
        sample.token_ids += event.token_ids
        sample.logprobs += logprobs
        sample.text_length += len(event.text)
        found.samples[event.sample] = sample
    return found, True
