"""Files in an object store are read as files in a directory are: the same records, bytes and answers.

By day over plain HTTP, which lists nothing; as integration tests against moto's server, before which a gate counts what
is asked for.
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import mmcache
from mmcache import CSVSource, JSONLinesSource, ParquetSource, Schema, SourceError
from mmcache.cli import main
from mmcache.cli.wanted import kind_at
from mmcache.sources.at import source_at
from mmcache.sources.objects import Objects, is_object_url
from tests.support import stores

obstore = pytest.importorskip("obstore", reason="the extra remote is not installed")
pytest.importorskip("obstore.store")

ROOT = Path(__file__).parents[2]
SCHEMA = Schema("items", index=("kind",))
N = 900


def rows(begin: int = 0, end: int = N) -> list[dict[str, Any]]:
    return [{"id": f"item-{i}", "kind": f"k{i % 3}", "n": i, "text": f"{i} " * 40} for i in range(begin, end)]


def write(directory: Path) -> None:
    """`year=2025/a.parquet`, `year=2026/b.parquet`, and what is none of the data."""
    for year, name, some in ((2025, "a", rows(0, 500)), (2026, "b", rows(500))):
        (directory / f"year={year}").mkdir(parents=True)
        table = pa.Table.from_pylist(some)
        parquet.write_table(table, directory / f"year={year}" / f"{name}.parquet", row_group_size=100)
    (directory / "_logs").mkdir()
    for name in ("_SUCCESS", ".hidden.parquet", "_logs/x.parquet", "notes.txt"):
        (directory / name).write_text("no data")


def content(path: Path) -> bytes:
    return path.read_bytes()[256:]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "base", "name"),
    [
        ("s3://bucket", "s3://bucket", ""),
        ("s3://bucket/", "s3://bucket", ""),
        ("s3://bucket/items.parquet", "s3://bucket", "items.parquet"),
        ("s3://bucket/a/b/items", "s3://bucket/a/b", "items"),
        ("gs://bucket/a/b/", "gs://bucket/a/b", ""),
        ("s3://bucket/a/year=*/x-[0-9].parquet", "s3://bucket/a", "year=*/x-[0-9].parquet"),
        ("https://host:8080/a/x.csv", "https://host:8080/a", "x.csv"),
    ],
)
def test_a_url_is_split_into_a_store_and_a_name(url, base, name):
    found = Objects(url)
    assert (found.base, found.name) == (base, name)
    assert is_object_url(url)


@pytest.mark.parametrize("url", ["https://u:p@host/x.csv", "https://host/x.csv?sig=1", "s3://bucket/x.csv#a"])
def test_a_url_with_what_may_be_secret_is_refused(url):
    with pytest.raises(SourceError, match="come from the environment") as failed:
        CSVSource(url, SCHEMA)
    assert "sig" not in str(failed.value)
    assert "u:p" not in str(failed.value)


@pytest.mark.parametrize("path", ["items.csv", "/a/s3:/x", "file:///a.csv", "sqlite:///a.db", "postgresql://h/d"])
def test_paths_and_databases_are_no_objects(path):
    assert not is_object_url(path)


NAMES = ("a.parquet", "b.csv", "x/a.parquet", "x/y/a.parquet", ".h/a.parquet", "x/.a.parquet", "x1/a.parquet")


@pytest.mark.parametrize(
    "pattern",
    ["*.parquet", "*/*.parquet", "**/*.parquet", "x/**", "x[0-9]/*", "x[!0-9]/*", "?", ".h/*", "**", "x/.a*", "a.b"],
)
def test_a_pattern_matches_as_glob_does(tmp_path, pattern):
    import glob

    from mmcache.sources.objects import pattern_of

    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = glob.glob(pattern, root_dir=tmp_path, recursive=True)
    expected = [] if "?" in pattern else sorted(name for name in found if (tmp_path / name).is_file())
    assert sorted(name for name in NAMES if pattern_of(pattern).fullmatch(name)) == expected


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[stores.Served]:
    (tmp_path / "served").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows()), tmp_path / "served" / "items.parquet", row_group_size=100)
    with stores.Served(tmp_path / "served") as served:
        yield served


def test_a_file_on_a_web_server_is_a_source(tmp_path, served):
    url = f"{served.url}/items.parquet"
    local = mmcache.build(tmp_path / "local.mmc", ParquetSource(tmp_path / "served" / "items.parquet", SCHEMA))
    built = mmcache.build(tmp_path / "c.mmc", url, SCHEMA)
    assert (built.records, built.size > 0) == (local.records, True)
    with mmcache.open(tmp_path / "c.mmc", ParquetSource(url, SCHEMA)) as cache:
        assert cache["item-7"]["n"] == 7
        assert cache.get("nope") is None
    assert kind_at(url) == "parquet"


def test_what_is_missing_or_cannot_be_listed_is_refused_by_name(served):
    for url, why in (
        (f"{served.url}/none.parquet", "there is no file at this URL"),
        (f"{served.url}/*.parquet", "lists no files"),
        (f"{served.url}/", "lists no files"),
    ):
        with pytest.raises(SourceError, match=why):
            ParquetSource(url, SCHEMA).fingerprint()


def test_a_file_that_is_cut_is_an_error_of_the_source(tmp_path, served):
    served.change = lambda _, body: body[:-1] if len(body) > 5000 else body
    with pytest.raises(SourceError, match="cannot read the file"):
        mmcache.build(tmp_path / "c.mmc", ParquetSource(f"{served.url}/items.parquet", SCHEMA))
    assert not (tmp_path / "c.mmc").exists()


def test_a_file_replaced_while_it_is_read_is_an_error_and_no_mixture(tmp_path, served):
    path = tmp_path / "served" / "items.parquet"
    parquet.write_table(pa.Table.from_pylist(rows(0, 5000)), path, row_group_size=100)
    with ParquetSource(f"{served.url}/items.parquet", SCHEMA).read() as reading:
        records = reading.records("items")
        next(records)
        parquet.write_table(pa.Table.from_pylist(rows(5, 5000)), path, row_group_size=100)
        with pytest.raises(SourceError, match="was replaced"):
            list(records)


# --- in a store -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with stores.moto() as found:
        yield found


class Bucket:
    """url: of an empty prefix. asked: (method, path) of all requests through the gate."""

    def __init__(self, name: str, gate: stores.Gate) -> None:
        self.url = f"s3://bucket/{name}"
        self.gate = gate
        self.asked: list[tuple[str, str]] = []
        gate.refuse = self._note

    def _note(self, method: str, path: str) -> None:
        self.asked.append((method, path))

    def put(self, name: str, data: bytes) -> None:
        obstore.put(obstore.store.from_url(self.url), name, data)

    def remove(self, name: str) -> None:
        obstore.delete(obstore.store.from_url(self.url), name)

    def put_all(self, directory: Path) -> None:
        for path in directory.rglob("*"):
            if path.is_file():
                self.put(path.relative_to(directory).as_posix(), path.read_bytes())


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with stores.Gate(endpoint) as gate:
        for name, value in stores.environment(gate.url).items():
            monkeypatch.setenv(name, value)
        yield Bucket(tmp_path.name, gate)


@pytest.fixture
def there(bucket: Bucket, tmp_path: Path) -> Bucket:
    """With what `write` writes, which is in `local`, too."""
    write(tmp_path / "local")
    bucket.put_all(tmp_path / "local")
    return bucket


PLACES: dict[str, Callable[[str], tuple[str, ...]]] = {
    "a prefix": lambda at: (at,),
    "a prefix with a slash": lambda at: (f"{at}/",),
    "a pattern": lambda at: (f"{at}/year=*/*.parquet",),
    "any steps": lambda at: (f"{at}/**/[ab].parquet",),
    "one object": lambda at: (f"{at}/year=2026/b.parquet",),
}


@pytest.mark.integration
@pytest.mark.parametrize("place", PLACES)
def test_objects_give_the_records_of_files(there, tmp_path, place):
    """Partitions among them."""
    (url,), (path,) = PLACES[place](there.url), PLACES[place](str(tmp_path / "local"))
    local = mmcache.build(tmp_path / "l.mmc", path, SCHEMA)
    built = mmcache.build(tmp_path / "s.mmc", url, SCHEMA)
    assert built.records == local.records
    with mmcache.Snapshot.open(tmp_path / "l.mmc") as one, mmcache.Snapshot.open(tmp_path / "s.mmc") as other:
        assert [dict(record) for record in one.values()] == [dict(record) for record in other.values()]


@pytest.mark.integration
def test_other_kinds_of_files_are_read_likewise(bucket, tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in rows()).encode()
    bucket.put("lines/1.jsonl", lines)
    bucket.put("lines/2.jsonl.gz", gzip.compress(lines.replace(b"item-", b"more-")))
    bucket.put("table", b"id,kind\na,x\nb,y\n")
    assert isinstance(source_at(f"{bucket.url}/lines", SCHEMA), JSONLinesSource)
    assert mmcache.build(tmp_path / "l.mmc", f"{bucket.url}/lines", SCHEMA).records == {"items": 2 * N}
    assert kind_at(f"{bucket.url}/table") == "csv"
    assert mmcache.build(tmp_path / "t.mmc", f"{bucket.url}/table", SCHEMA).records == {"items": 2}
    bucket.put("delta/_delta_log/0.json", b"{}")
    bucket.put("table.csv", b"id,kind\na,x\nb,y\n")
    for url, why in (
        (bucket.url, "several kinds, .csv and .jsonl"),
        (f"{bucket.url}/delta", "Delta table"),
        (f"{bucket.url}/none", "no object is below it"),
        (f"{bucket.url}/*.arrow", "no object matches"),
    ):
        with pytest.raises(SourceError, match=why):
            kind_at(url)
    bucket.put("db/shop.db", b"SQLite format 3\0" + bytes(500))
    with pytest.raises(SourceError, match="download it"):
        kind_at(f"{bucket.url}/db")


@pytest.mark.integration
def test_the_fingerprint_moves_with_every_change_and_by_nothing_else(there):
    source = ParquetSource(there.url, SCHEMA)
    before = source.fingerprint()
    assert source.fingerprint() == before
    assert pickle.loads(pickle.dumps(source)).fingerprint() == before
    there.put("notes.txt", b"other notes")
    assert source.fingerprint() == before
    seen = [before]
    data = obstore.get(obstore.store.from_url(there.url), "year=2026/b.parquet").bytes()
    for change in (
        lambda: there.put("year=2026/c.parquet", data),
        lambda: there.put("year=2026/c.parquet", bytes(data)[:-1] + b"2"),
        lambda: there.remove("year=2026/c.parquet"),
    ):
        change()
        assert source.fingerprint() != seen[-1]
        seen.append(source.fingerprint())
    assert seen[-1] == before


@pytest.mark.integration
def test_misses_read_nothing_while_the_objects_are_as_they_were(there, tmp_path):
    source = ParquetSource(there.url, SCHEMA)
    with mmcache.open(tmp_path / "c.mmc", source, check_interval=1e9, executor="external") as cache:
        mmcache.build(tmp_path / "c.mmc", source)
        cache.refresh()
        there.asked.clear()
        assert [cache.get(f"nope {i}") for i in range(200)] == [None] * 200
        assert cache["item-3"]["n"] == 3
        objects = [path for method, path in there.asked if "parquet" in path and method == "GET"]
        assert not objects
        assert len(there.asked) <= 2, "lists, at most"


@pytest.mark.integration
def test_only_what_is_needed_of_a_file_is_transferred(there, tmp_path):
    """Columns that the schema does not take stay where they are."""
    asked: list[int] = []
    real = mmcache.store.Store.pieces

    def pieces(self: Any, name: str, begin: int, end: int, expected: Any = None) -> Iterator[bytes]:
        asked.append(end - begin)
        return real(self, name, begin, end, expected)

    wide = pa.Table.from_pylist([{**row, "blob": os.urandom(2000)} for row in rows(0, 500)])
    parquet.write_table(wide, tmp_path / "wide.parquet", row_group_size=100, use_dictionary=False)
    there.put("wide.parquet", (tmp_path / "wide.parquet").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmcache.store.Store, "pieces", pieces)
        schema = Schema("items", columns=("id", "kind"))
        assert mmcache.build(tmp_path / "w.mmc", f"{there.url}/wide.parquet", schema).records == {"items": 500}
    assert sum(asked) < (tmp_path / "wide.parquet").stat().st_size / 5


@pytest.mark.integration
def test_a_rebuild_knows_the_url_and_finds_what_changed(there, tmp_path):
    file = tmp_path / "c.mmc"
    assert main(["build", f"{there.url}/year=*/*.parquet", "--index", "kind", "-o", str(file)]) == 0
    table = pa.Table.from_pylist([{**row, "n": -1} for row in rows(0, 500)])
    parquet.write_table(table, tmp_path / "a.parquet")
    there.put("year=2025/a.parquet", (tmp_path / "a.parquet").read_bytes())
    command = [sys.executable, "-W", "error", "-m", "mmcache", "rebuild", str(file), "--if-stale"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    with mmcache.Snapshot.open(file) as snapshot:
        assert (snapshot.generation, snapshot["item-3"]["n"], snapshot["item-600"]["n"]) == (2, -1, 600)


@pytest.mark.integration
def test_shards_of_objects_are_read_by_processes_of_their_own(there, tmp_path, capsys):
    source = ParquetSource(f"{there.url}/year=*/*.parquet", SCHEMA)
    mmcache.build(tmp_path / "one.mmc", source)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        mmcache.build(tmp_path / "cut.mmc", source, shards=4, executor=executor)
        assert content(tmp_path / "one.mmc") == content(tmp_path / "cut.mmc")
        shards = source.shards(4)
        there.put("year=2026/b.parquet", (tmp_path / "local" / "year=2025" / "a.parquet").read_bytes())
        with pytest.raises(SourceError, match="was replaced"), shards[-1].read() as reading:
            list(reading.records("items"))
    with (
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as executor,
        pytest.raises(SourceError, match="start it by spawn"),
    ):
        mmcache.build(tmp_path / "cut.mmc", source, shards=4, executor=executor)


@pytest.mark.integration
def test_a_store_that_fails_is_a_source_that_fails(there, tmp_path, monkeypatch):
    monkeypatch.setattr(mmcache.store, "_RETRIES", {"max_retries": 0})
    source = ParquetSource(there.url, SCHEMA)
    mmcache.build(tmp_path / "c.mmc", source)
    with mmcache.open(tmp_path / "c.mmc", source, check_interval=0.0, executor="external") as cache:
        there.gate.refuse = lambda *_: (500, b"<Error><Code>InternalError</Code></Error>")
        cache.refresh()
        assert cache["item-3"]["n"] == 3, "what is there serves"
        with pytest.raises(SourceError, match=r"500|InternalError"):
            ParquetSource(there.url, SCHEMA).fingerprint()
        there.gate.refuse = lambda *_: None
        cache.refresh()
        assert cache.status().state == "fresh"
