"""Tables and queries of DuckDB databases."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mmcache
from mmcache import BuildError, DuckDBSource, Schema, Snapshot, SourceError
from mmcache.sharing.publishing import rebuild

duckdb = pytest.importorskip("duckdb", reason="the duckdb extra is not installed")
pytest.importorskip("pyarrow", reason="the arrow extra is not installed")


@pytest.fixture
def database(tmp_path):
    path = tmp_path / "shop.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE items AS SELECT range AS id, 'x' || range AS name, [range, 1.5]::FLOAT[2] AS v, "
            "range::DECIMAL(10, 2) AS price, DATE '2026-01-31' AS day, {'a': [range]} AS meta FROM range(5000)"
        )
    return path


def test_a_table_has_the_values_of_arrow(database, tmp_path):
    mmcache.build(tmp_path / "i.mmc", database, Schema("items", index=("name",), embedding="v"))
    with Snapshot.open(tmp_path / "i.mmc") as snapshot:
        assert len(snapshot) == 5000
        meta = {"a": [7]}
        assert snapshot[7] == {"id": 7, "name": "x7", "price": "7.00", "day": "2026-01-31", "meta": meta}
        vector = snapshot.embedding(7)
        assert vector is not None
        assert vector.tolist() == [7.0, 1.5]
    assert not rebuild(tmp_path / "i.mmc").changed


def test_a_database_that_another_process_writes_to_is_named_as_duckdb(database, tmp_path):
    place = database.rename(tmp_path / "shop.db")
    holds = "import duckdb, sys; connection = duckdb.connect(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holds, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        writer.stdout.readline()
        with pytest.raises(SourceError, match=r"cannot read the DuckDB database: .*lock"):
            mmcache.build(tmp_path / "i.mmc", place, Schema("items"))
        writer.stdin.close()


def test_a_query_gives_the_records(database, tmp_path):
    query = "SELECT name AS id, price FROM items WHERE id < 10 ORDER BY id DESC;"
    source = DuckDBSource(database, Schema("few", query=query))
    assert mmcache.build(tmp_path / "i.mmc", source).records == {"few": 10}
    assert source.fetch("few", ["x3", "x10"])[1] is None
    with source.read() as reading:
        assert next(iter(reading.records("few"))).values == ("x9", "9.00")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "COPY items TO 'OUT'",
        "ATTACH 'OUT'",
        "INSTALL httpfs",
        "CREATE TABLE other (a INT)",
        "SET enable_external_access = true",
    ],
)
def test_a_query_reaches_nothing_but_the_database(database, tmp_path, query):
    source = DuckDBSource(database, Schema("q", query=query.replace("OUT", str(tmp_path / "out"))))
    with pytest.raises((SourceError, BuildError)):
        mmcache.build(tmp_path / "i.mmc", source)
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_named(database, tmp_path):
    with pytest.raises(BuildError, match=r"nope does not exist.*the database has: items"):
        mmcache.build(tmp_path / "i.mmc", database, Schema("nope"))
    with pytest.raises(BuildError, match="syntax error"):
        mmcache.build(tmp_path / "i.mmc", DuckDBSource(database, Schema("q", query="SELEC")))
    with pytest.raises(SourceError, match="no file at this path"):
        DuckDBSource(tmp_path / "no.duckdb", Schema("t")).fingerprint()


def test_a_database_that_is_written_to_is_not_read(database, tmp_path):
    source = DuckDBSource(database, Schema("items"))
    with duckdb.connect(str(database)) as connection:
        connection.execute("DELETE FROM items WHERE id > 0")
        before = source.fingerprint()
        with pytest.raises(SourceError, match="cannot read the DuckDB database"):
            mmcache.build(tmp_path / "i.mmc", source)
    assert source.fingerprint() != before
    assert mmcache.build(tmp_path / "i.mmc", source).records == {"items": 1}


def test_a_database_that_is_damaged_or_newer_is_named(tmp_path):
    (tmp_path / "t.duckdb").write_bytes(bytes(8) + b"DUCK" + (9999).to_bytes(8, "little") + bytes(20_000))
    with pytest.raises(SourceError, match="cannot read the DuckDB database"):
        mmcache.build(tmp_path / "i.mmc", tmp_path / "t.duckdb", Schema("t"))
