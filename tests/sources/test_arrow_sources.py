"""Arrow tables, what speaks its PyCapsule interface, and Parquet files as sources."""

from __future__ import annotations

import datetime as dt
import decimal
import subprocess
import sys

import numpy as np
import pytest

import mmcache
from mmcache import BuildError, IterableSource, Schema, Snapshot, SourceError
from mmcache.sharing.publishing import rebuild

pa = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
parquet = pytest.importorskip("pyarrow.parquet", reason="the arrow extra is not installed")
ParquetSource = mmcache.ParquetSource

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


def stream_of(table):
    return Stream(table)


@pytest.mark.parametrize(
    "wrap", [lambda table: table, stream_of, lambda table: table.to_reader(777)], ids=["table", "stream", "reader"]
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
        lambda: pa.array([None if i == 7 else row for i, row in enumerate(MATRIX[:50])], pa.large_list(pa.float64())),
        lambda: pa.array([None if i == 57 else row for i, row in enumerate(MATRIX[:100])]).slice(50),
        lambda: pa.array([None if i == 7 else row for i, row in enumerate(MATRIX[:50])], pa.list_(pa.int16())),
    ],
    ids=["float64, a null", "lists", "bytes", "sliced, a null", "large lists", "lists, sliced, a null", "integers"],
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


# --- what the columns may be

DAY = dt.datetime.fromisoformat("2026-01-31 23:59:59.123456")
BERLIN = dt.timezone(dt.timedelta(hours=1))
CARRIED = {
    "text": (pa.array(["a", None]), ["a", None]),
    "large text": (pa.array(["a", None], pa.large_string()), ["a", None]),
    "text views": (pa.array(["a", None], pa.string_view()), ["a", None]),
    "a dictionary": (pa.array(["a", None]).dictionary_encode(), ["a", None]),
    "runs": (pa.RunEndEncodedArray.from_arrays([1, 2], ["a", None]), ["a", None]),
    "bytes": (pa.array([b"\0", None]), [b"\0", None]),
    "numbers": (pa.array([2**63 - 1, None]), [2**63 - 1, None]),
    "large numbers": (pa.array([2**64 - 1, None], pa.uint64()), [2**64 - 1, None]),
    "floats": (pa.array([0.1, float("inf")]), [0.1, float("inf")]),
    "bools": (pa.array([True, None]), [True, None]),
    "nothing": (pa.nulls(2), [None, None]),
    "structs": (pa.array([{"a": {"b": [1, None]}}, None]), [{"a": {"b": [1, None]}}, None]),
    "lists": (pa.array([["a", None], []]), [["a", None], []]),
    "dates": (pa.array([DAY.date(), None]), ["2026-01-31", None]),
    "times": (pa.array([DAY.time(), None]), ["23:59:59.123456", None]),
    "timestamps": (pa.array([DAY, None]), ["2026-01-31 23:59:59.123456", None]),
    "ns": (pa.array([1, None], pa.timestamp("ns")), ["1970-01-01 00:00:00.000000001", None]),
    "UTC": (pa.array([DAY.replace(tzinfo=dt.UTC), None]), ["2026-01-31 23:59:59.123456+00:00", None]),
    "milliseconds": (pa.array([1, None], pa.timestamp("ms")), ["1970-01-01 00:00:00.001000", None]),
    "whole seconds": (pa.array([0, None], pa.timestamp("ns", "+05:30")), ["1970-01-01 05:30:00+05:30", None]),
    "an old zone": (
        pa.array([-(2**33), None], pa.timestamp("s", "Europe/Zurich")),
        ["1697-10-17 11:03:28+00:00", None],
    ),
    "nested times": (pa.array([[1], None], pa.list_(pa.timestamp("ns"))), [["1970-01-01 00:00:00.000000001"], None]),
    "decimals": (pa.array([decimal.Decimal("1.50"), None]), ["1.50", None]),
    "whole decimals": (pa.array([decimal.Decimal(2**64 - 1), None]), [2**64 - 1, None]),
    "large decimals": (pa.array([decimal.Decimal(2**64), None]), [str(2**64), None]),
    "tiny decimals": (pa.array([0, None], pa.decimal128(20, 9)), ["0.000000000", None]),
    "nested decimals": (
        pa.array([{"a": [decimal.Decimal(5)]}, None], pa.struct([("a", pa.list_(pa.decimal128(38, 0)))])),
        [{"a": [5]}, None],
    ),
    "maps": (
        pa.array([[("a", DAY.date())], None], pa.map_(pa.string(), pa.date32())),
        [[["a", "2026-01-31"]], None],
    ),
    "durations": (pa.array([-1, None], pa.duration("ns")), ["-PT0.000000001S", None]),
    "intervals": (pa.array([(1, -2, 3 * 10**9), None], pa.month_day_nano_interval()), ["P1M-2DT3S", None]),
    "UUIDs": (pa.array([bytes(16), None], pa.uuid()), ["00000000-0000-0000-0000-000000000000", None]),
    "a dictionary of dates": (pa.array([DAY.date(), None]).dictionary_encode(), ["2026-01-31", None]),
    "runs of dates": (pa.RunEndEncodedArray.from_arrays([1, 2], pa.array([DAY.date(), None])), ["2026-01-31", None]),
    "half floats": (pa.array([0.5, None], pa.float16()), [0.5, None]),
    "views of lists": (pa.array([[DAY.date()], None], pa.list_view(pa.date32())), [["2026-01-31"], None]),
    "fixed lists": (pa.array([[DAY.date()], None], pa.list_(pa.date32(), 1)), [["2026-01-31"], None]),
    "offsets": (pa.array([DAY.replace(tzinfo=BERLIN), None]), ["2026-01-31 23:59:59.123456+01:00", None]),
}


@pytest.mark.parametrize("kind", CARRIED)
def test_what_a_record_can_hold_comes_as_it_is_and_times_as_text(tmp_path, kind):
    column, expected = CARRIED[kind]
    table = pa.table({"id": ["k0", "k1"], "x": column})
    mmcache.build(tmp_path / "i.mmc", pa.concat_tables([table.slice(0, 1), table.slice(1)]), Schema("items"))
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        assert [record["x"] for record in snapshot.values()] == expected
        if kind in ("dates", "timestamps", "UTC", "offsets"):
            assert type(column[0].as_py()).fromisoformat(snapshot["k0"]["x"]) == column[0].as_py()


REFUSED = {
    "dates of the future": (
        pa.array([2**31 - 1], pa.date32()),
        "2147483647 days from 1970-01-01 on, beyond the years 1 to 9999; convert",
    ),
    "moments of the future": (pa.array([2**62], pa.timestamp("us")), "4611686018427387904000 ns from 1970 on"),
    "days with an hour": (pa.array([1], pa.int64()).view(pa.date64()), "a date with a time of day, 1 ms"),
    "nested": (pa.array([[-(2**31)]], pa.list_(pa.date32())), "-2147483648 days from"),
    "no time of day": (pa.array([-1], pa.int32()).view(pa.time32("s")), "a time of day at -1000000000 ns; convert it"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_record_cannot_hold_is_refused_by_key_and_field(tmp_path, kind):
    column, message = REFUSED[kind]
    with pytest.raises(BuildError, match="key 'k0': record 0: field 'x': a record cannot hold " + message):
        mmcache.build(tmp_path / "i.mmc", pa.table({"id": ["k0"], "x": column}), Schema("items"))
    assert not (tmp_path / "i.mmc").exists()


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 3)], ids=str)
def test_embeddings_with_holes_are_refused_by_key(tmp_path, kind):
    column = pa.array([[1.0, 2.0, 3.0], None, [1.0, None, 3.0]], kind)
    with pytest.raises(BuildError, match="key 'k2': record 2: the embedding holds None at position 1"):
        mmcache.build(tmp_path / "i.mmc", table_of(column, 3), SCHEMA)


def test_embeddings_of_two_lengths_are_refused_by_key(tmp_path):
    with pytest.raises(BuildError, match=r"key 'k1': .*2 numbers, expected"):
        mmcache.build(tmp_path / "i.mmc", table_of(pa.array([[1.0, 2.0, 3.0], [1.0, 2.0]]), 2), SCHEMA)


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["id", "id"])
    with pytest.raises(BuildError, match="column 'id': two columns are called so"):
        mmcache.build(tmp_path / "i.mmc", table, Schema("items"))


# --- streams that fail


def broken():
    yield pa.record_batch({"id": ["a"]})
    raise RuntimeError("the producer broke")


def test_a_stream_that_breaks_is_an_error_of_the_source_and_publishes_nothing(tmp_path):
    mmcache.build(tmp_path / "i.mmc", [{"id": "before"}], Schema("items"))
    reader = pa.RecordBatchReader.from_batches(pa.schema([("id", pa.string())]), broken())
    with pytest.raises(SourceError, match=r"cannot read the Stream as rows of Arrow: .*the producer broke"):
        mmcache.build(tmp_path / "i.mmc", stream_of(reader), Schema("items"))
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        assert list(snapshot) == ["before"]


def test_a_stream_of_no_rows_is_told(tmp_path):
    with pytest.raises(SourceError, match=r"cannot read the Stream as rows of Arrow: .*non-struct"):
        mmcache.build(tmp_path / "i.mmc", stream_of(pa.chunked_array([["a"]])), Schema("items"))


def test_a_reader_can_be_built_from_once_and_not_looked_up(tmp_path):
    reader = table_of(fixed(MATRIX[:9]), 9).to_reader()
    with mmcache.open(tmp_path / "i.mmc", IterableSource(reader, SCHEMA), executor="external") as cache:
        assert cache["k8"]["kind"] == 1  # from the file
        with pytest.raises(SourceError, match=r"an iterator \(RecordBatchReader\), which can be read once and was"):
            cache.rebuild()
        cache.invalidate(["k8"])
        with pytest.raises(SourceError, match=r"an iterator \(RecordBatchReader\), in which nothing can be looked up"):
            cache["k8"]
        assert cache["k7"]["kind"] == 0


def test_a_stream_that_gives_nothing_the_second_time_is_not_taken_for_an_empty_one(tmp_path):
    class Once:
        def __init__(self, table):
            self.reader = table.to_reader()

        def __arrow_c_stream__(self, requested_schema=None):
            return self.reader.__arrow_c_stream__(requested_schema)

    source = IterableSource(Once(table_of(fixed(MATRIX[:9]), 9)), SCHEMA)
    assert mmcache.build(tmp_path / "i.mmc", source).records == {"items": 9}
    with pytest.raises(SourceError, match="were read from a Once before, and now there are none"):
        mmcache.build(tmp_path / "i.mmc", source)
    for empty in (table_of(fixed(MATRIX[:9]), 9)[:0], table_of(fixed(MATRIX[:9]), 9)[:0].to_reader()):
        assert mmcache.build(tmp_path / "e.mmc", empty, SCHEMA).records == {"items": 0}


# --- other libraries' tables

M = MATRIX[:6]
LATE = dt.datetime.fromisoformat("2026-01-31 23:59:59")
EXPECTED = [{"id": f"k{i}", "kind": "ab"[i % 2], "about": {"page": i, "tags": ["t"] * i}, "at": LATE} for i in range(6)]


def polars_frame(vectors):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    kinds = {"kind": polars.Categorical, "at": polars.Datetime("ms")}
    numbers = polars.Float32 if "32" in vectors else polars.Float64
    v = polars.Series("v", M.tolist(), dtype=polars.List(numbers) if "list" in vectors else polars.Array(numbers, 3))
    v = polars.select(polars.when(polars.arange(0, 6) != 2).then(v).alias("v")).to_series()
    frame = polars.DataFrame(EXPECTED, schema_overrides=kinds).with_columns(v)
    return polars.concat([frame[:4], frame[4:]], rechunk=False)


def pandas_frame(vectors):
    pandas = pytest.importorskip("pandas", minversion="3", reason="pandas 3 is not installed")
    frame = pandas.DataFrame(EXPECTED)
    frame["kind"] = frame["kind"].astype("category")
    frame["at"] = frame["at"].astype("datetime64[s]")
    numbers = M.astype("<f4" if "32" in vectors else "<f8")
    frame["v"] = [None if i == 2 else vector for i, vector in enumerate(numbers)]
    if "list" not in vectors:
        arrays = pa.array(frame["v"]).cast(pa.list_(pa.float32() if "32" in vectors else pa.float64(), 3))
        frame["v"] = pandas.array(arrays, dtype=pandas.ArrowDtype(arrays.type))
    return frame


def duckdb_relation(db, vectors):
    kind = ("FLOAT" if "32" in vectors else "DOUBLE") + ("[]" if "list" in vectors else "[3]")
    db.execute("CREATE TYPE letter AS ENUM ('a', 'b')")
    return db.sql(f"""
        SELECT 'k' || i AS id, substr('ababab', i + 1, 1)::letter AS kind,
            {{'page': i, 'tags': list_resize([]::VARCHAR[], i, 't')}} AS about,
            TIMESTAMP_S '2026-01-31 23:59:59' AS at,
            CASE WHEN i != 2 THEN [3 * i, 3 * i + 1, 3 * i + 2]::{kind} END AS v
        FROM range(6) numbers(i) ORDER BY i
    """)


@pytest.fixture
def frame(request):
    library, vectors = request.param
    if library != "duckdb":
        yield {"polars": polars_frame, "pandas": pandas_frame}[library](vectors)
        return
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    with duckdb.connect() as db:
        yield duckdb_relation(db, vectors)


def with_time(record):
    """How many zeros a time ends with is the column's unit."""
    return record.asdict() | {"at": dt.datetime.fromisoformat(record["at"])}


def check(path):
    with Snapshot.open(path) as snapshot:
        assert [with_time(record) for record in snapshot.values()] == EXPECTED
        assert snapshot.where(kind="a").ids == ["k0", "k2", "k4"]
        assert snapshot.embedding("k2") is None
        assert np.array_equal(np.delete(snapshot.embeddings, 2, axis=0), np.delete(M, 2, axis=0))


FORMS = ["array of float32", "list of float32", "list of float64"]
FRAMES = [pytest.param((name, form), id=f"{name}, {form}") for name in ("polars", "pandas", "duckdb") for form in FORMS]
# What DuckDB writes for a null in a FLOAT[3] is not Parquet: https://github.com/duckdb/duckdb/issues/24731
WRITTEN = [frame for frame in FRAMES if frame.id != "duckdb, array of float32"]


@pytest.mark.parametrize("frame", FRAMES, indirect=True)
def test_frames_and_relations_are_sources_that_can_be_read_again(frame, tmp_path):
    source = IterableSource(frame, SCHEMA)
    mmcache.build(tmp_path / "i.mmc", source)
    check(tmp_path / "i.mmc")
    with mmcache.open(tmp_path / "none.mmc", source, build=False) as cache:
        assert with_time(cache["k5"]) == EXPECTED[5]
        assert cache["k2"].embedding is None
        assert cache.get_embeddings(["k4"]).tolist() == M[4:5].tolist()


@pytest.mark.parametrize("frame", WRITTEN, indirect=True)
def test_parquet_files_of_others_are_sources(frame, tmp_path):
    path = tmp_path / "items.parquet"
    write = getattr(frame, "to_parquet", None) or frame.write_parquet
    write(str(path))
    mmcache.build(tmp_path / "i.mmc", ParquetSource(path, SCHEMA))
    check(tmp_path / "i.mmc")


# --- Parquet files


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
    with pytest.raises(BuildError, match=r"row 1: the key 'id': a key cannot be None"):
        mmcache.build(tmp_path / "i.mmc", ParquetSource(path, Schema("items")))


def test_an_error_of_the_reader_is_not_blamed_on_the_file(path):
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
    assert "--table is for databases" in done.stderr


def test_columns_of_a_parquet_file_are_those_that_are_read(tmp_path):
    parquet.write_table(
        pa.table({"id": ["a"], "v": [1], "bad": pa.array([2**31 - 1], pa.date32())}), tmp_path / "t.parquet"
    )
    mmcache.build(tmp_path / "t.mmc", ParquetSource(tmp_path / "t.parquet", Schema("t", columns=("v",))))
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        assert snapshot["a"] == {"id": "a", "v": 1}


def open_file(path):
    from pyarrow import feather

    feather.write_feather(table_of(fixed(MATRIX)), path, chunksize=3000)
    return pa.ipc.open_file(pa.memory_map(str(path)))


@pytest.mark.parametrize("kind", ["Dataset", "Scanner", "ParquetFile", "RecordBatchFileReader", "LazyFrame"])
def test_what_gives_rows_of_arrow_by_other_means_is_a_source(tmp_path, kind):
    from pyarrow import dataset

    parquet.write_table(table_of(fixed(MATRIX)), tmp_path / "t.parquet", row_group_size=1000)
    whole = dataset.dataset(tmp_path / "t.parquet")
    if kind == "LazyFrame":
        polars = pytest.importorskip("polars", reason="polars is not installed")
        records = polars.scan_parquet(tmp_path / "t.parquet")
    elif kind == "RecordBatchFileReader":
        records = open_file(tmp_path / "t.feather")
    else:
        records = {"Dataset": whole, "Scanner": whole.scanner(), "ParquetFile": parquet.ParquetFile}[kind]
        records = records(tmp_path / "t.parquet") if kind == "ParquetFile" else records
    report = mmcache.build(tmp_path / "i.mmc", records, SCHEMA)
    expected = mmcache.build(tmp_path / "other.mmc", table_of(fixed(MATRIX)), SCHEMA)
    assert report.build_id == expected.build_id
