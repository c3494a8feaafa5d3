"""A small SQLite bank that caches are built from, and the truth about it.

`items` has what databases have: NULLs, lists, maps, keys that are not ASCII, records without an embedding. Its column
`number` is 0 everywhere until `commit` writes another, so that an answer tells which commit it is of.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmcache import Schema, SQLiteSource
from tests.support.waits import PATIENCE

ITEMS = Schema(
    "items",
    key="name",
    index=("kind", "size", "tags"),
    json=("tags", "extra"),
    embedding="vector",
    dim=8,
)
NOTES = Schema("notes", key="note_id")
NUMBERS = Schema("items", key="name", index=("kind",), columns=("kind", "number"))
"""The same items, without what takes its time to build."""
LINES = Schema("items", key="name", index=("kind",))
"""Of `write_lines`."""

_COLUMNS = "name TEXT PRIMARY KEY, kind TEXT, size INTEGER, tags TEXT, extra TEXT, vector BLOB, number INTEGER"


def make_bank(path: Path, n: int = 60, *, wal: bool = False) -> None:
    """Items, five notes, and a table that is in no file. wal: a build that takes its time keeps no writer waiting."""
    with open_bank(path) as db:
        if wal:
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN")
        db.execute(f"CREATE TABLE items ({_COLUMNS})")
        db.execute("CREATE TABLE notes (note_id TEXT PRIMARY KEY, body TEXT)")
        db.execute("CREATE TABLE others (number INTEGER)")
        for i in range(n):
            insert_item(db, i)
        db.executemany("INSERT INTO notes VALUES (?, ?)", [(f"note-{i}", "x" * i) for i in range(5)])
        db.execute("COMMIT")


@contextlib.contextmanager
def open_bank(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in autocommit mode, which waits for other writers but not for the disk."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as db:
        db.execute("PRAGMA synchronous = OFF")
        yield db


def name_of(i: int) -> str:
    return f"item-{i}-ä"


def kind_of(i: int) -> str | None:
    return (None, "a", "b", "c")[i % 4]


def insert_item(db: sqlite3.Connection, i: int, kind: str | None = None) -> None:
    """Item i as it was made, or with another kind."""
    vector = np.random.default_rng(i).standard_normal(8).astype("<f4").tobytes() if i % 7 else None
    tags = json.dumps([f"t{i % 3}", f"u{i % 5}"]) if i % 4 else "[]"
    extra = json.dumps({"n": i, "half": i / 2})
    db.execute(
        "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?, 0)",
        (name_of(i), kind or kind_of(i), i % 6, tags, extra, vector),
    )


def write(path: Path, i: int = 1, kind: str = "z") -> None:
    """Commit item i with another kind."""
    with open_bank(path) as db:
        insert_item(db, i, kind)


def commit(path: Path, number: int, i: int | None = None) -> None:
    """Commit another number for item i, or for all."""
    with open_bank(path) as db:
        if i is None:
            db.execute("UPDATE items SET number = ?", (number,))
        else:
            db.execute("UPDATE items SET number = ? WHERE name = ?", (number, name_of(i)))


def touch(path: Path) -> None:
    """Commit what is in no file: the fingerprint changes, and a build of it does not."""
    with open_bank(path) as db:
        db.execute("INSERT INTO others VALUES (1)")


def source_of(path: Path) -> SQLiteSource:
    return SQLiteSource(path, ITEMS, NOTES)


def truth(path: Path) -> dict[str, dict[str, Any]]:
    """Every item as SQLite has it, decoded by the standard library alone; the vector under "vector"."""
    with open_bank(path) as db:
        db.row_factory = sqlite3.Row
        rows = {row["name"]: dict(row) for row in db.execute("SELECT * FROM items ORDER BY rowid")}
    for item in rows.values():
        item["tags"], item["extra"] = json.loads(item["tags"]), json.loads(item["extra"])
    return rows


def write_lines(path: Path, number: int, n: int = 20) -> None:
    """Items of one number as lines of JSON, put in their place at once."""
    items = ({"name": name_of(i), "kind": kind_of(i), "number": number} for i in range(n))
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    fresh.replace(path)
