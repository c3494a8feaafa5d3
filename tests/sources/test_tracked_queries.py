"""Tracking of queries and views: the tables below them are logged by the columns that hold the collection's key."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

import mmcache
from mmcache import Schema, SQLiteSource
from mmcache.additive import union
from mmcache.errors import SourceError
from tests.support.console import ok
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")

JOIN = "SELECT p.id, name, vector FROM qe_patterns AS p LEFT JOIN qe_pattern_embeddings AS e ON e.pattern_id = p.id"
TRACKS = {"qe_patterns": "id", "qe_pattern_embeddings": "pattern_id"}
PATTERNS = Schema("patterns", query=JOIN + " -- all;", embedding="vector", tracks=TRACKS)


def execute(path, script):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(script)


@pytest.fixture
def bank(tmp_path):
    path = tmp_path / "bank.db"
    execute(
        path,
        "CREATE TABLE qe_patterns (id TEXT PRIMARY KEY, name TEXT);"
        "CREATE TABLE qe_pattern_embeddings (pattern_id TEXT UNIQUE, vector TEXT);"
        "CREATE TABLE places (a INT, b TEXT, label TEXT, PRIMARY KEY (a, b));"
        "CREATE TABLE words (label TEXT);"
        "INSERT INTO qe_patterns VALUES ('a', 'x'), ('b', 'y'), ('c', 'z');"
        "INSERT INTO qe_pattern_embeddings VALUES ('a', '[1, 0]'), ('b', '[0, 1]');"
        "INSERT INTO places VALUES (1, 'l', 'one'), (2, 'r', 'two');"
        "CREATE VIEW seen AS SELECT id, upper(name) AS name FROM qe_patterns;",
    )
    return path


def made(path, tracks):
    return contextlib.closing(SQLiteSource(path, Schema("patterns", query=JOIN, tracks=tracks)))


@contextlib.contextmanager
def tracked(path, *schemas):
    with contextlib.closing(SQLiteSource(path, *schemas)) as source:
        source.track()
        yield source


def changed_by(path, source, script):
    """The keys of the first collection; None where the source cannot tell."""
    since = source.fingerprint()
    execute(path, script)
    changes = source.changes(since)
    assert source.fingerprint() != since
    return changes and changes.keys[source.schemas[0].name]


@pytest.mark.parametrize(
    ("script", "keys"),
    [
        ("UPDATE qe_patterns SET name = 'n' WHERE id = 'b'", {"b"}),
        ("UPDATE qe_pattern_embeddings SET vector = '[1, 1]' WHERE pattern_id = 'a'", {"a"}),
        ("UPDATE qe_pattern_embeddings SET pattern_id = 'c' WHERE pattern_id = 'a'", {"a", "c"}),
        ("INSERT OR REPLACE INTO qe_pattern_embeddings (rowid, pattern_id) VALUES (1, 'c')", {"a", "c"}),
        ("DELETE FROM qe_pattern_embeddings", {"a", "b"}),
        ("INSERT INTO qe_patterns VALUES ('d', 'w')", {"d"}),
    ],
)
def test_a_write_to_any_table_of_a_join_tells_the_keys(bank, script, keys):
    with tracked(bank, PATTERNS) as source:
        assert changed_by(bank, source, script) == keys


def test_other_tables_do_not_move_the_fingerprint(bank):
    with tracked(bank, PATTERNS) as source:
        before = source.fingerprint()
        execute(bank, "INSERT INTO words VALUES ('w')")
        assert source.fingerprint() == before


def test_a_view_is_tracked_by_the_tables_below_it(bank):
    schema = Schema("seen", table="seen", key="id", tracks={"QE_Patterns": "ID"})
    with tracked(bank, schema) as source:
        assert changed_by(bank, source, "UPDATE qe_patterns SET name = 'n' WHERE id = 'b'") == {"b"}


def test_a_key_of_several_columns_is_tracked_as_their_tuple(bank):
    schema = Schema("places", query="SELECT a, b, label FROM places", key=("a", "b"), tracks={"places": ("a", "b")})
    with tracked(bank, schema) as source:
        assert changed_by(bank, source, "UPDATE places SET b = 'm' WHERE a = 1") == {(1, "l"), (1, "m")}


def test_a_cast_key_is_told_in_both_spellings(bank):
    schema = Schema("places", query="SELECT CAST(a AS TEXT) AS id, label FROM places", tracks={"places": "a"})
    with tracked(bank, schema) as source:
        assert "1" in changed_by(bank, source, "UPDATE places SET label = 'x' WHERE a = 1")


@pytest.mark.parametrize(
    ("query", "key", "tracks", "said"),
    [
        ("SELECT 'p-' || a AS id, label FROM places", None, {"places": "a"}, "'p-1' is no value of places.a, so what"),
        ("SELECT a + 100 AS id, label FROM places", None, {"places": "a"}, "101 is no value of places.a"),
        ("SELECT a, lower(b) AS b FROM places", ("a", "b"), {"places": ("a", "label")}, "no value of places.a, places"),
    ],
)
def test_a_key_that_is_no_value_of_a_tracked_column_is_refused(bank, query, key, tracks, said):
    """Its changes would be told as those of another key."""
    with contextlib.closing(SQLiteSource(bank, Schema("places", query=query, key=key, tracks=tracks))) as source:
        with pytest.raises(SourceError, match=said):
            source.track()
        with contextlib.closing(sqlite3.connect(bank)) as db:
            assert not db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()


def test_a_table_without_the_key_changes_everything(bank):
    schema = Schema("p", query="SELECT id, label FROM qe_patterns, words", tracks={"qe_patterns": "id", "words": ()})
    with tracked(bank, schema) as source:
        assert changed_by(bank, source, "UPDATE qe_patterns SET name = 'n' WHERE id = 'b'") == {"b"}
        assert changed_by(bank, source, "INSERT INTO words VALUES ('w')") is None


def test_what_tracks_leaves_out_or_misspells_is_refused_by_name(bank):
    for tracks, said in (
        ({}, r"tracks=\{'qe_patterns': '...', 'qe_pattern_embeddings': '...'\}"),
        ({"qe_patterns": "id"}, "also reads qe_pattern_embeddings"),
        ({**TRACKS, "nothing": "id"}, "no table 'nothing'"),
        ({**TRACKS, "qe_patterns": "sku"}, "no column named sku"),
        ({**TRACKS, "qe_patterns": ("id", "name")}, "1 column, found id, name"),
        ({**TRACKS, "seen": "id"}, "'seen' is a view"),
    ):
        with made(bank, tracks) as source, pytest.raises(SourceError, match=said):
            source.track()
    table = SQLiteSource(bank, Schema("places", tracks={"places": "a"}))
    with contextlib.closing(table), pytest.raises(SourceError, match="'places' is a table"):
        table.track()
    with pytest.raises(ValueError, match="tracks must be"):
        Schema.from_dict({"name": "items", "query": JOIN, "tracks": {"items": 7}})


def test_untracking_a_query_leaves_nothing(bank):
    def objects():
        with contextlib.closing(sqlite3.connect(bank)) as db:
            return db.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()

    before = objects()
    with tracked(bank, PATTERNS) as source:
        assert source.untrack()
    assert [row for row in objects() if row[1] != "sqlite_sequence"] == before


def test_workers_of_a_join_answer_by_the_source_for_what_was_written(bank, path):
    with tracked(bank, PATTERNS) as source, mmcache.open(path, source, check_interval=0.0) as cache:
        assert cache["c"].embedding is None
        execute(bank, "INSERT INTO qe_pattern_embeddings VALUES ('c', '[3, 4]')")
        until("the new embedding", lambda: cache.embedding("c") is not None)
        assert cache.get_embeddings(["c"]).tolist() == [[3, 4]]
        assert cache.status().state == "stale"
        assert cache.get("a") is not None


def test_the_command_tracks_what_a_file_was_built_from(bank, path):
    mmcache.build(path, SQLiteSource(bank, PATTERNS))
    printed = ok("track", "--like", path).out
    assert "qe_pattern_embeddings, by pattern_id" in printed
    assert "migration" in printed


def test_versions_of_a_program_may_differ_in_what_they_track():
    assert union([PATTERNS], [Schema("patterns", query=PATTERNS.query, embedding="vector")]) == (PATTERNS,)
    assert Schema.from_dict(PATTERNS.to_dict()) == PATTERNS


def test_a_source_that_lost_its_triggers_says_so_once(bank, caplog):
    with tracked(bank, Schema("places")) as source:
        source.fingerprint()
        execute(bank, "ALTER TABLE places RENAME TO old; CREATE TABLE places (a INT, b TEXT, PRIMARY KEY (a, b))")
        source.fingerprint()
        execute(bank, "INSERT INTO places VALUES (3, 'x')")
        source.fingerprint()
    assert [record.event for record in caplog.records if record.levelname == "WARNING"] == ["untracked"]
