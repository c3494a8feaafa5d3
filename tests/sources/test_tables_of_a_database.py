"""Which tables of a database hold records, and which only serve an index or SQLite itself."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from mmcache.sources.listing import tables_of
from tests.support.console import ok


@pytest.fixture
def db(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "notes.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE notes (id TEXT PRIMARY KEY, body TEXT)")
        yield db


@pytest.mark.parametrize(
    "index",
    [
        "CREATE VIRTUAL TABLE f USING fts5(body, content=notes)",
        "CREATE VIRTUAL TABLE f USING fts4(body)",
        "CREATE VIRTUAL TABLE 'f_f' USING fts3(body)",
        "CREATE VIRTUAL TABLE f USING rtree(id, low, high)",
    ],
)
def test_an_index_and_its_shadow_tables_are_no_tables_of_records(db, index):
    db.execute(index)
    db.execute("CREATE TABLE f_notes (id)")
    assert tables_of(db) == ["f_notes", "notes"]


def test_shadow_tables_of_an_extension_that_is_not_loaded_are_left_out(db):
    db.execute("CREATE TABLE v_chunks (a); ")
    for name in ("v_rowids", "v_info", "v_vector_chunks00", "v_metadatatext01", "v_notes"):
        db.execute(f"CREATE TABLE {name} (a)")
    db.execute("PRAGMA writable_schema = 1")
    made = "CREATE VIRTUAL TABLE v USING vec0(embedding float[4])"
    db.execute("INSERT INTO sqlite_master VALUES ('table', 'v', 'v', 0, ?)", (made,))
    assert tables_of(db) == ["notes", "v_notes"]


def test_only_the_prefixes_of_sqlite_and_mmcache_hide_a_table(db):
    for name in ("sqliteitems", "_mmcacheitems", "_mmcache_changes"):
        db.execute(f"CREATE TABLE {name} (id)")
    db.execute("CREATE VIEW seen AS SELECT * FROM notes")
    assert tables_of(db) == ["_mmcacheitems", "notes", "seen", "sqliteitems"]
    assert tables_of(db, views=False) == ["_mmcacheitems", "notes", "sqliteitems"]


def test_a_virtual_table_is_taken_where_there_is_nothing_else(db):
    db.execute("DROP TABLE notes")
    db.execute("CREATE VIRTUAL TABLE f USING fts5(body)")
    assert tables_of(db) == ["f"]


def test_the_only_table_beside_a_full_text_index_is_built_and_tracked(db, tmp_path):
    db.execute("CREATE VIRTUAL TABLE f USING fts5(body, content=notes)")
    assert "notes" in ok("build", tmp_path / "notes.db", "-o", tmp_path / "notes.mmc").out
    assert "notes, by id" in ok("track", tmp_path / "notes.db").out
