"""Posting lists: what a bitmap says, dense or sparse, and lists that are remembered."""

from __future__ import annotations

import numpy as np
import pytest

import mmcache
from mmcache import Schema, Snapshot
from mmcache.format.postings import REMEMBERED
from tests.support import inside


@pytest.mark.parametrize("n", [1, 7, 8, 64, 999, 32_768, 32_769, 40_001, 100_000])
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 1.0])
def test_the_rows_of_a_bitmap(n, share):
    bits = np.random.default_rng(n).random(n) < share
    packed = np.packbits(bits, bitorder="little")
    rows = inside.rows_of_bitmap(packed, n)
    assert rows.dtype == np.uint32
    assert rows.tolist() == np.flatnonzero(bits).tolist()


@pytest.mark.parametrize("n", [13, 40_001])
def test_bits_beyond_the_last_row_are_no_rows(n):
    assert inside.rows_of_bitmap(np.full(-(-n // 8), 0xFF, np.uint8), n).tolist() == list(range(n))


def test_more_terms_than_are_remembered_and_three_fields_of_a_large_collection(tmp_path):
    n, many = 40_000, 2 * REMEMBERED + 5
    records = [{"id": f"k{i}", "a": i % 3, "b": i % 5, "c": i % 7, "many": i % many} for i in range(n)]
    mmcache.build(tmp_path / "i.mmc", records, Schema("items", index=("a", "b", "c", "many")))
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        for _ in range(2):
            for term in range(many + 3):
                rows = snapshot.where(many=term).rows
                assert rows.tolist() == (list(range(term, n, many)) if term < many else [])
        found = snapshot.where(a=1, b=[2, 3], c=4, many=list(range(0, many, 2))).rows.tolist()
        assert found == [i for i in range(n) if i % 3 == 1 and i % 5 in (2, 3) and i % 7 == 4 and i % many % 2 == 0]
        assert snapshot.where(a=1, b=2, c=4).rows.tolist() == [
            i for i in range(n) if (i % 3, i % 5, i % 7) == (1, 2, 4)
        ]
