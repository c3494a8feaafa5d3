"""What people type and hand over, and what SQLite and Python do not mind."""

from __future__ import annotations

import collections
import datetime as dt
import enum
import sqlite3
import uuid
from contextlib import closing
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Schema, Snapshot, SQLiteSource
from tests.support.console import run

Pair = collections.namedtuple("Pair", "id v")  # noqa: PYI024 (as code of others has it)


class Name(enum.Enum):
    A = "a"


@pytest.fixture
def database(tmp_path):
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute('CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, "a,b" TEXT, "c""d" TEXT)')
        connection.execute("INSERT INTO t VALUES (1, ';', 'x', 'y')")
    connection.close()
    return tmp_path / "s.db"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id, v FROM t;",
        "SELECT id, v FROM t; -- all\n",
        "SELECT id, v FROM t -- all; of them",
        "SELECT id, v FROM t /* all */; /* 'of them",
        "-- all\nSELECT id, v FROM t WHERE v = ';'",
        "SELECT id, ';--' AS v FROM t",
        'SELECT id, v AS "x;--", [v] FROM t;',
        "WITH x AS (SELECT id, v FROM t) SELECT * FROM x;\n",
    ],
)
def test_a_query_ends_as_sqlite_has_it(tmp_path, database, query):
    mmcache.build(tmp_path / "c.mmc", SQLiteSource(database, Schema("t", query=query)))
    with closing(sqlite3.connect(database)) as connection:
        expected = connection.execute(query).fetchone()
    with Snapshot.open(tmp_path / "c.mmc") as snapshot:
        assert tuple(snapshot[1].asdict().values()) == expected


@pytest.mark.parametrize("query", ["SELECT id FROM t; DROP TABLE t", "SELECT id FROM t;;x", "", ";", "-- nothing"])
def test_a_query_is_one_statement(tmp_path, database, query):
    with pytest.raises(mmcache.BuildError, match="query="):
        mmcache.build(tmp_path / "c.mmc", SQLiteSource(database, Schema("t", query=query)))


@pytest.mark.parametrize("names", ['"a,b"', 'v,"a,b"', '"a,b", v', '"v","a,b"', '"a,b",c"d'])
def test_a_column_with_a_comma_is_named_in_quotes(tmp_path, database, names):
    done = run("build", database, "--table", "t", "--index", names, "-o", tmp_path / "c.mmc")
    assert done.code == 0, done.err
    with Snapshot.open(tmp_path / "c.mmc") as snapshot:
        assert snapshot.where({"a,b": "x"}).ids == [1]


def test_a_name_that_is_not_there_lists_those_with_commas_in_quotes(tmp_path, database):
    done = run("build", database, "--table", "t", "--index", "a,b", "-o", tmp_path / "c.mmc")
    assert done.code == 1
    assert '"a,b"' in done.err


KEYS: dict[str, tuple[Any, Any, Any]] = {
    "integer of numpy": (7, np.int64(7), np.int64(8)),
    "text of numpy": ("a", np.str_("a"), np.str_("b")),
    "uuid": (str(uuid.UUID(int=1)), uuid.UUID(int=1), uuid.UUID(int=2)),
    "enum": ("a", Name.A, uuid.UUID(int=2)),
    "bytearray": (b"x", memoryview(b"x"), bytearray(b"y")),
    "several": (("a", 1), (Name.A, np.uint8(1)), (Name.A, np.uint8(2))),
}


@pytest.mark.parametrize(("key", "asked", "absent"), KEYS.values(), ids=KEYS)
def test_keys_are_asked_for_by_what_records_hold(tmp_path, key, asked, absent):
    fields = ("id", "n") if isinstance(key, tuple) else ("id",)
    record = dict(zip(fields, key if isinstance(key, tuple) else (key,), strict=True)) | {"v": 1}
    schema = Schema("t", key=fields)
    source = mmcache.IterableSource([record], schema)
    with (
        mmcache.open(tmp_path / "c.mmc", source) as cache,
        mmcache.open(tmp_path / "none.mmc", source, build=False) as none,
        cache.pinned() as snapshot,
    ):
        for reader in (cache, none, snapshot):
            assert reader[asked]["v"] == 1
            assert reader.get(absent) is None
            assert reader.get_many([asked, absent]) == [record, None]
            assert asked in reader
            assert absent not in reader
        cache.invalidate([asked])
        assert cache[asked] == record


@pytest.mark.parametrize("others", [[], [7], [b"b", 8, "d"]], ids=["text alone", "int", "all types"])
def test_what_becomes_text_is_found_among_keys_of_any_types(tmp_path, others):
    asked: list[Any] = [uuid.UUID(int=1), Decimal("1.50"), dt.date(2026, 1, 31)]
    plain: list[Any] = list(map(str, asked))
    source = mmcache.IterableSource([{"id": key, "v": i} for i, key in enumerate([*plain, *others])], Schema("t"))
    mmcache.build(tmp_path / "c.mmc", source)
    with mmcache.open(tmp_path / "c.mmc", source, ttl=3600) as cache, cache.pinned() as snapshot:
        list(snapshot.values())  # so that misses are believed at once
        for state in ("clean", "dirty"):
            for reader in (cache, snapshot):
                assert [key in reader for key in asked] == [True] * 3, state
                assert [reader[key]["v"] for key in asked] == [0, 1, 2]
                assert [record and record["v"] for record in reader.get_many(asked * 50)] == [0, 1, 2] * 50
            cache.invalidate(asked)


@pytest.mark.parametrize(
    "key",
    [None, True, np.True_, 1.0, np.float64(1), [1], {"a"}, np.array([1, 2]), object()],
    ids=["None", "bool", "numpy bool", "float", "numpy float", "list", "set", "array", "object"],
)
def test_what_never_is_a_key_stays_an_error(tmp_path, key):
    with mmcache.open(tmp_path / "c.mmc", mmcache.IterableSource([{"id": 1}], Schema("t"))) as cache:
        with pytest.raises(TypeError, match="a key cannot"):
            cache.get(key)
        assert key not in cache


def test_a_named_tuple_is_a_record(tmp_path):
    records: list[Any] = [Pair("a", 1), Pair("b", Pair(1, 2))]
    mmcache.build(tmp_path / "c.mmc", records, Schema("t"))
    with Snapshot.open(tmp_path / "c.mmc") as snapshot:
        assert dict(snapshot) == {"a": {"id": "a", "v": 1}, "b": {"id": "b", "v": [1, 2]}}


def test_a_function_as_query_is_an_error_that_says_what_where_takes(tmp_path):
    mmcache.build(tmp_path / "c.mmc", [{"id": 1}], Schema("t"))
    with Snapshot.open(tmp_path / "c.mmc") as snapshot, pytest.raises(TypeError, match="fields as keywords"):
        snapshot.where(lambda record: record)  # type: ignore[arg-type]


def test_a_key_that_stands_twice_is_an_error_that_names_the_choice(tmp_path):
    with pytest.raises(
        mmcache.BuildError, match=r'records 0 and 1.*on_duplicate="first" or "last".*key=\(...\) of more'
    ):
        mmcache.build(tmp_path / "c.mmc", [{"id": 1}, {"id": 1}], Schema("t"))


def test_a_name_that_is_too_long_or_taken_has_a_way_out():
    with pytest.raises(ValueError, match="Schema\\('short', table='long'\\)"):
        Schema("x" * 256)
    with pytest.raises(ValueError, match="SELECT"):
        Schema("t", index=("x" * 256,))
    with pytest.raises(ValueError, match="table='t'"):
        SQLiteSource("s.db", Schema("t"), Schema("t", index=("a",)))
