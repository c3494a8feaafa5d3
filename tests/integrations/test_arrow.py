"""Records as an Arrow table: what is in it, that embeddings are not copied, and who takes it."""

from __future__ import annotations

import contextlib
import gc
import pickle
import sqlite3

import numpy as np
import pytest

import mmcache
from mmcache import CorruptFileError, IterableSource, Schema, Selection, Snapshot, SourceError
from tests.support import inside
from tests.support.bank import insert_item, source_of

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
    assert snapshot.to_arrow(columns=["v", "tags", "v"]).column_names == ["v", "tags"]
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


def test_what_speaks_the_capsule_interface_takes_it(snapshot):
    assert pa.table(snapshot).equals(snapshot.to_arrow())
    assert pa.RecordBatchReader.from_stream(snapshot.default).read_all().num_rows == N


# --- a part of it


def test_a_selection_is_a_table_of_its_rows(snapshot):
    everything = snapshot.to_arrow()
    for chosen in (snapshot.where(kind=1), snapshot.where(kind=1)[5:9], snapshot.where(kind=9)):
        table = chosen.to_arrow()
        table.validate(full=True)
        assert table.column_names == everything.column_names
        assert table.to_pylist() == everything.take(pa.array(chosen.rows)).to_pylist()
        assert table.schema.field("v").type == pa.list_(pa.float32(), 5)
    assert snapshot.where(kind=2).to_arrow(columns=["v", "id"]).column_names == ["v", "id"]


def test_a_selection_of_consecutive_rows_is_not_copied(tmp_path):
    mmcache.build(tmp_path / "i.mmc", records(missing=(4,)), SCHEMA, cluster_by="kind")
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        chosen = snapshot.where(kind=1)
        (column,) = chosen.to_arrow(columns=["v"]).column("v").chunks
        assert column.values.to_numpy().ctypes.data == snapshot.embeddings[chosen.rows[0]].ctypes.data
        assert [chosen[i].id for i in np.flatnonzero(column.is_null()).tolist()] == ["k4"]


def test_a_selection_that_was_sent_is_a_table_of_the_same_generation(tmp_path):
    mmcache.build(tmp_path / "i.mmc", records(missing=(4,)), SCHEMA)
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        sent, expected = pickle.dumps(snapshot.where(kind=1)), snapshot.where(kind=1).to_arrow()
    mmcache.build(tmp_path / "i.mmc", list(records())[:1], SCHEMA)
    assert pickle.loads(sent).to_arrow().equals(expected)
    inside.forget_arrived()


# --- of a cache


def is_of_the_file(table, cache):
    """Whether the embeddings are where the file is mapped."""
    return table.column("vector").chunk(0).values.to_numpy().ctypes.data == cache.snapshot.embeddings.ctypes.data


def test_a_cache_is_the_table_of_its_file_while_that_may_answer(bank, tmp_path):
    with mmcache.open(tmp_path / "i.mmc", source_of(bank), executor="external") as cache:
        assert is_of_the_file(cache.to_arrow(), cache)
        assert pa.table(cache).equals(cache.to_arrow())
        with cache.pinned() as snapshot:
            assert cache.to_arrow().equals(snapshot.to_arrow())
        assert cache.collection("notes").to_arrow().to_pylist() == [dict(r) for r in cache.collection("notes").values()]
        assert isinstance(cache.where(kind="a"), Selection)


def damage_a_record(path):
    """Put a copy in the file's place that has one bit of a record flipped."""
    with Snapshot.open(path) as snapshot:
        at = snapshot.default.layout.sections["records"].offset + 40
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("why", ["invalidated", "expired", "damaged", "no file"])
def test_a_cache_is_the_table_of_its_source_while_the_file_may_not_answer(bank, tmp_path, why):
    path = tmp_path / "i.mmc"
    mmcache.build(path, source_of(bank))
    with Snapshot.open(path) as snapshot:
        before, some_before = snapshot.to_arrow(), snapshot.where(kind="a").to_arrow()
    if why == "damaged":
        damage_a_record(path)
    elif why == "no file":
        path.unlink()
    ttl = 1e-9 if why == "expired" else None
    with mmcache.open(path, source_of(bank), build=False, executor="external", verify="lazy", ttl=ttl) as cache:
        if why == "invalidated":
            cache.invalidate(["item-3-ä"])
            assert not is_of_the_file(cache.to_arrow(), cache)
        if why != "damaged":
            found = cache.where(kind="a")
            assert isinstance(found, mmcache.Selection)
            assert found.complete == (why == "invalidated" and "item-3-ä" not in found.ids)
            assert found.to_arrow().equals(some_before)
            assert found.to_arrow(columns=["vector", "name"]).column_names == ["vector", "name"]
        assert cache.to_arrow().equals(before)
        assert pa.table(cache).equals(before)
        with contextlib.closing(sqlite3.connect(bank)) as db, db:
            insert_item(db, 60)
        if why == "invalidated":  # the file answers for what was not
            cache.invalidate(["item-60-ä"])
        assert cache.to_arrow(columns=["name"]).column("name")[-1].as_py() == "item-60-ä"
        assert (cache.stats().corruptions > 0) == (why == "damaged")


def test_while_its_source_fails_a_cache_is_the_table_of_an_expired_file_or_an_error(bank, tmp_path):
    path = tmp_path / "i.mmc"
    with mmcache.open(path, source_of(bank), executor="external") as cache:
        expected = cache.to_arrow()
    bank.unlink()
    with mmcache.open(path, source_of(bank), ttl=1e-9, max_stale=3600.0, executor="external") as cache:
        assert cache.to_arrow().equals(expected)
        assert is_of_the_file(cache.to_arrow(), cache)
    with mmcache.open(path, source_of(bank), executor="external") as cache:
        cache.invalidate(["item-3-ä"])
        with pytest.raises(SourceError):
            cache.to_arrow()


def test_a_damaged_file_without_a_source_raises(bank, tmp_path):
    path = tmp_path / "i.mmc"
    mmcache.build(path, source_of(bank))
    damage_a_record(path)
    with mmcache.open(path, verify="lazy") as cache, pytest.raises(CorruptFileError):
        cache.to_arrow()


def test_a_source_without_any_embedding_is_a_table_without_that_column(tmp_path):
    schema = Schema("items", embedding="v")
    for source in (IterableSource([{"id": "a", "v": None}], schema), IterableSource([], schema)):
        with mmcache.open(tmp_path / "none.mmc", source, build=False) as cache:
            assert cache.to_arrow().column_names == ["id"][: len(cache)]


# --- what takes it


def cosines(snapshot, query):
    """Of the records that have an embedding, by key: computed by numpy."""
    query = np.array(query, "<f4")
    return {
        record.id: float(record.embedding @ query / np.linalg.norm(record.embedding) / np.linalg.norm(query))
        for record in snapshot.values()
        if record.embedding is not None
    }


@pytest.fixture
def missing(snapshot):
    return np.flatnonzero(~snapshot.default.has_embedding).tolist()


def test_polars_takes_the_table_without_a_copy_of_embeddings(snapshot, missing):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = polars.DataFrame(snapshot.to_arrow())
    assert frame["kind"].to_list() == [i % 3 for i in range(N)]
    assert frame["v"].dtype == polars.Array(polars.Float32, 5)
    assert np.flatnonzero(frame["v"].is_null()).tolist() == missing
    assert frame["v"].to_arrow().values.to_numpy().ctypes.data == snapshot.embeddings.ctypes.data
    if not missing:  # polars has NaN in the place of null, and so copies
        assert frame["v"].to_numpy(allow_copy=False).ctypes.data == snapshot.embeddings.ctypes.data
    query = [1.0, 2.0, 3.0, 4.0, 6.0]
    column = frame.lazy().filter(polars.col("v").is_not_null(), polars.col("kind") == 1).collect()
    dots = column["v"].to_numpy() @ np.array(query, "<f4")
    expected = [snapshot[key].embedding @ np.array(query, "<f4") for key in column["id"]]
    np.testing.assert_allclose(dots, expected, rtol=1e-6)


def test_pandas_takes_it_without_a_copy_of_embeddings(snapshot, missing):
    pandas = pytest.importorskip("pandas", minversion="3", reason="pandas 3 is not installed")
    frame = pandas.DataFrame.from_arrow(snapshot)
    assert frame["kind"].tolist() == [i % 3 for i in range(N)]
    for i, vector in enumerate(frame["v"]):
        assert (vector is None) == (i in missing)
        assert vector is None or vector.ctypes.data == snapshot.embeddings[i].ctypes.data
    frame = snapshot.to_arrow().to_pandas(types_mapper=pandas.ArrowDtype)
    assert frame["v"].dtype == pandas.ArrowDtype(pa.list_(pa.float32(), 5))
    assert np.flatnonzero(frame["v"].isna()).tolist() == missing
    (chunk,) = pa.chunked_array(pa.array(frame["v"].array)).chunks
    assert chunk.values.to_numpy().ctypes.data == snapshot.embeddings.ctypes.data


def test_duckdb_takes_it_and_computes_with_embeddings(snapshot, missing):
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    query = [1.0, 2.0, 3.0, 4.0, 6.0]
    with duckdb.connect() as db:
        for items in (snapshot, snapshot.to_arrow()):
            assert len(items) == N
            found = db.execute("SELECT typeof(any_value(v)), sum(kind), count(v) FROM items").fetchall()
            assert found == [("FLOAT[5]", sum(i % 3 for i in range(N)), N - len(missing))]
        found = db.execute("SELECT id, array_cosine_similarity(v, ?::FLOAT[5]) AS c FROM items ORDER BY c", [query])
        similarities = dict(found.fetchall())
    assert sum(value is None for value in similarities.values()) == len(missing)
    expected = cosines(snapshot, query)
    np.testing.assert_allclose([similarities[key] for key in expected], list(expected.values()), rtol=1e-5)


@pytest.mark.parametrize("library", ["pyarrow", "polars", "pandas"])
def test_what_was_taken_stays_valid_after_a_swap_and_a_close(tmp_path, library):
    pytest.importorskip(library, reason=f"{library} is not installed")
    path = tmp_path / "i.mmc"
    source = IterableSource(list(records()), SCHEMA)
    with mmcache.open(path, source, executor="external") as cache:
        column = taken(library, cache)
        mmcache.build(path, list(records())[:1], SCHEMA)
        assert cache.refresh()
        assert len(cache) == 1
    path.unlink()
    del cache, source
    gc.collect()
    assert [list(vector) for vector in column] == [list(np.arange(i, i + 5.0)) for i in range(N)]


def taken(library, cache):
    """The embeddings as a column of the library."""
    if library == "pyarrow":
        return pa.table(cache).column("v").chunk(0).values.to_numpy().reshape(N, 5)
    if library == "polars":
        return pytest.importorskip("polars").DataFrame(cache.to_arrow())["v"]
    return pytest.importorskip("pandas").DataFrame.from_arrow(cache)["v"]
