"""A row that cannot be taken costs only itself, where the schema says so: what a build makes of bad rows, by source."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import BuildError, Invalid, JSONLinesSource, Schema, Snapshot, Source, SourceRecord, SQLiteSource

SCHEMA = Schema("t", key="id", index=("kind",), embedding="v", dim=2)
Row = dict[str, Any]


def good(i: int) -> Row:
    return {"id": f"k{i}", "kind": f"kind-{i % 3}", "v": [float(i), 1.0], "m": {"n": i}}


GOOD = [good(i) for i in range(40)]

BAD: dict[str, tuple[Row, str]] = {
    "no key": ({"kind": "a"}, "no field 'id'"),
    "key None": ({"id": None, "kind": "a"}, "the key 'id'"),
    "key real": ({"id": 1.5, "kind": "a"}, "the key 'id'"),
    "key bool": ({"id": True, "kind": "a"}, "the key 'id'"),
    "key too long": ({"id": "x" * 70_000, "kind": "a"}, "at most 65535"),
    "key no Unicode": ({"id": "\ud800", "kind": "a"}, "not valid Unicode"),
    "int beyond 64 bits": ({"id": "bad", "n": 2**70}, "beyond 64 bits"),
    "text no Unicode": ({"id": "bad", "n": "\ud800"}, "not valid Unicode"),
    "field no Unicode": ({"id": "bad", "\ud800": 1}, "not valid Unicode"),
    "map's key no Unicode": ({"id": "bad", "n": {"\ud800": 1}}, "not valid Unicode"),
    "nested too deep": ({"id": "bad", "n": json.loads("[" * 200 + "]" * 200)}, "nest"),
    "above 16 MiB": ({"id": "bad", "n": "x" * 17_000_000}, "bytes when encoded"),
    "term of no kind": ({"id": "bad", "kind": {"a": 1}}, "indexed field 'kind'"),
    "embedding of another dim": ({"id": "bad", "v": [1.0, 2.0, 3.0]}, "expected dim=2"),
    "embedding with NaN": ({"id": "bad", "v": [float("nan"), 0.0]}, "NaN"),
    "embedding of text": ({"id": "bad", "v": "hello"}, "not JSON"),
    "embedding of words": ({"id": "bad", "v": ["a", "b"]}, "expected a number"),
}
OF_PYTHON: dict[str, tuple[Row, str]] = {
    "value of no type": ({"id": "bad", "n": object()}, "cannot hold"),
    "embedding of another shape": ({"id": "bad", "v": np.ones((1, 2))}, "shape"),
    "embedding of another dtype": ({"id": "bad", "v": np.ones(2, "c8")}, "dtype"),
    "embedding of odd bytes": ({"id": "bad", "v": b"12345"}, "5 bytes"),
    "field name of no text": ({"id": "bad", 7: 1}, "field names"),  # type: ignore[dict-item]
    "decimal that is no number": ({"id": "bad", "kind": [Decimal(1)], "n": object()}, "cannot hold"),
}


def from_list(_: Path, rows: list[Row], schema: Schema) -> Source:
    return mmcache.IterableSource(rows, schema)


def from_lines(at: Path, rows: list[Row], schema: Schema) -> Source:
    (at / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return JSONLinesSource(at / "t.jsonl", schema)


Make = Callable[[Path, list[Row], Schema], Source]


def skipping(schema: Schema = SCHEMA, **rules: Any) -> Schema:
    return Schema.from_dict(schema.to_dict() | {"on_invalid": "skip"} | rules)


def content(path: Path) -> dict[str, int]:
    """Checksums of what the records alone decide."""
    with Snapshot.open(path) as snapshot:
        layout = snapshot.layout
        return {name: s.checksum for name, s in layout.sections.items() if "/" in name and "rows" not in name}


@pytest.mark.parametrize("make", [from_list, from_lines])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_left_out_or_refused_by_name(tmp_path: Path, name: str, make: Make) -> None:
    row, why = BAD[name]
    check(tmp_path, row, why, make)


@pytest.mark.parametrize("name", OF_PYTHON)
def test_a_record_that_only_python_has_is_left_out_or_refused(tmp_path: Path, name: str) -> None:
    row, why = OF_PYTHON[name]
    check(tmp_path, row, why, from_list)


def check(at: Path, row: Row, why: str, make: Make) -> None:
    rows = [*GOOD[:17], row, *GOOD[17:]]
    with pytest.raises(BuildError, match=why):
        mmcache.build(at / "t.mmc", make(at, rows, SCHEMA))
    report = mmcache.build(at / "t.mmc", make(at, rows, SCHEMA), on_invalid="skip")
    assert report.records == {"t": 40}
    left_out = report.left_out["t"]
    assert (left_out.invalid, left_out.duplicates) == (1, 0)
    ((key, reason),) = left_out.rows
    assert why in reason
    assert ("bad" in key) == (row.get("id") == "bad" and why != "field names")  # whose names are not read
    mmcache.build(at / "good.mmc", make(at, GOOD, SCHEMA))
    assert content(at / "t.mmc") == content(at / "good.mmc")


def test_a_first_record_that_is_bad_teaches_nothing(tmp_path: Path) -> None:
    """Its embedding's size, its terms and its fields are forgotten."""
    schema = Schema("t", key="id", index=("kind",), embedding="v")
    first = {"id": "bad", "kind": ["x", {}], "v": [1.0, 2.0], "m": 7}
    report = mmcache.build(tmp_path / "t.mmc", [first, *GOOD], skipping(schema), cluster_by="kind")
    assert report.left_out["t"].invalid == 1
    mmcache.build(tmp_path / "good.mmc", GOOD, schema, cluster_by="kind")
    assert content(tmp_path / "t.mmc") == content(tmp_path / "good.mmc")


def test_bad_records_of_all_kinds_among_thousands_cost_only_themselves(tmp_path: Path) -> None:
    kinds = [row | ({"id": f"bad-{i}"} if row.get("id") == "bad" else {}) for i, (row, _) in enumerate(BAD.values())]
    rows = [good(i) for i in range(5000)]
    for i, row in enumerate(kinds):
        rows.insert(i * i * 21, row)
    report = mmcache.build(tmp_path / "t.mmc", rows, SCHEMA, on_invalid="skip")
    assert report.records["t"] == 5000
    assert report.left_out["t"].invalid == len(kinds)
    mmcache.build(tmp_path / "good.mmc", [good(i) for i in range(5000)], SCHEMA)
    assert content(tmp_path / "t.mmc") == content(tmp_path / "good.mmc")


def test_a_source_of_ones_own_may_give_invalid_rows(tmp_path: Path) -> None:
    class Own:
        def __init__(self, schema: Schema) -> None:
            self.schemas = (schema,)

        def read(self) -> Any:
            import contextlib

            return contextlib.nullcontext(self)

        def count(self, _: str) -> None:
            return None

        def records(self, _: str) -> Any:
            yield SourceRecord(("id",), ("a",), None)
            yield Invalid(None, 1.5, "it is no key")
            yield SourceRecord(("id",), ("b",), None)

        def fetch(self, _: str, ids: Any) -> list[None]:
            return [None for _ in ids]

        def find(self, _: str, __: Any) -> Any:
            return iter(())

        def fingerprint(self) -> bytes:
            return bytes(32)

        def spec(self) -> None:
            return None

    schema = Schema("t", key="id")
    with pytest.raises(BuildError, match=r"key 1\.5: it is no key"):
        mmcache.build(tmp_path / "t.mmc", Own(schema))
    with pytest.raises(TypeError, match="in the Schema of each collection"):
        mmcache.build(tmp_path / "t.mmc", Own(schema), on_invalid="skip")
    report = mmcache.build(tmp_path / "t.mmc", Own(skipping(schema)))
    assert report.left_out["t"].rows == (("1.5", "it is no key"),)
    assert report.records == {"t": 2}


def test_more_bad_rows_than_max_invalid_are_an_error(tmp_path: Path) -> None:
    rows = [*GOOD, *({"id": f"bad{i}", "n": 2**70} for i in range(3))]
    for most in (3, 100):
        assert mmcache.build(tmp_path / "t.mmc", rows, SCHEMA, on_invalid="skip", max_invalid=most).records["t"] == 40
    with pytest.raises(BuildError, match=r"key 'bad2': more rows cannot be taken than max_invalid=2"):
        mmcache.build(tmp_path / "t.mmc", rows, SCHEMA, on_invalid="skip", max_invalid=2)
    with pytest.raises(BuildError, match="max_invalid=0"):
        mmcache.build(tmp_path / "t.mmc", rows, SCHEMA, on_invalid="skip", max_invalid=0)


def test_the_first_bad_rows_are_named_and_all_are_counted(tmp_path: Path) -> None:
    rows = [*GOOD, *({"id": f"bad{i}", "n": "é" * 9 + "\ud800"} for i in range(300))]
    left_out = mmcache.build(tmp_path / "t.mmc", rows, SCHEMA, on_invalid="skip").left_out["t"]
    assert left_out.invalid == 300
    assert [key for key, _ in left_out.rows] == [repr(f"bad{i}") for i in range(20)]
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        assert snapshot.layout.collections["t"].left_out == left_out


def test_what_concerns_the_whole_stays_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="none of the first 40 records has 'knid'"):
        mmcache.build(tmp_path / "t.mmc", GOOD, Schema("t", index=("knid",)), on_invalid="skip")
    records = mmcache.IterableSource(
        [{"id": "a"}, {"id": None}], Schema("t", embedding="v"), embeddings=np.ones((1, 2))
    )
    with pytest.raises(BuildError, match="there are more records"):
        mmcache.build(tmp_path / "t.mmc", records, on_invalid="skip")
    with pytest.raises(ValueError, match="on_invalid must be one of"):
        Schema("t", on_invalid="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="goes with on_invalid='skip'"):
        Schema("t", max_invalid=3)
    with pytest.raises(ValueError, match="on_duplicate must be one of"):
        Schema("t", on_duplicate="any")  # type: ignore[arg-type]


def test_embeddings_beside_the_records_stay_with_their_own(tmp_path: Path) -> None:
    rows: list[Row] = [{"id": "a"}, {"id": None}, {"id": "b", "n": 2**70}, {"id": "c"}]
    source = mmcache.IterableSource(
        rows, Schema("t", embedding="v", on_invalid="skip"), embeddings=np.arange(8.0).reshape(4, 2)
    )
    mmcache.build(tmp_path / "t.mmc", source)
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        assert list(snapshot) == ["a", "c"]
        assert snapshot.embeddings.tolist() == [[0, 1], [6, 7]]


def test_a_line_that_is_no_json_is_a_bad_row(tmp_path: Path) -> None:
    lines = b'{"id": "a"}\n{"id": \n\xff\xfe\n[1]\n{"id": "b"}\n'
    (tmp_path / "t.jsonl").write_bytes(lines)
    with pytest.raises(BuildError, match="line 2 is not JSON"):
        mmcache.build(tmp_path / "t.mmc", JSONLinesSource(tmp_path / "t.jsonl", Schema("t")))
    source = JSONLinesSource(tmp_path / "t.jsonl", skipping(Schema("t")))
    report = mmcache.build(tmp_path / "t.mmc", source)
    assert report.records == {"t": 2}
    assert [key for key, _ in report.left_out["t"].rows] == ["", "", ""]
    assert [reason[:6] for _, reason in report.left_out["t"].rows] == ["line 2", "line 3", "line 4"]


def test_rows_of_sqlite_are_left_out_one_by_one(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "t.db")
    db.execute("create table t(id, kind, m, v)")
    rows: list[tuple[Any, ...]] = [(f"k{i}", "a", '{"n": 1}', np.ones(2, "f4").tobytes()) for i in range(3000)]
    bad: list[tuple[Any, ...]] = [
        (None, "a", "1", None),
        (1.5, "a", "1", None),
        ("json", "a", "{", None),
        ("blob", "a", b"{}", None),
        ("size", "a", "1", b"12345"),
        ("text", "a", "1", "hello"),
        ("term", b"x", "1", None),
        ("nan", "a", "1", np.full(2, np.nan, "f4").tobytes()),
        ("deep", "a", "[" * 150 + "]" * 150, None),
    ]
    for i, row in enumerate(bad):
        rows.insert(100 + 300 * i, row)
    db.executemany("insert into t values(?, ?, ?, ?)", rows)
    db.execute("insert into t select 'utf8', cast(x'61ff' as text), '1', null")
    db.execute("insert into t select cast(x'ff61' as text), 'a', '1', null")
    db.execute("insert into t values ('last', 'a', '2', null)")
    db.commit()
    db.close()
    schema = Schema("t", key="id", index=("kind",), embedding="v", dim=2, json=("m",))
    with pytest.raises(BuildError):
        mmcache.build(tmp_path / "t.mmc", SQLiteSource(tmp_path / "t.db", schema))
    report = mmcache.build(tmp_path / "t.mmc", SQLiteSource(tmp_path / "t.db", schema), on_invalid="skip")
    assert report.records == {"t": 3001}
    assert report.left_out["t"].invalid == 11
    named = [key for key, _ in report.left_out["t"].rows]
    assert set(named) >= {"1.5", "'json'", "'blob'", "'size'", "'text'", "'term'", "'nan'", "'deep'", "'utf8'"}
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        assert list(snapshot) == [*(f"k{i}" for i in range(3000)), "last"]
        snapshot.verify()


def test_rows_of_parquet_are_left_out_one_by_one(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    days = pa.array([0, 2**31 - 1, 1], pa.int32()).cast(pa.date32())
    table = pa.table({"id": ["a", "b", "c"], "day": days, "v": [[1.0, 2.0], [1.0, 2.0], [1.0]]})
    parquet.write_table(table, tmp_path / "t.parquet")
    schema = Schema("t", embedding="v", dim=2, on_invalid="skip")
    report = mmcache.build(tmp_path / "t.mmc", mmcache.ParquetSource(tmp_path / "t.parquet", schema))
    assert [key for key, _ in report.left_out["t"].rows] == ["'b'", "'c'"]
    assert report.records == {"t": 1}


# --- duplicates


def duplicates(n: int) -> list[Row]:
    """Each key of three has a second record, far away from its first."""
    first = [{"id": i, "kind": [f"a{i % 5}", "all"], "v": [i, 0.0], "turn": 1} for i in range(n)]
    return first + [{"id": i, "kind": f"b{i % 7}", "v": None, "turn": 2} for i in range(0, n, 3)]


@pytest.mark.parametrize("choice", ["first", "last"])
def test_the_first_or_last_of_several_rows_is_the_record(tmp_path: Path, choice: Any) -> None:
    rows = duplicates(3000)
    with pytest.raises(BuildError, match="the key stands twice, in records"):
        mmcache.build(tmp_path / "t.mmc", rows, SCHEMA)
    report = mmcache.build(tmp_path / "t.mmc", rows, SCHEMA, on_duplicate=choice)
    assert report.left_out["t"] == mmcache.LeftOut(duplicates=1000)
    kept = rows[:3000] if choice == "first" else [row for row in rows if row["turn"] == 2 or row["id"] % 3]
    mmcache.build(tmp_path / "kept.mmc", kept, SCHEMA)
    assert content(tmp_path / "t.mmc") == content(tmp_path / "kept.mmc")
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        snapshot.verify()
        assert [record.id for record in snapshot.values()] == [row["id"] for row in kept]
        assert [snapshot[row["id"]]["turn"] for row in kept] == [row["turn"] for row in kept]
        assert (snapshot.embedding(3) is None) == (choice == "last")


@pytest.mark.parametrize("choice", ["first", "last"])
def test_duplicates_of_a_clustered_file_are_left_out(tmp_path: Path, choice: Any) -> None:
    rows = [{**row, "kind": str(row["kind"])} for row in duplicates(300)]
    mmcache.build(tmp_path / "t.mmc", rows, SCHEMA, on_duplicate=choice, cluster_by="kind")
    kept = rows[:300] if choice == "first" else [row for row in rows if row["turn"] == 2 or row["id"] % 3]
    mmcache.build(tmp_path / "kept.mmc", kept, SCHEMA, cluster_by="kind")
    assert content(tmp_path / "t.mmc") == content(tmp_path / "kept.mmc")


@pytest.mark.parametrize("choice", ["first", "last"])
def test_a_chosen_row_that_cannot_be_taken_leaves_its_key_out(tmp_path: Path, choice: Any) -> None:
    rows = [{"id": "a", "n": 2**70}, {"id": "a", "n": 1}, {"id": "b", "n": 1}, {"id": "b", "n": 2**70}]
    report = mmcache.build(tmp_path / "t.mmc", rows, Schema("t"), on_invalid="skip", on_duplicate=choice)
    assert report.left_out["t"].invalid == 2
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        assert list(snapshot) == (["b"] if choice == "first" else ["a"])


def test_a_row_that_is_left_out_is_no_duplicate(tmp_path: Path) -> None:
    rows = [{"id": "a", "n": 2**70}, {"id": "a", "n": 1}]
    mmcache.build(tmp_path / "t.mmc", rows, Schema("t"), on_invalid="skip")
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        assert snapshot["a"]["n"] == 1
