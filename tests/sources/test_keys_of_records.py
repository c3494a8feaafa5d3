"""Keys of every type in the sources of mappings: iterables, JSON lines, Arrow, Parquet."""

from __future__ import annotations

import enum
import json

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mmcache.errors import BuildError
from mmcache.format.keys import Key
from mmcache.schema import Schema
from mmcache.sources import IterableSource, JSONLinesSource


class Colour(enum.StrEnum):
    RED = "red"


def everything(source, collection="items"):
    with source.read() as reading:
        return list(reading.records(collection))


def test_a_schema_without_a_key_takes_the_field_id(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"id": 7}\n')
    for source in (
        IterableSource([{"id": 7}], Schema("items")),
        JSONLinesSource(tmp_path / "items.jsonl", Schema("items")),
    ):
        assert source.schemas == (Schema("items", key="id"),)
        assert everything(source) == [(("id",), (7,), None)]


KEYS = [
    ("a", "a"),
    ("", ""),
    (b"", b""),
    (b"a", b"a"),
    (-(2**63), -(2**63)),
    (2**64 - 1, 2**64 - 1),
    (Colour.RED, "red"),
    (np.str_("x"), "x"),
    (np.int32(7), 7),
    (np.uint64(2**64 - 1), 2**64 - 1),
    (np.bytes_(b"x"), b"x"),
]


@pytest.mark.parametrize(("given", "key"), KEYS, ids=[repr(pair[0]) for pair in KEYS])
def test_a_key_is_a_plain_value(given, key):
    source = IterableSource([{"v": 1, "id": given}], Schema("items"))
    ((names, values, vector),) = everything(source)
    assert (names, values, vector) == (("id", "v"), (key, 1), None)
    assert type(values[0]) is type(key)
    source = IterableSource([{"b": given, "v": 1, "a": 0}], Schema("items", key=("a", "b")))
    ((names, values, vector),) = everything(source)
    assert (names, values, vector) == ((("a", "b"), "v"), ((0, key), 1), None)
    assert type(values[0][1]) is type(key)


@pytest.mark.parametrize("bad", [None, True, 1.5, np.float64(1), np.bool_(1), ("a", 1), ["a"], 2**64, -(2**63) - 1])
def test_what_is_no_key_is_named(bad):
    with pytest.raises(BuildError, match="record 0: the key 'id': a"):
        everything(IterableSource([{"id": bad}], Schema("items")))
    with pytest.raises(BuildError, match="record 0: the key 'b': a"):
        everything(IterableSource([{"a": 1, "b": bad}], Schema("items", key=("a", "b"))))


def test_a_record_without_a_part_of_its_key_is_named():
    with pytest.raises(BuildError, match="no field 'b', which is of the key; the record has: a, v"):
        everything(IterableSource([{"a": 1, "v": 2}], Schema("items", key=("a", "b"))))


def test_records_of_other_orders_and_fields_share_their_names():
    records = [{"a": 1, "b": "x", "v": 1}, {"v": 2, "b": "y", "a": 1}, {"b": "z", "a": 1}]
    source = IterableSource(records, Schema("items", key=("b", "a"), index=("a", "v")))
    found = everything(source)
    assert [one.values for one in found] == [(("x", 1), 1), (("y", 1), 2), (("z", 1),)]
    assert found[0].names is found[1].names
    assert [one.values[0] for one in source.find("items", {"a": (1,), "v": (2, None)})] == [("y", 1), ("z", 1)]
    assert source.in_order("items", [("z", 1), ("x", 1), "x", (1, "x")]) == [("x", 1), ("z", 1)]
    assert source.fetch("items", [("y", 1), ("y", "1"), "y"]) == [found[1], None, None]


def test_lines_of_json_have_keys_of_every_type_of_json(tmp_path):
    lines = [{"auth": "EPSG", "code": 4326}, {"auth": "EPSG", "code": "4326"}, {"auth": 1, "code": 2}]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = JSONLinesSource(tmp_path / "items.jsonl", Schema("items", key=("auth", "code")))
    wanted: list[Key] = [("EPSG", 4326), ("EPSG", "4326"), (1, 2)]
    assert [one.values for one in everything(source)] == [(key,) for key in wanted]
    assert [one and one.values[0] for one in source.fetch("items", [*wanted[::-1], (2, 1)])] == [*wanted[::-1], None]


def test_arrow_and_parquet_have_keys_of_every_type(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the extra `arrow` is not installed")
    from pyarrow import parquet

    from mmcache.sources import ParquetSource

    table = pa.table({"n": pa.array([1, 2**64 - 1], pa.uint64()), "b": [b"x", b""], "s": ["p", "q"], "v": [1.5, None]})
    parquet.write_table(table, tmp_path / "items.parquet")
    for key in ("n", "b", "s", ("s", "n"), ("b", "n", "s")):
        schema = Schema("items", key=key)
        columns = [table.column(name).to_pylist() for name in schema.key_fields]
        keys = columns[0] if isinstance(key, str) else list(zip(*columns, strict=True))
        for source in (IterableSource(table, schema), ParquetSource(tmp_path / "items.parquet", schema)):
            found = everything(source)
            assert [(one.names[0], one.values[0]) for one in found] == [(key, value) for value in keys]
            assert source.fetch("items", keys[::-1]) == found[::-1]


scalars = st.one_of(st.integers(-3, 3), st.sampled_from(["", "1", "a"]), st.binary(max_size=1))


@given(st.lists(st.tuples(scalars, scalars), max_size=10), st.lists(st.tuples(scalars, scalars), max_size=6))
def test_a_lookup_gives_what_a_scan_gives(keys, wanted):
    source = IterableSource(
        [{"a": a, "n": n, "b": b} for n, (a, b) in enumerate(keys)], Schema("items", key=("a", "b"))
    )
    first = {key: n for n, key in reversed(list(enumerate(keys)))}
    found = source.fetch("items", wanted)
    assert [one and (one.values[0], one.values[1]) for one in found] == [
        (key, first[key]) if key in first else None for key in wanted
    ]
    assert source.in_order("items", wanted) == sorted({key for key in wanted if key in first}, key=first.__getitem__)


# --- schemas ----------------------------------------------------------------------------------------------------------


def test_a_key_of_one_field_is_that_field():
    assert Schema("items", key=("a",)) == Schema("items", key="a")
    assert Schema("items", key=["a", "b"]).key == ("a", "b")  # type: ignore[arg-type]
    assert Schema("items", key=("a", "b")).key_fields == ("a", "b")
    assert Schema("items", key="a").key_fields == ("a",)


@pytest.mark.parametrize("key", ["", (), ("a", "a"), ("a", ""), ("a", 1), 5, tuple("abcdefghi")])
def test_a_key_that_names_no_fields_is_refused(key):
    with pytest.raises(ValueError, match="key must"):
        Schema("items", key=key)


def test_a_field_of_the_key_is_no_embedding():
    with pytest.raises(ValueError, match="'b' is the embedding, not a key"):
        Schema("items", key=("a", "b"), embedding="b")


def test_a_schema_that_is_not_resolved_says_so():
    with pytest.raises(ValueError, match="only the source knows its key"):
        _ = Schema("items").key_fields


@pytest.mark.parametrize("key", [None, "a", ("a", "b")])
def test_a_schema_comes_back_from_plain_data(key):
    schema = Schema("items", key=key)
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
