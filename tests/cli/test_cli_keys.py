"""Keys on a command line: what a word means in a collection with keys of some types."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
from hypothesis import given, strategies as st

import mmcache
from mmcache.cli.keys import keys_of, text_of, type_of
from tests.support.console import ok, run

WORDS = [
    ("a", ["str"], ("a",)),
    ("7", ["str"], ("7",)),
    ('"7"', ["str"], ('"7"',)),
    ("7", ["int"], (7,)),
    ("-7", ["int"], (-7,)),
    ("007", ["int"], ("007",)),
    ("18446744073709551615", ["int"], (2**64 - 1,)),
    ("18446744073709551616", ["int"], ("18446744073709551616",)),
    ("a", ["int"], ("a",)),
    ("7", ["int", "str"], (7, "7")),
    ('"7"', ["int", "str"], ("7",)),
    ("7", [], (7, "7")),
    ("0xC0ffee", ["bytes"], (b"\xc0\xff\xee",)),
    ("0x", ["bytes"], (b"",)),
    ("0xc", ["bytes"], ("0xc",)),
    ("0xc0", ["bytes", "str"], (b"\xc0", "0xc0")),
    ('["EPSG", 4326]', ["(str, int)"], (("EPSG", 4326),)),
    ('["0xc0", 1]', ["(bytes, int)"], ((b"\xc0", 1),)),
    ('["0xc0", 1]', ["(bytes, int)", "(str, int)"], ((b"\xc0", 1), ("0xc0", 1))),
    ('["EPSG", "4326"]', ["(str, int)"], (("EPSG", "4326"), '["EPSG", "4326"]')),
    ('["EPSG", 4326', ["(str, int)"], ('["EPSG", 4326',)),
    ("[1.5, 2]", ["(str, int)"], ("[1.5, 2]",)),
    ('["a"]', ["(str, int)"], ('["a"]',)),
    ("[" * 5000, ["(str, int)"], ("[" * 5000,)),
    ('["EPSG", 4326]', ["str"], ('["EPSG", 4326]',)),
]


@pytest.mark.parametrize(("word", "types", "keys"), WORDS, ids=[f"{w[:20]} {t}" for w, t, _ in WORDS])
def test_a_word_means_what_the_types_of_the_keys_make_of_it(word, types, keys):
    assert [(type(key), key) for key in keys_of(word, types)] == [(type(key), key) for key in keys]


scalars = st.one_of(st.text(), st.integers(-(2**63), 2**64 - 1), st.binary())


@given(st.one_of(scalars, st.lists(scalars, min_size=2, max_size=8).map(tuple)))
def test_a_key_is_written_as_a_word_that_means_it(key):
    assert keys_of(text_of(key), [type_of(key)])[0] == key


def test_a_word_that_could_be_several_keys_never_loses_one():
    for word in ("7", "0xc0", "[1, 2]"):
        assert set(keys_of(word, [])) >= set(keys_of(word, ["str"]))


@pytest.fixture
def database(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "s.db")) as db, db:
        db.executescript("CREATE TABLE items (Id TEXT PRIMARY KEY, v); INSERT INTO items VALUES ('a', 1), ('7', 2)")
    return tmp_path / "s.db"


@pytest.mark.parametrize(
    "options", [["--key", "ID"], ["--table", "ITEMS"], ["--table", "Items", "--key", "iD"], ["--query", "TABLE;\n"]]
)
def test_names_are_as_the_database_spells_them(tmp_path, database, options):
    options = [option.replace("TABLE", "SELECT Id, v FROM items ") for option in options]
    ok(
        "build",
        database,
        *options,
        "--collection" if "--query" in options else "--index",
        "v",
        "-o",
        tmp_path / "c.mmc",
    )
    with mmcache.Snapshot.open(tmp_path / "c.mmc") as snapshot:
        assert snapshot.default.name == ("v" if "--query" in options else "items")
        assert snapshot.default.schema.key == "Id"
        assert snapshot["7"]["v"] == 2


def test_a_missing_table_lists_those_there_are(tmp_path, database):
    done = run("build", database, "--table", "none", "-o", tmp_path / "c.mmc")
    assert done.code == 1
    assert "no table 'none'; it has: items" in done.err


def test_keys_of_text_are_taken_as_they_are(tmp_path, database):
    ok("build", database, "-o", tmp_path / "c.mmc")
    assert '"v": 2' in ok("get", tmp_path / "c.mmc", "7").out
    assert run("get", tmp_path / "c.mmc", "0x37").code == 1
    assert ok("find", tmp_path / "c.mmc", "--ids").out == "a\n7\n"


def test_a_word_that_cannot_be_a_key_of_the_collection_is_not_found(tmp_path):
    path = tmp_path / "systems.mmc"
    mmcache.build(path, [{"auth": "EPSG", "code": 4326}], mmcache.Schema("systems", key=("auth", "code")))
    assert "4326" in ok("get", path, '["EPSG", 4326]').out
    for word in ('["EPSG", 4326, 1]', '["EPSG"]', "EPSG", "4326"):
        done = run("get", path, word)
        assert done.code == 1
        assert f"no {word!r} in collection 'systems'" in done.err


def test_a_file_with_keys_of_very_many_types_is_read(tmp_path):
    kinds = ["7", 7, b"7"]
    keys = [(a, b, c) for a in kinds for b in kinds for c in kinds]
    path = tmp_path / "t.mmc"
    mmcache.build(path, [dict(zip("abc", key, strict=True)) for key in keys], mmcache.Schema("t", key=tuple("abc")))
    assert '"7"' in ok("get", path, '["7", 7, "7"]').out
    assert run("get", path, "7").code == 1
