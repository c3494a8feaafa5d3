"""`mmcache build` of several collections: groups of options, and a file of TOML. What is wrong in them is named."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

from mmcache import Snapshot
from mmcache.cli import main
from tests.support.console import ok, run


@pytest.fixture
def shop(tmp_path):
    database = tmp_path / "shop.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("CREATE TABLE items (sku TEXT PRIMARY KEY, kind TEXT, tags TEXT, price INT)")
        db.execute("CREATE TABLE users (email TEXT PRIMARY KEY, kind TEXT)")
        db.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?)", [(f"s{i}", "ab"[i % 2], f'["t{i % 3}"]', i) for i in range(6)]
        )
        db.executemany("INSERT INTO users VALUES (?, ?)", [("a@x", "a"), ("b@x", "b")])
    return database


def built(capsys, *words: object) -> dict[str, int]:
    """The number of records of each collection."""
    assert main(["build", *map(str, words), "--json"]) == 0
    records: dict[str, int] = json.loads(capsys.readouterr().out)["records"]
    return records


def refused(capsys, *words: object, code: int = 2) -> str:
    assert main(list(map(str, words))) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err


# groups --------------------------------------------------------------------------------------------------------------


def test_each_collection_begins_a_group(shop, tmp_path, capsys):
    target = tmp_path / "shop.mmc"
    words = ("--collection", "items", "--index", "kind", "--json-columns", "tags", "--collection", "users")
    assert built(capsys, shop, *words, "-o", target) == {"items": 6, "users": 2}
    with Snapshot.open(target) as snapshot:
        assert snapshot.where(kind="a").ids == ["s0", "s2", "s4"]
        assert snapshot["s1"]["tags"] == ["t1"]
        users = snapshot.collection("users")
        assert (users.schema.key, users.schema.index) == ("email", ())
    assert "unchanged" in ok("rebuild", target).out


def test_options_before_the_first_group_are_for_all(shop, tmp_path, capsys):
    target = tmp_path / "shop.mmc"
    words = (
        "--index",
        "kind",
        "--cluster-by",
        "kind",
        "--collection",
        "items",
        "--index",
        "price",
        "--collection",
        "users",
    )
    built(capsys, shop, *words, "-o", target)
    with Snapshot.open(target) as snapshot:
        assert {name: one.schema.index for name, one in snapshot.collections.items()} == {
            "items": ("kind", "price"),
            "users": ("kind",),
        }
        assert {one.cluster_by for one in snapshot.collections.values()} == {"kind"}


def test_a_group_may_have_another_table_or_query(shop, tmp_path, capsys):
    words = ("--collection", "cheap", "--query", "SELECT * FROM items WHERE price < 2", "--key", "sku")
    more = ("--collection", "people", "--table", "USERS")
    target = tmp_path / "shop.mmc"
    assert built(capsys, shop, *words, *more, "-o", target) == {"cheap": 2, "people": 2}
    with Snapshot.open(target) as snapshot:
        assert snapshot.collection("people").schema.table == "users"


def test_one_collection_takes_the_table_of_its_name(shop, tmp_path, capsys):
    assert built(capsys, shop, "--collection", "users", "-o", tmp_path / "users.mmc") == {"users": 2}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--table", "items", "--table", "users"], "--table: is given twice; for several collections begin each with"),
        (["--query", "SELECT 1", "--query", "SELECT 2"], "--query: is given twice"),
        (["--table", "items", "--key", "sku", "--key", "kind"], "for a key of several fields: --key A,B"),
        (["--collection", "items", "--collection", "items"], "--collection items is given twice"),
        (["--collection", "a", "--table", "items", "--query", "SELECT 1"], "--table or --query, not both"),
        (["--collection", "items", "--collection", "none"], "say which table, with --table; DB has: items, users"),
        (["--table", "items", "--default", "m:f"], "--default is no option of this source"),
        (["--table", "items", "--cast", "price"], "expected NAME=NAME"),
        (
            ["--table", "items", "--json", "tags"],
            "--json takes no value, it prints JSON; columns of JSON text are: --json-columns tags",
        ),
        (["--table", "items", "--json=tags"], "columns of JSON text are: --json-columns tags"),
        (["--preset", "llm", "--collection", "a"], "leave out --collection"),
    ],
)
def test_what_groups_cannot_mean_is_refused(shop, tmp_path, capsys, words, reason):
    err = refused(capsys, "build", shop, *words, "-o", tmp_path / "new.mmc")
    assert reason.replace("DB", str(shop)) in err
    assert not (tmp_path / "new.mmc").exists()


def test_json_before_or_after_the_source_prints_json(shop, tmp_path):
    for words in (("--json", shop), (shop, "--json")):
        done = ok("build", *words, "--table", "items", "-o", tmp_path / "items.mmc")
        assert done.json["records"] == {"items": 6}


# TOML ----------------------------------------------------------------------------------------------------------------

CONFIG = """
output = "shop.mmc"
source = "shop.db"

[metadata]
owner = "tests"

[collections.items]
index = ["kind", "tags"]
json = ["tags"]
cluster_by = "kind"

[collections.people]
table = "users"
key = "email"
on_invalid = "skip"
"""


@pytest.fixture
def config(shop):
    path = shop.parent / "cache.toml"
    path.write_text(CONFIG)
    return path


def test_a_file_names_collections_sources_and_output(config, tmp_path, capsys):
    assert built(capsys, "--config", config) == {"items": 6, "people": 2}
    with Snapshot.open(tmp_path / "shop.mmc") as snapshot:
        assert snapshot.metadata == {"owner": "tests"}
        assert snapshot.where(tags="t1").ids == ["s4", "s1"]
        assert snapshot.collection("items").cluster_by == "kind"
        people = snapshot.collection("people").schema
        assert (people.table, people.key, people.on_invalid) == ("users", "email", "skip")


def test_output_source_and_metadata_of_the_command_win(config, shop, tmp_path, capsys):
    moved = tmp_path / "moved.db"
    shop.rename(moved)
    words = ("--config", config, moved, "-o", tmp_path / "other.mmc", "--metadata", "owner=me")
    assert built(capsys, *words) == {"items": 6, "people": 2}
    with Snapshot.open(tmp_path / "other.mmc") as snapshot:
        assert snapshot.metadata == {"owner": "me"}


def test_paths_are_relative_to_the_file(config, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ok("build", "--config", "../cache.toml", cwd=elsewhere)
    assert (tmp_path / "shop.mmc").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("= 1", "not valid TOML"),
        ("soruce = 'shop.db'", "unknown: 'soruce'; known: output, source, metadata, collections"),
        ("source = 7", "source must be text, not 7"),
        ("source = 'shop.db'", "no collections; each is a table: [collections.NAME]"),
        ("[collections]\nitems = 'shop.db'", "[collections.items]: expected a table"),
        ("[collections.items]\nkey = 'sku'", "[collections.items]: has no source"),
        (
            "[collections.items]\nsource = 'shop.db'\nkye = 'sku'",
            "unknown: 'kye'; known: source, cluster_by, key, index",
        ),
        ("[collections.items]\nsource = 'shop.db'\nkey = 7", "[collections.items]: Schema 'items': key must be"),
        ("[collections.items]\nsource = 'shop.db'\nindex = 7", "[collections.items]: "),
        ("[collections.things]\nsource = 'shop.db'", "say which table"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(shop, tmp_path, capsys, text, reason):
    path = tmp_path / "cache.toml"
    path.write_text(text)
    err = refused(capsys, "build", "--config", path, "-o", tmp_path / "new.mmc")
    assert reason in err
    assert not (tmp_path / "new.mmc").exists()


def test_a_config_without_output_or_beside_options_is_refused(config, tmp_path, capsys):
    assert "leave out --key" in refused(capsys, "build", "--config", config, "--key", "sku")
    config.write_text(CONFIG.replace("output", "# output"))
    assert "names no output" in refused(capsys, "build", "--config", config)
    assert "cannot be read" in refused(capsys, "build", "--config", tmp_path / "none.toml", "-o", "x.mmc")


def test_collections_of_several_sources_are_one_file(tmp_path):
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE items (sku TEXT PRIMARY KEY)")
        db.execute("CREATE TABLE users (id TEXT PRIMARY KEY)")
        db.execute("INSERT INTO items VALUES ('a')")
        db.execute("INSERT INTO users VALUES ('u')")
    (tmp_path / "prices.jsonl").write_text('{"sku": "a"}\n{"sku": "b"}\n')
    words = ("--collection", "items", "--collection", "prices", "--source", "prices.jsonl", "--key", "sku")
    ok("build", "shop.db", *words, "--collection", "users", "-o", "by-words.mmc", cwd=tmp_path)
    (tmp_path / "cache.toml").write_text(
        'output = "by-toml.mmc"\nsource = "shop.db"\n[collections.items]\n'
        '[collections.prices]\nsource = "prices.jsonl"\nkey = "sku"\n[collections.users]\n'
    )
    ok("build", "--config", "cache.toml", cwd=tmp_path)
    for name in ("by-words.mmc", "by-toml.mmc"):
        with Snapshot.open(tmp_path / name) as snapshot:
            assert {one: len(snapshot.collection(one)) for one in snapshot.collections} == {
                "items": 1,
                "users": 1,
                "prices": 2,
            }
        (tmp_path / "prices.jsonl").write_text('{"sku": "a"}\n{"sku": "c"}\n')
        assert "generation" in ok("rebuild", name, cwd=tmp_path).out


# errors --------------------------------------------------------------------------------------------------------------


def test_a_failed_build_prints_its_error_once(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"name": "x"}\n')
    for words in (("build", source, "-o", tmp_path / "f.mmc"), ("build", tmp_path / "no.db", "-o", tmp_path / "f.mmc")):
        done = run(*words)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done
        assert done.err.startswith("mmcache build: ")


def test_full_text_indexes_do_not_hide_the_only_table(tmp_path, capsys):
    with closing(sqlite3.connect(tmp_path / "notes.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE sqliteitems (id TEXT PRIMARY KEY, body TEXT)")
        db.execute("CREATE VIRTUAL TABLE f USING fts4(body)")
    assert built(capsys, tmp_path / "notes.db", "-o", tmp_path / "notes.mmc") == {"sqliteitems": 0}
    assert main(["track", str(tmp_path / "notes.db"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tables"][0]["table"] == "sqliteitems"
