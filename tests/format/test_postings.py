"""Posting lists: what a bitmap says, dense or sparse, and lists that are remembered; places in the order of terms."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from random import Random

import numpy as np
import pytest

import mmcache
from mmcache import Schema, Snapshot
from mmcache.format.frame import place_arrays
from mmcache.format.postings import REMEMBERED, IndexReader, encode_index
from mmcache.format.terms import pack_terms
from mmcache.query import order_key
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


@pytest.mark.parametrize("several_kinds", [False, True])
def test_a_bisection_finds_the_ordinal_of_every_term_and_between(several_kinds):
    numbers = [i // 3 if i % 3 == 0 else i / 3 for i in range(-1500, 1500)]
    terms = [None, *numbers, *(f"{i:04}" for i in range(900))] if several_kinds else numbers
    random = Random(5)
    shuffled = random.sample(terms, len(terms))
    n = len(terms)
    section = encode_index(pack_terms(shuffled), np.arange(n, dtype=np.uint32), np.arange(n, dtype=np.uint32), n)
    reader = reader_of(section, section.arrays, n)
    keys = sorted(map(order_key, terms))
    for key in [*random.sample(keys, 60), (1, -1e9), (1, 0.1), (1, 1e9), (2, ""), (2, "0005x"), (2, "z")]:
        for after, bisect in ((False, bisect_left), (True, bisect_right)):
            for begin in (0, 700, n):
                place = max(begin, bisect(keys, key))
                assert reader.first_not_before(key, after=after, begin=begin) == place
    assert [term for term, _ in reader.terms()] == sorted(terms, key=order_key)


def reader_of(section, arrays, n):
    sizes = section.layout.sizes()
    placed = place_arrays(sizes)
    data = bytearray(placed.length)
    for name, array in arrays.items():
        raw = bytes(array) if isinstance(array, bytes) else np.ascontiguousarray(array).tobytes()
        data[placed.offsets[name] : placed.offsets[name] + sizes[name]] = raw
    return IndexReader(memoryview(bytes(data)), section.layout, n)


KINDS = {
    "list": lambda i: i % 97 == 0,
    "bitmap": lambda i: i % 3 == 0,
    "range": lambda i: 500 <= i < 900,
    "other list": lambda i: i % 41 == 2,
    "other bitmap": lambda i: i % 2 == 0,
    "all": lambda i: True,
    "one": lambda i: i == 582,
}


@pytest.mark.parametrize("n", [960, 1003])
def test_two_fields_of_any_kinds_of_lists_meet_where_both_terms_are(tmp_path, n):
    records = [{"id": i, **{kind: "yes" if is_in(i) else [] for kind, is_in in KINDS.items()}} for i in range(n)]
    mmcache.build(tmp_path / "i.mmc", records, Schema("items", index=tuple(KINDS)))
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        for one, first in KINDS.items():
            for other, second in KINDS.items():
                right = [i for i in range(n) if first(i) and second(i)]
                found = snapshot.where({one: "yes", other: "yes"})
                assert (len(found), found.ids, found.rows.tolist()) == (len(right), right, right), (one, other)
                assert [record.id for record in found] == right
            for absent in ("no", "", "x" * 70_000, 7, -1, 2**64 - 1, 0.5, None, True):
                assert snapshot.where({"all": "yes", one: absent}).ids == []
                assert not snapshot.where({one: absent}).ids


@pytest.mark.parametrize(
    "term", [None, 0, 1, -1, -33, 2**63, 2**64 - 1, -(2**63), 0.5, -0.25, 1e300, "", "é", "x" * 300]
)
def test_every_kind_of_term_is_found_by_where(tmp_path, term):
    records = [{"id": i, "t": term if i % 5 == 2 else "other", "u": [term, i]} for i in range(200)]
    mmcache.build(tmp_path / "i.mmc", records, Schema("items", index=("t", "u")))
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        assert snapshot.where(t=term).ids == list(range(2, 200, 5))
        assert len(snapshot.where(u=term)) == 200
        assert snapshot.where(t=term, u=term).ids == list(range(2, 200, 5))
