"""What a source is, by its content first and its name second; and what it says that is none."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import sqlite3
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

import mmcache
from mmcache import Schema, SourceError, SQLiteSource
from mmcache.sources.at import source_at
from mmcache.sources.recognize import kind_of

pytestmark = pytest.mark.usefixtures("no_leaks")

LINES = '{"id": "a", "v": 1}\n{"id": "b", "v": 2}\n'


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("t.jsonl", LINES, "jsonl"),
        ("t.json", LINES, "jsonl"),
        ("t", LINES, "jsonl"),
        ("t.json", '[{"id": "a"}]', "json"),
        ("t.jsonl", '[\n{"id": "a"}\n]', "json"),
        ("t.json", '{\n "id": "a"\n}\n', "json"),
        ("t.csv", "id,v\na,1\n", "csv"),
        ("t.txt", "id\tv\na\t1\n", "csv"),
        ("t", "id;v\na;1\n", "csv"),
        ("t.csv", "id\na\n", "csv"),
        ("t.csv", '{"id"},v\na,1\n', "csv"),
        ("t.db", "id,v\na,1\n", "csv"),
        ("t.parquet", LINES, "jsonl"),
        ("t.json", "\ufeff" + LINES, "jsonl"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_text_is_known_by_its_content(tmp_path, name, text, kind, pack):
    (tmp_path / name).write_bytes(pack(text.encode()))
    assert kind_of(tmp_path / name) == kind
    assert source_at(tmp_path / name, Schema("t")).kind == kind


@pytest.mark.parametrize("name", ["t.jsonl", "t"])
def test_a_first_line_that_nests_too_deep_is_a_bad_row(tmp_path, name):
    (tmp_path / name).write_text('{"id": "deep", "v": ' + "[" * 10_000 + "]" * 10_000 + "}\n" + LINES)
    report = mmcache.build(tmp_path / "t.mmc", source_at(tmp_path / name, Schema("t", on_invalid="skip")))
    assert (report.records["t"], report.left_out["t"].invalid) == (2, 1)


def test_databases_are_known_whatever_their_name(tmp_path):
    with sqlite3.connect(tmp_path / "t.csv") as connection:
        connection.execute("CREATE TABLE t (id TEXT PRIMARY KEY)")
    assert kind_of(tmp_path / "t.csv") == "sqlite"
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN EXCLUSIVE")
    assert kind_of(tmp_path / "t.csv") == "sqlite"
    connection.close()


@pytest.mark.parametrize(
    ("name", "needs"),
    [("SQLiteSource", "sqlite3"), ("DuckDBSource", "duckdb"), ("ParquetSource", "pyarrow"), ("ArrowSource", "pyarrow")],
)
def test_a_class_for_another_kind_of_file_names_what_is_there(tmp_path, name, needs):
    pytest.importorskip(needs)
    source = getattr(mmcache, name)
    lines = tmp_path / "items.jsonl"
    lines.write_text('{"id": 1}\n' * 1024)
    with pytest.raises(SourceError, match="this is JSON lines, which JSONLinesSource reads"):
        mmcache.build(tmp_path / "x.mmc", source(lines, Schema("items")))
    weights = tmp_path / "items.h5"
    weights.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1024))
    with pytest.raises(SourceError, match="this is an HDF5 file"):
        mmcache.build(tmp_path / "x.mmc", source(weights, Schema("items")))


def test_text_that_is_named_so_may_hold_control_characters(tmp_path):
    record = {"id": "a", "v": "\0\x01"}
    (tmp_path / "t.csv").write_text("id,v\na,\0\x01\n")
    (tmp_path / "t.json").write_text(json.dumps([record]) + "\0")
    assert kind_of(tmp_path / "t.json") == "json"
    mmcache.build(tmp_path / "t.mmc", tmp_path / "t.csv", Schema("t"))
    with mmcache.Snapshot.open(tmp_path / "t.mmc") as found:
        assert found["a"] == record


def test_looking_at_a_database_does_not_drop_its_locks(tmp_path):
    path = tmp_path / "t.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE t (id TEXT PRIMARY KEY)")
    connection.execute("BEGIN EXCLUSIVE")
    assert kind_of(path) == "sqlite"
    locked = (
        "import sqlite3, sys\n"
        "try: sqlite3.connect(sys.argv[1], timeout=0).execute('INSERT INTO t VALUES (1)')\n"
        "except sqlite3.OperationalError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", locked, path], capture_output=True, text=True, check=True, timeout=60)
    assert "locked" in done.stdout
    connection.close()


def test_urls_lead_to_databases(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("t.db") as connection:
        connection.execute("CREATE TABLE t (id TEXT PRIMARY KEY)")
    connection.close()
    for url in ("sqlite:///t.db", f"sqlite:///{tmp_path}/t.db", f"file://{tmp_path}/t.db", "t.db"):
        source = source_at(url, Schema("t"))
        assert isinstance(source, SQLiteSource)
        assert source.path == str(tmp_path / "t.db")
    for url in ("gcs://bucket/t.parquet", "ftp://example.org/t.csv", "sqlite://"):
        with pytest.raises(SourceError, match=r"download it|expected sqlite:///"):
            source_at(url, Schema("t"))


def npz(path):
    np.savez(path, a=np.zeros(3))


def xlsx(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<x/>")
        archive.writestr("xl/workbook.xml", "<x/>")


def tar(path):
    with tarfile.open(path, "w") as archive:
        archive.add(__file__)


def cache(path):
    mmcache.build(path, [{"id": "a"}], Schema("t"))


def data(*parts):
    return lambda path: path.write_bytes(b"".join(parts))


VEC = "2 3\nword 0.1 0.2 0.3\nother 0.1 0.2 0.3\n"
FOREIGN = {
    "empty": (data(), "is empty"),
    "blank.csv": (data(b"\n \n"), "white space only"),
    "zeros.db": (data(bytes(5000)), "zeros only"),
    "t.pickle": (data(pickle.dumps([{"id": "a"}])), "a pickle.*runs code"),
    "v.npz": (npz, r"a \.npz of numpy \(a\.npy\).*numpy\.save"),
    "v.npy": (lambda path: np.save(path, np.zeros((2, 3))), r"\.npy file of shape \(2, 3\).*embeddings='v\.npy'"),
    "t.xlsx": (xlsx, "Excel.*CSV"),
    "t.tar": (tar, "a tar archive.*unpack"),
    "t.h5": (data(b"\x89HDF\r\n\x1a\n", bytes(100)), "an HDF5 file.*h5py"),
    "c.mmc": (cache, "a cache file of mmcache.*rebuild"),
    "t.vec": (data(VEC.encode()), r"word2vec.*gensim"),
    "lfs.parquet": (data(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS.*git lfs pull"),
    "t.html": (data(b"<!DOCTYPE html>\n<html>"), "an HTML page"),
    "dump.sql": (data(b"PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n"), "a dump of SQLite.*load it"),
    "pg.sql": (data(b"--\n-- PostgreSQL database dump\n--\n"), "a dump of PostgreSQL.*psql"),
    "t.avro": (data(b"Obj\x01", bytes(100)), "an Avro file.*fastavro"),
    "t.orc": (data(b"ORC", bytes(100)), "an ORC file.*pyarrow"),
    "v1.feather": (data(b"FEA1", bytes(100)), "version 1"),
    "e.parquet": (data(b"PARE", bytes(100)), "an encrypted Parquet file"),
    "m.safetensors": (data(struct.pack("<Q", 64), b'{"a": 1}', bytes(100)), "safetensors"),
    "secret.db": (data(bytes((i * 197 + 91) % 256 for i in range(4096))), "encrypted"),
    "notes.txt": (data(b"Dear reader\nthis is text\n"), "this is text.*expected a SQLite or DuckDB database, CSV"),
    "nul": (data(b"id,name\n1,a", bytes(1)), "of no kind that is known here"),
    "wide.csv": (data(*(b"%c\0" % letter for letter in b"id,v\n1,2\n")), "UTF-16 without its byte order mark"),
    "noise.bin": (data(b"\x00\x01\x02", bytes(range(100))), "of no kind that is known here.*expected"),
    "empty.csv.gz": (data(gzip.compress(b"")), "compressed as gz and holds nothing"),
    "db.gz": (
        data(gzip.compress(b"SQLite format 3\0" + bytes(1000))),
        "a SQLite database, compressed as gz.*decompress",
    ),
    "cut.csv.gz": (data(gzip.compress(b"id,v\n" * 9)[:12]), "compressed as gz, and cannot be decompressed"),
    "t.lz4": (data(b"\x04\x22\x4d\x18", bytes(10)), "compressed as lz4.*lz4 -d"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_cannot_be_read_is_named_with_the_way_out(tmp_path, name):
    write, reason = FOREIGN[name]
    write(tmp_path / name)
    with pytest.raises(SourceError, match=rf"(?s){reason}") as caught:
        source_at(tmp_path / name, Schema("t"))
    assert caught.value.path == str(tmp_path / name)
    assert "integrity_check" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "without files of Parquet.*it holds: nothing"),
        (["notes.txt"], "it holds: notes.txt"),
        (["_delta_log/0.json", "a.parquet"], "a Delta table.*removed rows"),
        (["metadata/v1.metadata.json", "data/a.parquet"], "an Iceberg table"),
        (["data.mdb"], "an LMDB database"),
    ],
)
def test_directories_that_are_none_of_ours_are_named(tmp_path, names, reason):
    for name in names:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"PAR1")
    (tmp_path / "d").mkdir(exist_ok=True)
    with pytest.raises(SourceError, match=reason):
        kind_of(tmp_path / "d")


def test_a_file_that_is_not_there_is_of_the_kind_of_its_name(tmp_path):
    assert kind_of(tmp_path / "t.csv.gz") == "csv"
    assert kind_of(tmp_path / "t.db") == "sqlite"
    with pytest.raises(SourceError, match="no file at this path"):
        kind_of(tmp_path / "t")


def test_a_pipe_is_read_like_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    program = (
        "import sys, mmcache; from mmcache import Schema; from mmcache.sources.at import source_at\n"
        "source = source_at(sys.argv[1], Schema('t'))\n"
        "assert mmcache.build(sys.argv[2], source).records == {'t': 2} and source.spec() is None"
    )
    paths = [str(tmp_path / "pipe"), str(tmp_path / "t.mmc")]
    with subprocess.Popen([sys.executable, "-c", program, *paths]) as child:
        (tmp_path / "pipe").write_text(LINES)
        assert child.wait(60) == 0


def test_one_file_has_one_collection(tmp_path):
    (tmp_path / "t.jsonl").write_text(LINES)
    with pytest.raises(TypeError, match="holds one collection, and 2 schemas were given"):
        source_at(tmp_path / "t.jsonl", Schema("a"), Schema("b"))


def test_a_first_line_longer_than_what_is_looked_at(tmp_path):
    (tmp_path / "t").write_text(json.dumps({"id": "a", "text": "x" * 200_000}) + "\n" + LINES.replace('"a"', '"c"'))
    assert kind_of(tmp_path / "t") == "jsonl"
    assert mmcache.build(tmp_path / "t.mmc", tmp_path / "t", Schema("t")).records == {"t": 3}
