"""The same records from every kind of file: the same cache file, the same answers."""

from __future__ import annotations

import base64
import bz2
import csv
import gzip
import json
import lzma
import pickle
import random
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import BuildError, CSVSource, IterableSource, Schema, Snapshot, SourceError
from mmcache.schema import Cast
from mmcache.sharing.publishing import rebuild
from mmcache.sources.at import source_at
from mmcache.sources.recognize import kind_of
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")

N = 5000
CASTS: dict[str, Cast] = {"n": "int", "price": "float", "is_new": "bool", "raw": "bytes", "tags": "json"}
COLUMNS = ("name", "n", "price", "is_new", "raw", "tags")
INDEX = ("n", "tags", "is_new")
SCHEMA = Schema("items", key="sku", index=INDEX, embedding="v", dim=3, casts=CASTS, columns=COLUMNS)
ALL = ("sku", "name", "n", "price", "is_new", "raw", "tags", "v", "ignored")
NULL = "\\N"


def _rows():
    draw = random.Random(13)
    texts = ["", " a ", "b,c", 'say "d"', "two\nlines", "ü €", "NULL", "007", "true", None]
    return [
        {
            "sku": f"sku-{i}",
            "name": draw.choice(texts),
            "n": draw.choice([0, -1, 2**63 - 1, -(2**63), 2**64 - 1, None, i]),
            "price": draw.choice([0.1, -0.0, 1e300, 5e-324, None, i / 7]),
            "is_new": draw.choice([True, False, None]),
            "raw": draw.choice([b"", b"\0\xff", None]),
            "tags": draw.choice([[], ["a", "ü"], ["b"], None]),
            "v": [draw.random(), 1.0, 0.0] if i % 3 else None,
            "ignored": i,
        }
        for i in range(N)
    ]


ROWS = _rows()


def text_of(value):
    """As a CSV file has it."""
    if value is None:
        return NULL
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, list) else repr(value)


def json_of(row):
    raw = row["raw"]
    return json.dumps(row | {"raw": None if raw is None else base64.b64encode(raw).decode()})


def lines():
    return "".join(json_of(row) + "\n" for row in ROWS).encode()


def write_lines(path, compress=bytes):
    path.write_bytes(compress(lines()))


def write_csv(path, delimiter=",", encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(ALL)
        rows.writerows([text_of(row[name]) for name in ALL] for row in ROWS)


def table():
    pa = pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    plain = [row | {"tags": None if row["tags"] is None else json.dumps(row["tags"])} for row in ROWS]
    plain = [row | {"n": None if row["n"] is None else str(row["n"])} for row in plain]
    schema = pa.schema(
        [
            ("sku", pa.string()),
            ("name", pa.string()),
            ("n", pa.string()),
            ("price", pa.float64()),
            ("is_new", pa.bool_()),
            ("raw", pa.binary()),
            ("tags", pa.string()),
            ("v", pa.list_(pa.float64())),
            ("ignored", pa.int64()),
        ]
    )
    return pa.Table.from_pylist(plain, schema)


def write_parquet(path):
    from pyarrow import parquet

    parquet.write_table(table(), path, row_group_size=1000)


def write_parts(path):
    from pyarrow import parquet

    path.mkdir()
    for i in range(5):
        parquet.write_table(table().slice(1000 * i, 1000), path / f"part-{i}.parquet")


def write_feather(path):
    from pyarrow import feather

    feather.write_feather(table(), path)


def write_stream(path):
    import pyarrow as pa

    found = table()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, found.schema) as stream:
        stream.write_table(found, 777)


def write_duckdb(path):
    duckdb = pytest.importorskip("duckdb", reason="the duckdb extra is not installed")
    items = table()
    with duckdb.connect(str(path)) as connection:
        connection.register("given", items)
        connection.execute("CREATE TABLE items AS SELECT * FROM given")


def zst(data):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


FORMS = {
    "items.jsonl": write_lines,
    "items.jsonl.gz": lambda path: write_lines(path, gzip.compress),
    "items.jsonl.bz2": lambda path: write_lines(path, bz2.compress),
    "items.jsonl.xz": lambda path: write_lines(path, lzma.compress),
    "items.jsonl.zst": lambda path: write_lines(path, zst),
    "items.json": lambda path: path.write_text(f"[{', '.join(map(json_of, ROWS))}]\n"),
    "values.json": lambda path: path.write_text("\n".join(json.dumps(json.loads(json_of(r)), indent=1) for r in ROWS)),
    "items.csv": write_csv,
    "items.tsv": lambda path: write_csv(path, "\t"),
    "excel.csv": lambda path: write_csv(path, ";", "utf-8-sig"),
    "utf16.csv": lambda path: write_csv(path, ",", "utf-16"),
    "items.parquet": write_parquet,
    "parts": write_parts,
    "items.feather": write_feather,
    "items.arrows": write_stream,
    "items.duckdb": write_duckdb,
}


def source_of(path):
    options = {"nulls": (NULL,)} if kind_of(path) == "csv" else {}
    return source_at(path, SCHEMA, **options)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture
def source(directory, request):
    path = directory / request.param
    if not path.exists():
        FORMS[request.param](path)
    return source_of(path)


def build(path, source):
    """The bytes of the file, but for its header, when it does not name its source."""
    source.spec = lambda: None
    mmcache.build(path, source)
    del source.spec
    return Path(path).read_bytes()[256:]


@pytest.fixture(scope="module")
def expected(directory):
    return build(directory / "expected.mmc", IterableSource(ROWS, SCHEMA))


@pytest.mark.parametrize("source", FORMS, indirect=True)
def test_every_file_gives_the_same_bytes(tmp_path, source, expected):
    assert build(tmp_path / "items.mmc", source) == expected
    assert build(tmp_path / "again.mmc", pickle.loads(pickle.dumps(source))) == expected


@pytest.mark.parametrize("source", FORMS, indirect=True)
def test_every_file_answers_as_the_cache_file_does(tmp_path, source):
    mmcache.build(tmp_path / "items.mmc", source)
    with (
        Snapshot.open(tmp_path / "items.mmc") as snapshot,
        mmcache.open(tmp_path / "none.mmc", source, build=False) as cache,
    ):
        keys = ["sku-7", "sku-4999", "nope", "sku-0"]
        found = [record and record.asdict() for record in cache.get_many(keys)]
        assert found == [record and record.asdict() for record in snapshot.get_many(keys)]
        assert found[2] is None
        for query in ({"n": 2**64 - 1}, {"tags": "ü", "is_new": True}, {"is_new": None}):
            assert list(cache.where(**query).ids) == list(snapshot.where(**query).ids)
        assert np.array_equal(cache.get_embeddings(["sku-7"]), snapshot.get_embeddings(["sku-7"]))
        assert source.scans("items")


@pytest.mark.parametrize("source", FORMS, indirect=True)
def test_every_file_is_built_again_from_the_cache_file_alone(tmp_path, source):
    first = mmcache.build(tmp_path / "items.mmc", source)
    again = rebuild(tmp_path / "items.mmc")
    assert not again.changed
    assert again.build_id == first.build_id


@pytest.mark.parametrize("name", ["items.jsonl.gz", "items.csv", "items.arrows", "items.parquet", "items.json"])
def test_standard_input_is_read_like_a_file(tmp_path, directory, name):
    if not (directory / name).exists():
        FORMS[name](directory / name)
    program = (
        "import sys, mmcache; from mmcache.sources.at import source_at; from mmcache.sources.recognize import kind_of\n"
        "from tests.sources.test_file_sources import SCHEMA, source_of\n"
        "source = source_of('-'); mmcache.build(sys.argv[1], source)\n"
        "assert source.spec() is None\n"
        "assert source.fetch('items', ['sku-7'])[0] and source.fetch('items', ['no']) == [None]"
    )
    with open(directory / name, "rb") as file, subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE) as pipe:
        subprocess.run([sys.executable, "-c", program, tmp_path / "i.mmc"], stdin=pipe.stdout, check=True, timeout=120)
    mmcache.build(tmp_path / "file.mmc", source_of(directory / name))
    with Snapshot.open(tmp_path / "i.mmc") as one, Snapshot.open(tmp_path / "file.mmc") as other:
        assert len(one) == N
        assert [record.asdict() for record in one.values()] == [record.asdict() for record in other.values()]
    with pytest.raises(SourceError, match="cannot be named"):
        rebuild(tmp_path / "i.mmc")


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.parquet"])
def test_lookups_read_a_file_again_only_when_it_changed(tmp_path, name, monkeypatch):
    pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    write(tmp_path / name, [{"id": "a", "n": 1}])
    source = source_at(tmp_path / name, Schema("t"))
    reads = []
    read = type(source).read

    def counted(self):
        reads.append(self)
        return read(self)

    monkeypatch.setattr(type(source), "read", counted)
    until("times that tell of a write", lambda: source.fingerprint() == source.fingerprint())
    assert source.fetch("t", ["a", "b"])[1] is None
    assert source.fetch("t", ["b"]) == [None]
    assert len(reads) == 1
    write(tmp_path / name, [{"id": "a", "n": 1}, {"id": "b", "n": 2}])
    assert source.fetch("t", ["b"])[0].values == ("b", 2)
    assert len(reads) == 2
    with mmcache.open(tmp_path / "t.mmc", source) as cache:
        until("times that tell of a write", lambda: source.fingerprint() == source.fingerprint())
        cache.rebuild()
        reads.clear()
        assert cache.get("nope") is None
        assert cache["b"]["n"] == 2
        assert reads == []


def write(path, rows):
    """Few records, in the format that the name says."""
    if path.name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.name.endswith(".csv"):
        with open(path, "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(rows[0])
            table.writerows(row.values() for row in rows)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)


# --- several files


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_directories_and_patterns_are_read_in_the_order_of_paths(tmp_path, suffix):
    pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    for i, place in enumerate(
        ["year=2025/month=12", "year=2025/month=__HIVE_DEFAULT_PARTITION__", "year=2026/month=1"]
    ):
        (tmp_path / "d" / place).mkdir(parents=True)
        write(tmp_path / "d" / place / f"part{suffix}", [{"id": f"k{i}", "n": i}])
    write(tmp_path / "d" / f"_hidden{suffix}", [{"id": "no", "n": 0}])
    (tmp_path / "d" / "_SUCCESS").touch()
    schema = Schema("t", index=("year", "month"))
    whole = [
        {"id": "k0", "n": 0, "year": 2025, "month": 12},
        {"id": "k1", "n": 1, "year": 2025, "month": None},
        {"id": "k2", "n": 2, "year": 2026, "month": 1},
    ]
    for where, count in ((tmp_path / "d", 3), (tmp_path / "d/*/*/*", 3), (tmp_path / f"d/year=2025/**/*{suffix}", 2)):
        mmcache.build(tmp_path / "t.mmc", where, schema if count == 3 else Schema("t"))
        with Snapshot.open(tmp_path / "t.mmc") as snapshot:
            found = [record.asdict() for record in snapshot.values()]
        assert found == (whole if count == 3 else [{k: v for k, v in one.items() if k != "year"} for one in whole[:2]])


def test_a_directory_of_several_kinds_asks_for_a_pattern(tmp_path):
    (tmp_path / "a.csv").write_text("id\na\n")
    (tmp_path / "b.jsonl").write_text('{"id": "b"}\n')
    with pytest.raises(SourceError, match=r"several kinds, \.jsonl and \.csv; name those of one by a pattern: "):
        mmcache.build(tmp_path / "x.mmc", tmp_path, Schema("t"))
    assert mmcache.build(tmp_path / "x.mmc", tmp_path / "*.csv", Schema("t")).records == {"t": 1}


def test_a_link_that_leads_back_gives_no_file_twice(tmp_path):
    (tmp_path / "a.csv").write_text("id\na\n")
    (tmp_path / "again").symlink_to(tmp_path)
    assert mmcache.build(tmp_path.with_suffix(".mmc"), tmp_path, Schema("t")).records == {"t": 1}


@pytest.mark.parametrize("argument", ["table", "query", "tracks"])
def test_what_only_databases_have_is_refused_for_a_file(tmp_path, argument):
    value: Any = {"a": "id"} if argument == "tracks" else "a"
    with pytest.raises(ValueError, match=f"{argument}= is for databases"):
        CSVSource(tmp_path / "a.csv", Schema("t", **{argument: value}))


@pytest.mark.parametrize("embeddings", [np.zeros((1, 2), np.float32), 5])
def test_embeddings_of_a_file_are_a_path(tmp_path, embeddings):
    with pytest.raises(TypeError, match=r"embeddings= is the path of a \.npy file, not a"):
        CSVSource(tmp_path / "a.csv", Schema("t", embedding="v"), embeddings=embeddings)


def test_the_fingerprint_of_a_directory_is_that_of_all_its_files(tmp_path):
    (tmp_path / "d/x=1").mkdir(parents=True)
    write(tmp_path / "d/x=1/a.jsonl", [{"id": "a"}])
    source = source_at(tmp_path / "d", Schema("t"))
    settled = partial(until, "times that tell of a write", lambda: source.fingerprint() == source.fingerprint())
    settled()
    seen = [source.fingerprint()]
    write(tmp_path / "d/b.jsonl", [{"id": "b"}])
    seen.append(source.fingerprint())
    write(tmp_path / "d/x=1/a.jsonl", [{"id": "a", "n": 1}])
    seen.append(source.fingerprint())
    (tmp_path / "d/x=1").rename(tmp_path / "d/x=2")
    seen.append(source.fingerprint())
    assert len(set(seen)) == 4
    settled()
    seen.append(source.fingerprint())
    (tmp_path / "d/x=2").rename(tmp_path / "d/x=3")
    settled()
    assert source.fingerprint() not in seen


def test_a_bad_row_of_several_files_is_named_by_its_file(tmp_path):
    write(tmp_path / "a.jsonl", [{"id": "a"}])
    (tmp_path / "b.jsonl").write_text('{"id": "b"}\n{"id": 1.5}\n')
    with pytest.raises(BuildError, match=r"b\.jsonl, line 2: the key 'id'"):
        mmcache.build(tmp_path / "t.mmc", tmp_path / "*.jsonl", Schema("t"))
    (tmp_path / "b.jsonl").write_text('{"id": "b"}\nno\n')
    with pytest.raises(BuildError, match=r"b\.jsonl: line 2 is not JSON"):
        mmcache.build(tmp_path / "t.mmc", tmp_path / "*.jsonl", Schema("t"))


def test_where_no_file_is_that_is_said(tmp_path):
    with pytest.raises(SourceError, match="no file matches the pattern"):
        mmcache.build(tmp_path / "t.mmc", tmp_path / "*.jsonl", Schema("t"))
    with pytest.raises(SourceError, match="no file at this path"):
        mmcache.build(tmp_path / "t.mmc", tmp_path / "t.jsonl", Schema("t"))


# --- embeddings apart


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "f2", "i1"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_row_i_of_a_npy_file_belongs_to_record_i(tmp_path, order, dtype, suffix):
    pytest.importorskip("pyarrow", reason="the arrow extra is not installed")
    matrix = np.arange(1500, dtype=dtype).reshape(500, 3, order="C")
    np.save(tmp_path / "v.npy", np.asarray(matrix, order=order))
    write(tmp_path / f"t{suffix}", [{"id": f"k{i}", "n": i} for i in range(500)])
    source = source_at(tmp_path / f"t{suffix}", Schema("t", embedding="v"), embeddings=tmp_path / "v.npy")
    report = mmcache.build(tmp_path / "t.mmc", source)
    with Snapshot.open(tmp_path / "t.mmc") as snapshot:
        assert np.array_equal(snapshot.embeddings, matrix.astype("f4"))
    assert rebuild(tmp_path / "t.mmc").build_id == report.build_id
    assert np.array_equal(np.frombuffer(source.fetch("t", ["k7"])[0].vector, "<f4"), matrix[7].astype("f4"))
    before = source.fingerprint()
    np.save(tmp_path / "v.npy", matrix + 1)
    assert source.fingerprint() != before


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((2, 3)), "the records are more|more records"),
        (np.zeros((4, 3)), "more rows than the 3 records"),
        (np.zeros(3), r"an array of shape \(3,\)"),
        (np.zeros((3, 3), "c8"), "dtype complex64"),
        (np.array([[1, "a"]] * 3, object), "dtype object"),
        (np.full((3, 3), 1e300), "which float32 cannot"),
    ],
)
def test_a_npy_file_that_does_not_fit_is_refused(tmp_path, array, reason):
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    write(tmp_path / "t.jsonl", [{"id": f"k{i}"} for i in range(3)])
    with pytest.raises(BuildError, match=reason):
        mmcache.build(
            tmp_path / "t.mmc",
            source_at(tmp_path / "t.jsonl", Schema("t", embedding="v"), embeddings=tmp_path / "v.npy"),
        )


def test_a_npy_file_that_is_cut_off_or_gone_is_a_source_error(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((3, 3)))
    write(tmp_path / "t.jsonl", [{"id": f"k{i}"} for i in range(3)])
    source = source_at(tmp_path / "t.jsonl", Schema("t", embedding="v"), embeddings=tmp_path / "v.npy")
    data = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "v.npy").write_bytes(data[:-1])
    with pytest.raises(SourceError, match="is cut off"):
        mmcache.build(tmp_path / "t.mmc", source)
    (tmp_path / "v.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(SourceError, match=r"cannot be read as a \.npy file"):
        mmcache.build(tmp_path / "t.mmc", source)
    (tmp_path / "v.npy").unlink()
    with pytest.raises(SourceError, match="no file at this path"):
        mmcache.build(tmp_path / "t.mmc", source)
    with pytest.raises(ValueError, match="names 0 embedding fields"):
        source_at(tmp_path / "t.jsonl", Schema("t"), embeddings=tmp_path / "v.npy")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zst], ids=["gz", "bz2", "xz", "zst"])
def test_a_compressed_file_that_is_cut_off_is_not_taken_for_a_shorter_one(tmp_path, compress):
    line = json.dumps({"id": "k%07d", "text": "x" * 993}) + "\n"
    assert (len(line % 0), 2**17 % len(line % 0)) == (1024, 0)  # so that each block of zst ends with a line
    whole = compress("".join(line % i for i in range(300)).encode())
    path = tmp_path / "items.jsonl"
    for size in {*range(1, 20), *range(20, len(whole) - 20, 1 + len(whole) // 50)}:
        path.write_bytes(whole[:-size])
        with pytest.raises(SourceError, match="cut off"):
            mmcache.build(tmp_path / "items.mmc", source_at(path, Schema("items")))
    path.write_bytes(whole)
    assert mmcache.build(tmp_path / "items.mmc", source_at(path, Schema("items"))).records == {"items": 300}
