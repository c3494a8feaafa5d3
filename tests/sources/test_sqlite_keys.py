"""Keys as tables have them: which key a schema without one takes, and that look-ups are typed, exact and by index."""

from __future__ import annotations

import contextlib
import logging
import pickle
import sqlite3
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mmcache.errors import BuildError, SourceError
from mmcache.schema import Schema
from mmcache.sources import SQLiteSource
from tests.support import inside

pytestmark = pytest.mark.usefixtures("no_leaks")


def make(path, script, *rows, into="t"):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript("PRAGMA synchronous = OFF;" + script)
        for row in rows:
            db.execute(f"INSERT INTO {into} VALUES ({', '.join('?' * len(row))})", row)
    return path


@pytest.fixture
def source(tmp_path):
    """A source of a new database, closed at the end: source(script, *rows, schema=Schema("t"))."""
    with contextlib.ExitStack() as stack:

        def of(script, *rows, schema=Schema("t")):
            path = make(tmp_path / "t.db", script, *rows)
            return stack.enter_context(contextlib.closing(SQLiteSource(path, schema)))

        yield of


def everything(source):
    with source.read() as reading:
        return list(reading.records(source.schemas[0].name))


def keys(source):
    return [record.values[0] for record in everything(source)]


# --- the key that a schema leaves open --------------------------------------------------------------------------------

PRIMARY = {
    "integer": ("CREATE TABLE t (id INTEGER PRIMARY KEY, v)", "id"),
    "text": ("CREATE TABLE t (v, Code TEXT PRIMARY KEY)", "Code"),
    "blob": ("CREATE TABLE t (hash BLOB PRIMARY KEY, v) WITHOUT ROWID", "hash"),
    "any type": ("CREATE TABLE t (k PRIMARY KEY, v)", "k"),
    "several, in the key's order": ("CREATE TABLE t (b INTEGER, a TEXT, v, PRIMARY KEY (a, b))", ("a", "b")),
    "several without rowid": ("CREATE TABLE t (b, a, v, PRIMARY KEY (b, a)) WITHOUT ROWID", ("b", "a")),
    "none": ("CREATE TABLE t (v)", "rowid"),
    "none, with an id": ("CREATE TABLE t (id TEXT, v)", "rowid"),
    "none, and a column called rowid": ("CREATE TABLE t (Rowid TEXT, v)", "_rowid_"),
    "a full-text table": ("CREATE VIRTUAL TABLE t USING fts5 (v)", "rowid"),
    "a view with an id": ("CREATE TABLE x (ID TEXT, v); CREATE VIEW t AS SELECT * FROM x", "ID"),
}


@pytest.mark.parametrize(("script", "key"), PRIMARY.values(), ids=PRIMARY)
def test_a_schema_without_a_key_takes_the_tables_own(source, script, key):
    source = source(script)
    (schema,) = source.schemas
    assert schema.key == key
    assert schema == Schema("t", key=key)
    assert everything(source) == []
    assert source.schemas == (schema,)


def test_a_rowid_is_a_field_of_its_own(source):
    source = source("CREATE TABLE t (v); INSERT INTO t (rowid, v) VALUES (7, 'a'), (-1, 'b'), (3, 'c')")
    names = ("rowid", "v")
    assert everything(source) == [(names, values, None) for values in [(-1, "b"), (3, "c"), (7, "a")]]
    assert source.fetch("t", [3, "3", 4]) == [(("rowid", "v"), (3, "c"), None), None, None]
    assert source.in_order("t", [7, -1]) == [-1, 7]


@pytest.mark.parametrize("name", ["rowid", "ROWID", "oid", "_rowid_"])
def test_a_rowid_can_be_asked_for_by_any_of_its_names(source, name):
    source = source("CREATE TABLE t (id INTEGER PRIMARY KEY, v)", (5, "x"), schema=Schema("t", key=name))
    assert everything(source) == [(("rowid", "id", "v"), (5, 5, "x"), None)]


def test_a_key_of_several_columns_is_a_tuple_and_its_fields_stand_nowhere_else(source):
    source = source(
        "CREATE TABLE t (v, code INTEGER, auth TEXT, PRIMARY KEY (auth, code))", ("x", 4326, "EPSG"), ("y", 1, "ESRI")
    )
    names = (("auth", "code"), "v")
    assert everything(source) == [(names, (("EPSG", 4326), "x"), None), (names, (("ESRI", 1), "y"), None)]
    assert source.fetch("t", [("ESRI", 1), ("EPSG", "4326"), (4326, "EPSG"), "EPSG", ("EPSG", 4326, 1)]) == [
        (names, (("ESRI", 1), "y"), None),
        *[None] * 4,
    ]


def test_a_field_of_a_key_can_be_indexed(source):
    schema = Schema("t", index=("auth", "v"))
    source = source(
        "CREATE TABLE t (auth TEXT, code INTEGER, v, PRIMARY KEY (auth, code))",
        *[(auth, code, code % 2) for auth in ("EPSG", "ESRI") for code in range(4)],
        schema=schema,
    )
    assert [r.values for r in source.find("t", {"auth": ("ESRI",), "v": (1,)})] == [(("ESRI", 1), 1), (("ESRI", 3), 1)]


def test_names_are_equal_as_sqlite_has_them_and_spelled_as_the_database_does(source):
    schema = Schema("T", key=("A", "b"), index=("KIND",), columns=("Kind", "js"), json=("JS",), embedding="VEC")
    source = source("CREATE TABLE t (a TEXT, B TEXT, kind TEXT, js TEXT, Vec BLOB)", schema=schema)
    (found,) = source.schemas
    assert found == Schema(
        "T", key=("a", "B"), index=("kind",), columns=("kind", "js"), json=("js",), embedding="Vec", table="t"
    )
    assert everything(source) == []
    with contextlib.closing(SQLiteSource(source.path, found)) as again:
        assert again.schemas == (found,)


def test_letters_beyond_ascii_differ_by_their_case(source):
    source = source('CREATE TABLE t ("\u00c4" TEXT)', schema=Schema("t", key="\u00e4"))
    with pytest.raises(BuildError, match="key: no column named \u00e4"):
        everything(source)


def test_a_primary_key_of_too_many_columns_is_refused_with_a_way(source):
    columns = ", ".join(f"c{i}" for i in range(9))
    source = source(f"CREATE TABLE t ({columns}, PRIMARY KEY ({columns}))")
    with pytest.raises(BuildError, match=r"primary key has 9 columns, and a key at most 8; .* or key='rowid'"):
        everything(source)
    with contextlib.closing(SQLiteSource(source.path, Schema("t", key="rowid"))) as other:
        assert everything(other) == []


# --- views and queries ------------------------------------------------------------------------------------------------

VIEW = "CREATE TABLE x (a TEXT, b, c, d REAL); CREATE VIEW t AS SELECT * FROM x;"


@pytest.mark.parametrize("schema", [Schema("t"), Schema("t", query="SELECT * FROM x;\n")], ids=["view", "query"])
def test_a_view_without_a_key_names_its_unique_columns(source, schema):
    script = VIEW + "INSERT INTO x VALUES ('p', 1, 1, 1.5), ('q', 1, NULL, 2.5)"
    source = source(script, schema=schema)
    with pytest.raises(BuildError, match=r"name one with key=; there are: a, b, c, d; .* its 2 rows: a$"):
        everything(source)
    with pytest.raises(SourceError, match=r"has no key of its own: name one with key=; there are: a, b, c, d$"):
        source.fetch("t", ["p"])


def test_of_a_view_without_rows_nothing_is_said(source):
    with pytest.raises(BuildError, match="it has no rows to look at"):
        everything(source(VIEW))


def test_only_the_first_rows_of_a_large_view_are_looked_at(source):
    script = VIEW + (
        "WITH RECURSIVE i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 10050)"
        "INSERT INTO x SELECT 'k' || n, n, 1, 1 FROM i; INSERT INTO x VALUES ('k1', 1, 1, 1)"
    )
    with pytest.raises(BuildError, match=r"in its first 10,000 rows: a, b$"):
        everything(source(script))


def test_a_view_that_takes_long_is_not_looked_at(source):
    endless = "WITH RECURSIVE i (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i) SELECT count(*) AS n FROM i"
    with pytest.raises(BuildError, match="was not looked up: it takes too long"):
        everything(source(f"CREATE VIEW t AS {endless}"))


# --- a database that cannot be asked ----------------------------------------------------------------------------------


def test_a_source_without_its_database_is_made_and_asks_later(tmp_path):
    schema = Schema("t", index=("V",))
    with contextlib.closing(SQLiteSource(tmp_path / "t.db", schema)) as source:
        assert source.schemas == (schema,)
        assert [one.schemas for one in [pickle.loads(pickle.dumps(source))]] == [(schema,)]
        make(tmp_path / "t.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
        assert source.schemas == (Schema("t", key="id", index=("v",)),)
        assert pickle.loads(pickle.dumps(source)).schemas == source.schemas


def test_schemas_do_not_wait_for_a_writer(tmp_path):
    path = make(tmp_path / "t.db", "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    with (
        contextlib.closing(SQLiteSource(path, Schema("t"), timeout=600)) as source,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer,
    ):
        writer.execute("BEGIN EXCLUSIVE")
        assert source.schemas == (Schema("t"),)
        writer.execute("COMMIT")
        assert source.schemas == (Schema("t", key="id"),)


def test_a_key_follows_a_migration(source):
    source = source("CREATE TABLE t (id INTEGER PRIMARY KEY, uid TEXT)", (1, "a"))
    assert source.fetch("t", [1]) == [(("id", "uid"), (1, "a"), None)]
    with contextlib.closing(sqlite3.connect(source.path)) as db, db:
        db.executescript(
            "CREATE TABLE n (id INTEGER, uid TEXT PRIMARY KEY); INSERT INTO n SELECT * FROM t; DROP TABLE t;"
            "ALTER TABLE n RENAME TO t"
        )
    assert source.fetch("t", ["a"]) == [(("uid", "id"), ("a", 1), None)]
    assert source.schemas == (Schema("t", key="uid"),)


# --- exact by type ----------------------------------------------------------------------------------------------------

VALUES = [
    "7",
    "07",
    "7.0",
    "",
    "a",
    "A",
    "a ",
    "\u00e4",
    "a\0b",
    0,
    1,
    7,
    -7,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    b"",
    b"7",
]
NO_KEYS = [None, 7.5, 7.0, 2.0**53]
AFFINITIES = ["TEXT", "INTEGER", "NUMERIC", "REAL", "BLOB", "", "TEXT COLLATE NOCASE", "TEXT COLLATE RTRIM"]

values = st.sampled_from(VALUES + NO_KEYS)
asked = st.sampled_from([*VALUES, 2**64 - 1, "\ud800"])


def same(one, other):
    """Equal, types included."""
    return repr(one) == repr(other)


def check(path, schema, wanted):
    """Whatever is asked, a look-up gives what a scan gives."""
    with contextlib.closing(SQLiteSource(path, schema)) as source:
        rows: dict[Any, int] = {}
        every = []
        with contextlib.closing(sqlite3.connect(path)) as db:
            width = len(source.schemas[0].key_fields)
            columns = ", ".join(source.schemas[0].key_fields)
            body = "t" if schema.query is None else f"({schema.query})"
            for n, *row in db.execute(f"SELECT n, {columns} FROM {body} ORDER BY n"):
                if all(isinstance(part, str | int | bytes) for part in row):
                    every.append(tuple(row) if width > 1 else row[0])
                    rows.setdefault(every[-1], n)
        found = source.fetch("t", wanted)
        assert same(
            [None if one is None else one.values[0] for one in found], [k if k in rows else None for k in wanted]
        )
        assert all(one is None or one.values[1] == rows[one.values[0]] for one in found)
        there = {key for key in wanted if key in rows}
        assert source.in_order("t", wanted) == [key for key in rows if key in there]
        assert same([record.values[0] for record in source.find("t", {})], every)


@given(
    st.sampled_from(AFFINITIES),
    st.lists(values, max_size=8),
    st.lists(asked, max_size=6),
    st.booleans(),
)
def test_a_lookup_by_one_column_gives_what_a_scan_gives(tmp_path_factory, affinity, rows, wanted, is_query):
    path = tmp_path_factory.mktemp("one") / "t.db"
    make(path, f"CREATE TABLE t (n INTEGER PRIMARY KEY, k {affinity}); CREATE INDEX i ON t (k)", *enumerate(rows))
    check(path, Schema("t", key="k", query="SELECT * FROM t" if is_query else None), wanted)


@given(
    st.tuples(st.sampled_from(AFFINITIES), st.sampled_from(AFFINITIES)),
    st.lists(st.tuples(values, values), max_size=8),
    st.lists(st.one_of(st.tuples(asked, asked), asked), max_size=6),
    st.sampled_from(["UNIQUE INDEX i ON t (a, b, n)", "INDEX i ON t (b)", "INDEX i ON t (n)"]),
    st.booleans(),
)
def test_a_lookup_by_two_columns_gives_what_a_scan_gives(  # noqa: PLR0917
    tmp_path_factory, affinities, rows, wanted, index, is_query
):
    one, other = affinities
    path = tmp_path_factory.mktemp("two") / "t.db"
    script = f"CREATE TABLE t (n INTEGER PRIMARY KEY, a {one}, b {other}); CREATE {index}"
    make(path, script, *[(n, *row) for n, row in enumerate(rows)])
    check(path, Schema("t", key=("a", "b"), query="SELECT * FROM t" if is_query else None), wanted)


@given(st.lists(values, max_size=4), st.lists(values, max_size=4), st.sampled_from(AFFINITIES), st.lists(asked))
def test_a_lookup_in_a_union_of_affinities_gives_what_a_scan_gives(tmp_path_factory, rows, more, affinity, wanted):
    path = tmp_path_factory.mktemp("union") / "t.db"
    make(path, f"CREATE TABLE a (n INTEGER PRIMARY KEY, k {affinity}); CREATE TABLE b (n INTEGER PRIMARY KEY, k TEXT)")
    make(path, "", *enumerate(rows), into="a")
    make(path, "", *((n + 100, row) for n, row in enumerate(more)), into="b")
    for query in ("SELECT * FROM a UNION ALL SELECT * FROM b", "SELECT * FROM b UNION SELECT * FROM a ORDER BY 1"):
        schema = Schema("t", key="k", query=query)
        with contextlib.closing(SQLiteSource(path, schema)) as source:
            there = {record.values[0] for record in source.find("t", {})}
            found = source.fetch("t", wanted)
            assert same([one and one.values[0] for one in found], [k if k in there else None for k in wanted])


@pytest.mark.parametrize("bad", [None, 1.5])
def test_a_row_without_a_key_stops_a_build_and_is_not_found(source, bad):
    found = source("CREATE TABLE t (k PRIMARY KEY, v)", ("a", 1), (bad, 2), ("b", 3), schema=Schema("t", index=("v",)))
    with pytest.raises(BuildError, match=r"the key 'k' is (NULL|the real number 1.5); a key is text, an integer or"):
        everything(found)
    assert [record.values[0] for record in found.find("t", {"v": (1, 2)})] == ["a"]
    assert [record and record.values[0] for record in found.fetch("t", ["a", 1, 2, "1.5"])] == ["a", None, None, None]


def test_a_row_without_a_part_of_its_key_stops_a_build_and_is_not_found(source):
    source = source("CREATE TABLE t (a, b, PRIMARY KEY (a, b))", ("x", 1), ("x", None))
    with pytest.raises(BuildError, match=r"key \('x', None\): the key 'b' is NULL"):
        everything(source)
    assert [record.values[0] for record in source.find("t", {})] == [("x", 1)]


def test_a_bad_row_elsewhere_does_not_stop_a_lookup(source):
    schema = Schema("t", embedding="v")
    source = source("CREATE TABLE t (k TEXT PRIMARY KEY COLLATE NOCASE, v)", ("Ab", "no vector"), schema=schema)
    assert source.fetch("t", ["ab"]) == [None]


def test_thousands_of_keys_of_two_columns_are_found_and_put_in_order(source):
    rows = [(i % 7, f"k{i * 7919 % 9001}") for i in range(3000)]
    source = source("CREATE TABLE t (a INTEGER, b TEXT, PRIMARY KEY (a, b))", *rows)
    wanted = [*rows[::-2], (1, "no")]
    assert [one and one.values[0] for one in source.fetch("t", wanted)] == [*rows[::-2], None]
    assert source.in_order("t", wanted) == [row for row in rows if row in set(wanted)]
    assert source.in_order("t", wanted[:300]) == [row for row in rows if row in set(wanted[:300])]


# --- by index ---------------------------------------------------------------------------------------------------------

INDEXED = {
    "integer": ("CREATE TABLE t (id INTEGER PRIMARY KEY, v)", Schema("t"), [1, 2, 3]),
    "text": ("CREATE TABLE t (id TEXT PRIMARY KEY, v)", Schema("t"), ["a", "b"]),
    "blob": ("CREATE TABLE t (id BLOB PRIMARY KEY, v)", Schema("t"), [b"a", b"b"]),
    "rowid": ("CREATE TABLE t (v)", Schema("t"), [1, 2]),
    "two columns": ("CREATE TABLE t (a TEXT, b INTEGER, v, PRIMARY KEY (a, b))", Schema("t"), [("a", 1), ("b", 2)]),
    "without rowid": ("CREATE TABLE t (a, b, v, PRIMARY KEY (b, a)) WITHOUT ROWID", Schema("t"), [(1, b"x"), (2, "y")]),
    "without case": ("CREATE TABLE t (id TEXT PRIMARY KEY COLLATE NOCASE, v)", Schema("t"), ["a", "b"]),
    "a view": (
        "CREATE TABLE x (a, b, v, PRIMARY KEY (a, b)); CREATE VIEW t AS SELECT b, a, v FROM x",
        Schema("t", key=("b", "a")),
        [(1, 2), (3, 4)],
    ),
    "a query": (
        "CREATE TABLE x (id INTEGER PRIMARY KEY, v)",
        Schema("t", query="SELECT id AS Id, v FROM x"),
        [1, 2],
    ),
    "a query with a key of text": (
        "CREATE TABLE x (id TEXT PRIMARY KEY, v)",
        Schema("t", key="id", query="SELECT id, v FROM x WHERE v IS NOT 'gone'"),
        ["a", "b"],
    ),
    "a query with a BLOB": (
        "CREATE TABLE x (id BLOB PRIMARY KEY, v)",
        Schema("t", key="id", query="SELECT id, v FROM x ORDER BY v"),
        [b"a", b"b"],
    ),
    "a query with two columns": (
        "CREATE TABLE x (a TEXT, b INTEGER, v, PRIMARY KEY (a, b))",
        Schema("t", key=("a", "b"), query="SELECT v, b, a FROM x"),
        [("a", 1), ("b", 2)],
    ),
    "a query with the rowid": (
        "CREATE TABLE x (v)",
        Schema("t", key="n", query="SELECT rowid AS n, v FROM x"),
        [1, 2],
    ),
}


@pytest.mark.parametrize("count", [1, 2, 300])
@pytest.mark.parametrize(("script", "schema", "wanted"), INDEXED.values(), ids=INDEXED)
def test_no_lookup_by_key_scans_the_table(source, script, schema, wanted, count):
    source = source(script, schema=schema)
    wanted = (wanted * count)[:count]
    if count > 2:
        first = wanted[0]
        one = isinstance(first, tuple)
        wanted = [(i, i) if one else i if isinstance(first, int) else str(i) for i in range(count)]
    asks = [lambda: source.fetch("t", wanted)]
    if schema.query is None and "VIEW" not in script:  # which are run whole, to keep their order
        asks.append(lambda: source.in_order("t", wanted))
    for ask in asks:
        plan = plan_of(source, ask)
        assert any("SEARCH" in step for step in plan), plan
        assert not any(step.startswith("SCAN") for step in plan), plan


def plan_of(source, ask):
    """EXPLAIN QUERY PLAN of the last statement of a look-up."""
    statements: list[str] = []
    with inside.connection(source) as connection:
        connection.raw.set_trace_callback(statements.append)
    ask()
    with inside.connection(source) as connection:
        connection.raw.set_trace_callback(None)
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statements[-1]}").fetchall()]


# --- collations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("collation", ["NOCASE", "RTRIM"])
def test_a_key_with_another_collation_is_named_once(source, caplog, collation):
    source = source(f"CREATE TABLE t (a TEXT, b TEXT COLLATE {collation}, PRIMARY KEY (a, b))", ("x", "Abc"))
    caplog.set_level(logging.INFO)
    for _ in range(3):
        everything(source)
    (line,) = [record.getMessage() for record in caplog.records if "collation" in record.getMessage()]
    assert f"collection 't': the key a, b has the collation {collation} in the database" in line


def test_a_key_with_the_usual_collation_is_not_named(source, caplog):
    everything(source("CREATE TABLE t (k TEXT PRIMARY KEY, v TEXT COLLATE NOCASE)"))
    assert not caplog.records
