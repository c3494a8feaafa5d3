"""Every kind of table that SQLite has, in small: which key it gets, or why it is refused.

Rows, keys that are not there and questions are compared with sqlite3 by the walk that is also taken through the
databases of real programs.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mmcache
from mmcache import BuildError, MmcacheError, Schema, Snapshot, SQLiteSource
from tests.programs.walk import walk

pytestmark = pytest.mark.usefixtures("no_disk_wait")

ROWS = "INSERT INTO t VALUES (1, 'one'), (2, 'two'), (-3, NULL);"
PAIRS = "INSERT INTO t VALUES ('a', 1, 'x'), ('a', 2, 'y'), ('b', 1, NULL), ('', 0, 'z');"


class Kind(NamedTuple):
    """A table called `t`, or as `table` says. key: in its resolved form; or refused: a pattern of the reason."""

    sql: str
    key: Any = None
    refused: str = ""
    table: str = "t"


INTEGERS = {
    "rowid alias": Kind(f"CREATE TABLE t (id INTEGER PRIMARY KEY, v); {ROWS}", "id"),
    "autoincrement": Kind(f"CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v); {ROWS}", "id"),
    "sequence of autoincrement": Kind(
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, v); INSERT INTO t VALUES (7, 1);",
        "rowid",
        table="sqlite_sequence",
    ),
    "statistics": Kind(
        f"CREATE TABLE t (id INTEGER PRIMARY KEY, v); CREATE INDEX i ON t (v); {ROWS} ANALYZE;",
        "rowid",
        table="sqlite_stat1",
    ),
    "INT, no alias": Kind(f"CREATE TABLE t (id INT PRIMARY KEY, v); {ROWS}", "id"),
    "INTEGER DESC, no alias": Kind(f"CREATE TABLE t (id INTEGER PRIMARY KEY DESC, v); {ROWS}", "id"),
    "BOOLEAN": Kind("CREATE TABLE t (b BOOLEAN PRIMARY KEY, v); INSERT INTO t VALUES (0, 'no'), (1, 'yes');", "b"),
    "DECIMAL of whole numbers": Kind(f"CREATE TABLE t (n DECIMAL(10, 0) PRIMARY KEY, v); {ROWS}", "n"),
    "NUMERIC from text": Kind("CREATE TABLE t (n NUMERIC PRIMARY KEY, v); INSERT INTO t VALUES ('1', 'one');", "n"),
    "extremes": Kind(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v);"
        "INSERT INTO t VALUES (-9223372036854775808, 1), (9223372036854775807, 2), (0, 3), (255, 4), (65536, 5);",
        "id",
    ),
}
TEXTS = {
    "text": Kind("CREATE TABLE t (id TEXT PRIMARY KEY, v); INSERT INTO t VALUES ('a', 1), ('A', 2), (' a', 3);", "id"),
    "empty text": Kind("CREATE TABLE t (id TEXT PRIMARY KEY, v); INSERT INTO t VALUES ('', 1), ('a', 2);", "id"),
    "text with NUL": Kind(
        "CREATE TABLE t (id TEXT PRIMARY KEY, v); INSERT INTO t VALUES ('a' || char(0) || 'b', 1), ('a', 2);", "id"
    ),
    "digits as text": Kind(
        "CREATE TABLE t (id TEXT PRIMARY KEY, v); INSERT INTO t VALUES ('7', 1), ('007', 2), (7.0, 3);", "id"
    ),
    "text of two normal forms": Kind(
        "CREATE TABLE t (id TEXT PRIMARY KEY, v); INSERT INTO t VALUES (char(228), 1), ('a' || char(776), 2);", "id"
    ),
    "DATE": Kind("CREATE TABLE t (d DATE PRIMARY KEY, v); INSERT INTO t VALUES ('2024-01-01', 1);", "d"),
    "NOCASE": Kind(
        "CREATE TABLE t (id TEXT PRIMARY KEY COLLATE NOCASE, v); INSERT INTO t VALUES ('Abc', 1), ('b', 2);", "id"
    ),
    "RTRIM": Kind(
        "CREATE TABLE t (id TEXT PRIMARY KEY COLLATE RTRIM, v); INSERT INTO t VALUES ('a ', 1), ('b', 2);", "id"
    ),
    "UTF-16": Kind(
        "PRAGMA encoding = 'UTF-16'; CREATE TABLE t (id TEXT PRIMARY KEY, v);"
        "INSERT INTO t VALUES (char(228), 1), (char(65536), char(65535)), ('a', char(65536)), ('z', 'z');",
        "id",
    ),
}
BLOBS = {
    "BLOB": Kind(
        "CREATE TABLE t (id BLOB PRIMARY KEY, v); INSERT INTO t VALUES (x'00ff', 1), (x'', 2), (x'00', x'01');", "id"
    ),
    "without a type, of all types": Kind(
        "CREATE TABLE t (id PRIMARY KEY, v); INSERT INTO t VALUES (7, 'int'), ('7', 'text'), (x'37', 'blob');", "id"
    ),
    "ANY in a strict table": Kind(
        "CREATE TABLE t (id ANY PRIMARY KEY, v ANY) STRICT; INSERT INTO t VALUES ('007', 1), (7, x'07');", "id"
    ),
}
COMPOSITE = {
    "text and integer": Kind(f"CREATE TABLE t (a TEXT, b INTEGER, v, PRIMARY KEY (a, b)); {PAIRS}", ("a", "b")),
    "in another order": Kind(f"CREATE TABLE t (a TEXT, b INTEGER, v, PRIMARY KEY (b, a)); {PAIRS}", ("b", "a")),
    "the whole row": Kind(
        "CREATE TABLE t (a, b, PRIMARY KEY (a, b)); INSERT INTO t VALUES (1, 2), (2, 1), ('1', 2);", ("a", "b")
    ),
    "without rowid": Kind(
        f"CREATE TABLE t (a TEXT, b INTEGER, v, PRIMARY KEY (b, a)) WITHOUT ROWID; {PAIRS}", ("b", "a")
    ),
    "descending": Kind(
        f"CREATE TABLE t (a TEXT, b INTEGER, v, PRIMARY KEY (a DESC, b)) WITHOUT ROWID; {PAIRS}", ("a", "b")
    ),
    "NOCASE in part": Kind(
        "CREATE TABLE t (a TEXT COLLATE NOCASE, b, PRIMARY KEY (a, b)) WITHOUT ROWID;"
        "INSERT INTO t VALUES ('X', 1), ('x', 2), ('y', 1);",
        ("a", "b"),
    ),
    "BLOB in part": Kind(
        "CREATE TABLE t (a BLOB, b, v, PRIMARY KEY (a, b)); INSERT INTO t VALUES (x'00', 1, 1), ('', 1, 2);", ("a", "b")
    ),
    "a column twice": Kind(
        "CREATE TABLE t (a, b, PRIMARY KEY (a, b, a)); INSERT INTO t VALUES (1, 2), (2, 1);", ("a", "b")
    ),
    "of eight": Kind(
        "CREATE TABLE t (a, b, c, d, e, f, g, h, PRIMARY KEY (a, b, c, d, e, f, g, h));"
        "INSERT INTO t VALUES (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, '8');",
        tuple("abcdefgh"),
    ),
    "of nine": Kind("CREATE TABLE t (a, b, c, d, e, f, g, h, i, PRIMARY KEY (a, b, c, d, e, f, g, h, i))", refused="9"),
}
ROWIDS = {
    "no key": Kind("CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 2), (1, 2), (NULL, NULL);", "rowid"),
    "gaps": Kind(
        "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2), (3); DELETE FROM t WHERE a = 2;"
        "INSERT INTO t (rowid, a) VALUES (-5, 9), (4000000000, 8);",
        "rowid",
    ),
    "unique, but no key": Kind("CREATE TABLE t (a NOT NULL UNIQUE, b); INSERT INTO t VALUES ('x', 1);", "rowid"),
    "column rowid is the key": Kind(
        "CREATE TABLE t (rowid INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (5, 1);", "rowid"
    ),
    "text column rowid is the key": Kind(
        "CREATE TABLE t (v, rowid TEXT PRIMARY KEY); INSERT INTO t VALUES (1, 'x'), (2, '1');", "rowid"
    ),
    "column rowid is no key": Kind("CREATE TABLE t (rowid TEXT, v); INSERT INTO t VALUES ('x', 1);", "_rowid_"),
    "columns with all names of the rowid": Kind("CREATE TABLE t (rowid, _rowid_, oid)", refused="rowid"),
    "column rowid without rowid": Kind(
        "CREATE TABLE t (id INT PRIMARY KEY, rowid) WITHOUT ROWID; INSERT INTO t VALUES (5, 1), (6, 7);", "id"
    ),
}
BAD_KEYS = {
    "NULL": Kind(
        "CREATE TABLE t (id TEXT PRIMARY KEY, v); INSERT INTO t VALUES ('a', 1), (NULL, 2), (NULL, 3);", refused="NULL"
    ),
    "NULL in part": Kind(
        "CREATE TABLE t (a, b, PRIMARY KEY (a, b)); INSERT INTO t VALUES (1, 2), (1, NULL);", refused="NULL"
    ),
    "REAL": Kind(
        "CREATE TABLE t (id REAL PRIMARY KEY, v); INSERT INTO t VALUES (1.5, 1), (2, 2);",
        refused="REAL|real number|float",
    ),
    "REAL in part": Kind(
        "CREATE TABLE t (a, b, PRIMARY KEY (a, b)); INSERT INTO t VALUES (1, 2), (1, 2.5);",
        refused="REAL|real number|float",
    ),
    "text that is not UTF-8": Kind(
        "CREATE TABLE t (id TEXT PRIMARY KEY, v); INSERT INTO t VALUES (CAST(x'ff' AS TEXT), 1);", refused="UTF-8"
    ),
}
VALUES = {
    "values of all types": Kind(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v, w TEXT, x REAL);"
        "INSERT INTO t VALUES (1, NULL, 7, 7), (2, 9223372036854775807, '', 1e999), (3, -0.0, '7', -1e999),"
        "(4, x'', char(0), 1e-300), (5, 9007199254740993, 'Ä', 9007199254740992), (6, '7', NULL, '7'),"
        "(7, 7.0, 'a', 2);",
        "id",
    ),
    "value that is not UTF-8": Kind(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, CAST(x'ff' AS TEXT));", refused="UTF-8"
    ),
    "generated columns": Kind(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b AS (a * 2), c TEXT AS (a || '!') STORED UNIQUE);"
        "INSERT INTO t VALUES (1, 2), (2, NULL), (3, 1.5);",
        "id",
    ),
    "columns added later": Kind(
        f"CREATE TABLE t (id INTEGER PRIMARY KEY, v); {ROWS} ALTER TABLE t ADD COLUMN w DEFAULT 'new';", "id"
    ),
    "strict": Kind(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b REAL, c BLOB, d ANY) STRICT;"
        "INSERT INTO t VALUES (1, '7', 7, x'00', '007'), (2, NULL, NULL, NULL, 7);",
        "id",
    ),
    "no row": Kind("CREATE TABLE t (a, b, v, PRIMARY KEY (a, b))", ("a", "b")),
    "no row, and no key": Kind("CREATE TABLE t (a)", "rowid"),
    "500 columns": Kind(
        f"CREATE TABLE t (id INTEGER PRIMARY KEY, {', '.join(f'c{n}' for n in range(500))});"
        "INSERT INTO t (id, c0, c499) VALUES (1, 'first', 'last');",
        "id",
    ),
    "WAL": Kind(f"PRAGMA journal_mode = wal; CREATE TABLE t (id INTEGER PRIMARY KEY, v); {ROWS}", "id"),
}
NAMES = {
    name: Kind(
        f"CREATE TABLE {quoted} (id INTEGER PRIMARY KEY, v); INSERT INTO {quoted} VALUES (1, 'x'), (2, NULL);",
        "id",
        table=name,
    )
    for name in (
        *(
            "my table",
            "a,b",
            'a"b',
            "a'b",
            "a;b",
            "a/b",
            "[a]",
            "`a`",
            "a.b",
            "a%b",
            "a\\b",
            "--a",
            "表",
            "select",
            "0",
        ),
        *("sqliteitems", "T", "a\nb", "x" * 255, "ä" * 127, " a "),
    )
    for quoted in ['"' + name.replace('"', '""') + '"']
}
COLUMNS = {
    name: Kind(
        f"CREATE TABLE t (id INTEGER PRIMARY KEY, {quoted}, w);"
        "INSERT INTO t VALUES (1, 'x', 1), (2, 3, 1), (3, NULL, 2);",
        "id",
    )
    for name in (
        *("a b", "a,b", 'a"b', "a'b", "a/b", "[a]", "a.b", "tags[*]", "表", "select", "key", "names", "0", " "),
        *("t", "ID2", "x" * 255, "rank", "vector", "a;b", "a\\b", "?", ":a", "s", "--"),
    )
    for quoted in ['"' + name.replace('"', '""') + '"']
}
KEY_NAMES = {
    name: Kind(
        f"CREATE TABLE t ({quoted} TEXT PRIMARY KEY, v); INSERT INTO t VALUES ('x', 1), ('', NULL);",
        name,
    )
    for name in ("ID", "a b", "a,b", 'a"b', "a'b", "a/b", "select", "表", "key", "_rowid_", "oid", "x" * 255)
    for quoted in ['"' + name.replace('"', '""') + '"']
} | {
    "odd names in a composite key": Kind(
        'CREATE TABLE t ("a,b" TEXT, "c""d" INTEGER, v, PRIMARY KEY ("a,b", "c""d"));' + PAIRS, ("a,b", 'c"d')
    ),
}
UNPRINTABLE = {
    "newline in a column": Kind(
        'CREATE TABLE t (id INTEGER PRIMARY KEY, "a\nb"); INSERT INTO t VALUES (1, 2), (2, NULL);', "id"
    ),
    "column without a name": Kind('CREATE TABLE t (id INTEGER PRIMARY KEY, ""); INSERT INTO t VALUES (1, 2);', "id"),
    "newline in the key's name": Kind('CREATE TABLE t ("a\nb" TEXT PRIMARY KEY, v)', refused="printable"),
}
FTS = (
    "CREATE VIRTUAL TABLE t USING fts5 (title, body); INSERT INTO t VALUES ('one', 'x y'), ('two', 'y'), ('three', '');"
)
RTREE = (
    "CREATE VIRTUAL TABLE t USING rtree (id, x0, x1, +note); INSERT INTO t VALUES (7, 1.5, 2, 'a'), (8, 0, 1, NULL);"
)
VIRTUAL = {
    "full-text search": Kind(FTS, "rowid"),
    "shadow of segments": Kind(FTS, "id", table="t_data"),
    "shadow of an index": Kind(FTS, ("segid", "term"), table="t_idx"),
    "shadow of contents": Kind(FTS, "id", table="t_content"),
    "shadow of sizes": Kind(FTS, "id", table="t_docsize"),
    "shadow of settings": Kind(FTS, "k", table="t_config"),
    "without contents": Kind(
        "CREATE VIRTUAL TABLE t USING fts5 (a, content=''); INSERT INTO t (rowid, a) VALUES (3, 'x'), (9, 'y');",
        "rowid",
    ),
    "contents elsewhere": Kind(
        "CREATE TABLE c (id INTEGER PRIMARY KEY, a); INSERT INTO c VALUES (3, 'x'), (9, 'y');"
        "CREATE VIRTUAL TABLE t USING fts5 (a, content='c', content_rowid='id'); INSERT INTO t(t) VALUES ('rebuild');",
        "rowid",
    ),
    "full-text search of version 4": Kind(
        "CREATE VIRTUAL TABLE t USING fts4 (a); INSERT INTO t VALUES ('x'), ('y');", "rowid"
    ),
    "shadow of version 4": Kind(
        "CREATE VIRTUAL TABLE t USING fts4 (a); INSERT INTO t VALUES ('x'), ('y');", ("level", "idx"), table="t_segdir"
    ),
    "spatial index": Kind(RTREE, "rowid"),
    "shadow of a spatial index": Kind(RTREE, "nodeno", table="t_node"),
    "shadow with a rowid column": Kind(RTREE, "rowid", table="t_rowid"),
    "module that is not there": Kind(
        "CREATE TABLE t (a); PRAGMA writable_schema = on; UPDATE sqlite_master SET rootpage = 0,"
        " sql = 'CREATE VIRTUAL TABLE t USING absent (a)'; PRAGMA writable_schema = off;",
        refused="absent",
    ),
}
COLLATIONS = {
    "unknown, of a value": Kind(
        f"CREATE TABLE t (id INTEGER PRIMARY KEY, v COLLATE unicase); CREATE INDEX i ON t (v); {ROWS}", "id"
    ),
    "unknown, of the key": Kind(
        "CREATE TABLE t (id TEXT PRIMARY KEY COLLATE unicase, v); INSERT INTO t VALUES ('a', 1), ('b', 2);", "id"
    ),
    "unknown, of the key without rowid": Kind(
        "CREATE TABLE t (id TEXT PRIMARY KEY COLLATE unicase, v) WITHOUT ROWID; INSERT INTO t VALUES ('a', 1);",
        refused="unicase",
    ),
}
KINDS = {
    f"{group}: {name!r}" if name != ascii(name)[1:-1] or len(name) > 50 else f"{group}: {name}": kind
    for group, kinds in {
        "integer": INTEGERS,
        "text": TEXTS,
        "blob": BLOBS,
        "composite": COMPOSITE,
        "rowid": ROWIDS,
        "bad key": BAD_KEYS,
        "values": VALUES,
        "name": NAMES,
        "column": COLUMNS,
        "key's name": KEY_NAMES,
        "unprintable": UNPRINTABLE,
        "virtual": VIRTUAL,
        "collation": COLLATIONS,
    }.items()
    for name, kind in kinds.items()
}


def made(directory: Path, sql: str) -> Path:
    path = directory / "kinds.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.create_collation("unicase", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))
        try:
            db.executescript(sql)
        except sqlite3.OperationalError as error:
            if not re.search("no such module|near .STRICT.|unknown datatype", str(error)):
                raise
            pytest.skip(f"SQLite {sqlite3.sqlite_version} lacks it: {error}")
    return path


def schema_of(table: str, **more: Any) -> Schema:
    return Schema(table, **more) if table.isprintable() else Schema("collection", table=table, **more)


@pytest.mark.parametrize("name", KINDS)
def test_a_table_is_built_as_it_is_or_refused_by_name(name, tmp_path):
    kind = KINDS[name]
    database = made(tmp_path, kind.sql)
    (outcome,) = (one for one in walk(database, "", tmp_path) if one.table == kind.table)
    assert not outcome.wrong or (kind.refused and re.search(kind.refused, outcome.reason))
    path = tmp_path / "kinds.mmc"
    if kind.refused:
        with pytest.raises(MmcacheError, match=kind.refused):
            mmcache.build(path, SQLiteSource(database, schema_of(kind.table)))
    else:
        mmcache.build(path, SQLiteSource(database, schema_of(kind.table)))
        with Snapshot.open(path) as snapshot:
            (collection,) = snapshot.collections.values()
            assert collection.schema.key == kind.key


# --- views ------------------------------------------------------------------------------------------------------------

BASE = (
    "CREATE TABLE b (id INTEGER PRIMARY KEY, name TEXT, kind); "
    "INSERT INTO b VALUES (1, 'x', 'k'), (2, 'y', 'k'), (3, 'z', NULL); "
)
VIEWS: dict[str, tuple[str, Any]] = {
    "of one table": (f"{BASE} CREATE VIEW t AS SELECT name, kind FROM b", "name"),
    "of pairs": (f"{BASE} CREATE VIEW t AS SELECT a.id AS a, b.id AS b FROM b AS a, b", ("a", "b")),
    "of one name twice": (f"{BASE} CREATE VIEW t AS SELECT a.id, b.id, a.name FROM b AS a JOIN b USING (id)", "name"),
    "of groups": (f"{BASE} CREATE VIEW t AS SELECT coalesce(kind, '') AS kind, count(*) FROM b GROUP BY 1", "kind"),
    "of expressions": (f"{BASE} CREATE VIEW t AS SELECT id + 1, upper(name) FROM b", "id + 1"),
    "with an order": (f"{BASE} CREATE VIEW t AS SELECT name FROM b ORDER BY name DESC", "name"),
    "that is recursive": (
        "CREATE VIEW t AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) SELECT * FROM n",
        "i",
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_built_with_a_key(name, tmp_path):
    sql, key = VIEWS[name]
    database = made(tmp_path, sql)
    (outcome,) = (one for one in walk(database, "", tmp_path) if one.table == "t")
    assert not outcome.wrong
    assert not outcome.reason
    mmcache.build(tmp_path / "view.mmc", SQLiteSource(database, Schema("t", key=key)))


def test_a_view_without_key_lists_unique_columns(tmp_path):
    database = made(tmp_path, f"{BASE} CREATE VIEW t AS SELECT name, kind, id AS number, 1.5 AS r, NULL AS n FROM b")
    with pytest.raises(BuildError, match=r"unique and not null.*: name, number$"):
        mmcache.build(tmp_path / "view.mmc", SQLiteSource(database, Schema("t")))


def test_a_view_of_a_table_that_is_gone_is_refused(tmp_path):
    database = made(tmp_path, f"{BASE} CREATE VIEW t AS SELECT * FROM b; DROP TABLE b")
    with pytest.raises(mmcache.MmcacheError, match=r"no such table: main\.b"):
        mmcache.build(tmp_path / "view.mmc", SQLiteSource(database, Schema("t", key="id")))
