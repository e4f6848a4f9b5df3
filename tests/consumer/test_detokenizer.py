"""Text comes out token by token: whole characters only, nothing that a stop string may take back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.detokenizer import Detokenizer, TextRules
from tests.consumer.models import byte_tokenizer

TOKENIZER = byte_tokenizer()


def detokenizer(stop: list[str] | None = None, **rules: Any) -> Detokenizer:
    return Detokenizer(TOKENIZER, list(b"prompt"), TextRules(stop=stop or [], **rules))


@given(st.text(max_size=60))
def test_pieces_make_the_whole_text_and_never_half_a_character(text: str) -> None:
    stream = detokenizer()
    pieces: list[str] = []
    for byte in text.encode():
        stream.push(byte)
        ids, piece, offset = stream.take_safe()
        assert offset == len("".join(pieces))
        assert (piece == "") or ids
        pieces.append(piece)
    stream.flush()
    pieces.append(stream.take_all()[1])
    assert "".join(pieces) == stream.text == text


@given(
    st.text(alphabet="ab€", max_size=40),
    st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3),
)
def test_what_was_taken_is_never_taken_back(text: str, stop: list[str]) -> None:
    stream = detokenizer(stop)
    taken = ""
    taken_ids: list[int] = []
    for byte in text.encode():
        stream.push(byte)
        if stream.stopped_by is not None:
            break
        ids, piece, _ = stream.take_safe()
        taken += piece
        taken_ids += ids
    stream.flush()
    ids, piece, _ = stream.take_all()
    # Tokens are single bytes here, so the stop string that completes first ends the text.
    found = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    first = min(found)[1] if found else None
    assert taken + piece == stream.text == (text if first is None else text[:first])
    assert taken_ids + ids == stream.token_ids
    assert (stream.stopped_by is None) == (first is None)


@given(st.text(alphabet="ab€", min_size=1, max_size=30), st.data())
def test_a_resumed_text_goes_on_where_the_published_one_ended(text: str, data: st.DataObject) -> None:
    stop = ["ba€", "aab"]
    ids = list(text.encode())
    whole = detokenizer(stop)
    cut = data.draw(st.integers(0, len(ids)))
    published: list[int] = []
    for token in ids[:cut]:
        whole.push(token)
        if whole.stopped_by is not None:
            return
        published += whole.take_safe()[0]
    resumed = detokenizer(stop)
    for token in published:
        resumed.push(token)
    resumed.take_all()
    for stream, rest in ((whole, ids[cut:]), (resumed, ids[len(published) :])):
        for token in rest:
            if stream.stopped_by is None:
                stream.push(token)
        stream.flush()
    assert resumed.text == whole.text
    assert resumed.stopped_by == whole.stopped_by
    assert resumed.token_ids == whole.token_ids


def test_text_that_may_begin_a_stop_string_is_held_back() -> None:
    stream = detokenizer(["END"])
    for byte in b"the E":
        stream.push(byte)
    assert stream.take_safe()[1] == "the "
    stream.push(ord("x"))
    assert stream.take_safe()[1] == "Ex"


def test_the_earliest_stop_string_wins_and_the_longest_of_two_at_one_place() -> None:
    stream = detokenizer(["stop", "st", "op"])
    for byte in b"a stop":
        stream.push(byte)
        if stream.stopped_by:
            break
    assert (stream.text, stream.stopped_by) == ("a ", "st")


def test_end_tokens_count_but_give_no_text() -> None:
    stream = detokenizer()
    stream.push(ord("a"))
    stream.push_end(257)
    assert stream.text == "a"
    assert stream.take_all() == ([ord("a"), 257], "a", 0)


def test_undecodable_noise_is_let_through_in_bounded_time() -> None:
    stream = detokenizer()
    for _ in range(100):
        stream.push(0x80)
    assert len(stream.take_safe()[0]) >= 80
    stream.flush()
    assert stream.text == "\N{REPLACEMENT CHARACTER}" * 100


def test_an_unfinished_character_at_the_end_becomes_a_replacement_character() -> None:
    stream = detokenizer()
    for byte in "é".encode()[:1]:
        stream.push(byte)
    assert stream.text == ""
    stream.flush()
    assert stream.text == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("stop", [[], ["zz"]])
def test_a_long_text_is_not_scanned_from_its_start(stop: list[str]) -> None:
    stream = detokenizer(stop)
    for _ in range(3000):
        stream.push(ord("a"))
        stream.take_safe()
    assert len(stream.text) == 3000


def text_of(stream: Detokenizer, ids: Iterable[int]) -> str:
    """All text after these tokens, or up to a stop string."""
    for token in ids:
        stream.push(token)
        if stream.stopped_by is not None:
            break
    stream.flush()
    return stream.text


# What vLLM documents of `stop`, `include_stop_str_in_output`, `min_tokens` and `skip_special_tokens`.


def test_a_stop_string_is_kept_where_it_is_asked_for_and_what_follows_is_not() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["NDmore"])
    (merged,) = tokenizer.encode("NDmore").ids
    rules = TextRules(stop=["END"], include_stop=True)
    stream = Detokenizer(tokenizer, [], rules)
    assert text_of(stream, [*b"the E", merged]) == "the END"
    assert stream.take_all() == ([*b"the E", merged], "the END", 0)


def test_nothing_is_held_back_where_the_stop_string_is_kept() -> None:
    stream = detokenizer(["END"], include_stop=True)
    for byte in b"the E":
        stream.push(byte)
    assert stream.take_safe()[1] == "the E"


@pytest.mark.parametrize(
    ("min_tokens", "text"),
    [(0, "a"), (1, "a"), (3, "a"), (4, "aENDb"), (7, "aENDb"), (8, "aENDbENDc"), (9, "aENDbENDc")],
)
def test_stop_strings_within_the_least_tokens_do_not_count(min_tokens: int, text: str) -> None:
    # "aEND" are 4 tokens: the string counts only if its end comes with a later one.
    assert text_of(detokenizer(["END"], min_tokens=min_tokens), b"aENDbENDc") == text


def test_a_stop_string_across_the_least_tokens_counts() -> None:
    assert text_of(detokenizer(["END", "aE"], min_tokens=3), b"aENDb") == "a"


def test_special_tokens_are_text_where_they_are_asked_for() -> None:
    assert text_of(detokenizer(), [97, 257, 98]) == "ab"
    assert text_of(detokenizer(skip_special_tokens=False), [97, 257, 98]) == "a</s>b"
    assert text_of(detokenizer(["</s>"], skip_special_tokens=False), [97, 257, 98]) == "a"


@pytest.mark.parametrize(
    ("end", "rules", "text"),
    [
        (ord("!"), {}, "a"),
        (ord("!"), {"include_stop": True}, "a!"),
        (257, {"include_stop": True}, "a"),
        (257, {"include_stop": True, "skip_special_tokens": False}, "a</s>"),
        (257, {"skip_special_tokens": False}, "a"),
    ],
)
def test_a_stop_tokens_text_is_kept_where_it_is_asked_for(end: int, rules: dict[str, Any], text: str) -> None:
    stream = detokenizer(**rules)
    stream.push(ord("a"))
    stream.push_end(end)
    assert stream.text == text
    assert stream.take_all() == ([ord("a"), end], text, 0)


def test_special_tokens_that_are_not_dropped_stay_in_the_text() -> None:
    tokenizer = byte_tokenizer(["[CALL]", "[INST]"])
    rules = TextRules(dropped_token_ids=frozenset({256, 257, 259}))
    for asked, text in ((rules, "a[CALL]bc"), (TextRules(), "abc"), (TextRules(stop=["L]b"]), "abc")):
        stream = Detokenizer(tokenizer, list(b"prompt"), asked)
        for token_id in (ord("a"), 258, ord("b"), 259, ord("c")):
            stream.push(token_id)
        stream.flush()
        assert stream.text == text
    whole = TextRules(skip_special_tokens=False, dropped_token_ids=frozenset({259}))
    stream = Detokenizer(tokenizer, [], whole)
    stream.push(259)
    assert stream.text == "[INST]"
