"""Where a job goes on after another's death."""

from __future__ import annotations

from consumer.running import checkpoint
from penstock.messages import Tokens, encode_event


def event(ids: list[int], offset: int) -> bytes:
    text = "".join(map(chr, ids))
    return encode_event(Tokens(text=text, token_ids=ids, text_offset=offset, fingerprint="f"))


FIRST, SECOND = event([97, 98], 0), event([99], 2)


def test_all_events_in_order_are_the_checkpoint() -> None:
    assert checkpoint([("2-0", FIRST), ("3-0", SECOND)], "f") == [97, 98, 99]


def test_what_is_behind_a_hole_is_not() -> None:
    assert checkpoint([("3-0", SECOND)], "f") == []
    assert checkpoint([("2-0", FIRST), ("9-0", SECOND)], "f") == [97, 98]
    assert checkpoint([("2-0", FIRST), ("3-0", event([99], 5))], "f") == [97, 98]


def test_what_cannot_be_read_ends_it() -> None:
    assert checkpoint([("2-0", FIRST), ("2-1", b'{"type":"unheard of"}'), ("3-0", SECOND)], "f") == [97, 98]
    assert checkpoint([("1-0", b"")], "f") == []
