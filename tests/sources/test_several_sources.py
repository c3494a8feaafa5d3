"""Several sources as one cache."""

from __future__ import annotations

import json
import pickle
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import CallableSource, IterableSource, JSONLinesSource, Schema, SourceError, Sources, SQLiteSource
from mmcache.format.header import is_telling
from mmcache.sharing.publishing import rebuild
from mmcache.sources import from_spec, is_remakable
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write(tmp_path, "CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT)")
    write(tmp_path, "INSERT INTO items VALUES ('a', 'x'), ('b', 'y')")
    (tmp_path / "tags.jsonl").write_text(json.dumps({"id": 1, "items": ["a"]}) + "\n")
    return tmp_path


def write(home: Path, sql: str) -> None:
    with sqlite3.connect(home / "shop.db") as db:
        db.execute(sql)
    db.close()


def both(home: Path) -> Sources:
    return Sources(
        SQLiteSource(home / "shop.db", Schema("items", index=("kind",))),
        JSONLinesSource(home / "tags.jsonl", Schema("tags", index=("items",))),
    )


def test_the_collections_of_all_are_in_one_file(home):
    source = both(home)
    with mmcache.open(home / "c.mmc", source) as cache:
        assert cache["a"]["kind"] == "x"
        assert cache.collection("tags")[1]["items"] == ["a"]
        assert cache.collection("tags").where(items="a").ids == [1]
    source.close()


def test_it_is_the_same_file_as_of_one_source_of_both(home):
    rows: dict[str, Any] = {"items": [{"id": "a", "kind": "x"}], "tags": [{"id": 1, "items": ["a"]}]}
    schemas = Schema("items", index=("kind",)), Schema("tags", index=("items",))
    mmcache.build(home / "one.mmc", rows, *schemas)
    parts = [IterableSource(rows[schema.name], schema) for schema in schemas]
    mmcache.build(home / "two.mmc", Sources(*parts))
    assert (home / "one.mmc").read_bytes()[256:] == (home / "two.mmc").read_bytes()[256:]


def test_what_changes_in_any_of_them_is_noticed(home):
    source = both(home)
    before = until("a lasting fingerprint", lambda: (one := source.fingerprint()) == source.fingerprint() and one)
    (home / "tags.jsonl").write_text(json.dumps({"id": 2, "items": []}) + "\n")
    assert source.fingerprint() != before
    assert is_telling(before)
    source.close()


def test_changed_keys_are_known_where_the_part_that_changed_knows_them(home):
    source = both(home)
    SQLiteSource(home / "shop.db", Schema("items")).track()
    since = until("a lasting fingerprint", lambda: (one := source.fingerprint()) == source.fingerprint() and one)
    write(home, "UPDATE items SET kind = 'z' WHERE id = 'b'")
    changes = source.changes(since)
    assert changes is not None
    assert changes.keys == {"items": frozenset({"b"}), "tags": frozenset()}
    assert both(home).changes(since) is None  # which has not seen that fingerprint
    (home / "tags.jsonl").write_text("")
    assert source.changes(since) is None
    source.close()


def test_one_that_cannot_tell_leaves_a_mark():
    constant = IterableSource([], Schema("a"))
    telling = CallableSource(list, Schema("b"), fingerprint=lambda: 1)
    assert not is_telling(Sources(constant).fingerprint())
    assert Sources(constant).fingerprint() == bytes(32)
    assert not is_telling(Sources(constant, telling).fingerprint())
    other = CallableSource(list, Schema("b"), fingerprint=lambda: 2)
    assert Sources(constant, telling).fingerprint() != Sources(constant, other).fingerprint()


def test_it_is_made_again_from_the_file_alone(home):
    source = both(home)
    mmcache.build(home / "c.mmc", source)
    assert is_remakable(source)
    write(home, "INSERT INTO items VALUES ('c', 'z')")
    assert rebuild(home / "c.mmc").records == {"items": 3, "tags": 1}
    again = pickle.loads(pickle.dumps(source))
    assert again.schemas == source.schemas
    assert again.fetch("tags", [1]) == source.fetch("tags", [1])
    again.close()
    source.close()


def test_one_that_cannot_be_named_leaves_the_whole_without_a_name(home):
    source = Sources(SQLiteSource(home / "shop.db", Schema("items")), IterableSource([], Schema("b")))
    assert source.spec() is None
    assert not is_remakable(source)
    hidden = Sources(CallableSource(lambda: [{}], Schema("a")), CallableSource(list, Schema("b")))
    assert hidden.spec() is not None
    assert not is_remakable(hidden)


def test_one_function_is_not_taken_for_two():
    source = Sources(CallableSource(list, Schema("a")), CallableSource(tuple, Schema("b")))
    spec = source.spec()
    assert spec is not None
    assert from_spec(spec, source.schemas, source.given()).schemas == source.schemas
    with pytest.raises(SourceError, match="load= is for one source, and the file was built with several"):
        from_spec(spec, source.schemas, {"load": "builtins:list"})


@pytest.mark.parametrize(
    ("sources", "kind", "reason"),
    [
        ((), TypeError, "at least one source"),
        (([],), TypeError, "takes sources, such as SQLiteSource, not list"),
        (
            (IterableSource([], Schema("a")), IterableSource([], Schema("a"))),
            ValueError,
            "two sources have a collection 'a'",
        ),
    ],
)
def test_what_cannot_be_one_source_is_refused(sources, kind, reason):
    with pytest.raises(kind, match=reason):
        Sources(*sources)


def test_bad_rows_are_left_out_by_the_rules_of_open(home):
    rows: list[dict[str, Any]] = [{"id": "a"}, {"id": 1.5}]
    source = Sources(IterableSource(rows, Schema("a")), CallableSource(lambda: rows, Schema("b")))
    with mmcache.open(home / "c.mmc", source, on_invalid="skip") as cache:
        assert list(cache) == list(cache.collection("b")) == ["a"]
        assert {name: one.invalid for name, one in cache.status().left_out.items()} == {"a": 1, "b": 1}
