"""A record of the page's head that is read while it is stored is as good as unread: no answer may depend on it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import SQLiteSource
from mmcache.sharing.head import ANNOUNCED, BUILDER, COUNT, COVERED, FAILURE, HEAD_SIZE, VERIFIED
from tests.support.bank import NUMBERS, commit
from tests.support.crew import number
from tests.support.faults import faults
from tests.support.processes import in_child

pytestmark = pytest.mark.usefixtures("no_leaks")

RECORDS = {"count": COUNT, "announced": ANNOUNCED, "covered": COVERED, "builder": BUILDER, "failure": FAILURE} | {
    f"verified {i}": at for i, at in enumerate(VERIFIED)
}


class Torn:
    """Some reads of a page's head, by their number, find these records half stored."""

    def __init__(self, reads: set[int], *records: int) -> None:
        self.reads, self.records, self.count = reads, records, 0

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Any) -> Any:
        result = call()
        if (
            name != "pread"
            or args[1:] != (HEAD_SIZE, 0)
            or not os.readlink(f"/proc/self/fd/{args[0]}").endswith(".ctl")
        ):
            return result
        self.count += 1
        if self.count not in self.reads:
            return result
        data = bytearray(result)
        for at in self.records:
            data[at + 2] ^= 0xFF
        return bytes(data)


@pytest.mark.parametrize("read", [1, 2, 3, 4])
@pytest.mark.parametrize("torn", RECORDS)
def test_what_a_rebuild_returned_is_seen_though_a_record_is_torn(path: Path, bank: Path, torn: str, read: int) -> None:
    mmcache.build(path, SQLiteSource(bank, NUMBERS))
    with mmcache.open(path, SQLiteSource(bank, NUMBERS), executor="external", check_interval=3600) as cache:
        assert number(cache) == 0
        commit(bank, 1)
        assert in_child(lambda: mmcache.build(path, SQLiteSource(bank, NUMBERS))) == 0
        with faults(Torn({read}, RECORDS[torn])):
            assert number(cache) == 1
        assert cache.generation == 2


def test_a_file_whose_verification_cannot_be_read_is_opened_by_a_poll(path: Path, bank: Path) -> None:
    mmcache.build(path, SQLiteSource(bank, NUMBERS))
    with mmcache.open(path, SQLiteSource(bank, NUMBERS), executor="external", check_interval=3600) as cache:
        commit(bank, 1)
        assert in_child(lambda: mmcache.build(path, SQLiteSource(bank, NUMBERS))) == 0
        torn = Torn(set(range(100)), *VERIFIED)
        with faults(torn):
            cache.refresh()
            assert number(cache) == 1
        assert torn.count
