"""What versions of a program that share a file agree on, as a table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmcache import Schema
from mmcache.additive import covers, missing_in, seen_in, union

A = Schema("items", index=("kind",))
ADDED = Schema("items", index=("kind", "note"))
OTHER = Schema("items", index=("note", "size"))
NARROW = Schema("items", index=("kind",), columns=("kind",))
WIDE = Schema("items", index=("kind",), columns=("kind", "note"))
NOTES = Schema("notes")
VECTORS = Schema("items", embedding="v")
SKETCHED = Schema("items", embedding="v", sketch=True)


@pytest.mark.parametrize(
    ("found", "ours", "expected"),
    [
        ((A,), (A,), (A,)),
        ((A,), (ADDED,), (ADDED,)),
        ((ADDED,), (A,), (ADDED,)),
        ((ADDED,), (OTHER,), (Schema("items", index=("kind", "note", "size")),)),
        ((OTHER,), (A,), (Schema("items", index=("note", "size", "kind")),)),
        ((NARROW,), (WIDE,), (WIDE,)),
        ((WIDE,), (NARROW,), (WIDE,)),
        ((WIDE,), (A,), (A,)),
        ((A,), (NARROW,), (A,)),
        ((A,), (A, NOTES), (A, NOTES)),
        ((NOTES, A), (ADDED,), (NOTES, ADDED)),
        ((NOTES,), (A,), (NOTES, A)),
        ((VECTORS,), (SKETCHED,), (SKETCHED,)),
        ((SKETCHED,), (VECTORS,), (SKETCHED,)),
        ((Schema("items", table="items", index=("kind",)),), (ADDED,), (replace(ADDED, table="items"),)),
    ],
)
def test_the_union_of_additive_schemas_has_what_either_names(found, ours, expected):
    assert union(found, ours) == expected
    assert union(expected, ours) == expected, "a second build by the same version changes nothing"
    assert union(expected, found) == expected
    assert covers(expected, ours)
    assert covers(expected, found)
    assert not missing_in(expected, ours)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": "sku"},
        {"table": "others"},
        {"query": "SELECT * FROM items"},
        {"json": ("kind",)},
        {"dtype": "f8"},
        {"embedding": "vector"},
        {"embedding": "vector", "dim": 3},
    ],
)
def test_schemas_that_differ_in_more_than_fields_are_not_additive(changes):
    ours = A.resolved()
    other = replace(ours, **changes)
    assert union((ours,), (other,)) is None
    assert union((other, NOTES), (NOTES, ours)) is None
    assert not covers((ours,), (other,))


def test_a_schema_whose_source_cannot_be_asked_agrees_with_any_key():
    found = Schema("items", key=("a", "b"), index=("kind",))
    assert covers((found,), (ADDED,))
    assert union((found,), (ADDED,)) == (replace(found, index=("kind", "note")),)
    assert seen_in(found, A) == found
    assert not covers((found,), (Schema("items", key="a", index=("kind",)),))


def test_a_file_without_a_collection_or_a_column_does_not_cover():
    assert not covers((A,), (A, NOTES))
    assert not covers((NARROW,), (WIDE,))
    assert not covers((NARROW,), (A,))
    assert covers((A,), (WIDE,))


def test_a_missing_index_is_named_and_no_obstacle():
    assert covers((A,), (ADDED,))
    assert missing_in((A,), (ADDED,)) == ["items.note"]


def test_a_worker_sees_the_fields_that_it_asked_for_and_the_file_has():
    assert seen_in(ADDED, A) == A
    assert seen_in(A, ADDED) == A
    assert seen_in(A, NARROW) == NARROW


def test_a_file_without_a_sketch_serves_and_lacks_it():
    assert covers((VECTORS,), (SKETCHED,))
    assert missing_in((VECTORS,), (SKETCHED,)) == ["items: sketch"]
    assert missing_in((SKETCHED,), (VECTORS,)) == []
    assert (seen_in(VECTORS, SKETCHED).sketch, seen_in(SKETCHED, VECTORS).sketch) == (True, False)
