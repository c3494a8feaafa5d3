"""SQLAlchemySource: what it reads from SQLite, PostgreSQL and MariaDB, what it asks of them, and what it refuses."""

from __future__ import annotations

import contextlib
import datetime as dt
import pickle
import sqlite3
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mmcache
from mmcache import Schema, SQLAlchemySource, SQLiteSource
from mmcache.errors import BuildError, SourceError
from mmcache.format.header import HEADER_SIZE, parse_header, parse_table
from mmcache.query import matcher, parse_query
from mmcache.sources import Invalid, OrderedSource, Source, closing, from_spec

sqlalchemy = pytest.importorskip("sqlalchemy", reason="the sqlalchemy extra is not installed")
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column  # noqa: E402

ROWS = 700
"""More than are fetched at a time."""

BYTES = {"postgresql": "bytea", "mariadb": "blob", "sqlite": "blob"}
FLOAT = {"postgresql": "double precision", "mariadb": "double", "sqlite": "double"}
TEXT = {"postgresql": "varchar(50)", "mariadb": "varchar(50)", "sqlite": "varchar(50)"}
ITEMS = Schema("items", index=("kind", "size", "score", "day"), embedding="vector", dim=4)


def vector(i):
    return struct.pack("<4f", i, 0.5, -i, 1 / 3)


def item(i):
    day = dt.date(2026, 1, 1) + dt.timedelta(days=i)
    kind = None if i % 7 == 0 else f"kind {i % 5}"
    return {"id": f"item-{i:05}", "kind": kind, "size": i, "score": i / 3, "day": str(day), "vector": vector(i)}


def fill(database, n=ROWS):
    kind = database.kind
    database.run(
        f"CREATE TABLE items (id {TEXT[kind]} PRIMARY KEY, kind {TEXT[kind]}, size integer, score {FLOAT[kind]}, "
        f"day date, vector {BYTES[kind]})"
    )
    insert = "INSERT INTO items VALUES (:id, :kind, :size, :score, :day, :vector)"
    for start in range(0, n, 500):
        database.run(insert, rows=[item(i) for i in range(start, min(n, start + 500))])


@pytest.fixture
def items(database):
    fill(database)
    return database


@pytest.fixture
def source(items):
    with contextlib.closing(SQLAlchemySource(items.url, ITEMS)) as source:
        yield source


def records(source, collection="items"):
    with source.read() as reading:
        return list(reading.records(collection))


def keys(rows):
    return [row and row.values[0] for row in rows]


def only(database, schema, **options):
    """All records of one collection."""
    with contextlib.closing(SQLAlchemySource(database.url, schema, **options)) as source:
        return records(source, schema.name)


def found(source, collection="items", **terms):
    schema = next(schema for schema in source.schemas if schema.name == collection)
    return keys(source.find(collection, parse_query(schema, None, terms)))


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_it_is_a_source_that_keeps_an_order(source):
    assert isinstance(source, Source)
    assert isinstance(source, OrderedSource)


def test_all_records_come_in_the_order_of_the_primary_key(source):
    rows = records(source)
    assert [dict(zip(row.names, row.values, strict=True)) | {"vector": row.vector} for row in rows] == [
        item(i) for i in range(ROWS)
    ]
    with source.read() as reading:
        assert reading.count("items") == ROWS


def test_the_key_of_a_table_is_its_primary_key(database):
    integer = "integer"
    database.run(f"CREATE TABLE parts (a {integer} NOT NULL, b {TEXT[database.kind]} NOT NULL, PRIMARY KEY (b, a))")
    database.run("INSERT INTO parts VALUES (1, 'x'), (2, 'a')")
    with contextlib.closing(SQLAlchemySource(database.url, Schema("parts"))) as source:
        assert source.schemas[0].key == ("b", "a")
        assert keys(records(source, "parts")) == [("a", 2), ("x", 1)]
        assert keys(source.fetch("parts", [("x", 1), ("x", 2), ("x", "1"), "x", ("a", 2)])) == [
            *(("x", 1), None, None, None, ("a", 2))
        ]
        assert source.in_order("parts", [("x", 1), ("no", 3), ("a", 2)]) == [("a", 2), ("x", 1)]


def test_the_same_rows_give_the_same_sections_as_from_elsewhere(database, tmp_path):
    fill(database, 5_000)
    records = mmcache.IterableSource([item(i) for i in range(5_000)], ITEMS)
    sources: list[Source] = [records, SQLAlchemySource(database.url, ITEMS)]
    if database.kind == "sqlite":
        sources.append(SQLiteSource(tmp_path / "items.db", ITEMS))
    sections = []
    for i, source in enumerate(sources):
        mmcache.build(tmp_path / f"{i}.mmc", source)
        sections.append(sections_of(tmp_path / f"{i}.mmc"))
    assert all(found == sections[0] for found in sections)


def sections_of(path: Path) -> dict[str, bytes]:
    """All but what tells the source: `meta`, and the digests over it."""
    data = path.read_bytes()
    header = parse_header(data[:HEADER_SIZE], len(data))
    table = parse_table(header, data[HEADER_SIZE : HEADER_SIZE + header.table_size])
    return {
        name: data[section.offset : section.offset + section.length]
        for name, section in table.items()
        if name not in ("meta", "blocks", "chunks")
    }


def test_a_read_sees_one_state_of_all_collections(items):
    with contextlib.closing(SQLAlchemySource(items.url, ITEMS, Schema("again", table="items", key="id"))) as source:
        if items.kind == "sqlite":
            items.run("PRAGMA journal_mode = WAL")  # else a writer cannot commit meanwhile
        with source.read() as reading:
            rows = reading.records("items")
            assert next(rows).values[0] == "item-00000"
            items.run("DELETE FROM items WHERE size > 10")
            assert len(list(rows)) == ROWS - 1
            assert len(list(reading.records("again"))) == ROWS
        assert len(records(source)) == 11


def test_a_read_that_is_over_gives_no_more(source):
    with source.read() as reading:
        pass
    with pytest.raises(SourceError, match="the read is over"):
        list(reading.records("items"))


def test_a_view_is_read_in_the_order_of_its_key(items):
    items.run("CREATE VIEW large AS SELECT id, size FROM items WHERE size >= 690 ORDER BY size DESC")
    with contextlib.closing(SQLAlchemySource(items.url, Schema("large", index=("size",)))) as source:
        expected = [f"item-{i:05}" for i in range(690, ROWS)]
        assert keys(records(source, "large")) == expected
        assert found(source, "large", size=[691, 5]) == ["item-00691"]
        assert keys(source.fetch("large", ["item-00699", "item-00001"])) == ["item-00699", None]


def test_a_query_is_run_as_it_is_and_keeps_its_order(items):
    query = "SELECT id, size, ' :a 100%' AS odd FROM items WHERE size % 100 = 7 ORDER BY size DESC; -- all"
    schema = Schema("some", query=query, index=("size",))
    with contextlib.closing(SQLAlchemySource(items.url, schema)) as source:
        expected = [f"item-{i:05}" for i in range(607, 0, -100)]
        assert keys(rows := records(source, "some")) == expected
        assert rows[0].values[2] == " :a 100%"
        assert source.in_order("some", [expected[4], "none", expected[1]]) == [expected[1], expected[4]]
        assert keys(source.fetch("some", [expected[2], "item-00001"])) == [expected[2], None]
        assert found(source, "some", size=mmcache.between(100, 400)) == expected[3:6]
        assert source.scans("some") is (items.kind != "mariadb")
    with contextlib.closing(SQLAlchemySource(items.url, schema, fingerprint="SELECT 1")) as source:
        assert source.scans("some")


@pytest.mark.parametrize(("rule", "kept"), [("first", 9), ("last", 2)])
def test_of_several_rows_with_one_key_the_rule_chooses(items, rule, kept):
    items.run(
        "CREATE TABLE doubles (a integer, b integer)", "INSERT INTO doubles VALUES (1, 9), (1, 5), (3, 4), (1, 2)"
    )
    query = "SELECT a, b FROM doubles ORDER BY b DESC"
    schema = Schema("doubles", key="a", query=query, index=("b",), on_duplicate=rule)
    with contextlib.closing(SQLAlchemySource(items.url, schema)) as source:
        assert [row and row.values for row in source.fetch("doubles", [1])] == [(1, kept)]
        of_other_types: list[Any] = ["no number", b"", 2.5]
        assert source.fetch("doubles", of_other_types) == [None] * 3
        assert found(source, "doubles", b=[9, 4]) == ([1, 3] if rule == "first" else [3])
        assert source.in_order("doubles", [3, 1]) == ([1, 3] if rule == "first" else [3, 1])


# ---- asking ----------------------------------------------------------------------------------------------------------


def test_a_lookup_finds_keys_that_are_equal_and_no_others(source):
    asked = ["item-00003", "ITEM-00003", "item-00003 ", "item-00699", 3, b"item-00003", "", "x\0", "\ud800", 2**70]
    assert keys(source.fetch("items", asked)) == ["item-00003", None, None, "item-00699", *[None] * 6]
    many = [f"item-{i:05}" for i in range(2 * ROWS)]
    assert keys(source.fetch("items", many[::-1])) == [*[None] * ROWS, *many[:ROWS][::-1]]
    assert source.in_order("items", [many[9], many[900], many[2]]) == [many[2], many[9]]


TERMS: list[dict[str, object]] = [
    {"kind": "kind 3"},
    {"kind": "KIND 3"},
    {"kind": ["kind 1", None, 5, True]},
    {"kind": "kind 3 "},
    {"kind": mmcache.startswith("kin")},
    {"kind": mmcache.between("kind 1", "kind 2")},
    {"kind": mmcache.at_most("kind 1")},
    {"kind": mmcache.above("kind 3\0")},
    {"kind": mmcache.above(3)},
    {"kind": ["x\0", "\ud800"]},
    {"kind": mmcache.excluding("kind 3")},
    {"size": [3, "4", 5.0, 2**70 // 2**10, -1]},
    {"size": range(10, 300, 50)},
    {"size": mmcache.between(10.5, 12.5)},
    {"size": mmcache.above(10**400)},
    {"size": mmcache.below(float("inf"))},
    {"score": 1 / 3},
    {"score": [2, None]},
    {"score": mmcache.between(1, 2)},
    {"score": mmcache.at_least(-(10**400))},
    {"day": dt.date(2026, 2, 3)},
    {"day": mmcache.startswith("2026-03")},
    {"day": mmcache.between(dt.date(2026, 1, 5), dt.date(2026, 1, 7))},
    {"day": mmcache.above("2026-01-31")},
    {"day": ["2026-02-30", 3, "2026-02-03 00:00:00"]},
    {"kind": "kind 1", "size": mmcache.below(50)},
]


def test_find_gives_what_the_rules_for_terms_give(source):
    rows = records(source)
    for terms in TERMS:
        query = parse_query(ITEMS, None, terms)
        answers = matcher(query)
        expected = [row for row in rows if answers(row.names, row.values)]
        assert list(source.find("items", query)) == expected, terms


def test_names_are_found_in_the_case_of_the_database(items):
    schema = Schema("Items", key="ID", index=("KIND",), columns=("Kind",))
    with contextlib.closing(SQLAlchemySource(items.url, schema)) as source:
        assert source.schemas == (Schema("Items", key="id", index=("kind",), columns=("kind",), table="items"),)
        assert found(source, "Items", kind="kind 3")[0] == "item-00003"


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (Schema("nothing"), "no table 'nothing'; it has: items"),
        (Schema("items", key="no"), "key: no column named no; there are: id, kind"),
        (Schema("items", index=("no",)), "index: no column named no"),
        (Schema("items", columns=("kind",), index=("size",)), "index: size not among columns"),
        (Schema("q", query="SELECT id AS a, kind FROM items"), "no primary key: name a key with key="),
        (Schema("items", embedding="no"), "embedding: no column named no"),
    ],
)
def test_a_schema_that_the_database_cannot_meet_is_a_build_error(items, schema, reason):
    with pytest.raises(BuildError, match=reason):
        only(items, schema)
    with contextlib.closing(SQLAlchemySource(items.url, schema)) as source, pytest.raises(SourceError, match=reason):
        source.fetch(schema.name, ["x"])


def test_rows_that_are_no_records_are_refused_or_left_out(items):
    items.run("UPDATE items SET vector = NULL WHERE size = 3")
    items.run("CREATE TABLE loose (a integer, b integer)", "INSERT INTO loose VALUES (1, 1), (NULL, 2)")
    with pytest.raises(BuildError, match="the key 'a' is NULL"):
        only(items, Schema("loose", key="a"))
    rows = only(items, Schema("loose", key="a", on_invalid="skip"))
    assert sorted(row.values[0] for row in rows if not isinstance(row, Invalid)) == [1]
    with pytest.raises(BuildError, match="dim=5"):
        only(items, Schema("items", embedding="vector", dim=5))


def test_a_column_that_was_dropped_is_noticed_by_lookups(items):
    with contextlib.closing(SQLAlchemySource(items.url, Schema("items", columns=("size",)))) as source:
        assert [row and row.values[1] for row in source.fetch("items", ["item-00003"])] == [3]
        items.run("ALTER TABLE items DROP COLUMN size")
        with pytest.raises(SourceError):
            source.fetch("items", ["item-00003"])
        with pytest.raises(SourceError, match="no column named size"):
            source.fetch("items", ["item-00003"])


def test_available_leaves_out_what_the_database_has_not(source):
    asked = (
        Schema("items", index=("kind", "gone")),
        Schema("gone"),
        Schema("x", table="items", columns=("size", "no")),
    )
    assert source.available(asked) == (
        Schema("items", key="id", index=("kind",)),
        Schema("x", key="id", table="items", columns=("size",)),
    )


# ---- what it stands for in other processes ---------------------------------------------------------------------------


def test_it_is_made_again_from_what_a_file_holds(source, items, tmp_path):
    path = tmp_path / "items.mmc"
    mmcache.build(path, source)
    spec = source.spec()
    assert spec["kind"] == "sqlalchemy"
    with closing(from_spec(spec, source.schemas)) as again:
        assert again is not None
        assert again.schemas == source.schemas
        assert again.fetch("items", ["item-00007"]) == source.fetch("items", ["item-00007"])
    with contextlib.closing(pickle.loads(pickle.dumps(source))) as again:
        assert records(again) == records(source)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:secret@host:5/db", "postgresql+psycopg://me@host:5/db"),
        (
            "mysql+pymysql://me:se%40cret@/db?ssl_key_password=secret&charset=utf8",
            "mysql+pymysql://me@/db?charset=utf8",
        ),
        ("postgresql+psycopg:///db?user=me&password=secret&sslpassword=secret", "postgresql+psycopg:///db?user=me"),
    ],
)
def test_a_spec_and_a_repr_hold_no_password(url, shown):
    pytest.importorskip(url.partition("+")[2].partition(":")[0])
    source = SQLAlchemySource(url, ITEMS)
    assert source.spec() == {"kind": "sqlalchemy", "url": shown}
    assert "secret" not in repr(source) + source.url
    assert source.given() == {"url": sqlalchemy.make_url(url).render_as_string(hide_password=False)}
    again = SQLAlchemySource.remade({"url": shown}, [ITEMS], source.given())
    assert again.given() == source.given()
    assert pickle.loads(pickle.dumps(source)).given() == source.given()


def test_a_url_without_secrets_has_nothing_to_hand_on(tmp_path):
    source = SQLAlchemySource(f"sqlite:///{tmp_path}/items.db", ITEMS, fingerprint="SELECT 1")
    assert source.given() == {}
    assert source.spec() == {"kind": "sqlalchemy", "url": f"sqlite:///{tmp_path}/items.db", "fingerprint": "SELECT 1"}


def test_a_database_in_memory_is_of_one_process():
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.StaticPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE items (id integer PRIMARY KEY, a text)")
        connection.exec_driver_sql("INSERT INTO items VALUES (1, 'x')")
    source = SQLAlchemySource(engine, Schema("items"))
    assert records(source)[0].values == (1, "x")
    assert source.spec() is None
    assert source.fingerprint() == bytes(32)
    with pytest.raises(TypeError, match="of one process"):
        pickle.dumps(source)
    source.close()
    assert records(source)[0].values == (1, "x"), "the engine is the caller's"
    engine.dispose()


def test_a_url_that_is_none_and_a_driver_that_is_missing_are_named():
    with pytest.raises(SourceError, match="not a URL of a database"):
        SQLAlchemySource("items.db", ITEMS)
    engine = sqlalchemy.create_engine("sqlite://")
    with (
        engine.connect() as connection,
        pytest.raises(SourceError, match=r"a Connection is not a URL of a database; .*, or an Engine"),
    ):
        SQLAlchemySource(connection, ITEMS)
    engine.dispose()
    with pytest.raises(SourceError, match="no connection can be made"):
        SQLAlchemySource("nothing://x/y", ITEMS).fingerprint()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_the_url_of_a_database_in_memory_names_an_empty_one(url):
    with pytest.raises(SourceError, match="give the Engine that has filled it"):
        SQLAlchemySource(url, ITEMS)


def test_reading_makes_no_sqlite_file_where_there_is_none(tmp_path):
    source = SQLAlchemySource(f"sqlite:///{tmp_path}/none.db", ITEMS)
    with pytest.raises(SourceError, match="there is no database at this path"):
        records(source)
    assert list(tmp_path.iterdir()) == []


# ---- what tells of a change ------------------------------------------------------------------------------------------


def test_a_fingerprint_of_ones_own_follows_its_query(items):
    sql = "SELECT count(*), max(size) FROM items"
    with contextlib.closing(SQLAlchemySource(items.url, ITEMS, fingerprint=sql)) as source:
        before = source.fingerprint()
        items.run("UPDATE items SET kind = 'x'")
        assert source.fingerprint() == before
        items.run("UPDATE items SET size = 100000 WHERE size = 1")
        assert source.fingerprint() != before
        assert len(before) == 32
    with (
        contextlib.closing(SQLAlchemySource(items.url, ITEMS, fingerprint="SELECT no")) as source,
        pytest.raises(SourceError),
    ):
        source.fingerprint()


def test_a_database_that_cannot_tell_has_no_fingerprint(source, items):
    if items.kind == "mariadb":
        assert source.fingerprint() == bytes(32)
    else:
        before = source.fingerprint()
        assert before != bytes(32)
        items.run("UPDATE items SET kind = 'x' WHERE size = 1")
        assert source.fingerprint() != before


def test_a_tracked_sqlite_database_names_the_keys_that_changed(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db, db:
        db.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, a)")
        db.execute("INSERT INTO items VALUES (1, 1), (2, 2)")
    with contextlib.closing(SQLiteSource(tmp_path / "a.db", Schema("items"))) as local:
        local.track()
    with contextlib.closing(SQLAlchemySource(f"sqlite:///{tmp_path}/a.db", Schema("items"))) as source:
        before = source.fingerprint()
        with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db, db:
            db.execute("UPDATE items SET a = 5 WHERE id = 2")
        changes = source.changes(before)
        assert changes is not None
        assert changes.keys == {"items": {2}}


# ---- models ----------------------------------------------------------------------------------------------------------


def test_a_schema_is_derived_from_a_model(database):
    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "things"
        number: Mapped[int] = mapped_column("no", primary_key=True)
        name: Mapped[str] = mapped_column(sqlalchemy.String(20))
        tags: Mapped[list[str]] = mapped_column(sqlalchemy.JSON)
        vector: Mapped[bytes] = mapped_column(sqlalchemy.LargeBinary)

    Base.metadata.create_all(database.engine)
    with database.engine.begin() as connection:
        values = {"no": 1, "name": "one", "tags": ["a", "b"], "vector": vector(1)}
        connection.execute(sqlalchemy.insert(Item.__table__), [values])
    schema = Schema.from_model(Item, "items", index=("tags",), embedding="vector")
    assert schema == Schema(
        "items", key="no", table="things", columns=("name", "tags"), json=("tags",), index=("tags",), embedding="vector"
    )
    assert Schema.from_model(Item.__table__) == Schema(
        "things", key="no", columns=("name", "tags", "vector"), json=("tags",)
    )
    with contextlib.closing(SQLAlchemySource(database.url, schema)) as source:
        (row,) = records(source)
        assert row == (("no", "name", "tags"), [1, "one", ["a", "b"]], vector(1))
        assert found(source, tags="b") == [1]


class Code(NamedTuple):
    code: str


def test_a_schema_of_a_table_keeps_columns_beside_a_key_of_its_own():
    columns = [sqlalchemy.Column(name, sqlalchemy.String) for name in ("v", "e", "code", "vec")]
    table = sqlalchemy.Table(
        "t", sqlalchemy.MetaData(), sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True), *columns
    )
    schema = Schema.from_model(table, key="code", embedding="vec", model=Code)
    assert (schema.key, schema.columns, schema.model) == ("code", ("id", "v", "e"), Code)


def test_what_is_no_model_of_one_table_is_refused():
    class Base(DeclarativeBase):
        pass

    class Parent(Base):
        __tablename__ = "parents"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "parent"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]

    class Child(Parent):
        __tablename__ = "children"
        __mapper_args__ = {"polymorphic_identity": "child"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(sqlalchemy.ForeignKey("parents.id"), primary_key=True)

    class Young(Parent):
        __mapper_args__ = {"polymorphic_identity": "young"}  # noqa: RUF012

    with pytest.raises(ValueError, match="several tables"):
        Schema.from_model(Child)
    with pytest.raises(ValueError, match=r"Young is some of the rows of the table parents .*WHERE kind = "):
        Schema.from_model(Young)
    with pytest.raises(TypeError, match="mapped class"):
        Schema.from_model(dict)


def test_a_sqlite_file_is_read_alike_with_and_without_sqlalchemy(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db, db:
        db.execute("CREATE TABLE odd (id INTEGER PRIMARY KEY, a, b NUMERIC, c TEXT COLLATE NOCASE)")
        odd = [(1, 1.5, "7", "x"), (2, b"\x00", 2**62, "X"), (3, None, "2026-01-01", "é"), (4, "5", 5.0, None)]
        db.executemany("INSERT INTO odd VALUES (?, ?, ?, ?)", odd)
    schema = Schema("odd", index=("a", "b", "c"))
    ours = SQLAlchemySource(f"sqlite:///{tmp_path}/a.db", schema)
    theirs = SQLiteSource(tmp_path / "a.db", schema)
    with contextlib.closing(ours), contextlib.closing(theirs):
        assert records(ours, "odd") == records(theirs, "odd")
        for field in schema.index:
            for value in (1.5, "7", 7, "x", "X", None, 5, "5", mmcache.between(1, 8), mmcache.startswith("2026")):
                query = parse_query(schema, None, {field: value})
                assert list(ours.find("odd", query)) == list(theirs.find("odd", query)), query
