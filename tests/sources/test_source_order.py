"""`in_order` puts keys as a build reads their records: the oracle is `Reading.records`, filtered."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import pickle
import sqlite3
import threading

import pytest
from hypothesis import given, strategies as st

from examples.demo.bank import write_bank
from mmcache.errors import BuildError, SourceError
from mmcache.format.keys import Key
from mmcache.presets.llm import llm_source
from mmcache.presets.patterns import PatternsSource
from mmcache.schema import Schema
from mmcache.sources import IterableSource, JSONLinesSource, OrderedSource, Source, SQLiteSource, ordered

pytestmark = pytest.mark.usefixtures("no_leaks")

KEYS = ["k7", "k1", "k12", "ü", "K1", "", "k3", "5"]
"""In the order in which the records were inserted; no order of text is that."""

ASKED: list[Key] = ["5", "k1", "no", "k12", "ü", "k1", "k7", 5, b"k1", ("k1", 5), "\ud800", "K1"]

TABLES = {
    "rowid": "CREATE TABLE items (kind, id TEXT PRIMARY KEY)",
    "no index": "CREATE TABLE items (kind, id)",
    "without rowid": "CREATE TABLE items (kind, id TEXT PRIMARY KEY) WITHOUT ROWID",
    "another primary key": "CREATE TABLE items (kind, id TEXT UNIQUE, PRIMARY KEY (kind, id DESC)) WITHOUT ROWID",
    "without case": "CREATE TABLE items (kind, id TEXT COLLATE NOCASE)",
    "a covering index": "CREATE TABLE items (kind, id); CREATE INDEX covering ON items (id)",
}
QUERIES = {
    "table": Schema("items", key="id"),
    "query": Schema("items", key="id", query="SELECT * FROM items"),
    "ordered query": Schema("items", key="id", query="SELECT * FROM items ORDER BY kind DESC, id DESC"),
    "only the key": Schema("items", key="id", query="SELECT * FROM items", columns=()),
    "view": Schema("items", key="id", table="seen"),
}


def database(path, script, keys=KEYS):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(script)
        db.executemany("INSERT INTO items (kind, id) VALUES (?, ?)", [(i % 3, key) for i, key in enumerate(keys)])
        db.execute("CREATE VIEW seen AS SELECT id, kind FROM items ORDER BY kind, id DESC")
    return path


def as_built(source, asked, collection="items"):
    with source.read() as reading:
        keys = [record.values[0] for record in reading.records(collection)]
    return [key for key in keys if key in asked]


@pytest.fixture
def closed():
    """Closes a source at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda source: stack.enter_context(contextlib.closing(source))


@pytest.mark.parametrize("schema", QUERIES.values(), ids=QUERIES)
@pytest.mark.parametrize("script", TABLES.values(), ids=TABLES)
def test_keys_of_a_database_come_as_a_build_reads_them(tmp_path, closed, script, schema):
    keys = [key for key in KEYS if key]
    source = closed(SQLiteSource(database(tmp_path / "items.db", script, keys), schema))
    assert isinstance(source, OrderedSource)
    expected = as_built(source, ASKED)
    assert sorted(expected) == sorted({"5", "k1", "k12", "ü", "k7", "K1"})
    assert source.in_order("items", ASKED) == expected
    assert source.in_order("items", tuple(reversed(ASKED))) == expected
    assert source.in_order("items", []) == source.in_order("items", ["no", 7]) == []


@pytest.mark.parametrize("schema", [QUERIES["table"], QUERIES["query"]], ids=["table", "query"])
@pytest.mark.parametrize("table", ["rowid", "without rowid", "another primary key"])
def test_thousands_of_keys_come_in_one_order(tmp_path, closed, table, schema):
    keys = [f"k{i * 7919 % 9001}" for i in range(9000)]
    source = closed(SQLiteSource(database(tmp_path / "items.db", TABLES[table], keys), schema))
    asked = [f"k{i}" for i in range(0, 8192, 2)]
    assert len(asked) == 4096
    assert source.in_order("items", asked) == as_built(source, set(asked))


@pytest.mark.parametrize("table", ["rowid", "without rowid"])
def test_more_keys_than_a_statement_takes_come_in_one_order(tmp_path, closed, table):
    path = database(tmp_path / "items.db", TABLES[table], KEYS[:5])
    with contextlib.closing(sqlite3.connect(path)) as db:
        limit = db.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER)
    source = closed(SQLiteSource(path, Schema("items", key="id")))
    for count in (limit, limit + 1):
        asked = [*itertools.islice((f"no{i}" for i in itertools.count()), count - 3), "k12", "k7", "k1"]
        assert source.in_order("items", asked) == as_built(source, {"k12", "k7", "k1"})


def test_keys_are_equal_as_text_only(tmp_path, closed):
    script = (
        "CREATE TABLE items (id INTEGER, kind); CREATE TABLE free (id);"
        "INSERT INTO free VALUES (x'4162'), ('Ab'), (5), ('5'), ('5.0');"
        "CREATE TABLE nocase (id TEXT COLLATE NOCASE); INSERT INTO nocase VALUES ('Ab'), ('x'), ('aB');"
    )
    path = database(tmp_path / "items.db", script, [5, 6])
    source = closed(SQLiteSource(path, *(Schema(name, key="id") for name in ("items", "free", "nocase"))))
    asked = ["5.0", "5", "ab", "aB", "Ab", "6"]
    assert source.in_order("items", asked) == []
    assert source.in_order("free", asked) == ["Ab", "5", "5.0"]
    assert source.in_order("nocase", asked) == ["Ab", "aB"]


parts = st.lists(st.sampled_from(["5", "05", "5.0", "a", "A", "b", 5, 5.5, b"5"]), max_size=4)


@given(
    parts,
    parts,
    st.sampled_from(["TEXT", "INTEGER", "NUMERIC", "REAL", ""]),
    st.lists(st.sampled_from(["5", "05", "5.0", "a", "A"])),
)
def test_a_union_of_columns_of_any_affinity_loses_no_key(tmp_path_factory, one, other, affinity, asked):
    path = tmp_path_factory.mktemp("union") / "u.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(f"CREATE TABLE a (id {affinity}); CREATE TABLE b (id TEXT COLLATE NOCASE)")
        db.executemany("INSERT INTO a VALUES (?)", [(key,) for key in one])
        db.executemany("INSERT INTO b VALUES (?)", [(key,) for key in other])
        rows = [key for (key,) in db.execute("SELECT * FROM a UNION ALL SELECT * FROM b")]
    with contextlib.closing(
        SQLiteSource(path, Schema("u", key="id", query="SELECT * FROM a UNION ALL SELECT * FROM b"))
    ) as source:
        there = dict.fromkeys(key for key in rows if type(key) is str and key in asked)
        assert source.in_order("u", asked) == list(there)


def test_the_index_of_the_key_is_used_and_not_the_whole_table(tmp_path, closed):
    """A row elsewhere whose key is no UTF-8 stops whatever reads all keys."""
    path = database(tmp_path / "items.db", TABLES["rowid"], [f"k{i}" for i in range(1000)])
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO items VALUES (0, CAST(x'ff' AS TEXT))")
    source = closed(SQLiteSource(path, Schema("items", key="id")))
    with pytest.raises(BuildError, match="is not valid UTF-8"):
        as_built(source, ["k1"])
    assert source.in_order("items", ["k5", "k900", "k1", "no"]) == ["k1", "k5", "k900"]


def test_a_lookup_in_a_database_that_is_gone_is_a_source_error(tmp_path, closed):
    with pytest.raises(SourceError, match="there is no database"):
        closed(SQLiteSource(tmp_path / "no.db", Schema("items", key="id"))).in_order("items", ["a"])


def test_threads_share_a_source(tmp_path, closed):
    source = closed(SQLiteSource(database(tmp_path / "items.db", TABLES["rowid"], KEYS), Schema("items", key="id")))
    barrier, wrong = threading.Barrier(8), []

    def work():
        barrier.wait()
        for _ in range(50):
            if source.in_order("items", ["k3", "k12", "no", "k7"]) != ["k7", "k12", "k3"]:
                wrong.append("in_order")
            if source.fetch("items", ["no"]) != [None]:
                wrong.append("fetch")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- other sources ---------------------------------------------------------------------------------------------------

RECORDS = [{"id": key} for key in ["k7", "k1", "k12", "ü", "K1", "5"]]
IN_ORDER = ["k7", "k1", "k12", "ü", "K1", "5"]


def check(source, collection="items"):
    assert isinstance(source, Source)
    assert isinstance(source, OrderedSource)
    assert source.in_order(collection, ASKED) == IN_ORDER
    assert source.in_order(collection, ["k1", "k7", "k1"]) == ["k7", "k1"]
    assert source.in_order(collection, []) == []
    assert source.fetch(collection, [5, b"k1", ("k1", 5), -(2**63)]) == [None] * 4


def test_keys_of_an_iterable_come_as_they_are_iterated():
    source = IterableSource(RECORDS, Schema("items", key="id"))
    check(source)
    check(pickle.loads(pickle.dumps(source)))


def test_of_records_with_one_key_the_first_counts():
    source = IterableSource([{"id": "b"}, {"id": "a"}, {"id": "b", "n": 1}, {"id": "c"}], Schema("items", key="id"))
    assert source.in_order("items", ["c", "b", "a"]) == ["b", "a", "c"]
    assert source.fetch("items", ["b", "c"]) == [(("id",), ("b",), None), (("id",), ("c",), None)]


def test_an_iterator_has_no_order_to_look_up():
    with pytest.raises(SourceError, match="nothing can be looked up"):
        IterableSource(iter(RECORDS), Schema("items", key="id")).in_order("items", ["a"])


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_keys_of_lines_come_by_line(tmp_path, suffix):
    path = tmp_path / f"items.{suffix}"
    with gzip.open(path, "wb") if suffix.endswith("gz") else open(path, "wb") as file:
        file.writelines(json.dumps(record).encode() + b"\n" for record in RECORDS)
    source = JSONLinesSource(path, Schema("items", key="id"))
    check(source)
    with gzip.open(path, "wb") if suffix.endswith("gz") else open(path, "wb") as file:
        file.write(b'{"id": "k1"}\n{"id": "k3"}\n{"id": "k7"}\n')
    assert source.in_order("items", ["k7", "k3", "k12"]) == ["k3", "k7"]


def test_keys_of_parquet_and_arrow_come_by_row(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the extra `arrow` is not installed")
    from pyarrow import parquet

    from mmcache.sources import ParquetSource

    table = pa.Table.from_pylist(RECORDS)
    parquet.write_table(table, tmp_path / "items.parquet")
    check(ParquetSource(tmp_path / "items.parquet", Schema("items", key="id")))
    check(IterableSource(table, Schema("items", key="id")))


def test_keys_of_a_bank_of_patterns_come_by_rowid(tmp_path, closed):
    write_bank(tmp_path / "bank.db", 50)
    source = closed(PatternsSource(tmp_path / "bank.db"))
    for collection in ("patterns", "agent_configs"):
        with source.read() as reading:
            keys = [record.values[0] for record in reading.records(collection)]
        assert source.in_order(collection, [*sorted(keys, reverse=True), "no"]) == keys


def test_keys_of_an_llm_collection_come_as_a_build_reads_them(tmp_path, closed):
    path = tmp_path / "embeddings.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(
            "CREATE TABLE collections (id INTEGER PRIMARY KEY, name TEXT, model TEXT);"
            "CREATE TABLE embeddings (collection_id INTEGER, id TEXT, embedding BLOB, content TEXT, content_blob BLOB,"
            " content_hash BLOB, metadata TEXT, updated INTEGER, PRIMARY KEY (collection_id, id));"
            "INSERT INTO collections VALUES (1, 'notes', 'm'), (2, 'other', 'm');"
        )
        for number, key in [(1, "b"), (2, "c"), (1, "c"), (1, "a"), (2, "a")]:
            db.execute(
                "INSERT INTO embeddings (collection_id, id, embedding) VALUES (?, ?, x'0000803f')", (number, key)
            )
    source = closed(llm_source(path))
    for collection in ("notes", "other"):
        assert source.in_order(collection, ["a", "b", "c"]) == as_built(source, "abc", collection)
    assert sorted(source.in_order("other", ["a", "b", "c"])) == ["a", "c"]


# ---- sources without an order ----------------------------------------------------------------------------------------


class Plain:
    """A source that is no `OrderedSource`."""

    def __init__(self):
        self._inner = IterableSource(RECORDS, Schema("items", key="id"))
        self.schemas = self._inner.schemas
        self.read, self.find = self._inner.read, self._inner.find
        self.fetch, self.fingerprint, self.spec = self._inner.fetch, self._inner.fingerprint, self._inner.spec


def test_without_an_order_of_the_source_keys_stay_as_they_are_given():
    source = Plain()
    assert isinstance(source, Source)
    assert not isinstance(source, OrderedSource)
    assert ordered(source, "items", ["k1", "no", "k7", "k1"]) == ["k1", "no", "k7"]


def test_with_an_order_of_the_source_keys_come_in_it():
    assert ordered(IterableSource(RECORDS, Schema("items", key="id")), "items", ["k1", "no", "k7", "k1"]) == [
        "k7",
        "k1",
    ]
