"""The output of a batch as it grows: drivers that follow each other, readers in the middle of it."""

from __future__ import annotations

import contextlib
import itertools
import time
from pathlib import Path

import msgspec
import pytest

from producer.gateway.batches.creation import BatchRequest, made_batch
from producer.gateway.batches.custom_ids import CustomIds
from producer.gateway.batches.lines import bad
from producer.gateway.batches.objects import BatchRecord
from producer.gateway.batches.outputs import Outputs
from producer.gateway.batches.reply_lines import ReplyLines, row_of
from producer.gateway.batches.segments import INVALID, EpochBehind, Totals, Written, find_segments
from producer.gateway.batches.store import BatchStore
from producer.gateway.caller import Caller
from producer.gateway.files.content import Contents
from producer.gateway.files.objects import FileRecord
from producer.gateway.files.store import FileStore
from producer.gateway.storage import Folder

TENANT = "t"
EPOCHS = [f"{1_763_820_000_000_000 + n}" for n in range(9)]


class House:
    """One batch in a folder."""

    def __init__(self, folder: Path) -> None:
        self.storage = Folder(folder)
        self.files, self.batches = FileStore(self.storage), BatchStore(self.storage)
        asked = BatchRequest(input_file_id="file-x", endpoint="/v1/completions")
        self.record: BatchRecord = made_batch(asked, Caller(), is_strict=False)
        self.batches.create(TENANT, self.record)
        self.folder = self.batches.folder(TENANT, self.record.batch.id)
        self.outputs = Outputs(self.batches, self.files, TENANT)
        self.contents = Contents(self.files, self.outputs, TENANT)
        self.lines = ReplyLines(self.record.batch.id)

    def driver(self, epoch: str) -> Written:
        """One that has just taken the batch."""
        written = Written(self.storage, self.folder)
        written.begin(epoch, row_of)
        return written

    def add(self, written: Written, row: int, text: str = "") -> None:
        """A row's end: an answer, or an error for every fifth."""
        line, _ = self.lines.unsent(row, bad(row, "code", text or f"of {row}", None, f"c{row}"))
        written.add(row, line, Totals(failed=1) if row % 5 == 0 else Totals(completed=1, output_tokens=2))

    def rows(self, kind: int) -> list[int]:
        """Of the output (0) or the errors (1) as a reader finds them now."""
        whole = b"".join(self.contents.of(self.record.file_ids[kind], 0).pieces)
        return [row_of(line) for line in whole.splitlines()]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_replaced_drivers_late_segment_is_in_nobodys_output(house: House) -> None:
    first = house.driver(EPOCHS[0])
    for row in range(4):
        house.add(first, row)
    assert first.store()
    house.outputs.show(house.record, first)
    for row in (4, 6):  # it has read these, and then it hangs
        house.add(first, row)
    second = house.driver(EPOCHS[1])
    assert [row in second.rows for row in range(7)] == [True] * 4 + [False] * 3
    assert first.store(), "it wakes, and does not know yet"
    for row in (6, 4, 5):
        house.add(second, row, "again")
    second.store()
    assert house.rows(0) == [1, 2, 3, 6, 4]
    assert second.totals == Totals(completed=5, failed=2, output_tokens=10)
    third = house.driver(EPOCHS[2])
    assert third.totals == second.totals
    assert find_segments(house.storage, house.folder) == second.segments
    assert [row in third.rows for row in range(8)] == [True] * 7 + [False]


def test_a_driver_that_takes_its_batch_again_keeps_what_it_had_read(house: House) -> None:
    written = house.driver(EPOCHS[0])
    house.add(written, 1)
    written.begin(EPOCHS[1], row_of)
    assert 1 in written.rows
    assert [segment.epoch for segment in written.segments] == [EPOCHS[0]]
    house.add(written, 1)
    assert not written.store(), "no row twice"


def test_errors_begin_with_those_of_the_validation(house: House) -> None:
    line, _ = house.lines.unsent(7, bad(7, "code", "a bad line", None, None))
    house.storage.write(f"{house.folder}/{INVALID}", line)
    written = house.driver(EPOCHS[0])
    assert 7 in written.rows
    for row in range(1, 6):
        house.add(written, row)
    written.store()
    shown = house.outputs.show(house.record, written)
    assert shown == house.record.file_ids
    assert house.rows(1) == [7, 5]
    assert house.outputs.conclude(house.record, written) == shown
    house.batches.clear(TENANT, house.record.batch.id)
    assert (house.rows(0), house.rows(1)) == ([1, 2, 3, 4], [7, 5])


def test_a_reader_goes_on_in_the_file_that_its_segments_became(house: House) -> None:
    written = house.driver(EPOCHS[0])
    for row in range(1, 200):
        house.add(written, row, "x" * 500)
        if row % 20 == 0:
            written.store()
            house.outputs.show(house.record, written)
    written.store()
    file_id = house.record.file_ids[0]
    before = b"".join(house.contents.of(file_id, 0).pieces)
    for offset, read in itertools.product((0, 5, 16, 17, 100), (0, 1, 3)):
        content = house.contents.of(file_id, offset)
        assert not content.is_complete
        got = b"".join(itertools.islice(content.pieces, read))
        if offset == 100 and read == 3:
            house.outputs.conclude(house.record, written)
            house.batches.clear(TENANT, house.record.batch.id)
        got += b"".join(content.pieces)
        assert got == b"".join(before.splitlines(keepends=True)[offset:])
        assert content.lines == before.count(b"\n")
    assert house.contents.of(file_id, 0).is_complete
    assert b"".join(house.contents.of(file_id, 0).pieces) == before


def test_a_killed_conclusion_leaves_nothing_when_another_has_followed(house: House) -> None:
    written = house.driver(EPOCHS[0])
    house.add(written, 1)
    written.store()
    house.outputs.show(house.record, written)
    house.outputs.conclude(house.record, written)
    house.outputs.conclude(house.record, house.driver(EPOCHS[1]))
    house.outputs.clear(house.record)
    output = house.record.file_ids[0]
    assert house.storage.names(f"tenants/{TENANT}/files") == [output, f"{output}.json"]
    assert house.rows(0) == [1]


@pytest.mark.parametrize("late", ["show", "conclude"])
def test_a_replaced_drivers_late_object_changes_no_file(
    house: House, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs right before it writes a file's object; the other brings the batch to its end meanwhile."""
    first = house.driver(EPOCHS[0])
    for row in range(1, 6):
        house.add(first, row)
    first.store()
    save, is_late = FileStore.save, [True]

    def hanging(files: FileStore, tenant: str, record: FileRecord) -> None:
        if is_late:
            is_late.clear()
            second = house.driver(EPOCHS[1])
            house.outputs.show(house.record, second)
            house.outputs.conclude(house.record, second)
            house.outputs.clear(house.record)
            house.batches.clear(TENANT, house.record.batch.id)
        save(files, tenant, record)

    monkeypatch.setattr(FileStore, "save", hanging)
    with contextlib.suppress(FileNotFoundError):  # the segments of what it would write next
        getattr(house.outputs, late)(house.record, first)
    assert not is_late
    assert (house.rows(0), house.rows(1)) == ([1, 2, 3, 4], [5])
    output = house.contents.of(house.record.file_ids[0], 0)
    assert output.is_complete
    assert house.contents.sized(house.files.find(TENANT, house.record.file_ids[0])).bytes == output.size


def test_an_epoch_behind_what_is_stored_does_not_begin(house: House) -> None:
    """Its segments would be nobody's: the server lost its data, and its clock is behind."""
    written = house.driver(EPOCHS[1])
    house.add(written, 1)
    written.store()
    house.outputs.show(house.record, written)
    for epoch in EPOCHS[:2]:
        with pytest.raises(EpochBehind, match="clock"):
            house.driver(epoch)
    assert 1 in house.driver(EPOCHS[2]).rows
    assert house.rows(0) == [1]


def test_what_a_replaced_driver_shows_too_late_is_swept_after_a_day(house: House) -> None:
    """Of a batch that runs, for however long, nothing is."""
    old = f"{int((time.time() - 90_000) * 1000):012x}"
    file_ids = (f"file-{old}{'0' * 16}", f"file-{old}{'1' * 16}")
    house.record = msgspec.structs.replace(house.record, file_ids=file_ids)
    house.batches.save(TENANT, house.record)
    written = house.driver(EPOCHS[0])
    house.add(written, 1)
    written.store()
    house.outputs.show(house.record, written)
    for used, left in ((house.batches.files_used(), [f"{file_ids[0]}.running"]), (set[str](), [])):
        house.files.sweep(used.__contains__)
        assert house.storage.names(f"tenants/{TENANT}/files") == left


def test_a_file_that_is_being_written_does_not_expire(house: House) -> None:
    """Its batch may take longer than it is to be kept afterwards."""
    house.record = msgspec.structs.replace(house.record, output_expires_after_s=3600)
    written = house.driver(EPOCHS[0])
    house.add(written, 1)
    written.store()
    house.outputs.show(house.record, written)
    running = house.files.find(TENANT, house.record.file_ids[0]).file
    house.outputs.conclude(house.record, written)
    whole = house.files.find(TENANT, house.record.file_ids[0]).file
    assert (running.expires_at, whole.expires_at) == (None, whole.created_at + 3600)


def test_a_file_that_goes_while_files_are_listed_does_not_fail_the_list(house: House) -> None:
    written = house.driver(EPOCHS[0])
    house.add(written, 1)
    written.store()
    house.outputs.show(house.record, written)
    listed = house.files.find(TENANT, house.record.file_ids[0])
    house.outputs.clear(house.record)
    assert house.contents.sized(listed).id == listed.file.id


def test_custom_ids_are_known_again_whatever_they_are() -> None:
    known = CustomIds()
    ids = [f"id {n}" for n in range(5000)] + ["é", "\ud800", "x" * 512]
    assert all(known.add(one) for one in ids)
    assert not any(known.add(one) for one in ids)
