"""`mmcache export`: what it writes, a build reads back as the same records."""

from __future__ import annotations

import csv
import io
import json
import os
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Schema, Snapshot
from tests.support.console import make_shelf, ok, run

SCHEMA = Schema("items", index=("kind",), embedding="vector")
RECORDS = [
    {"id": f"k{i}", "kind": "ab"[i % 2], "n": i, "share": i / 3, "ok": i % 2 == 0, "tags": ["x", "é"], "note": None}
    for i in range(100)
]
VECTORS = np.random.default_rng(1).standard_normal((100, 8)).astype("f4")


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "items.mmc"
    given = [
        {**record, "vector": vector if i else None}
        for i, (record, vector) in enumerate(zip(RECORDS, VECTORS, strict=True))
    ]
    mmcache.build(path, given, SCHEMA)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_what_is_exported_builds_the_same_file(items, tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out, again = tmp_path / f"out{suffix}", tmp_path / "again.mmc"
    assert f"{out}: " in ok("export", items, "-o", out).out
    ok("build", out, "--collection", "items", "--index", "kind", "--embedding", "vector", "-o", again)
    with Snapshot.open(items) as before, Snapshot.open(again) as after:
        assert [record.asdict() for record in after.values()] == [record.asdict() for record in before.values()]
        assert np.array_equal(after.embeddings, before.embeddings)
        assert np.array_equal(after.has_embedding, before.has_embedding)
        if suffix == ".jsonl":  # of other sources the spec in `meta` differs, and so the digest of all
            assert after.header.sha256 != before.header.sha256


def test_json_lines_go_to_stdout_with_the_fields_that_records_have(tmp_path):
    path = tmp_path / "items.mmc"
    make_shelf(path)
    done = run("export", path)
    assert [line["id"] for line in done.lines][:2] == ["a", "b"]
    assert "ratio" not in done.lines[0]
    assert done.lines[0]["vector"] == [0.1, 0.2, 0.3, 0.4]
    assert (done.lines[0]["blob"], done.lines[1]["ratio"]) == ("AP8=", "nan")
    assert done.err.splitlines() == [
        "to build it back: mmcache build ... --cast blob=bytes,ratio=float",
        "written as `mmcache get` does, and not read back as it was: map",
    ]
    bare = run("export", path, "--no-embeddings", "--columns", "vector,year,id")
    assert bare.lines[0] == {"year": 5, "id": "a"}
    assert list(bare.lines[0]) == ["year", "id"]


def test_csv_tells_text_from_numbers_and_null(tmp_path):
    path = tmp_path / "items.mmc"
    rows: list[dict[str, Any]] = [
        {"id": "1", "n": 1, "t": "5", "b": True},
        {"id": "2", "t": ""},
        {"id": "3", "t": 'a,"b"\n', "l": [1, "x"]},
    ]
    mmcache.build(path, rows, Schema("items"))
    done = run("export", path, "--format", "csv")
    text = done.out
    assert done.err.splitlines() == [
        "to build it back: mmcache build ... --cast l=json,id=str",
        "empty text, which a build from CSV takes for null: t",
        "not in all records, and null in the others: n, b, l",
    ]
    assert text.splitlines()[:3] == ['"id","n","t","b","l"', '"1",1,"5",true,', '"2",,"",,']
    assert list(csv.reader(io.StringIO(text)))[3] == ["3", "", 'a,"b"\n', "", '[1, "x"]']


def test_fields_that_a_table_cannot_tell_apart_are_named(tmp_path):
    rows: list[dict[str, Any]] = [
        {"id": 1, "x": 1, "y": 1.5},
        {"id": "1", "x": 1.5, "z": 2},
        {"id": 3, "x": None, "y": 2.5, "z": None},
    ]
    mmcache.build(tmp_path / "t.mmc", rows, Schema("items"))
    done = run("export", tmp_path / "t.mmc", "--format", "csv")
    assert "of several types, which a build from CSV takes for one: id, x" in done.err.splitlines()
    assert "not in all records, and null in the others: y, z" in done.err.splitlines()
    pytest.importorskip("pyarrow")
    sparse: list[dict[str, Any]] = [{"id": 1, "x": 1}, {"id": 2, "y": 2}]
    mmcache.build(tmp_path / "t.mmc", sparse, Schema("items"))
    done = run("export", tmp_path / "t.mmc", "-o", tmp_path / "t.parquet")
    assert "not in all records, and null in the others: x, y" in done.err.splitlines()


def test_arrow_goes_to_a_file_or_as_a_stream_to_stdout(items, tmp_path):
    pa = pytest.importorskip("pyarrow")
    ok("export", items, "-o", tmp_path / "out.feather")
    with pa.ipc.open_file(tmp_path / "out.feather") as reader:
        table = reader.read_all()
    assert table.column("id").to_pylist() == [record["id"] for record in RECORDS]
    assert table.column("vector")[1].as_py() == VECTORS[1].tolist()
    assert table.column("vector")[0].as_py() is None
    with open(tmp_path / "stream", "wb") as file:
        assert run("export", items, "--format", "arrow", "-o", "-", stdout=file).code == 0
    with pa.ipc.open_stream((tmp_path / "stream").read_bytes()) as reader:
        assert reader.read_all().equals(table)


def test_types_are_those_of_all_records(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    path, out = tmp_path / "items.mmc", tmp_path / "out.parquet"
    records = [{"id": i, "x": 1 if i < 20_000 else 0.5, "y": None if i < 20_000 else "late"} for i in range(20_010)]
    mmcache.build(path, records, Schema("items"))
    ok("export", path, "-o", out)
    table = pq.read_table(out)
    assert table.to_pylist() == records
    assert pq.ParquetFile(out).num_row_groups == 2


def test_values_without_a_common_type_are_named(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "items.mmc"
    mmcache.build(path, [{"id": "a", "x": 1}, {"id": "b", "x": "text"}], Schema("items"))
    done = run("export", path, "-o", tmp_path / "out.parquet")
    assert done.code == 2
    assert "the values of 'x' have no common Arrow type" in done.err
    assert "--format jsonl" in done.err
    assert [entry.name for entry in tmp_path.iterdir() if "out" in entry.name] == []


def test_a_collection_is_chosen_by_name(tmp_path):
    path = tmp_path / "two.mmc"
    mmcache.build(path, {"a": [{"id": "x"}], "b": [{"id": "y"}]}, Schema("a"), Schema("b"))
    first = run("export", path)
    assert first.lines == [{"id": "x"}]
    assert "there are more, for --collection: b" in first.err
    assert ok("export", path, "--collection", "b").lines == [{"id": "y"}]
    told = ok("export", path, "--collection", "b", "-o", tmp_path / "b.jsonl", "--json").json
    assert told == {
        "path": str(tmp_path / "b.jsonl"),
        "format": "jsonl",
        "collection": "b",
        "records": 1,
        "size": len('{"id": "y"}\n'),
    }


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--format", "parquet"], "-o OUT"),
        (["-o", "out.txt"], "Say --format"),
        (["-o", "none/out.csv"], "cannot be written (No such file or directory)"),
        (["-o", "items.mmc", "--format", "csv"], "is a cache file"),
        (["--columns", "nope"], "no field 'nope'; there are: id, kind"),
        (["--json"], "the records go to stdout"),
        (["--collection", "nope"], "no collection 'nope'"),
    ],
)
def test_what_export_cannot_do_is_2_and_writes_nothing(items, words, reason):
    before = sorted(os.listdir(items.parent))
    done = run("export", "items.mmc", *words, cwd=items.parent)
    assert (done.code, done.out) == (2, "")
    assert reason in done.err
    assert sorted(os.listdir(items.parent)) == before


def test_a_missing_file_is_3_and_a_damaged_one_5(items, tmp_path):
    assert run("export", tmp_path / "none.mmc").code == 3
    with Snapshot.open(items) as snapshot:
        section = snapshot.layout.sections["0/records"]
    data = bytearray(items.read_bytes())
    data[section.offset + section.length // 2] ^= 1
    items.unlink()
    items.write_bytes(data)
    done = run("export", items, "-o", tmp_path / "out.jsonl")
    assert done.code == 5
    assert not (tmp_path / "out.jsonl").exists()


def test_embeddings_are_the_shortest_decimals_that_give_them_again(tmp_path):
    rng = np.random.default_rng(2)
    vectors = np.frombuffer(rng.bytes(4 * 600 * 8), "<f4").reshape(600, 8).copy()  # of every size
    vectors[~np.isfinite(vectors)] = 0
    vectors[300:] = rng.standard_normal((300, 8))  # as of embeddings
    vectors[:3, :4] = [[0.1, -0.2, 1e-45, 3.4e38], [1, 0, -0.0, 2**24], [1 / 3, 1e10, 123456.7, 0.5]]
    given = mmcache.IterableSource([{"id": i} for i in range(600)], Schema("c", embedding="v"), embeddings=vectors)
    mmcache.build(tmp_path / "c.mmc", given)
    numbers = [line["v"] for line in ok("export", tmp_path / "c.mmc").lines]
    assert np.array_equal(np.array(numbers, "f4"), vectors)
    assert numbers[0][:2] == [0.1, -0.2]
    printed = [len(repr(number)) for one in numbers[300:] for number in one]
    assert sum(printed) <= 1.01 * sum(len(repr(float(str(number)))) for one in vectors[300:] for number in one)


def test_an_embedding_that_no_record_has_is_null(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    mmcache.build(tmp_path / "c.mmc", [{"id": "a", "v": None}], Schema("c", embedding="v"))
    assert ok("export", tmp_path / "c.mmc").lines == [{"id": "a", "v": None}]
    ok("export", tmp_path / "c.mmc", "-o", tmp_path / "c.parquet")
    assert pq.read_table(tmp_path / "c.parquet").to_pylist() == [{"id": "a", "v": None}]


def test_a_device_is_written_to_and_not_replaced(items):
    assert ok("export", items, "--format", "csv", "-o", "/dev/null", "--no-embeddings", "--columns", "n").code == 0
    assert not os.path.isfile("/dev/null")
    done = run("export", items, "--format", "jsonl", "-o", "/dev/full")
    assert (done.code, done.err) == (1, "mmcache: cannot write the output: No space left on device\n")


def test_get_and_export_print_the_same(items):
    lines = [json.loads(line) for line in ok("export", items).out.splitlines()]
    assert ok("get", items, "k7", "--embedding").json == lines[7]
