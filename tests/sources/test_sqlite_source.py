"""What SQLiteSource reads, in which order, and what it refuses."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest

from mmcache.errors import BuildError, SourceError
from mmcache.schema import Schema
from mmcache.sources import SQLiteSource, from_spec
from mmcache.sources.base import Reading, Source, SourceRecord
from tests.support import inside

V = struct.pack("<2f", 0.5, -1.0)
ITEMS = Schema("items", key="id", embedding="v", dim=2)


def write(path: Path, script: str, *rows: tuple[object, ...], into: str = "items") -> Path:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executescript("PRAGMA synchronous = OFF;" + script)
        for row in rows:
            db.execute(f"INSERT INTO {into} VALUES ({', '.join('?' * len(row))})", row)
    return path


@pytest.fixture
def db(tmp_path):
    return write(
        tmp_path / "items.db",
        "CREATE TABLE items (v BLOB, id TEXT PRIMARY KEY, kind TEXT, size INTEGER, data TEXT)",
        (V, "b", "x", 1, '{"n": [1, 2.5, null]}'),
        (None, "a", "y", 2, None),
        (V, "ü", None, None, " [] "),
    )


@pytest.fixture
def source(db):
    source = SQLiteSource(db, ITEMS)
    yield source
    source.close()


def records(path: Path, *schemas: Schema, **options: Any) -> list[SourceRecord]:
    """Everything of the first collection."""
    with contextlib.closing(SQLiteSource(path, *schemas, **options)) as source, source.read() as reading:
        return list(reading.records(schemas[0].name))


def keys(path: Path, schema: Schema) -> list[str]:
    return [record.values[0] for record in records(path, schema)]


def test_it_is_a_source(source):
    assert isinstance(source, Source)
    assert source.schemas == (ITEMS,)
    with source.read() as reading:
        reading_: Reading = reading
        assert reading_.count("items") == 3


def test_a_record_has_its_key_first_and_its_embedding_apart(source):
    with source.read() as reading:
        found = list(reading.records("items"))
    assert [type(record) for record in found] == [SourceRecord] * 3
    assert found[0] == (("id", "kind", "size", "data"), ("b", "x", 1, '{"n": [1, 2.5, null]}'), V)
    assert [record.vector for record in found] == [V, None, V]
    assert len({id(record.names) for record in found}) == 1


def test_without_an_embedding_field_the_blob_is_a_value(db):
    assert records(db, Schema("items", key="id"))[0] == (
        ("id", "v", "kind", "size", "data"),
        ("b", V, "x", 1, '{"n": [1, 2.5, null]}'),
        None,
    )


def test_json_columns_are_decoded(db):
    found = records(db, Schema("items", key="id", embedding="v", json=("data",)))
    assert [record.values[3] for record in found] == [{"n": [1, 2.5, None]}, None, []]
    assert [record.vector for record in found] == [V, None, V]
    assert found == records(db, Schema("items", key="id", embedding="v", dim=2, json=("data",)))


def test_a_column_of_type_json_may_hold_numbers(tmp_path):
    # The declared type JSON has numeric affinity: '5' and '1.50' are stored as numbers.
    path = write(
        tmp_path / "j.db",
        "CREATE TABLE items (id TEXT, j JSON)",
        *[(key, text) for key, text in zip("abcd", ["5", "1.50", '"5"', "true"], strict=True)],
    )
    assert [record.values[1] for record in records(path, Schema("items", key="id", json=("j",)))] == [5, 1.5, "5", True]


def test_columns_are_chosen_and_key_and_embedding_always_taken(db):
    (first, *_) = records(db, Schema("items", key="id", columns=("size", "kind"), embedding="v"))
    assert first == (("id", "size", "kind"), ("b", 1, "x"), V)
    (first, *_) = records(db, Schema("items", key="id", columns=("v", "id"), embedding="v"))
    assert first == (("id",), ("b",), V)
    (first, *_) = records(db, Schema("items", key="id", columns=()))
    assert first == (("id",), ("b",), None)


def test_table_key_and_collection_have_names_of_their_own(db):
    schema = Schema("things", table="items", key="kind", columns=("id",))
    with contextlib.closing(SQLiteSource(db, schema)) as source, source.read() as reading:
        assert next(reading.records("things")).values == ("x", "b")


def test_embeddings_in_other_forms(tmp_path):
    path = write(
        tmp_path / "e.db",
        "CREATE TABLE items (id TEXT, v)",
        ("json", "[0.5, -1]"),
        ("null", None),
        ("f4", V),
        ("json null", "null"),
    )
    for schema in (Schema("items", key="id", embedding="v"), Schema("items", key="id", embedding="v", dim=2)):
        assert [record.vector for record in records(path, schema)] == [V, None, V, None]
    path = write(
        tmp_path / "f8.db", "CREATE TABLE items (id TEXT, v)", ("a", struct.pack("<2d", 0.5, -1.0)), ("b", None)
    )
    assert [record.vector for record in records(path, Schema("items", key="id", embedding="v", dtype="f8"))] == [
        V,
        None,
    ]


def test_values_keep_their_storage_classes(tmp_path):
    values = (None, -(2**63), 2**63 - 1, 1.5, "", "a\0b", "😀", b"", b"\xff\0")
    columns = [f"c{i}" for i in range(len(values))]
    path = write(tmp_path / "v.db", f"CREATE TABLE items (id TEXT, {', '.join(columns)})", ("a", *values))
    assert records(path, Schema("items", key="id"))[0].values == ("a", *values)


# ---- order -----------------------------------------------------------------------------------------------------------


def test_rowid_tables_come_by_rowid_whatever_index_would_do(tmp_path):
    path = write(
        tmp_path / "o.db",
        "CREATE TABLE items (id TEXT PRIMARY KEY); CREATE INDEX i ON items (id DESC)",
        ("c",),
        ("a",),
        ("b",),
    )
    assert keys(path, Schema("items", key="id")) == ["c", "a", "b"]


def test_tables_with_columns_named_like_the_rowid_come_by_rowid(tmp_path):
    path = write(
        tmp_path / "o.db",
        "CREATE TABLE items (id TEXT PRIMARY KEY, rowid TEXT, _rowid_ TEXT)",
        ("c", "1", "3"),
        ("a", "3", "2"),
        ("b", "2", "1"),
    )
    assert keys(path, Schema("items", key="id")) == ["c", "a", "b"]


def test_tables_without_rowid_come_by_primary_key(tmp_path):
    path = write(
        tmp_path / "o.db",
        "CREATE TABLE items (id TEXT, n INTEGER, PRIMARY KEY (n DESC, id)) WITHOUT ROWID",
        ("c", 1),
        ("a", 2),
        ("b", 1),
    )
    assert keys(path, Schema("items", key="id")) == ["b", "c", "a"]


@pytest.mark.parametrize("order", ["size DESC", "id"])
def test_queries_and_views_come_as_they_order(tmp_path, db, order):
    query = f"SELECT * FROM items ORDER BY {order}"
    expected = {"size DESC": ["a", "b", "ü"], "id": ["a", "b", "ü"]}[order]
    assert keys(db, Schema("items", key="id", query=query)) == expected
    with contextlib.closing(sqlite3.connect(db)) as other, other:
        other.execute(f"CREATE VIEW seen AS {query}")
    assert keys(db, Schema("seen", key="id")) == expected


# ---- queries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id, kind AS k FROM items WHERE kind = 'x'",
        "SELECT id, kind AS k FROM items WHERE kind = 'x' -- why",
        "WITH w AS (SELECT * FROM items) SELECT id, kind AS k FROM w WHERE kind = 'x'",
        "VALUES ('b', 'x')",
    ],
)
def test_a_query_is_any_select(db, query):
    key = "column1" if query.startswith("VALUES") else "id"
    (found,) = records(db, Schema("items", key=key, query=query))
    assert found.values == ("b", "x")


def test_a_query_has_no_count(db):
    with (
        contextlib.closing(
            SQLiteSource(db, Schema("q", key="id", query="SELECT id FROM items"), Schema("items", key="id"))
        ) as source,
        source.read() as reading,
    ):
        assert reading.count("q") is None
        assert reading.count("items") == 3


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT nope FROM items", "no such column: nope"),
        ("SELEC 1", "syntax error"),
        ("DELETE FROM items RETURNING id", "syntax error"),
        ("SELECT id FROM items; SELECT 1", "syntax error"),
        ("SELECT id FROM items WHERE kind = ?", "without parameters"),
        ("SELECT a.id, b.id FROM items a JOIN items b", "more than one column named id"),
        ("SELECT id, kind, kind FROM items", "more than one column named kind"),
    ],
)
def test_a_query_that_cannot_be_read_is_refused(db, query, reason):
    with pytest.raises(BuildError, match=reason) as caught:
        records(db, Schema("q", key="id", query=query))
    assert caught.value.collection == "q"
    assert caught.value.path == str(db)


def test_a_column_named_like_a_renamed_duplicate_is_none(db):
    (first, *_) = records(db, Schema("q", key="id", query='SELECT id, kind AS "id:1" FROM items'))
    assert first == (("id", "id:1"), ("b", "x"), None)


# ---- names -----------------------------------------------------------------------------------------------------------

ODD_NAMES = ['a"b', "select", "s", "a b", "a.b", "it's", "[x]", "a,b", "naïve", "rowid;--", "id:1"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_of_a_table_or_column_works(tmp_path, name):
    quoted = '"' + name.replace('"', '""') + '"'
    path = write(tmp_path / "n.db", f"CREATE TABLE {quoted} (id TEXT, {quoted} TEXT)", ("a", "x"), into=quoted)
    schema = Schema("items", key="id", table=name, index=(name,), columns=(name,))
    assert records(path, schema)[0] == (("id", name), ("a", "x"), None)
    with contextlib.closing(SQLiteSource(path, schema)) as source:
        assert [record.values for record in source.find("items", {name: ("x",)})] == [("a", "x")]
    schema = Schema("items", table=name, key=name)
    assert records(path, schema)[0].values == ("x", "a")
    with contextlib.closing(SQLiteSource(path, schema)) as source:
        assert [record and record.values for record in source.fetch("items", ["x", "a"])] == [("x", "a"), None]


def test_table_names_ignore_case_as_sqlite_does(db):
    assert len(records(db, Schema("ITEMS"))) == 3


@pytest.mark.parametrize("name", ["a b.db", "a?mode=rwc", "a#b", "100%41.db", "ü&vfs=none.db", "file:x", "a//b"])
def test_any_path_works_and_nothing_is_created(tmp_path, db, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    with pytest.raises(SourceError, match="no database at this path"):
        records(path, ITEMS)
    assert not path.exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted({"items.db", *Path(name).parts[:-1]})
    shutil.copy(db, path)
    assert len(records(path, ITEMS)) == 3


@pytest.mark.skipif(os.uname().sysname == "Darwin", reason="names of files are UTF-8 there")
def test_a_path_that_is_not_utf8_works_and_stands_in_the_spec_as_bytes(tmp_path, db):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.db")
    shutil.copy(db, path)
    assert len(records(Path(path), ITEMS)) == 3
    spec = SQLiteSource(path, ITEMS).spec()
    assert spec == {"kind": "sqlite", "path": os.fsencode(path)}
    source = from_spec(spec, [ITEMS])
    assert isinstance(source, SQLiteSource)
    assert source.path == path


def test_two_leading_slashes_are_no_host_name(db):
    assert len(records(Path("//" + str(db).lstrip("/")), ITEMS)) == 3
    source = SQLiteSource("/" + str(db), ITEMS)
    assert source.path.startswith("//")
    assert source.fetch("items", ["b"]) != [None]
    source.close()


def test_the_path_is_made_absolute_at_once(db, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    source = SQLiteSource("items.db", ITEMS)
    assert source.spec() == {"kind": "sqlite", "path": str(db)}
    monkeypatch.chdir("/")
    assert source.fetch("items", ["b"]) != [None]
    source.close()


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (Schema("nope"), "no table 'nope'; it has: items"),
        (Schema("x", key="id", table="ITEM"), "no table 'ITEM'; it has: items"),
        (Schema("x", key="id", table="sqlite_master"), "no table 'sqlite_master'"),
        (Schema("items", key="no"), "key: no column named no; there are: v, id, kind, size, data"),
        (Schema("items", key=("id", "no")), "key: no column named no; there are: v, id, kind, size, data"),
        (Schema("items", key="id", embedding="w"), "embedding: no column named w; there are"),
        (Schema("items", key="id", columns=("w", "u", "id")), "columns: no column named w, u; there are"),
        (Schema("items", key="id", index=("w",)), "index: no column named w; there are"),
        (Schema("items", key="id", json=("w",)), "json: no column named w; there are"),
        (
            Schema("items", key="id", index=("kind",), columns=("size",)),
            r"index: kind not among columns=\['id', 'size'\]",
        ),
        (Schema("items", key="id", json=("data",), columns=("size",)), "json: data not among columns"),
        (Schema("items", key="id", json=("id",)), "'id' is the key"),
    ],
)
def test_a_schema_the_database_cannot_meet_is_refused_everywhere(db, schema, reason):
    source = SQLiteSource(db, schema)
    with pytest.raises(BuildError, match=reason) as caught, source.read():
        pass
    assert caught.value.collection == schema.name
    assert caught.value.path == str(db)
    with pytest.raises(SourceError, match=reason):
        source.fetch(schema.name, ["b"])
    with pytest.raises(SourceError, match=reason):
        list(source.find(schema.name, {}))
    source.close()


@pytest.mark.parametrize(
    ("row", "reason", "key"),
    [
        ((None, 1.5, "x"), "the key 'id' is the real number 1.5; a key is text, an integer or a BLOB", "1.5"),
        ((None, None, "x"), "the key 'id' is NULL; a key is text, an integer or a BLOB", None),
        ((b"", "k", "x"), "empty", "k"),
        ((b"1234567", "k", "x"), "7 bytes, expected 8", "k"),
        ((struct.pack("<2d", 1, 2), "k", "x"), "float64.*dtype='f8'", "k"),
        ((b"\0" * 12, "k", "x"), "12 bytes, expected 8", "k"),
        (("[1, 2, 3]", "k", "x"), "3 numbers, expected dim=2", "k"),
        (("[1, x]", "k", "x"), "not JSON", "k"),
        ((7, "k", "x"), "type int", "k"),
    ],
)
@pytest.mark.parametrize("json", [(), ("data",)])
def test_a_record_that_cannot_be_used_is_named(tmp_path, row, reason, key, json):
    script = "CREATE TABLE items (v, id, kind, data)"
    path = write(tmp_path / "r.db", script, (V, "ok", "x", "1"), (*row, "2"), (V, "later", "x", "3"))
    for schema in (
        Schema("items", key="id", embedding="v", dim=2, json=json),
        Schema("items", key="id", embedding="v", json=json),
    ):
        with pytest.raises(BuildError, match=reason.replace("bytes, expected 8", "bytes")) as caught:
            records(path, schema)
        error = caught.value
        assert (error.collection, error.key, error.path) == ("items", key, str(path))
        assert str(error).startswith(str(path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON text: Expecting"),
        ("", "not JSON text: Expecting"),
        ("1 2", "Extra data"),
        ("[" * 100_000, "recursion"),
        (b"[]", "a BLOB of 2 bytes"),
    ],
)
def test_json_columns_that_do_not_decode_are_named(tmp_path, text, reason):
    path = write(tmp_path / "j.db", "CREATE TABLE items (id TEXT, j)", ("a", "1"), ("k", text))
    with pytest.raises(BuildError, match=f"key 'k': column 'j' is not JSON text.*{reason.split(': ')[-1]}"):
        records(path, Schema("items", key="id", json=("j",)))


@pytest.mark.parametrize("bad", ["ff41", "eda080"], ids=["no UTF-8", "lone surrogate"])
def test_text_that_is_not_utf8_is_named(tmp_path, bad):
    script = f"CREATE TABLE items (id TEXT, t TEXT); INSERT INTO items VALUES ('a', 'x'), ('k', CAST(x'{bad}' AS TEXT))"
    path = write(tmp_path / "u.db", script)
    with pytest.raises(BuildError, match="the text of column 't' is not valid UTF-8") as caught:
        records(path, Schema("items", key="id"))
    assert (caught.value.collection, caught.value.key, caught.value.path) == ("items", "k", str(path))
    source = SQLiteSource(path, Schema("items", key="id"))
    assert [record and record.values for record in source.fetch("items", ["a"])] == [("a", "x")]
    with pytest.raises(SourceError, match="not valid UTF-8"):
        source.fetch("items", ["k"])
    with pytest.raises(SourceError, match="not valid UTF-8"):
        list(source.find("items", {}))
    source.close()


def test_a_key_that_is_not_utf8_is_named_too(tmp_path):
    path = write(tmp_path / "u.db", "CREATE TABLE items (id TEXT); INSERT INTO items VALUES (CAST(x'ff41' AS TEXT))")
    with pytest.raises(BuildError, match=r"key '\\udcffA': the text of column 'id'"):
        records(path, Schema("items", key="id"))


def test_what_is_no_database_is_said(tmp_path):
    (tmp_path / "text").write_text("not a database at all" * 100)
    with pytest.raises(SourceError, match="not a whole SQLite database"):
        records(tmp_path / "text", ITEMS)
    with pytest.raises(SourceError, match="not a file"):
        records(tmp_path, ITEMS)
    (tmp_path / "empty").touch()
    with pytest.raises(BuildError, match="no table 'items'; it has: none"):
        records(tmp_path / "empty", ITEMS)
    with pytest.raises(SourceError, match="cannot look at the database: No such file"):
        SQLiteSource(tmp_path / "missing", ITEMS).fingerprint()


def test_a_damaged_database_is_a_source_error(tmp_path):
    rows = [(f"k{i}", "x" * 500) for i in range(100)]
    path = write(tmp_path / "d.db", "CREATE TABLE items (id TEXT, t TEXT)", *rows)
    damaged = bytearray(path.read_bytes())
    damaged[4096:12288] = os.urandom(8192)
    path.write_bytes(damaged)
    with pytest.raises(SourceError, match="not a whole SQLite database") as caught:
        records(path, Schema("items", key="id"))
    assert caught.value.path == str(path)


def test_arguments_are_checked_when_the_source_is_made(db):
    with pytest.raises(TypeError, match="at least one Schema"):
        SQLiteSource(db)
    with pytest.raises(TypeError, match="takes Schema objects, not str"):
        SQLiteSource(db, "items")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="two schemas are named 'items'"):
        SQLiteSource(db, ITEMS, Schema("items", key="id"))
    with pytest.raises(ValueError, match="NUL"):
        SQLiteSource("a\0b", ITEMS)


def test_an_unknown_collection_lists_the_known(source):
    for ask in (
        lambda: source.fetch("x", []),
        lambda: list(source.find("x", {})),
        lambda: next(read(source, "x")),
    ):
        with pytest.raises(ValueError, match="no collection 'x'; it has: items"):
            ask()


def read(source, collection):
    with source.read() as reading:
        yield from reading.records(collection)


# ---- fetch -----------------------------------------------------------------------------------------------------------


def test_fetch_answers_in_the_order_asked_with_none_for_none(source):
    found = source.fetch("items", ["ü", "no", "b", "ü"])
    assert [record and record.values[0] for record in found] == ["ü", None, "b", "ü"]
    assert found[2] == (("id", "kind", "size", "data"), ("b", "x", 1, '{"n": [1, 2.5, null]}'), V)
    assert source.fetch("items", []) == []


@pytest.mark.parametrize(
    "schema",
    [Schema("items", key="id"), Schema("items", key="id", query="SELECT * FROM items"), Schema("seen", key="id")],
)
def test_fetch_of_thousands_is_chunked(tmp_path, schema):
    rows = [(f"k{i}",) for i in range(3000)]
    path = write(tmp_path / "m.db", "CREATE TABLE items (id TEXT); CREATE VIEW seen AS SELECT * FROM items", *rows)
    source = SQLiteSource(path, schema)
    asked = [f"k{i}" for i in range(3010, -1, -1)]
    found = source.fetch(schema.name, asked)
    assert [record and record.values[0] for record in found] == [key if int(key[1:]) < 3000 else None for key in asked]
    source.close()


def test_keys_are_equal_as_text_only(tmp_path):
    path = write(
        tmp_path / "k.db",
        "CREATE TABLE nocase (id TEXT PRIMARY KEY COLLATE NOCASE, n); INSERT INTO nocase VALUES ('Ab', 1);"
        "CREATE TABLE rtrim (id TEXT COLLATE RTRIM, n); INSERT INTO rtrim VALUES ('Ab ', 1), ('Ab', 2);"
        "CREATE TABLE number (id INTEGER, n); INSERT INTO number VALUES (5, 1);"
        "CREATE TABLE free (id, n); INSERT INTO free VALUES (x'4162', 1), ('Ab', 2), (5, 3), ('5', 4);",
    )
    names = ("nocase", "rtrim", "number", "free")
    source = SQLiteSource(path, *(Schema(name, key="id") for name in names))
    asked = ["ab", "Ab", "Ab ", "5", "05", "5.0"]
    found = {name: [record and record.values[1] for record in source.fetch(name, asked)] for name in names}
    assert found == {
        "nocase": [None, 1, None, None, None, None],
        "rtrim": [None, 2, 1, None, None, None],
        "number": [None] * 6,
        "free": [None, 2, None, 4, None, None],
    }
    source.close()


@pytest.mark.parametrize(
    "query", ["SELECT * FROM a UNION ALL SELECT * FROM b", "SELECT * FROM b UNION ALL SELECT * FROM a"]
)
def test_a_key_from_a_union_is_found_whatever_the_affinity_of_the_other_part(tmp_path, query):
    script = "CREATE TABLE a (id INTEGER); CREATE TABLE b (id TEXT); INSERT INTO b VALUES ('5'), ('05')"
    source = SQLiteSource(write(tmp_path / "u.db", script), Schema("u", key="id", query=query))
    for asked in (["5"], ["05"], ["5", "05", "x"]):
        assert [record and record.values[0] for record in source.fetch("u", asked)] == [
            *asked[:2],
            *[None] * (len(asked) - 2),
        ]
    source.close()


def test_ids_that_sqlite_cannot_hold_are_not_found(source):
    assert source.fetch("items", ["\ud800", "b"])[0] is None
    assert source.fetch("items", ["\ud800"]) == [None]
    assert source.fetch("items", [5, None, b"b", "b"])[:3] == [None] * 3


def test_fetch_uses_the_index_of_the_key_below_a_query_too(tmp_path, db):
    with contextlib.closing(sqlite3.connect(db)) as other, other:
        other.execute("CREATE VIEW seen AS SELECT id, kind FROM items")
    for schema in (
        Schema("items", key="id"),
        Schema("seen", key="id"),
        Schema("q", key="id", query="SELECT id, kind FROM items ORDER BY kind"),
    ):
        assert any("SEARCH items" in step or "SEARCH s" in step for step in plan_of(db, schema, "fetch")), schema


def plan_of(path, schema, method):
    """EXPLAIN QUERY PLAN of the last statement that a lookup made."""
    statements: list[str] = []
    with contextlib.closing(SQLiteSource(path, schema)) as source:
        with inside.connection(source) as connection:
            connection.raw.set_trace_callback(statements.append)
        if method == "fetch":
            source.fetch(schema.name, ["b"])
        else:
            list(source.find(schema.name, method))
        with inside.connection(source) as connection:
            connection.raw.set_trace_callback(None)
            return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statements[-1]}").fetchall()]


def test_find_uses_the_index_of_a_field(tmp_path):
    path = write(
        tmp_path / "i.db", "CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT); CREATE INDEX k ON items (kind)"
    )
    schema = Schema("items", key="id", index=("kind",))
    for terms in [("a",), ("a", "b"), (None,), ("a", 5, None), (True,)]:
        assert any("USING INDEX k" in step for step in plan_of(path, schema, {"kind": terms})), terms


def vectors(source, *ids):
    return [record.vector for record in source.fetch("items", ids)]


def test_a_lookup_looks_for_the_kind_of_embeddings_once_while_the_data_stay(tmp_path):
    """Also where the first ones do not tell it."""
    path = write(tmp_path / "v.db", "CREATE TABLE items (id TEXT PRIMARY KEY, v BLOB)")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.executemany("INSERT INTO items VALUES (?, ?)", [("a", None), ("b", None)])
    statements: list[str] = []
    with contextlib.closing(SQLiteSource(path, Schema("items", embedding="v", dim=20))) as source:
        with inside.connection(source) as connection:
            connection.raw.set_trace_callback(statements.append)
        for _ in range(3):
            assert vectors(source, "b") == [None]
        assert sum("LIMIT 16" in statement for statement in statements) == 1
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("INSERT INTO items VALUES ('c', ?)", (struct.pack("<20d", *(i / 7 for i in range(20))),))
        vector = struct.pack("<20f", *(i / 7 for i in range(20)))
        assert vectors(source, "c") == [vector]
        assert sum("LIMIT 16" in statement for statement in statements) == 2
        with inside.connection(source) as connection:
            connection.raw.set_trace_callback(None)


def test_keys_with_a_collation_of_the_applications_own_are_found_by_bytes(tmp_path):
    path = tmp_path / "c.db"
    with contextlib.closing(sqlite3.connect(path)) as other, other:
        other.create_collation("OWN", lambda a, b: (a > b) - (a < b))
        other.executescript(
            "CREATE TABLE items (id TEXT PRIMARY KEY COLLATE OWN); INSERT INTO items VALUES ('b'), ('a')"
        )
    assert keys(path, Schema("items", key="id")) == ["b", "a"]
    source = SQLiteSource(
        path, Schema("items", key="id"), Schema("q", key="id", query="SELECT id COLLATE BINARY AS id FROM items")
    )
    for collection in ("items", "q"):
        assert [record and record.values for record in source.fetch(collection, ["a", "A"])] == [("a",), None]
    assert source.in_order("items", ["a", "A", "b"]) == ["b", "a"]
    source.close()


def test_lookups_notice_that_the_tables_changed(db, source):
    assert source.fetch("items", ["b"])[0].names == ("id", "kind", "size", "data")
    with contextlib.closing(sqlite3.connect(db)) as other, other:
        other.execute("ALTER TABLE items ADD COLUMN added TEXT DEFAULT 'new'")
    assert source.fetch("items", ["b"])[0].names == ("id", "kind", "size", "data", "added")
    assert next(iter(source.find("items", {}))).values[4] == "new"
    with contextlib.closing(sqlite3.connect(db)) as other, other:
        other.execute("ALTER TABLE items RENAME COLUMN id TO key")
    with pytest.raises(SourceError, match="key: no column named id"):
        source.fetch("items", ["b"])


def test_the_database_is_not_mapped(source):
    with inside.connection(source) as connection:
        assert connection.execute("PRAGMA mmap_size").fetchone() in [(0,), None]


def test_the_database_cannot_be_written(source):
    with inside.connection(source) as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM items")
