"""A collection as an Arrow table: what is in it, that embeddings are not copied, and who takes it."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import mmcache
from mmcache import Schema, Snapshot

pa = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")

SCHEMA = Schema("items", index=("kind",), embedding="v", dim=5)
N = 300


def records(missing=()):
    for i in range(N):
        record = {"id": f"k{i}", "kind": i % 3, "tags": ["a"] * (i % 2), "about": {"page": i, "seen": None}}
        if i % 4 == 0:
            record["extra"] = i / 2
        yield record | {"v": None if i in missing else np.arange(i, i + 5, dtype="<f4")}


@pytest.fixture(params=[(), (0, 7, 8, 299)], ids=["all", "some missing"])
def snapshot(request, tmp_path):
    mmcache.build(tmp_path / "i.mmc", records(request.param), SCHEMA)
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        yield snapshot


def test_every_field_is_a_column_and_the_embeddings_are_views_of_the_file(snapshot):
    table = snapshot.default.to_arrow()
    assert table.column_names == ["id", "kind", "tags", "about", "extra", "v"]
    assert table.num_rows == N
    expected = [dict(record) | {"v": record.embedding} for record in snapshot.values()]
    for row, record in zip(table.to_pylist(), expected, strict=True):
        vector = record.pop("v")
        assert row.pop("v") == (None if vector is None else vector.tolist())
        assert {name: value for name, value in row.items() if value is not None or name in record} == record
    (chunk,) = table.column("v").chunks
    chunk.validate(full=True)
    assert chunk.values.to_numpy().ctypes.data == snapshot.embeddings.ctypes.data
    assert table.schema.field("v").type == pa.list_(pa.float32(), 5)
    assert chunk.null_count == N - int(snapshot.default.has_embedding.sum())


def test_only_the_columns_that_are_asked_for(snapshot):
    assert snapshot.to_arrow(columns=["kind", "v"]).column_names == ["kind", "v"]
    assert snapshot.to_arrow(columns=["v"]).num_rows == N
    assert snapshot.to_arrow(columns=["id"]).column_names == ["id"]
    with pytest.raises(ValueError, match="no column 'nope'; there are: id, kind, tags, about, extra, v"):
        snapshot.to_arrow(columns=["nope"])


def test_the_column_keeps_the_file_mapped(tmp_path):
    mmcache.build(tmp_path / "i.mmc", records(), SCHEMA)
    snapshot = Snapshot.open(tmp_path / "i.mmc")
    column = snapshot.to_arrow(columns=["v"]).column("v")
    snapshot.close()
    mmcache.build(tmp_path / "i.mmc", list(records())[:1], SCHEMA)
    del snapshot
    gc.collect()
    assert column[299].as_py() == [299.0, 300.0, 301.0, 302.0, 303.0]


def test_values_without_a_common_type_are_told_by_name(tmp_path):
    mmcache.build(tmp_path / "i.mmc", [{"id": "a", "x": 1}, {"id": "b", "x": "text"}], Schema("items"))
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        with pytest.raises(ValueError, match=r"values of 'x' have no common Arrow type .*columns="):
            snapshot.to_arrow()
        assert snapshot.to_arrow(columns=["id"]).to_pylist() == [{"id": "a"}, {"id": "b"}]


def test_an_empty_collection_and_one_without_embeddings(tmp_path):
    mmcache.build(tmp_path / "i.mmc", {"items": [], "plain": [{"id": "a"}]}, SCHEMA, Schema("plain"))
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        assert snapshot.to_arrow().num_rows == 0
        assert snapshot.collection("plain").to_arrow().to_pylist() == [{"id": "a"}]


def test_whoever_speaks_the_capsule_interface_takes_it(snapshot):
    assert pa.table(snapshot).equals(snapshot.to_arrow())
    assert pa.RecordBatchReader.from_stream(snapshot.default).read_all().num_rows == N


def test_polars_takes_it(snapshot):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = polars.DataFrame(snapshot)
    assert frame["kind"].sum() == sum(i % 3 for i in range(N))
    assert frame["v"].dtype == polars.Array(polars.Float32, 5)


def test_pandas_takes_it(snapshot):
    pandas = pytest.importorskip("pandas", minversion="3", reason="pandas 3 is not installed")
    frame = pandas.DataFrame.from_arrow(snapshot)
    assert frame["kind"].sum() == sum(i % 3 for i in range(N))


def test_duckdb_takes_it(snapshot):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    stream = snapshot.to_arrow(columns=["id", "kind"])
    assert duckdb.sql("SELECT sum(kind) FROM stream").fetchone() == (sum(i % 3 for i in range(N)),)
    assert len(stream) == N
