"""`mmcache init` looks at a database and writes what `mmcache build --config` takes, with its reasons."""

from __future__ import annotations

import gzip
import json
import sqlite3
import tomllib
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from mmcache import Snapshot
from tests.support.console import ok, run

SCRIPT = """
CREATE TABLE items (sku TEXT PRIMARY KEY, kind TEXT, tags TEXT, title TEXT, url TEXT UNIQUE, price REAL,
                    vector BLOB, photo BLOB);
CREATE INDEX by_title ON items (title);
CREATE TABLE coords (auth TEXT, code INT, PRIMARY KEY (auth, code)) WITHOUT ROWID;
CREATE TABLE "odd name" (a TEXT);
CREATE VIEW cheap AS SELECT sku AS item, price FROM items WHERE price < 10;
CREATE VIRTUAL TABLE words USING fts4(body);
"""


@pytest.fixture
def shop(tmp_path):
    rng = np.random.default_rng(1)
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as db:
        db.executescript(SCRIPT)
        db.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(f"s{i}", "ab"[i % 2], json.dumps([f"t{i % 3}"]), f"title {i}", f"u{i}", i / 3),
                    *(rng.standard_normal(16).astype("f4").tobytes() if i else None, b"\xff\xd8" + bytes(i)),
                )
                for i in range(40)
            ],
        )
        db.executemany("INSERT INTO coords VALUES ('EPSG', ?)", [(i,) for i in range(9)])
        db.execute('INSERT INTO "odd name" VALUES (1)')
    return tmp_path / "shop.db"


def chosen(directory) -> dict[str, Any]:
    return tomllib.loads((directory / "cache.toml").read_text())


def test_init_chooses_keys_indexes_json_and_embeddings(shop):
    done = ok("init", "shop.db", cwd=shop.parent)
    assert "mmcache build --config cache.toml" in done.out
    found = chosen(shop.parent)
    assert (found["source"], found["output"]) == ("shop.db", "shop.mmc")
    assert found["collections"]["items"] == {
        "key": "sku",
        "index": ["kind", "tags", "title", "url"],
        "json": ["tags"],
        "embedding": "vector",
        "dim": 16,
    }
    assert found["collections"]["coords"]["key"] == ["auth", "code"]
    assert found["collections"]["odd name"] == {"key": "rowid"}


def test_init_says_why_and_leaves_out_what_has_no_key(shop):
    text = ok("init", "shop.db", "-o", "-", cwd=shop.parent).out
    assert 'key = "sku"  # its primary key' in text
    assert "kind: 2 distinct values" in text
    assert "title: the database has an index (by_title)" in text
    assert "vector: BLOBs of 64 bytes, 16 x float32" in text
    assert "# [collections.cheap]" in text
    assert "unique and not null in its 30 rows: item" in text
    assert "# Left out: words, a virtual table" in text
    assert not (shop.parent / "cache.toml").exists()


def test_what_init_writes_can_be_built(shop):
    ok("init", "shop.db", cwd=shop.parent)
    ok("build", "--config", "cache.toml", cwd=shop.parent)
    with Snapshot.open(shop.parent / "shop.mmc") as snapshot:
        assert list(snapshot.collections) == ["coords", "items", "odd name"]
        assert snapshot.collection("items").where(tags="t1", kind="b").ids == [f"s{i}" for i in range(1, 40, 6)]
        assert snapshot.collection("items").dim == 16


def test_init_writes_over_nothing(shop):
    (shop.parent / "cache.toml").write_text("mine")
    done = run("init", "shop.db", cwd=shop.parent)
    assert (done.code, done.out) == (2, "")
    assert "cache.toml is there" in done.err
    assert (shop.parent / "cache.toml").read_text() == "mine"


def test_init_of_no_database_is_1(tmp_path):
    done = run("init", "none.db", cwd=tmp_path)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert not list(tmp_path.iterdir())


def test_paths_of_init_are_relative_to_its_file(shop):
    (shop.parent / "etc").mkdir()
    ok("init", "shop.db", "-o", "etc/cache.toml", cwd=shop.parent)
    ok("build", "--config", "etc/cache.toml", cwd=shop.parent)
    assert (shop.parent / "etc" / "shop.mmc").exists()


def test_words_of_the_database_cannot_break_the_toml(tmp_path):
    with closing(sqlite3.connect(tmp_path / "odd.db", isolation_level=None)) as db:
        db.execute('CREATE TABLE "a ""b"" # [c]" ("k ""1"" \\" TEXT PRIMARY KEY, "é # x" INT)')
    ok("init", "odd.db", cwd=tmp_path)
    assert chosen(tmp_path)["collections"] == {'a "b" # [c]': {"key": 'k "1" \\'}}


def test_tables_and_columns_whose_names_a_schema_cannot_take_do_not_stop_a_build(tmp_path):
    long = "ü" * 200
    with closing(sqlite3.connect(tmp_path / "odd.db", isolation_level=None)) as db:
        db.execute('CREATE TABLE "two\nlines" (id INTEGER PRIMARY KEY, "a\tb" TEXT)')
        db.execute('CREATE INDEX by_tab ON "two\nlines" ("a\tb")')
        db.execute("INSERT INTO \"two\nlines\" VALUES (1, 'x')")
        db.execute('CREATE TABLE "two_lines" (id INTEGER PRIMARY KEY)')
        db.execute(f'CREATE TABLE "{long}" (id INTEGER PRIMARY KEY)')
        db.execute('CREATE TABLE other ("a\nkey" TEXT PRIMARY KEY)')
    ok("init", "odd.db", cwd=tmp_path)
    found = chosen(tmp_path)["collections"]
    assert found["two_lines_2"] == {"table": "two\nlines", "key": "id"}
    assert found["ü" * 100]["table"] == long
    assert "other" not in found
    ok("build", "--config", "cache.toml", cwd=tmp_path)
    with Snapshot.open(tmp_path / "odd.mmc") as snapshot:
        assert snapshot.collection("two_lines_2")[1]["a\tb"] == "x"
        assert len(snapshot.collections) == 3


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("items.csv", "id,text\né,1\nb,2\n".encode("utf-16")),
        ("items.csv", b"\n\nid,text\na,1\nb,2\n"),
        ("items.csv", b'"id","a;b;c;d"\na,1\nb,2\n'),
        ("items.csv", b'id;text;"a,\nb"\na;1;1\nb;2;2\n'),
        ("items.tsv", b"id\tx,y,z\na\t1\nb\t2\n"),
        ("items.tsv.gz", gzip.compress(b"id\tx,y,z\na\t1\nb\t2\n")),
    ],
    ids=["utf16", "blank", "quoted", "lines", "tsv", "tsv.gz"],
)
def test_init_reads_a_table_of_text_as_a_build_does(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    ok("init", name, cwd=tmp_path)
    assert chosen(tmp_path)["collections"]["items"]["key"] == "id"
    ok("build", "--config", "cache.toml", cwd=tmp_path)
    with Snapshot.open(tmp_path / "items.mmc") as snapshot:
        assert [record["id"] for record in snapshot.values()] in (["a", "b"], ["é", "b"])
        assert len(snapshot["b"]) == 2 + ("text;" in repr(data))
