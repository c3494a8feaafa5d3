"""`find` answers as a file of the same records would: the oracle is `schema.terms_of` over what the build reads."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3

import pytest
from hypothesis import example, given, strategies as st

from mmcache import above, at_least, at_most, between, startswith
from mmcache.errors import BuildError, SourceError
from mmcache.schema import Query, Schema, parse_query, terms_of
from mmcache.sources import SQLiteSource
from mmcache.sources.conditions import MAX_TERMS
from tests.support import inside

PLAIN = ("as_text", "as_int", "as_num", "as_real", "as_any", "nocase")
FIELDS = (*PLAIN, "j")
SCHEMA = Schema("items", index=FIELDS, json=("j",))
DDL = """
    CREATE TABLE items (id TEXT PRIMARY KEY, as_text TEXT, as_int INTEGER, as_num NUMERIC, as_real REAL, as_any,
                        nocase TEXT COLLATE NOCASE, j JSON);
    CREATE INDEX i1 ON items (as_text);
    CREATE INDEX i2 ON items (as_any);
    CREATE INDEX i3 ON items (nocase);
"""
WAYS = {
    "table": SCHEMA,
    "query": Schema("items", index=FIELDS, json=("j",), query="SELECT * FROM items ORDER BY as_any, id DESC"),
    "unordered": Schema("items", index=FIELDS, json=("j",), query="SELECT * FROM items"),
    "view": Schema("items", index=FIELDS, json=("j",), table="seen"),
}

texts = st.sampled_from(
    ["", "a", "A", "é", "É", "5", "05", "5.0", "1e2", "a\0b", "true", "null", "[]", "😀", "x y", "'"]
)
numbers = st.sampled_from([0, 1, -1, 5, 2**53 + 1, 2**63 - 1, -(2**63)])
terms = st.one_of(st.none(), st.booleans(), texts, numbers, st.sampled_from([2**63, 2**64 - 1, "\ud800", "a\0"]))
columns = st.one_of(st.none(), texts, numbers, st.sampled_from([5.0, 1.5, -0.0, 1e300, b"a", b"5", b""]))

scalars = st.one_of(
    st.none(), st.booleans(), texts, numbers, st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63) - 1, 5.0, 1e2])
)
nested = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=2), max_leaves=6
)
json_texts = st.one_of(
    st.none(),
    st.builds(json.dumps, st.one_of(scalars, st.lists(scalars, max_size=4), nested), ensure_ascii=st.booleans()),
    st.builds(lambda value: f" \n{json.dumps(value)}\t", st.lists(scalars, max_size=2)),
    st.sampled_from(["-0", "1E2", '"\\ud83d\\ude00"', '"\\/"', '["\\u0061", 5]', "[-0, 0.0]", '{"a": "b"}', "[[5]]"]),
)
rows = st.lists(st.tuples(*[columns] * len(PLAIN), json_texts), min_size=1, max_size=8)
queries = st.dictionaries(st.sampled_from(FIELDS), st.one_of(terms, st.lists(terms, max_size=4)), max_size=2)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A function that gives the path of a new database."""
    directory = tmp_path_factory.mktemp("find")
    counter = itertools.count()
    return lambda: directory / f"{next(counter)}.db"


def fill(path, given):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript("PRAGMA synchronous = OFF;" + DDL + "CREATE VIEW seen AS SELECT * FROM items WHERE id <> 'k0'")
        db.executemany(
            f"INSERT INTO items VALUES (?, {', '.join('?' * len(FIELDS))})",
            [(f"k{i}", *row) for i, row in enumerate(given)],
        )
        db.commit()


def answers(record, query):
    """The oracle: the record's own values, by the one definition of terms."""
    for field, wanted in query.items():
        try:
            held = terms_of(record.values[record.names.index(field)])
        except TypeError:
            return False
        if set(held).isdisjoint(wanted):
            return False
    return True


def check(path, asked):
    for way, schema in WAYS.items():
        query = parse_query(schema, asked, {})
        with contextlib.closing(SQLiteSource(path, schema)) as source:
            with source.read() as reading:
                expected = [record for record in reading.records("items") if answers(record, query)]
            assert list(source.find("items", query)) == expected, (way, query)


@given(rows, st.lists(queries, min_size=1, max_size=4))
@example([(None,) * 6 + ('"a\\u0000b"',), (None,) * 6 + ('"a"',)], [{"j": "a"}, {"j": "a\0b"}])
@example([(None,) * 6 + (f"[{2**63}]",), (None,) * 6 + (f"[{2**63 - 1}]",)], [{"j": 2**63}, {"j": 2**63 - 1}])
@example(
    [("5", "5", "5", "5", "5", "5", "5"), (5, 5, 5, 5, 5, 5, "[5, true]")],
    [{f: v} for f in FIELDS for v in (5, "5", True)],
)
def test_find_is_what_a_scan_with_terms_of_gives(fresh, given, asked):
    path = fresh()
    fill(path, given)
    for query in asked:
        check(path, query)


@pytest.mark.parametrize("field", ["as_text", "as_int", "j"])
@pytest.mark.parametrize("count", [MAX_TERMS, MAX_TERMS + 1, 260_000])  # more than any SQLite takes as parameters
def test_any_number_of_terms(fresh, field, count):
    path = fresh()
    fill(path, [(f"t{i}",) * 6 + (json.dumps([f"t{i}"]),) for i in range(5)])
    source = SQLiteSource(path, SCHEMA)
    query: Query = {field: tuple(f"t{i}" for i in range(3, 3 + count))}
    assert [record.values[0] for record in source.find("items", query)] == ["k3", "k4"]
    source.close()


def test_no_terms_match_nothing_and_no_fields_match_all(fresh):
    path = fresh()
    fill(path, [(None,) * 7, ("a",) * 6 + ('"a"',)])
    source = SQLiteSource(path, SCHEMA)
    assert len(list(source.find("items", {}))) == 2
    for field in FIELDS:
        assert list(source.find("items", {field: ()})) == []
    source.close()


def test_an_empty_list_matches_nothing_not_even_none(fresh):
    path = fresh()
    fill(path, [(None,) * 6 + (text,) for text in ("[]", "null", None, "[null]", "{}", '""')])
    source = SQLiteSource(path, SCHEMA)
    assert [record.values[0] for record in source.find("items", {"j": (None,)})] == ["k1", "k2", "k3"]
    source.close()


def test_a_record_that_does_not_decode_is_an_error_not_an_omission(fresh):
    path = fresh()
    fill(path, [(None,) * 6 + (text,) for text in ('["a"]', "[oops", '["a"]')])
    source = SQLiteSource(path, SCHEMA)
    found = source.find("items", {"j": ("a",)})
    assert next(found).values[0] == "k0"
    with pytest.raises(SourceError, match="key 'k1': column 'j' is not JSON text"):
        next(found)
    with pytest.raises(SourceError, match="key 'k1': column 'j' is not JSON text"):
        source.fetch("items", ["k0", "k1"])
    source.close()


def test_find_keeps_the_order_of_the_records(fresh):
    path = fresh()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(
            "CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT); CREATE INDEX k ON items (kind);"
            "CREATE TABLE w (id TEXT, kind TEXT, PRIMARY KEY (id DESC)) WITHOUT ROWID; CREATE INDEX wk ON w (kind);"
            "CREATE VIEW seen AS SELECT id, kind FROM items"
        )
        pairs = [(f"k{i * 37 % 101}", "abc"[i % 3]) for i in range(101)]
        db.executemany("INSERT INTO items VALUES (?, ?)", pairs)
        db.executemany("INSERT INTO w VALUES (?, ?)", pairs)
    for schema in (
        Schema("items", index=("kind",)),
        Schema("w", index=("kind",)),
        Schema("seen", index=("kind",)),
        Schema("q", index=("kind",), query="SELECT id, kind FROM items"),
        Schema("o", index=("kind",), query="SELECT id, kind FROM items ORDER BY id DESC"),
    ):
        with contextlib.closing(SQLiteSource(path, schema)) as source:
            with source.read() as reading:
                everything = list(reading.records(schema.name))
            for wanted in [("a",), ("c", "a"), ("b", "c", "a")]:
                expected = [record for record in everything if record.values[1] in wanted]
                assert list(source.find(schema.name, {"kind": wanted})) == expected
                assert len(expected) >= 33


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM items",
        "SELECT id, kind, wide FROM items",
        "SELECT items.*, tag FROM items JOIN tags USING (id)",
        "SELECT id, kind FROM items UNION ALL SELECT id || tag, tag FROM tags",
        "SELECT DISTINCT id, kind, wide FROM items",
        "SELECT min(id) AS id, kind, count(*) AS n FROM items GROUP BY kind, wide",
    ],
    ids=["all", "columns", "join", "union", "distinct", "groups"],
)
@pytest.mark.parametrize("columns", [None, ("kind",)], ids=["all columns", "indexed columns"])
def test_an_index_that_covers_a_query_does_not_change_its_order(fresh, query, columns):
    """Case: a read of all records needs no more than an index has, and goes through that; a condition keeps it off."""
    path = fresh()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(
            "CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, wide BLOB); CREATE INDEX covers ON items (kind, id);"
            "CREATE TABLE tags (id TEXT, tag TEXT); CREATE INDEX covers_tags ON tags (tag, id);"
            "CREATE VIEW seen AS " + query
        )
        triples = [(f"k{i * 37 % 101}", "abc"[i % 3], bytes(500) + bytes([i % 7])) for i in range(101)]
        db.executemany("INSERT INTO items VALUES (?, ?, ?)", triples)
        db.execute("INSERT INTO tags SELECT id, kind || length(id) FROM items ORDER BY id DESC")
    for schema in (
        Schema("q", index=("kind",), query=query, columns=columns),
        Schema("q", index=("kind",), table="seen", columns=columns),
        Schema("q", index=("kind",), query=query, columns=columns, json=("kind",)),
    ):
        if schema.json:
            with contextlib.closing(sqlite3.connect(path)) as db, db:
                db.execute("""UPDATE items SET kind = '["' || kind || '"]'""")
                db.execute("""UPDATE tags SET tag = '["' || tag || '"]'""")
        with contextlib.closing(SQLiteSource(path, schema)) as source:
            with source.read() as reading:
                everything = list(reading.records("q"))
            for wanted in [("a",), ("c", "a"), ("a2", "b")]:
                expected = [one for one in everything if not set(wanted).isdisjoint(terms_of(one.values[1]))]
                assert list(source.find("q", {"kind": wanted})) == expected
                keys = [one.values[0] for one in reversed(expected)]
                assert source.in_order("q", keys) == list(dict.fromkeys(one.values[0] for one in expected))


def test_columns_of_a_union_keep_their_own_affinities(fresh):
    path = fresh()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript(
            "CREATE TABLE a (id TEXT, n INTEGER); INSERT INTO a VALUES ('a', 5);"
            "CREATE TABLE b (id TEXT, n TEXT); INSERT INTO b VALUES ('b', '5')"
        )
    for query in ("SELECT * FROM a UNION ALL SELECT * FROM b", "SELECT * FROM b UNION ALL SELECT * FROM a"):
        with contextlib.closing(SQLiteSource(path, Schema("u", index=("n",), query=query))) as source:
            assert [record.values[0] for record in source.find("u", {"n": ("5",)})] == ["b"]
            assert [record.values[0] for record in source.find("u", {"n": (5,)})] == ["a"]


def test_an_abandoned_search_gives_its_connection_back(fresh):
    path = fresh()
    fill(path, [(None,) * 7] * 10)
    source = SQLiteSource(path, SCHEMA)
    found = source.find("items", {})
    next(found)
    # The search holds its own connection: a lookup meanwhile does not disturb it.
    assert [record and record.values[0] for record in source.fetch("items", ["k3"])] == ["k3"]
    assert next(found).values[0] == "k1"
    assert len(inside.open_connections(source)) == 2
    del found
    assert len(inside.idle_connections(source)) == 2
    source.close()


@pytest.mark.parametrize(
    "asked", [between(3, 5), range(3, 9), above(4.5), [2, at_most(-(2**70))], startswith("a"), at_least("b")]
)
def test_a_range_is_answered_by_the_index_of_its_column(fresh, asked):
    path = fresh()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript("CREATE TABLE items (id TEXT PRIMARY KEY, n, more TEXT); CREATE INDEX by_n ON items (n)")
    schema = Schema("items", index=("n",))
    with contextlib.closing(SQLiteSource(path, schema)) as source:
        plan = inside.plan_of_find(source, parse_query(schema, {"n": asked}, {}))
    assert any("USING INDEX by_n" in step for step in plan), plan
    assert not any(step.startswith("SCAN") for step in plan), plan


def test_text_of_another_encoding_is_found_by_ranges_too(fresh):
    """Case: SQLite orders the bytes of UTF-16."""
    path = fresh()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA encoding = 'UTF-16le'")
        db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, n TEXT)")
        words = ["a", "b", "\u0101", "\u0200", "z", "\ue000", "\U0001f600"]
        db.executemany("INSERT INTO items VALUES (?, ?)", [(word, word) for word in words])
    schema = Schema("items", index=("n",))
    with contextlib.closing(SQLiteSource(path, schema)) as source:
        for asked, ids in (
            (between("b", "z"), "bz"),
            (above("z"), "\u0101\u0200\ue000\U0001f600"),
            (startswith("\ue000"), "\ue000"),
        ):
            found = source.find("items", parse_query(schema, {"n": asked}, {}))
            assert sorted(record.values[0] for record in found) == sorted(ids)


NOT_PATHS = {
    "doc.s.nope": "none of the first 1 records has 'doc.s.nope'",
    "dok.s": "no column named dok.s",
}


@pytest.mark.parametrize("json_fields", [("doc",), ()])
def test_a_path_leads_into_a_column_of_json_and_nowhere_else(fresh, json_fields):
    path = fresh()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, doc TEXT)")
        db.execute("""INSERT INTO items VALUES ('a', '{"s": {"t": [1, {"u": 2}]}}')""")
    for field, reason in NOT_PATHS.items():
        source = SQLiteSource(path, Schema("items", index=(field,), json=json_fields))
        reason = reason if json_fields or field == "dok.s" else "is a path into 'doc', which is not among json="
        with contextlib.closing(source), pytest.raises(BuildError, match=reason), source.read() as reading:
            list(reading.records("items"))
