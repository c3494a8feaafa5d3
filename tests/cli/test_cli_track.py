"""`mmcache track`: installs, says so, repairs, removes; and what it refuses."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

import mmcache
from examples.demo.bank import write_bank
from mmcache.cli import main
from mmcache.presets.patterns import PatternsSource
from tests.support.console import make_shelf, ok, run

ITEMS = mmcache.Schema("items", key="sku")


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / "shop.db"
    execute(path, "CREATE TABLE items (sku TEXT PRIMARY KEY, n); INSERT INTO items VALUES ('a', 1), ('b', 2)")
    return path


def execute(path, script):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(script)


def names(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE name LIKE '%mmcache%'")}


def changed_by(path, script, *schemas):
    """The keys of the first collection that tracking saw the script change."""
    with contextlib.closing(mmcache.SQLiteSource(path, *schemas)) as source:
        since = source.fingerprint()
        execute(path, script)
        changes = source.changes(since)
    assert changes is not None
    return changes.keys[schemas[0].name]


def fails(capsys, code, *words):
    assert main(list(map(str, words))) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_the_only_table_is_tracked_and_the_words_say_what_that_means(shop):
    printed = ok("track", shop, "--key", "sku").out
    assert printed.startswith(f"{shop}: tracked from now on\n  items, by sku: 6 triggers\n")
    assert "_mmcache_changes" in printed
    assert "65,536" in printed
    assert f"mmcache track {shop} --remove" in printed
    assert changed_by(shop, "UPDATE items SET n = 3 WHERE sku = 'b'", ITEMS) == {"b"}
    # Its own tables do not count as tables of the database.
    assert ok("track", shop, "--key", "sku").out.startswith(f"{shop}: tracked already, nothing changed\n")


def test_as_json(shop):
    told = ok("track", shop, "--key", "sku", "--limit", "99", "--json").json
    assert told["path"] == str(shop)
    assert (told["limit"], told["changed"]) == (99, True)
    assert [(table["table"], table["key"]) for table in told["tables"]] == [("items", "sku")]
    assert set(told["tables"][0]["triggers"]) < names(shop)
    removed = ok("track", shop, "--remove", "--json").json
    assert removed["path"] == str(shop)
    assert set(removed["removed"]) >= {*told["tables"][0]["triggers"], "_mmcache_changes", "_mmcache_tracking"}
    assert ok("track", shop, "--remove", "--json").json["removed"] == []


def test_removing_leaves_nothing(shop):
    ok("track", shop, "--key", "sku")
    assert "removed _mmcache_changes\n" in ok("track", shop, "--remove").out
    assert names(shop) == set()
    again = run("track", shop, "--remove")
    assert (again.code, again.out, again.err) == (0, "", f"{shop}: not tracked, nothing to remove\n")


def test_several_tables_and_a_table_with_a_long_name(shop):
    long = "a table with a name / longer than any collection's"
    execute(shop, f'CREATE TABLE "{long}" (sku TEXT)')
    ok("track", shop, "--table", "items", "--table", long, "--key", "sku")
    schemas = mmcache.Schema("long", table=long, key="sku"), ITEMS
    assert changed_by(shop, f"""INSERT INTO "{long}" VALUES ('x')""", *schemas) == {"x"}


def test_like_a_cache_file(tmp_path, shop):
    mmcache.build(tmp_path / "items.mmc", mmcache.SQLiteSource(shop, ITEMS))
    ok("track", "--like", tmp_path / "items.mmc")
    assert changed_by(shop, "DELETE FROM items WHERE sku = 'a'", ITEMS) == {"a"}
    moved = tmp_path / "moved.db"
    execute(moved, "CREATE TABLE items (sku TEXT PRIMARY KEY, n)")
    ok("track", moved, "--like", tmp_path / "items.mmc")
    assert names(moved)
    ok("track", "--like", tmp_path / "items.mmc", "--remove")
    assert names(shop) == set()


def test_a_bank_of_patterns_by_its_preset_or_by_its_file(tmp_path):
    write_bank(tmp_path / "bank.db", 5)
    told = ok("track", tmp_path / "bank.db", "--preset", "patterns", "--json").json
    assert [table["table"] for table in told["tables"]] == ["patterns", "agent_configs"]
    with contextlib.closing(PatternsSource(tmp_path / "bank.db")) as source:
        mmcache.build(tmp_path / "bank.mmc", source)
    assert ok("track", "--like", tmp_path / "bank.mmc", "--json").json["changed"] is False


def test_what_cannot_be_meant_is_2(tmp_path, shop, capsys):
    make_shelf(tmp_path / "items.mmc")
    execute(shop, "CREATE TABLE more (id TEXT)")
    for words, reason in [
        ((), "say which database, or --like FILE.mmc"),
        ((shop,), f"say which table, with --table; {shop} has: items, more"),
        ((shop, "--preset", "patterns", "--key", "sku"), "--preset says it all"),
        ((shop, "--remove", "--table", "items"), "--remove removes the tracking of all tables"),
        ((shop, "--like", tmp_path / "items.mmc", "--key", "sku"), "--like says what to track"),
        (("--like", tmp_path / "items.mmc"), "was not built from SQLite or PostgreSQL"),
        ((shop, "--table", "items", "--key", "sku", "--limit", "0"), "--limit: expected 1 to"),
    ]:
        assert reason in fails(capsys, 2, "track", *words)
    assert names(shop) == set()


def test_what_cannot_be_done_is_1_and_a_missing_cache_file_3(tmp_path, shop, capsys):
    execute(shop, "CREATE VIEW v AS SELECT * FROM items")
    err = fails(capsys, 1, "track", shop, "--table", "v", "--key", "sku")
    assert err.startswith(f"mmcache track: {shop}: 'v' is a view, which cannot be tracked by itself; name the tables")
    err = fails(capsys, 1, "track", shop, "--table", "items", "--key", "sku,nope")
    assert "key: no column named nope; there are: sku, n" in err
    assert "there is no database at this path" in fails(capsys, 1, "track", tmp_path / "none.db")
    assert "there is no database at this path" in fails(capsys, 1, "track", tmp_path / "none.db", "--remove")
    assert "there is no such file" in fails(capsys, 3, "track", "--like", tmp_path / "none.mmc")
    assert names(shop) == set()
