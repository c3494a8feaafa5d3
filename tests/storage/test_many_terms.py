"""Indexes of fields with more distinct values than a build keeps as objects."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

import mmcache
from mmcache import Schema, Snapshot
from mmcache.query import canonical, order_key
from tests.support import inside

pytestmark = pytest.mark.usefixtures("no_disk_wait")

MANY = 20_000
SHAPES = {
    "texts": lambda i: f"value-{i * 7919}",
    "texts of one beginning": lambda i: "https://example.org/a/long/path/" + str(i),
    "texts with zeros at the end": lambda i: "x" * (i % 40) + "\0" * (i // 40 % 30) + "é" * (i // 1200),
    "ints": lambda i: i * 7919 % 1_000_003 - 500_000,
    "large ints": lambda i: 2**63 + i,
    "floats": lambda i: i * 0.37 - 100,
    "of each kind": lambda i: [None, f"v{i}", i, i + 0.5, 2**53 + i, float(2**53) + 2 * i, i % 2 == 0][i % 7],
    "lists": lambda i: [i % 9000, str(i), f"t{i % 17}"],
    "twice each": lambda i: f"v{i % (MANY // 2)}",
}


def terms(value: Any) -> list[Any]:
    return [canonical(one) for one in (value if isinstance(value, list) else [value])]


def expected(values: list[Any]) -> dict[Any, list[int]]:
    rows: dict[Any, list[int]] = {}
    for row, value in enumerate(values):
        for term in dict.fromkeys(terms(value)):
            rows.setdefault(term, []).append(row)
    return {term: rows[term] for term in sorted(rows, key=order_key)}


def check(snapshot: Snapshot, rows: dict[Any, list[int]]) -> None:
    assert list(snapshot.terms("v").items()) == [(term, len(found)) for term, found in rows.items()]
    for term in random.Random(1).sample(list(rows), min(len(rows), 500)):
        assert snapshot.where(v=term).rows.tolist() == rows[term]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_term_leads_to_its_rows_in_the_order_of_terms(tmp_path, shape):
    values = [shape(i) for i in range(MANY)]
    mmcache.build(
        tmp_path / "c.mmc", [{"id": f"k{i}", "v": v} for i, v in enumerate(values)], Schema("t", index=("v",))
    )
    with Snapshot.open(tmp_path / "c.mmc") as snapshot:
        snapshot.verify()
        check(snapshot, expected(values))


def test_rows_left_out_change_nothing_of_the_others(tmp_path):
    schema = Schema("t", index=("v",), on_invalid="skip", on_duplicate="first")
    good = [{"id": f"k{i}", "v": f"v{i * 7919 % 9973 + i // 2}"} for i in range(MANY)]
    bad = [{"id": f"k{i}", "v": f"w{i}"} if i % 2 else {"id": f"z{i}", "v": f"u{i}", "x": 2**70} for i in range(MANY)]
    with_bad = [
        record for i, pair in enumerate(zip(good, bad, strict=True)) for record in (pair if i % 49 == 0 else pair[:1])
    ]
    with_bad += [{"id": "k7", "v": "again"}]
    report = mmcache.build(tmp_path / "c.mmc", with_bad, schema)
    mmcache.build(tmp_path / "good.mmc", good, schema)
    left_out = report.left_out["t"]
    assert left_out.invalid + left_out.duplicates == len(with_bad) - len(good)
    with Snapshot.open(tmp_path / "c.mmc") as snapshot, Snapshot.open(tmp_path / "good.mmc") as other:
        check(snapshot, expected([record["v"] for record in good]))
        assert list(snapshot.terms("v").items()) == list(other.terms("v").items())


def test_clusters_of_many_terms(tmp_path):
    values = [f"v{i * 7919 % 15_000}" for i in range(MANY)]
    mmcache.build(
        tmp_path / "c.mmc",
        [{"id": f"k{i}", "v": v} for i, v in enumerate(values)],
        Schema("t", index=("v",)),
        cluster_by="v",
    )
    with Snapshot.open(tmp_path / "c.mmc") as snapshot:
        found = [record["v"] for record in snapshot.values()]
        assert found == sorted(values, key={v: i for i, v in reversed(list(enumerate(values)))}.__getitem__)
        assert all(
            set(range(min(r), max(r) + 1)) == set(r) for r in (snapshot.where(v=v).rows.tolist() for v in values[:300])
        )


numbers = st.integers(-(2**63), 2**64 - 1) | st.integers(2**53 - 4, 2**53 + 4) | st.floats(allow_nan=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text("a\0é", max_size=20)


@given(st.lists(numbers | texts | st.none() | st.booleans(), min_size=1, max_size=60))
@settings(max_examples=300, deadline=None)
def test_terms_as_bytes_are_in_the_order_of_terms(values):
    distinct = list(dict.fromkeys(map(canonical, values)))
    order = inside.term_order(distinct)
    assert [distinct[i] for i in order.tolist()] == sorted(distinct, key=order_key)


@given(st.lists(st.lists(texts | numbers, max_size=5), min_size=1, max_size=30), st.booleans())
@settings(max_examples=100, deadline=None)
def test_terms_with_equal_hashes_stay_apart(lists, collide):
    with inside.rare_terms(collide=collide):
        terms_of_rows, codes = inside.terms_staged(lists)
    wanted = [term for row in lists for term in dict.fromkeys(map(canonical, row))]
    assert [terms_of_rows[code] for code in codes] == wanted
    assert terms_of_rows == list(dict.fromkeys(wanted))


@pytest.mark.parametrize("together", [1, 7, 64])
def test_rows_placed_a_few_terms_at_a_time_give_the_same_index(tmp_path, together):
    """Of terms with a range, a bitmap and a list of rows in every run of them."""
    n = 2000
    values = [[f"r{i // 3:04}", f"b{i * 7 % 11}", f"l{i * 7919 % 401}"] for i in range(n)]
    records, schema = [{"id": f"k{i}", "v": v} for i, v in enumerate(values)], Schema("t", index=("v",))
    whole = mmcache.build(tmp_path / "whole.mmc", records, schema)
    with inside.terms_placed_together(together):
        report = mmcache.build(tmp_path / "c.mmc", records, schema)
    assert report.sha256 == whole.sha256
    with Snapshot.open(tmp_path / "c.mmc") as snapshot:
        check(snapshot, expected(values))
