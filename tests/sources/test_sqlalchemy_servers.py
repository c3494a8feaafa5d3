"""SQLAlchemySource and servers: their types, what tells of a change, and processes beside one another."""

from __future__ import annotations

import contextlib
import gc
import math
import pickle
import threading
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Schema, SQLAlchemySource
from mmcache.errors import BuildError, SourceError
from mmcache.query import matcher, parse_query
from mmcache.sources import Invalid, Reading
from tests.support.processes import ask_child
from tests.support.waits import until

sqlalchemy = pytest.importorskip("sqlalchemy", reason="the sqlalchemy extra is not installed")

pytestmark = pytest.mark.integration

DAY = "2026-01-31"
POSTGRES: dict[str, tuple[str, str, Any]] = {
    "small": ("smallint", "7", 7),
    "large": ("bigint", "-9223372036854775808", -(2**63)),
    "exact": ("numeric(12,3)", "1.500", "1.500"),
    "huge": ("numeric", "12345678901234567890123456789.5", "12345678901234567890123456789.5"),
    "whole": ("numeric(20,0)", "18446744073709551615", 2**64 - 1),
    "wider": ("numeric(30,0)", "18446744073709551616", "18446744073709551616"),
    "half": ("real", "0.1", 0.1),
    "double": ("double precision", "0.1", 0.1),
    "lost": ("double precision", "'NaN'", math.nan),
    "yes": ("boolean", "true", True),
    "name": ("varchar(20)", "'ü'", "ü"),
    "padded": ("char(4)", "'ab'", "ab  "),
    "mood": ("mood", "'happy'", "happy"),
    "data": ("bytea", r"'\x00ff'", b"\x00\xff"),
    "id2": ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "day": ("date", f"'{DAY}'", DAY),
    "moment": ("timestamp", f"'{DAY} 23:59:59.5'", f"{DAY} 23:59:59.500000"),
    "zoned": ("timestamptz", f"'{DAY} 23:59:59+02'", f"{DAY} 21:59:59+00:00"),
    "clock": ("time", "'10:00:00.25'", "10:00:00.250000"),
    "span": ("interval", "'1 month 2 days 03:00:04.5'", "P1M2DT3H4.5S"),
    "doc": ("jsonb", """'{"a": [1, 2.5, null], "b": {"c": "x"}}'""", {"a": [1, 2.5, None], "b": {"c": "x"}}),
    "doc2": ("json", "'[1, \"x\"]'", [1, "x"]),
    "tags": ("text[]", "'{a,NULL,b}'", ["a", None, "b"]),
    "numbers": ("int[]", "'{1,2}'", [1, 2]),
    "grid": ("int[]", "'{{1,2},{3,4}}'", [[1, 2], [3, 4]]),
    "days": ("date[]", f"'{{{DAY}}}'", [DAY]),
    "moments": ("timestamptz[]", f"'{{{DAY} 23:59:59.5+02,NULL}}'", [f"{DAY} 21:59:59.500000+00:00", None]),
    "clocks": ("timetz[]", "'{10:00:00-05}'", ["10:00:00-05:00"]),
    "address": ("inet", "'10.0.0.1'", "10.0.0.1"),
    "between": ("int4range", "'[1,5)'", "[1,5)"),
    "own": ("positive", "5", 5),
    "nothing": ("text", "NULL", None),
}
"""Column -> type, a literal, and what a record holds."""

MARIADB: dict[str, tuple[str, str, Any]] = {
    "small": ("tinyint", "7", 7),
    "large": ("bigint unsigned", "18446744073709551615", 2**64 - 1),
    "exact": ("decimal(12,3)", "1.500", "1.500"),
    "whole": ("decimal(20,0)", "12345", 12345),
    "half": ("float", "0.5", 0.5),
    "dbl": ("double", "0.1", 0.1),
    "yes": ("boolean", "true", 1),
    "name": ("varchar(20)", "'ü'", "ü"),
    "mood": ("enum('sad', 'happy')", "'happy'", "happy"),
    "data": ("varbinary(10)", "x'00ff'", b"\x00\xff"),
    "day": ("date", f"'{DAY}'", DAY),
    "moment": ("datetime(6)", f"'{DAY} 23:59:59.5'", f"{DAY} 23:59:59.500000"),
    "clock": ("time", "'10:00:04'", "PT10H4S"),
    "doc": ("json", """'{"a": [1, 2.5, null]}'""", {"a": [1, 2.5, None]}),
    "year": ("year", "2026", 2026),
    "nothing": ("text", "NULL", None),
}


def make(database, types):
    if database.kind == "postgresql":
        database.run("CREATE TYPE mood AS ENUM ('sad', 'happy')", "CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    columns = ", ".join(f"{name} {kind}" for name, (kind, _, _) in types.items())
    values = ", ".join(value for _, value, _ in types.values())
    database.run(f"CREATE TABLE types (id int PRIMARY KEY, {columns})", f"INSERT INTO types VALUES (1, {values})")


def test_values_of_all_types_follow_the_rule(served):
    types = POSTGRES if served.kind == "postgresql" else MARIADB
    make(served, types)
    scalars = tuple(name for name in types if name not in ("doc", "doc2", "grid", "data"))
    schema = Schema("types", json=("doc",), index=scalars)
    with contextlib.closing(SQLAlchemySource(served.url, schema)) as source:
        with source.read() as reading:
            (row,) = reading.records("types")
        for name, value in zip(row.names[1:], row.values[1:], strict=True):
            expected = types[name][2]
            assert repr(value) == repr(expected), name
        (fetched,) = source.fetch("types", [1])
        assert repr(fetched) == repr(row)
        for name, value in zip(row.names[1:], row.values[1:], strict=True):
            if name in scalars:
                asked = value if not isinstance(value, list) else value[0]
                query = parse_query(schema, None, {name: asked})
                expected = matcher(query)(row.names, row.values)
                assert len(list(source.find("types", query))) == expected == 1, name


@pytest.mark.parametrize(
    "key",
    ["small", "whole", "name", "padded", "mood", "data", "id2", "day", "moment", "zoned", "clock", "exact", "own"],
)
def test_keys_of_all_types_are_found(postgres, key):
    make(postgres, POSTGRES)
    schema = Schema("types", key=key, columns=("id",))
    value = POSTGRES[key][2]
    with contextlib.closing(SQLAlchemySource(postgres.url, schema)) as source:
        others: list[Any] = [
            "",
            "x",
            "x\0",
            7.5,
            2**80,
            b"",
            b"x",
            "2026-02-31",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            -1,
            "ab",
        ]
        found = source.fetch("types", [value, *others])
        assert [row and row.values for row in found] == [(value, 1), *[None] * len(others)]
        assert source.in_order("types", [*others, value]) == [value]


@pytest.mark.parametrize("kind", ["smallint", "int", "bigint"])
def test_the_least_number_of_an_array_is_found(postgres, kind):
    least = -(2 ** {"smallint": 15, "int": 31, "bigint": 63}[kind])
    postgres.run(
        f"CREATE TABLE items (id int PRIMARY KEY, n {kind}[])",
        f"INSERT INTO items VALUES (1, '{{{least},5}}'), (2, '{{{-1 - least}}}')",
    )
    schema = Schema("items", index=("n",))
    with contextlib.closing(SQLAlchemySource(postgres.url, schema)) as source:
        for wanted, ids in ((least, [1]), (-1 - least, [2]), (-least, []), (6, [])):
            found = source.find("items", parse_query(schema, None, {"n": wanted}))
            assert [record.values[0] for record in found] == ids


@pytest.mark.parametrize(("encoding", "there"), [("LATIN1", "é"), ("EUC_JP", "日本"), ("UTF8", "\U0001f600")])
def test_text_that_an_encoding_of_a_database_lacks_is_not_found(postgres, encoding, there):
    postgres.run(f"CREATE DATABASE narrow{encoding} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    url = sqlalchemy.engine.make_url(postgres.url).set(database=f"narrow{encoding}".lower())
    with type(postgres)("postgresql", url.render_as_string(hide_password=False)) as narrow:
        narrow.run(
            "CREATE TABLE items (id text PRIMARY KEY, name text, tags text[])",
            f"INSERT INTO items VALUES ('{there}', '{there}', '{{a,{there}}}'), ('x', NULL, NULL)",
        )
        schema = Schema("items", index=("name", "tags"))
        asked = ["é", "日本", "\U0001f600", "x", "ÿ"]
        with contextlib.closing(SQLAlchemySource(narrow.url, schema)) as source:
            with source.read() as reading:
                rows = list(reading.records("items"))
            assert [row is not None for row in source.fetch("items", asked)] == [key in (there, "x") for key in asked]
            alternatives = [(one,) for one in asked] + [
                (bound(text),) for bound in (mmcache.startswith, mmcache.at_least, mmcache.at_most) for text in asked
            ]
            for field in schema.index:
                for wanted in [*alternatives, (None, *asked)]:
                    query = parse_query(schema, None, {field: list(wanted)})
                    matches = matcher(query)
                    expected = [row for row in rows if matches(row.names, row.values)]
                    assert list(source.find("items", query)) == expected, (field, wanted)


def test_a_database_without_an_encoding_is_named_with_the_way(postgres):
    postgres.run("CREATE DATABASE unknown_encoding ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'")
    url = sqlalchemy.engine.make_url(postgres.url).set(database="unknown_encoding")
    refused = pytest.raises(SourceError, match="add client_encoding=utf8 to the URL")
    with contextlib.closing(SQLAlchemySource(url, Schema("items"))) as source, refused:
        source.fetch("items", ["a"])
    url = url.update_query_dict({"client_encoding": "utf8"})
    with type(postgres)("postgresql", url.render_as_string(hide_password=False)) as database:
        database.run("CREATE TABLE items (id text PRIMARY KEY)", "INSERT INTO items VALUES ('é')")
    with contextlib.closing(SQLAlchemySource(url, Schema("items"))) as source:
        assert [row is not None for row in source.fetch("items", ["é", "e"])] == [True, False]


@pytest.mark.parametrize("charset", ["ascii", "latin1", "utf8mb3", "ucs2", "utf8mb4"])
@pytest.mark.parametrize("kind", ["varchar(20)", "char(20)", "text", "enum('a', 'é')"])
def test_text_that_a_character_set_lacks_is_not_found_and_stops_nothing(mariadb, charset, kind):
    there = "é" if charset != "ascii" else "a"
    kind = kind if charset != "ascii" else kind.replace("é", "b")
    mariadb.run(
        f"CREATE TABLE items (id int PRIMARY KEY, name {kind} CHARACTER SET {charset}, n int)",
        f"INSERT INTO items VALUES (1, '{there}', 7)",
    )
    asked = [there, "日本", "Ω", "\U0001f600", "x"]
    by_name = Schema("named", table="items", key="name", columns=("n",), index=("n",))
    by_both = Schema("both", table="items", key=("id", "name"), columns=("n",))
    by_id = Schema("items", index=("name",))
    with contextlib.closing(SQLAlchemySource(mariadb.url, by_name, by_both, by_id)) as source:
        assert [row and row.values[1] for row in source.fetch("named", asked)] == [7, None, None, None, None]
        both = source.fetch("both", [(1, name) for name in asked])
        assert [row and row.values[1] for row in both] == [7, None, None, None, None]
        assert source.in_order("named", asked) == [there]
        for wanted, count in ((asked, 1), (asked[1:], 0), (mmcache.at_most("\U0001f600"), 1)):
            assert len(list(source.find("items", parse_query(by_id, None, {"name": wanted})))) == count


def test_a_lookup_of_ascii_in_a_narrow_character_set_uses_the_index(mariadb):
    mariadb.run("CREATE TABLE items (name varchar(20) CHARACTER SET latin1 PRIMARY KEY, n int)")
    mariadb.run("INSERT INTO items SELECT concat('k', seq), seq FROM seq_1_to_2000")
    with contextlib.closing(SQLAlchemySource(mariadb.url, Schema("items"))) as source:
        source.fetch("items", ["k1"])  # which looks at the columns first
        before = rows_read(mariadb)
        assert source.fetch("items", ["k7"])[0] is not None
        assert rows_read(mariadb) - before < 100


def rows_read(database: Any) -> int:
    with database.engine.connect() as connection:
        found = connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Handler_read_rnd_next'").fetchone()
        more = connection.exec_driver_sql("SHOW GLOBAL STATUS LIKE 'Handler_read_next'").fetchone()
    return int(found[1]) + int(more[1])


def test_dates_that_are_none_are_found_as_the_text_that_records_have(mariadb):
    odd, moment = ["0000-00-00", "2026-02-00"], "0000-00-00 00:00:00"
    with mariadb.engine.connect() as connection:
        connection.exec_driver_sql("SET sql_mode = ''")
        connection.exec_driver_sql("CREATE TABLE items (id int PRIMARY KEY, day date, moment datetime)")
        connection.exec_driver_sql(
            f"INSERT INTO items VALUES (1, '{odd[0]}', '{moment}'), (2, '{odd[1]}', '{moment}'),"
            " (3, '2026-02-01', '2026-02-01')"
        )
    by_id = Schema("items", index=("day", "moment"))
    by_day = Schema("days", table="items", key="day", columns=("id",))
    with contextlib.closing(SQLAlchemySource(mariadb.url, by_id, by_day)) as source:
        for terms, ids in (({"day": odd[1]}, [2]), ({"day": [*odd, None]}, [1, 2]), ({"moment": moment}, [1, 2])):
            found = source.find("items", parse_query(by_id, None, terms))
            assert [record.values[0] for record in found] == ids
        rows = source.fetch("days", [*odd, "2026-02-01", "2026-02-31", "0000-00-01"])
        assert [row and row.values[1] for row in rows] == [1, 2, 3, None, None]


@pytest.mark.parametrize(
    ("kind", "literal", "reason"),
    [
        ("date", "'infinity'", "column 'odd': the moment 'infinity'"),
        ("timestamp", "'0044-03-15 BC'", "the moment"),
        ("timestamptz", "'20000-01-01'", "the moment"),
    ],
)
def test_a_moment_beyond_the_years_of_python_is_refused_by_name(postgres, kind, literal, reason):
    postgres.run(
        f"CREATE TABLE items (id int PRIMARY KEY, odd {kind})", f"INSERT INTO items VALUES (1, NULL), (2, {literal})"
    )
    with contextlib.closing(SQLAlchemySource(postgres.url, Schema("items"))) as source, source.read() as reading:
        rows = reading.records("items")
        with pytest.raises(BuildError, match=reason):
            list(rows)
    skipping = Schema("items", on_invalid="skip")
    with contextlib.closing(SQLAlchemySource(postgres.url, skipping)) as source, source.read() as reading:
        assert [type(row) is Invalid for row in reading.records("items")] == [False, True]


@pytest.mark.parametrize("kind", ["real[]", "double precision[]", "numeric[]", "jsonb", "text", "bytea"])
@pytest.mark.parametrize("dim", [None, 3])
def test_an_embedding_may_be_an_array_text_or_bytes(postgres, kind, dim):
    numbers = [0.1, -2.5, 3e30]
    literal = {
        "jsonb": f"'{numbers}'",
        "text": f"'{numbers}'",
        "bytea": r"'\x" + np.array(numbers, "f4").tobytes().hex(),
    }
    value = literal.get(kind, f"'{{{','.join(map(str, numbers))}}}'") + ("'" if kind == "bytea" else "")
    postgres.run(
        f"CREATE TABLE items (id int PRIMARY KEY, v {kind})",
        f"INSERT INTO items SELECT i, {value} FROM generate_series(1, 600) i",
        "INSERT INTO items VALUES (601, NULL)",
    )
    with contextlib.closing(SQLAlchemySource(postgres.url, Schema("items", embedding="v", dim=dim))) as source:
        with source.read() as reading:
            *rows, last = [row.vector for row in reading.records("items")]
        assert set(rows) == {np.array(numbers, "f4").tobytes()}
        assert last is None
        assert [row and row.vector for row in source.fetch("items", [5, 601])] == [rows[0], None]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("'{1,2}'", "has 2 numbers, expected dim=3"),
        ("'{}'", "empty"),
        ("'{1,NULL,3}'", "NULL among"),
        ("'{{1,2,3}}'", "2 dim"),
    ],
)
def test_an_array_that_is_no_embedding_is_refused(postgres, value, reason):
    postgres.run("CREATE TABLE items (id int PRIMARY KEY, v real[])", f"INSERT INTO items VALUES (1, {value})")
    schema = Schema("items", embedding="v", dim=3)
    with contextlib.closing(SQLAlchemySource(postgres.url, schema)) as source, source.read() as reading:
        rows = reading.records("items")
        with pytest.raises(BuildError, match=reason):
            list(rows)


@pytest.mark.parametrize("kind", ["vector", "halfvec"])
def test_a_column_of_pgvector_is_an_embedding(postgres, kind):
    with postgres.engine.connect() as connection:
        there = "SELECT 1 FROM pg_available_extensions WHERE name = 'vector'"
        if not connection.exec_driver_sql(there).fetchall():
            pytest.skip("no extension: pgvector is not installed")
    postgres.run("CREATE SCHEMA ext", "CREATE EXTENSION vector SCHEMA ext")
    with postgres.engine.connect() as connection:
        if not connection.exec_driver_sql(f"SELECT 1 FROM pg_type WHERE typname = '{kind}'").fetchall():
            pytest.skip(f"pgvector is too old for {kind}")
    numbers = "(SELECT array_agg(CAST((k - i) / 8.0 AS real)) FROM generate_series(1, 384) k)"
    postgres.run(
        f"CREATE TABLE items (id int PRIMARY KEY, v ext.{kind}(384))",
        f"INSERT INTO items SELECT i, CAST({numbers} AS ext.{kind}) FROM generate_series(1, 9) i",
        "INSERT INTO items VALUES (10, NULL)",
    )
    with contextlib.closing(SQLAlchemySource(postgres.url, Schema("items", embedding="v", dim=384))) as source:
        with source.read() as reading:
            *rows, last = [row.vector for row in reading.records("items")]
        assert rows == [((np.arange(1, 385) - i) / 8).astype("f4").tobytes() for i in range(1, 10)]
        assert last is None
        assert [row and row.vector for row in source.fetch("items", [5, 10])] == [rows[4], None]


# ---- what tells of a change ------------------------------------------------------------------------------------------


def test_a_commit_that_is_not_seen_yet_changes_the_fingerprint_when_it_is(postgres):
    postgres.run("CREATE TABLE items (id int PRIMARY KEY)", "CREATE TABLE others (id int)")
    with contextlib.closing(SQLAlchemySource(postgres.url, Schema("items"))) as source:
        engine = sqlalchemy.create_engine(postgres.engine.url)
        with engine.connect() as early, engine.connect() as late:
            early.exec_driver_sql("INSERT INTO items VALUES (1)")  # its number is the lower one
            late.exec_driver_sql("INSERT INTO others VALUES (1)")
            late.commit()
            before = source.fingerprint()
            assert before == source.fingerprint()
            assert source.fetch("items", [1]) == [None]
            early.commit()
            assert source.fingerprint() != before
        engine.dispose()
        before = source.fingerprint()
        postgres.run("TRUNCATE items")
        assert source.fingerprint() != before
        before = source.fingerprint()
        postgres.run("SELECT * FROM items")
        assert source.fingerprint() == before


def test_the_query_of_row_versions_follows_one_table_alone(postgres):
    postgres.run("CREATE TABLE items (id int PRIMARY KEY, n int)", "INSERT INTO items VALUES (1, 0), (2, 0)")
    sql = "SELECT count(*), sum(hashtextextended(ctid::text || ' ' || xmin::text, 0)) FROM items"
    with contextlib.closing(SQLAlchemySource(postgres.url, Schema("items"), fingerprint=sql)) as source:
        seen = [source.fingerprint()]
        for change in ("UPDATE items SET n = 0 WHERE id = 1", "DELETE FROM items WHERE id = 2", "TRUNCATE items"):
            postgres.run("CREATE TABLE other (id int)", "DROP TABLE other")
            assert source.fingerprint() == seen[-1]
            postgres.run(change)
            assert source.fingerprint() not in seen
            seen.append(source.fingerprint())


def test_every_worker_answers_what_another_client_wrote(served, path):
    served.run("CREATE TABLE items (id int PRIMARY KEY, n int)", "INSERT INTO items VALUES (1, 0), (2, 0)")
    fingerprint = None if served.kind == "postgresql" else "SELECT count(*), sum(n) FROM items"
    source = SQLAlchemySource(served.url, Schema("items"), fingerprint=fingerprint)
    with mmcache.open(path, source, check_interval=0.05, rebuild_after=0) as cache:
        assert cache[1]["n"] == 0
        served.run("UPDATE items SET n = 7 WHERE id = 1")
        until("the parent answers it", lambda: cache[1]["n"] == 7)

        def in_child():
            served.run("UPDATE items SET n = 8 WHERE id = 1")
            until("the child answers it", lambda: cache[1]["n"] == 8)
            return cache[2]["n"]

        assert ask_child(in_child) == 0
        until("the parent answers what the child wrote", lambda: cache[1]["n"] == 8)
    source.close()


# ---- threads, forks, processes ---------------------------------------------------------------------------------------


@pytest.fixture
def source(served):
    served.run("CREATE TABLE items (id int PRIMARY KEY, n int)")
    values = ", ".join(f"({i}, {i % 7})" for i in range(3000))
    served.run(f"INSERT INTO items VALUES {values}")
    with contextlib.closing(SQLAlchemySource(served.url, Schema("items", index=("n",)))) as source:
        yield source


def ids(reading: Reading) -> list[int]:
    return [row.values[0] for row in reading.records("items")]


def test_a_child_and_its_parent_read_by_connections_of_their_own(source):
    with source.read() as reading:
        rows = reading.records("items")
        next(rows)

        def in_child():
            found = [row and row.values[0] for row in source.fetch("items", [5, 2999])]
            with pytest.raises(SourceError, match="begun before a fork"):
                list(rows)
            gc.collect()
            with source.read() as again:
                return found, len(ids(again))

        assert ask_child(in_child) == ([5, 2999], 3000)
        assert len(list(rows)) == 2999, "the parent's connection is as it was"
    assert [row and row.values[0] for row in source.fetch("items", [7])] == [7]


def test_threads_read_at_the_same_time(source):
    expected = list(range(3000))
    found = []

    def read():
        with source.read() as reading:
            found.append(ids(reading) == expected and source.fetch("items", [3, 5])[1].values == (5, 5))

    threads = [threading.Thread(target=read) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 12


def test_a_read_and_a_search_that_are_given_up_leave_the_connection_usable(source):
    with source.read() as reading:
        next(iter(reading.records("items")))
    matches = source.find("items", {"n": (3,)})
    next(matches)
    matches.close()
    assert [row and row.values[0] for row in source.fetch("items", [7])] == [7]
    with contextlib.suppress(ZeroDivisionError), source.read() as reading:
        next(iter(reading.records("items")))
        raise ZeroDivisionError
    with source.read() as reading:
        assert len(ids(reading)) == 3000


def test_a_password_goes_to_other_processes_and_never_into_a_file(postgres, path):
    postgres.run(
        "DO $$ BEGIN CREATE ROLE locked LOGIN PASSWORD 'se:cret/5'; EXCEPTION WHEN duplicate_object THEN END $$",
        "CREATE TABLE items (id int PRIMARY KEY)",
        "INSERT INTO items VALUES (1)",
        "GRANT SELECT ON items TO locked",
    )
    url = postgres.url.replace("tester@", "locked:se%3Acret%2F5@")
    with contextlib.closing(SQLAlchemySource(url, Schema("items"))) as source:
        mmcache.build(path, source)
        assert b"cret" not in path.read_bytes()
        again = pickle.loads(pickle.dumps(source))
        assert again.fetch("items", [1]) == source.fetch("items", [1])
        again.close()
        without = SQLAlchemySource.remade(source.spec() or {}, source.schemas, {})
        with pytest.raises(SourceError, match=r"password.*give the URL with it") as refused:
            without.fingerprint()
        assert "cret" not in str(refused.value)
        with contextlib.closing(SQLAlchemySource.remade(source.spec() or {}, source.schemas, source.given())) as found:
            assert found.fingerprint() == source.fingerprint()


def test_a_server_that_is_gone_is_a_source_error_and_one_that_is_back_answers():
    from tests.support import servers

    with servers.postgres() as url, servers.Database("postgresql", url) as database:
        database.run("CREATE TABLE items (id int PRIMARY KEY)", "INSERT INTO items VALUES (1)")
        source = SQLAlchemySource(url, Schema("items"))
        assert source.fetch("items", [1]) != [None]
        database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = 'postgres'"
        )
        assert source.fetch("items", [1]) != [None]
    with pytest.raises(SourceError, match="cannot connect"):
        source.fetch("items", [1])
    source.close()
