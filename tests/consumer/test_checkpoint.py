"""Where a job goes on after another's death."""

from __future__ import annotations

from consumer.checkpoint import Checkpoint, checkpoint
from penstock.messages import Job, SamplingParams, TokenLogprob, Tokens, encode_event


def event(ids: list[int], offset: int, sample: int = 0, *, logprobs: bool = False, by: str = "f") -> bytes:
    text = "".join(map(chr, ids))
    found = [logprob(token) for token in ids] if logprobs else None
    return encode_event(
        Tokens(
            text=text,
            token_ids=ids,
            text_offset=offset,
            sample=sample,
            fingerprint=by,
            logprobs=found,
        )
    )


def logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token_id=token, token=chr(token), logprob=-0.5, rank=1)


def found_in(published: list[tuple[str, bytes]], stream: bool, **params: int) -> Checkpoint:
    return checkpoint(
        published, "f", Job(prompt="x", stream=stream, sampling_params=SamplingParams(**params))
    )


def tokens(published: list[tuple[str, bytes]], n: int = 1) -> dict[int, list[int]]:
    found = found_in(published, True, n=n).samples
    return {index: sample.token_ids for index, sample in found.items()}


FIRST, SECOND = event([97, 98], 0), event([99], 2)


def test_all_events_in_order_are_the_checkpoint() -> None:
    assert tokens([("2-0", FIRST), ("3-0", SECOND)]) == {0: [97, 98, 99]}


def test_samples_are_counted_together_and_kept_apart() -> None:
    other, rest = event([100, 101], 0, sample=2), event([102], 2, sample=2)
    published = [("2-0", FIRST), ("4-0", other), ("5-0", SECOND), ("6-0", rest)]
    assert tokens(published, n=3) == {0: [97, 98, 99], 2: [100, 101, 102]}
    assert tokens(published, n=2) == {0: [97, 98]}, "a sample that the job does not have ends it"


def test_what_is_behind_a_hole_is_not() -> None:
    assert tokens([("3-0", SECOND)]) == {}
    assert tokens([("2-0", FIRST), ("9-0", SECOND)]) == {0: [97, 98]}
    assert tokens([("2-0", FIRST), ("3-0", event([99], 5))]) == {0: [97, 98]}
    assert tokens([("2-0", FIRST), ("3-0", event([99], 2, sample=1))], n=2) == {0: [97, 98]}


def test_what_cannot_be_read_ends_it() -> None:
    assert tokens([("2-0", FIRST), ("2-1", b'{"type":"unheard of"}'), ("3-0", SECOND)]) == {0: [97, 98]}
    assert tokens([("1-0", b"")]) == {}


def test_log_probabilities_come_with_the_tokens_and_a_lack_of_them_ends_it() -> None:
    published = [("2-0", event([97, 98], 0, logprobs=True)), ("3-0", event([99], 2, logprobs=True))]
    found = found_in(published, True, logprobs=0).samples[0]
    assert found.logprobs == [logprob(97), logprob(98), logprob(99)]
    rest = found_in([*published[:1], ("3-0", SECOND)], True, logprobs=0)
    assert (rest.samples[0].token_ids, rest.num_published, rest.stale) == ([97, 98], 2, False)


OTHER = event([99], 2, by="g")


def test_tokens_of_another_model_stay_where_they_were_streamed() -> None:
    found = found_in([("2-0", FIRST), ("3-0", OTHER)], True)
    assert found.samples[0].token_ids == [97, 98, 99]
    assert (found.num_published, found.stale, found.other_fingerprints) == (3, False, ["g"])
    assert found_in([("2-0", FIRST), ("3-0", SECOND)], True).other_fingerprints == []


def test_checkpoints_nobody_read_are_taken_whole_or_not_at_all() -> None:
    whole = found_in([("2-0", FIRST), ("3-0", SECOND)], False)
    assert whole.samples[0].token_ids == [97, 98, 99]
    assert (whole.num_published, whole.stale) == (3, False)
    for published in (
        [("2-0", FIRST), ("3-0", OTHER)],
        [("2-0", FIRST), ("3-0", b"")],
        [("3-0", SECOND)],
        [("2-0", FIRST), ("3-0", event([99], 5))],
    ):
        found = found_in(published, False)
        assert found == Checkpoint(num_published=3, stale=True), published
    assert found_in([], False) == Checkpoint()


def test_ids_behind_dropped_checkpoints_go_on_from_theirs() -> None:
    found = found_in([("12-0", FIRST), ("13-0", SECOND)], False)
    assert found.samples[0].token_ids == [97, 98, 99]
    assert (found.num_published, found.stale) == (13, False)
