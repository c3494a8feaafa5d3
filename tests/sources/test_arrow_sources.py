"""Arrow tables, what speaks its PyCapsule interface, and Parquet files as sources."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import mmcache
from mmcache import BuildError, IterableSource, ParquetSource, Schema, Snapshot, SourceError
from mmcache.sharing.publishing import rebuild

pa = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="the arrow extra is not installed")

SCHEMA = Schema("items", index=("kind",), embedding="v")
N = 10_000
MATRIX = np.arange(3 * N, dtype="<f4").reshape(N, 3)


def table_of(vectors, n=N):
    return pa.table(
        {
            "id": [f"k{i}" for i in range(n)],
            "v": vectors,
            "kind": pa.array([i % 7 for i in range(n)]),
            "tags": [["a"] * (i % 3) for i in range(n)],
        }
    )


def fixed(matrix, mask=None):
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1], mask=mask)


class Stream:
    """Nothing but the interface."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize(
    "wrap", [lambda table: table, Stream, lambda table: table.to_reader(777)], ids=["table", "stream", "reader"]
)
def test_a_stream_is_a_source(tmp_path, wrap):
    mmcache.build(tmp_path / "i.mmc", wrap(table_of(fixed(MATRIX))), SCHEMA)
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        assert np.array_equal(snapshot.embeddings, MATRIX)
        assert snapshot["k9999"] == {"id": "k9999", "kind": 9999 % 7, "tags": []}
        assert len(snapshot.where(kind=3)) == sum(i % 7 == 3 for i in range(N))


def test_what_goes_out_comes_in_again(tmp_path):
    mmcache.build(tmp_path / "i.mmc", table_of(fixed(MATRIX)), SCHEMA)
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        mmcache.build(tmp_path / "again.mmc", snapshot.default.to_arrow(), SCHEMA)
        with Snapshot.open(tmp_path / "again.mmc") as again:
            assert again.header.build_id == snapshot.header.build_id


@pytest.mark.parametrize(
    "vectors",
    [
        lambda: fixed(MATRIX[:50].astype("<f8"), pa.array([i == 7 for i in range(50)])),
        lambda: pa.array([None if i == 7 else row.tolist() for i, row in enumerate(MATRIX[:50])]),
        lambda: pa.array([None if i == 7 else row.tobytes() for i, row in enumerate(MATRIX[:50])]),
        lambda: fixed(MATRIX[:100], pa.array([i == 57 for i in range(100)])).slice(50),
    ],
    ids=["float64, a null", "lists", "bytes", "sliced, a null"],
)
def test_embeddings_come_in_several_forms(tmp_path, vectors):
    column = vectors()
    mmcache.build(tmp_path / "i.mmc", table_of(column, 50), SCHEMA)
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        assert snapshot.embedding("k7") is None
        for i in (0, 6, 8, 49):
            expected = column[i].as_py()
            expected = np.frombuffer(expected, "<f4") if isinstance(expected, bytes) else expected
            assert np.array_equal(snapshot.get_embeddings([f"k{i}"]), [expected])


def test_lookups_of_a_cache_over_a_table(tmp_path):
    source = IterableSource(table_of(fixed(MATRIX)), SCHEMA)
    with mmcache.open(tmp_path / "none.mmc", source, build=False) as cache:
        assert cache["k5"]["kind"] == 5
        assert np.array_equal(cache.get_embeddings(["k5"]), MATRIX[5:6])
        assert cache.get("nope") is None


@pytest.fixture
def path(tmp_path):
    parquet.write_table(table_of(fixed(MATRIX)), tmp_path / "items.parquet", row_group_size=3000)
    return tmp_path / "items.parquet"


def test_a_parquet_file_is_a_source_and_is_read_again(path, tmp_path):
    source = ParquetSource(path, SCHEMA)
    with mmcache.open(tmp_path / "i.mmc", source) as cache:
        assert np.array_equal(cache.embeddings, MATRIX)
        assert source.fetch("items", ["k3", "nope"])[1] is None
        before = source.fingerprint()
        parquet.write_table(table_of(fixed(MATRIX[:9] + 1), 9), path)
        assert source.fingerprint() != before
        assert rebuild(tmp_path / "i.mmc").generation == 2
        assert len(cache) == 9
        (record,) = source.fetch("items", ["k3"])
        assert record is not None
        assert record.vector == (MATRIX[3] + 1).tobytes()


def test_bad_files_and_rows_are_told(path, tmp_path):
    with pytest.raises(SourceError, match="there is no file at this path"):
        mmcache.build(tmp_path / "i.mmc", ParquetSource(tmp_path / "none.parquet", SCHEMA))
    (tmp_path / "bad.parquet").write_bytes(b"no such thing")
    with pytest.raises(SourceError, match="cannot read the file"):
        mmcache.build(tmp_path / "i.mmc", ParquetSource(tmp_path / "bad.parquet", SCHEMA))
    with pytest.raises(BuildError, match="no field 'sku', which is the key"):
        mmcache.build(tmp_path / "i.mmc", ParquetSource(path, Schema("items", key="sku")))
    parquet.write_table(pa.table({"id": ["a", None]}), path)
    with pytest.raises(BuildError, match=r"row 1: the key 'id' must be a non-empty str, not None"):
        mmcache.build(tmp_path / "i.mmc", ParquetSource(path, Schema("items")))


def test_an_error_of_whoever_reads_is_not_blamed_on_the_file(path):
    with pytest.raises(OSError, match="no space"), ParquetSource(path, SCHEMA).read():
        raise OSError("no space")


def test_a_file_that_changes_while_it_is_read_or_is_cut_off_is_told(path):
    with ParquetSource(path, SCHEMA).read() as reading:
        records = reading.records("items")
        next(records)
        with open(path, "ab") as file:
            file.write(b"more")
        with pytest.raises(SourceError, match="changed while it was being read"):
            list(records)


def test_without_pyarrow_the_extra_is_named(tmp_path):
    script = """
import sys
sys.modules["pyarrow"] = None
import mmcache
class Stream:
    def __arrow_c_stream__(self, requested_schema=None): ...
try:
    mmcache.build(sys.argv[1], Stream(), mmcache.Schema("items"))
except mmcache.SourceError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "i.mmc"], capture_output=True, text=True, check=False
    )
    assert "pip install 'mmcache[arrow]'" in done.stdout, done.stderr


def test_in_one_command(path, tmp_path):
    command = [sys.executable, "-m", "mmcache", "build", path, "--index", "kind", "--embedding", "v"]
    done = subprocess.run([*command, "-o", tmp_path / "i.mmc"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        assert np.array_equal(snapshot.embeddings, MATRIX)
    done = subprocess.run([*command, "--table", "x", "-o", "y"], capture_output=True, text=True, check=False)
    assert "is for SQLite" in done.stderr
