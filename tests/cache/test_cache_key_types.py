"""A key of a type that no key of a collection has is a miss, logged once; what never is a key is a TypeError."""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, IterableSource, Schema, Snapshot, SQLiteSource
from tests.support.observe import logged

ASKED: dict[str, Any] = {"str": "7", "int": 7, "bytes": b"7", "(str, int)": ("7", 7)}
"""A key of each type, by the type's name. No table has it."""

TABLES: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "str": ("CREATE TABLE t (id TEXT PRIMARY KEY, n)", [("a",), ("b",)]),
    "int": ("CREATE TABLE t (id INTEGER PRIMARY KEY, n)", [(1,), (2,)]),
    "bytes": ("CREATE TABLE t (id BLOB PRIMARY KEY, n)", [(b"a",), (b"b",)]),
    "(str, int)": ("CREATE TABLE t (a TEXT, b INTEGER, n, PRIMARY KEY (a, b))", [("a", 1), ("b", 2)]),
    "bytes, int": ("CREATE TABLE t (id PRIMARY KEY, n)", [(b"a",), (1,)]),
}
"""Types of the keys, as a line of the log has them -> a table with such keys, and these."""

TYPES = list(TABLES)


def table(db: Path, kind: str) -> SQLiteSource:
    script, keys = TABLES[kind]
    with contextlib.closing(sqlite3.connect(db)) as connection, connection:
        connection.execute(script)
        for key in keys:
            connection.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(key))}, 0)", key)
    return SQLiteSource(db, Schema("t"))


# --- the states of a cache --------------------------------------------------------------------------------------------


def fresh(path: Path, source: SQLiteSource) -> Cache:
    return mmcache.open(path, source, executor="external", check_interval=3600.0)


def invalidated(path: Path, source: SQLiteSource) -> Cache:
    cache = fresh(path, source)
    len(cache)
    cache.invalidate()
    return cache


def expired(path: Path, source: SQLiteSource) -> Cache:
    mmcache.build(path, source)
    return mmcache.open(path, source, executor="external", check_interval=3600.0, ttl=1e-6, max_stale=math.inf)


def missing(path: Path, source: SQLiteSource) -> Cache:
    return mmcache.open(path, source, build=False)


def sourceless(path: Path, source: SQLiteSource) -> Cache:
    mmcache.build(path, source)
    return mmcache.open(path)


STATES = [fresh, invalidated, expired, sourceless, missing]


@pytest.fixture(params=STATES, ids=lambda state: state.__name__)
def open_cache(request: pytest.FixtureRequest, path: Path, tmp_path: Path) -> Iterator[Callable[[str], Cache]]:
    """Opens a cache of a table with keys of a kind."""
    with contextlib.ExitStack() as stack:
        yield lambda kind: stack.enter_context(request.param(path, table(tmp_path / "t.db", kind)))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if getattr(record, "event", "") == "key_type"]


# --- another type -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("found", ASKED)
def test_a_key_of_another_type_is_a_miss_logged_once(
    open_cache: Callable[[str], Cache], kind: str, found: str, caplog: pytest.LogCaptureFixture
) -> None:
    key, cache = ASKED[found], open_cache(kind)
    ways: list[Callable[[Any], Any]] = [
        lambda asked: asked.get(key),
        lambda asked: asked.get_many([key, key])[1],
        lambda asked: key in asked or None,
    ]
    for asked in (cache, cache.collection("t")):
        for ask in ways:
            assert ask(asked) is None
        for ask in (asked.__getitem__, asked.embedding):
            with pytest.raises(KeyError):
                ask(key)
    is_known = found in kind.split(", ") or found == kind
    no_file = cache.snapshot is None
    expected = f"collection 't' was asked for a key of type {found}; its keys are of type {kind}"
    assert lines(caplog) == ([] if is_known or no_file else [f"{cache.path}: {expected}"])


def test_the_line_has_an_event_and_both_types(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mmcache.build(path, [{"id": 1}], Schema("t"))
    with mmcache.open(path) as cache:
        cache.get("1")
    (record,) = [record for record in caplog.records if getattr(record, "event", "") == "key_type"]
    said = {name: getattr(record, name) for name in ("levelname", "path", "collection", "expected", "found")}
    assert said == {"levelname": "WARNING", "path": str(path), "collection": "t", "expected": "int", "found": "str"}


def test_each_collection_has_a_line_of_its_own(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers, texts = Schema("numbers"), Schema("texts")
    records: dict[str, list[dict[str, Any]]] = {"numbers": [{"id": 1}], "texts": [{"id": "a"}]}
    mmcache.build(path, IterableSource(records, numbers, texts))
    with mmcache.open(path) as cache:
        for _ in range(2):
            assert cache.get("1") is None
            assert cache.collection("texts").get(1) is None
            assert cache.get(2) is None
    with mmcache.open(path) as cache:
        assert cache.get("1") is None
    assert [line.partition(": ")[2] for line in lines(caplog)] == [
        "collection 'numbers' was asked for a key of type str; its keys are of type int",
        "collection 'texts' was asked for a key of type int; its keys are of type str",
    ]


def test_a_new_record_of_another_type_is_found_and_no_line(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    db = tmp_path / "t.db"
    source = table(db, "bytes, int")
    with fresh(path, source) as cache:
        len(cache)
        with contextlib.closing(sqlite3.connect(db)) as connection, connection:
            connection.execute("INSERT INTO t VALUES ('new', 5)")
        assert cache["new"]["n"] == 5
    assert lines(caplog) == []


def test_keys_of_no_records_and_of_every_type_are_told_from_none(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        mmcache.build(path, [], Schema("t"))
        with mmcache.open(path) as cache:
            assert cache.get("a") is None
        kinds = ["a", 1, b"a"]
        pairs = [(one, other) for one in kinds for other in kinds]
        keys = [*pairs, *((one, *other) for one in kinds for other in pairs)]
        three = Schema("t", key=("a", "b", "c"))
        records = [dict(zip("abc", key, strict=True)) for key in keys if len(key) == 3]
        mmcache.build(path, records, three)
        with mmcache.open(path) as cache:
            assert cache.get("a") is None
        assert "key_type" not in logged(caplog)


# --- no key at all ----------------------------------------------------------------------------------------------------

NEVER: list[Any] = [None, True, 1.0, ["a"], {"a": 1}, ("a",), ("a",) * 9, ("a", None), ("a", (1, 2)), 2**64]


@pytest.mark.parametrize("kind", ["int", "(str, int)"])
def test_what_never_is_a_key_is_a_type_error(
    open_cache: Callable[[str], Cache], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = [*NEVER, *([("a", 1, 2), (1, 2, 3, 4), ("a",) * 8] if kind == "(str, int)" else ())]
    cache = open_cache(kind)
    mappings: list[Any] = [cache, cache.collection("t")]
    with contextlib.ExitStack() as stack:
        if cache.snapshot is not None:
            mappings.append(stack.enter_context(Snapshot.open(cache.path)))
            mappings.append(stack.enter_context(Snapshot.open(cache.path, verify="lazy")))
        for asked in mappings:
            for key in wrong:
                assert key not in asked
                for ask in (asked.get, asked.__getitem__, asked.embedding):
                    with pytest.raises(TypeError, match=r"a key (cannot|is a tuple of length 2 here, and cannot)"):
                        ask(key)
                for keys in ([key], [*cache, key] * 50):
                    for ask_many in (asked.get_many, asked.get_embeddings):
                        with pytest.raises(TypeError):
                            ask_many(keys)
    assert lines(caplog) == []


def test_a_key_of_another_length_that_was_invalidated_is_no_error(path: Path, tmp_path: Path) -> None:
    source = table(tmp_path / "t.db", "(str, int)")
    with fresh(path, source) as cache:
        len(cache)
        with pytest.raises(TypeError, match="a tuple of 2 values"):
            cache.invalidate([("a", 1, 2)])
        longer = SQLiteSource(source.path, Schema("t", key=("a", "b", "n")))
        with mmcache.open(path, longer, build=False) as other:  # another version of the program
            other.invalidate([("a", 1, 0)])
        assert cache.where().ids == list(cache) == [("a", 1), ("b", 2)]
