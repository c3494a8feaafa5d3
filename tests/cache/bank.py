"""A small SQLite bank that the cache tests share, and the truth about it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

from mmcache import Schema, SQLiteSource

ITEMS = Schema(
    "items",
    key="name",
    index=("kind", "size", "tags"),
    json=("tags", "extra"),
    embedding="vector",
    dim=8,
)
NOTES = Schema("notes", key="note_id")


def make_bank(path: Path, n: int = 60) -> None:
    """Items with NULLs, lists, maps, non-ASCII keys and some without an embedding; and a few notes."""
    db = sqlite3.connect(path)
    db.execute(
        "CREATE TABLE items (name TEXT PRIMARY KEY, kind TEXT, size INTEGER, tags TEXT, extra TEXT, vector BLOB)"
    )
    db.execute("CREATE TABLE notes (note_id TEXT PRIMARY KEY, body TEXT)")
    for i in range(n):
        insert_item(db, i)
    db.executemany("INSERT INTO notes VALUES (?, ?)", [(f"note-{i}", "x" * i) for i in range(5)])
    db.commit()
    db.close()


def insert_item(db: sqlite3.Connection, i: int, kind: str | None = None) -> None:
    vector = np.random.default_rng(i).standard_normal(8).astype("<f4").tobytes() if i % 7 else None
    tags = json.dumps([f"t{i % 3}", f"u{i % 5}"]) if i % 4 else "[]"
    db.execute(
        "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?)",
        (f"item-{i}-ä", kind or (None, "a", "b", "c")[i % 4], i % 6, tags, json.dumps({"n": i, "half": i / 2}), vector),
    )


def source_of(path: Path) -> SQLiteSource:
    return SQLiteSource(path, ITEMS, NOTES)


def truth(path: Path) -> dict[str, dict[str, Any]]:
    """Every item as SQLite has it, decoded by the standard library alone; the vector under "vector"."""
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    rows = {}
    for row in db.execute("SELECT * FROM items ORDER BY rowid"):
        item = dict(row)
        item["tags"], item["extra"] = json.loads(item["tags"]), json.loads(item["extra"])
        rows[item["name"]] = item
    db.close()
    return rows
