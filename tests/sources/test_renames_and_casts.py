"""`Schema.renames` and `Schema.casts`, in every source of mappings."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import json
from typing import Any

import pytest

import mmcache
from mmcache import (
    BuildError,
    CallableSource,
    CSVSource,
    IterableSource,
    JSONLinesSource,
    Schema,
    Snapshot,
    SQLiteSource,
)
from mmcache.additive import covers
from mmcache.sources.at import source_at

SCHEMA = Schema(
    "t",
    key="id",
    index=("kind",),
    renames={"ID": "id", "Kind of it": "kind", "vec": "v"},
    casts={"id": "str", "n": "int", "meta": "json", "when": "str"},
    embedding="v",
    columns=("kind", "n", "meta", "when"),
)
ROWS: list[dict[str, Any]] = [
    {"ID": 1, "Kind of it": "x", "n": "5", "meta": '{"a": [1]}', "vec": [1.0, 2.0], "when": "2026-01-31", "no": 1},
    {"ID": 2, "Kind of it": None, "n": None, "meta": None, "vec": None, "when": None, "no": 2},
]
EXPECTED = [
    {"id": "1", "kind": "x", "n": 5, "meta": {"a": [1]}, "when": "2026-01-31"},
    {"id": "2", "kind": None, "n": None, "meta": None, "when": None},
]


def sources(directory):
    pa = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    from pyarrow import parquet

    yield IterableSource(ROWS, SCHEMA)
    table = pa.Table.from_pylist(ROWS)
    yield IterableSource(table, SCHEMA)
    parquet.write_table(table, directory / "t.parquet")
    (directory / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (directory / "t.json").write_text(json.dumps(ROWS))
    with open(directory / "t.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(ROWS[0])
        rows.writerows([json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in ROWS)
    for name in ("t.parquet", "t.jsonl", "t.json", "t.csv"):
        yield source_at(directory / name, SCHEMA)


def test_a_column_that_no_record_has_is_misspelt(tmp_path):
    (tmp_path / "t.csv").write_text("id,kind\na,x\n")
    (tmp_path / "t.jsonl").write_text('{"id": "a", "kind": "x"}\n')
    schema = Schema("t", columns=("kind", "knid"))
    rows = [{"id": "a", "kind": "x"}]
    for source in (
        CSVSource(tmp_path / "t.csv", schema),
        JSONLinesSource(tmp_path / "t.jsonl", schema),
        IterableSource(rows, schema),
        CallableSource(lambda: rows, schema),
    ):
        with pytest.raises(BuildError, match="columns: none of the first 1 records has 'knid'; they have: id, kind"):
            mmcache.build(tmp_path / "t.mmc", source)


def test_of_other_versions_the_columns_that_are_there_are_available(tmp_path):
    (tmp_path / "t.csv").write_text("id,kind,size\na,x,1\n")
    rows = [{"id": "a", "kind": "x", "size": 1}]
    ours, asked = Schema("t", columns=("kind",)), Schema("t", columns=("kind", "size", "gone"), index=("size", "lost"))
    for source in (CSVSource(tmp_path / "t.csv", ours), CallableSource(lambda: rows, ours)):
        assert source.available([asked]) == (Schema("t", columns=("kind", "size"), index=("size",)),)


def test_every_source_of_mappings_has_them(tmp_path):
    for source in sources(tmp_path):
        mmcache.build(tmp_path / "t.mmc", source)
        with Snapshot.open(tmp_path / "t.mmc") as snapshot:
            assert [record.asdict() for record in snapshot.values()] == EXPECTED, source
            assert snapshot.embeddings.tolist() == [[1.0, 2.0], [0.0, 0.0]]
            assert snapshot.default.schema == SCHEMA
        assert source.fetch("t", ["1"])[0].values[0] == "1"


def test_they_are_stored_and_make_schemas_unlike():
    assert Schema.from_dict(SCHEMA.to_dict()) == SCHEMA
    assert Schema.from_dict(json.loads(json.dumps(SCHEMA.to_dict()))) == SCHEMA
    assert hash(SCHEMA) == hash(Schema.from_dict(SCHEMA.to_dict()))
    assert Schema("t", casts={"b": "int", "a": "str"}) == Schema("t", casts={"a": "str", "b": "int"})
    assert not covers([Schema("t", key="id", casts={"n": "int"})], [Schema("t", key="id", casts={"n": "str"})])
    assert not covers([Schema("t", key="id", renames={"n": "m"})], [Schema("t", key="id")])


CASTS = [
    ("str", 5, "5"),
    ("str", 1.5, "1.5"),
    ("str", True, "true"),
    ("str", b"\xc3\xbc", "ü"),
    ("str", decimal.Decimal("1.10"), "1.10"),
    ("str", dt.date(2026, 1, 31), "2026-01-31"),
    ("int", " +7 ", 7),
    ("int", 7.0, 7),
    ("int", True, 1),
    ("float", "1e3", 1000.0),
    ("float", 2**53, 2.0**53),
    ("float", "-INF", float("-inf")),
    ("bool", "Yes", True),
    ("bool", 0, False),
    ("bytes", "AP8=", b"\0\xff"),
    ("bytes", "\\x00ff", b"\0\xff"),
    ("json", "[1]", [1]),
    ("json", [1], [1]),
    ("json", b"{}", {}),
]


@pytest.mark.parametrize(("kind", "value", "expected"), CASTS)
def test_what_a_cast_makes_of_a_value(kind, value, expected):
    (row,) = IterableSource([{"id": "a", "v": value}], Schema("t", casts={"v": kind})).read().__enter__().records("t")
    assert row.values == ("a", expected)
    assert type(row.values[1]) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("str", [1], "a list is no text"),
        ("str", b"\xff", "is not UTF-8"),
        ("int", "1.5", "'1.5' is no whole number"),
        ("int", 1.5, "1.5 is no whole number"),
        ("int", "1_0", "'1_0' is no whole number"),
        ("int", "", "'' is no whole number"),
        ("float", "x", "'x' is no number"),
        ("float", 2**53 + 1, "has more digits than float64"),
        ("bool", "maybe", "neither true nor false"),
        ("bool", 2, "neither true nor false"),
        ("bytes", "é", "neither base64 nor hexadecimal"),
        ("json", "{", "is not JSON"),
    ],
)
def test_a_value_that_a_cast_does_not_take_is_refused_by_name(tmp_path, kind, value, reason):
    rows = [{"id": "a", "v": None}, {"id": "b", "v": value}]
    schema = Schema("t", casts={"v": kind})
    with pytest.raises(BuildError, match=f"key 'b': record 1: field 'v': .*{reason}.*; the Schema casts it to {kind}"):
        mmcache.build(tmp_path / "t.mmc", rows, schema)
    report = mmcache.build(tmp_path / "t.mmc", rows, schema, on_invalid="skip")
    assert (report.records, report.left_out["t"].invalid) == ({"t": 1}, 1)


def test_names_that_no_record_has_are_taken_for_misspelt(tmp_path):
    for schema in (Schema("t", casts={"w": "int"}), Schema("t", renames={"w": "x"})):
        with pytest.raises(BuildError, match="none of the first 1 records has"):
            mmcache.build(tmp_path / "t.mmc", [{"id": "a"}], schema)
    with pytest.raises(BuildError, match="the columns 'a' and 'b' would both be the field 'b'"):
        mmcache.build(tmp_path / "t.mmc", [{"id": "a", "a": 1, "b": 2}], Schema("t", renames={"a": "b"}))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"casts": {"a": "decimal"}}, ValueError),
        ({"casts": {"v": "str"}, "embedding": "v"}, ValueError),
        ({"casts": "a"}, TypeError),
        ({"renames": {"a": "x", "b": "x"}}, ValueError),
        ({"renames": {"a": ""}}, ValueError),
        ({"renames": {"a": "b"}, "casts": {"a": "int"}}, ValueError),
    ],
)
def test_declarations_that_make_no_sense_are_refused(arguments, error):
    with pytest.raises(error, match="Schema 't'"):
        Schema("t", **arguments)


def test_a_database_says_it_in_its_query(tmp_path):
    for schema in (Schema("t", casts={"a": "int"}), Schema("t", renames={"a": "b"})):
        with pytest.raises(ValueError, match="query='SELECT a AS b, CAST"):
            SQLiteSource(tmp_path / "t.db", schema)
