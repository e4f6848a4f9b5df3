"""Commands on the wire: golden bytes, and the same as redis-py's own packer for whatever is sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import Connection

from penstock.command import Argument, pack

text = st.text(st.characters(exclude_categories=["Cs"]))
arguments = st.lists(st.one_of(text, st.binary(), st.integers()), max_size=20)


def test_a_command_is_an_array_of_bulk_strings() -> None:
    packed = pack(["XADD", "lane", "*", b"job\r\n", "é", -12, ""])
    assert packed == (
        b"*7\r\n$4\r\nXADD\r\n$4\r\nlane\r\n$1\r\n*\r\n$5\r\njob\r\n\r\n$2\r\n\xc3\xa9\r\n$3\r\n-12\r\n$0\r\n\r\n"
    )


@given(arguments)
def test_commands_are_packed_as_redis_py_packs_them(args: list[Argument]) -> None:
    assert pack(["EVALSHA", *args]) == b"".join(Connection().pack_command("EVALSHA", *args))


def test_what_is_not_unicode_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(UnicodeEncodeError):
        pack(["SET", "key", "\ud800"])
