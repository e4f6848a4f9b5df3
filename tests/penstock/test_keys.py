"""Key names and job ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import InvalidJobId, JobId
from penstock.keys import Keys, check_lane, is_nonce, new_nonce


def test_every_key_of_a_shard_is_in_one_slot() -> None:
    keys = Keys("default.3")
    names = [
        keys.jobs("standard"),
        keys.result("standard.1-0"),
        keys.batch("b"),
        keys.batch_done("b"),
        keys.lanes,
        keys.control,
        keys.consumers,
    ]
    assert len(set(names)) == len(names)
    assert all(name.startswith("penstock:{default.3}:") and name.count("{") == 1 for name in names)
    assert Keys().jobs("standard") == "penstock:{default}:jobs:standard"


@given(
    st.builds(
        JobId,
        lane=st.from_regex(r"\A[a-z][a-z0-9_-]{0,63}\Z"),
        entry=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)).map(lambda e: f"{e[0]}-{e[1]}"),
        nonce=st.none() | st.binary(min_size=8, max_size=8).map(bytes.hex),
    )
)
def test_job_ids_survive_as_text(job_id: JobId) -> None:
    assert JobId.parse(str(job_id)) == job_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        "standard",
        "standard.1",
        "standard.1-0.",
        "standard.1-0.xyz",
        "standard.1-0.0123456789ABCDEF",
        "Standard.1-0",
        ".1-0",
        "standard.1-0\n",
        "a:b.1-0",
        "x" * 10_000,
    ],
)
def test_other_texts_are_not_job_ids(text: str) -> None:
    with pytest.raises(InvalidJobId, match="is not a job id; one looks like") as caught:
        JobId.parse(text)
    assert len(str(caught.value)) < 300


def test_nonces_and_lanes() -> None:
    nonces = {new_nonce() for _ in range(1_000)}
    assert len(nonces) == 1_000
    assert all(is_nonce(nonce) for nonce in nonces)
    assert not is_nonce("0123456789abcde")
    assert check_lane("tenant-7_b") == "tenant-7_b"
    for bad in ("", "7tenant", "Tenant", "a:b", "a" * 65, "a\n"):
        with pytest.raises(ValueError, match="is not a lane name"):
            check_lane(bad)
