"""Several embeddings of a record, by name, in every state of a cache: each answer is that of the source."""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Cache, IterableSource, Schema, Snapshot, SourceError, SQLiteSource

Rows = dict[str, tuple[list[float] | None, list[float] | None]]
"""Key -> title and body."""

FIELDS = {"title": 3, "body": 2}
ITEMS = Schema("items", embedding=("title", "body"), dim=(3, 2))
NOTES = Schema("notes", embedding="vector", dim=2)
UNKNOWN = r"no embedding 'other'; there are: title, body$"
N = 40


def written(i: int) -> tuple[list[float] | None, list[float] | None]:
    return ([i, 1.0, -i] if i % 3 else None), ([i, 2.0] if i % 5 else None)


def text(vector: list[float] | None) -> str | None:
    return None if vector is None else json.dumps(vector)


def execute(db: Path, sql: str, *parameters: object) -> None:
    with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(sql, parameters)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    db = tmp_path / "vectors.db"
    execute(db, "CREATE TABLE items (id TEXT PRIMARY KEY, title TEXT, body TEXT)")
    execute(db, "CREATE TABLE notes (id TEXT PRIMARY KEY, vector TEXT)")
    with contextlib.closing(sqlite3.connect(db)) as connection, connection:
        rows = [(f"k{i}", *map(text, written(i))) for i in range(N)]
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
        connection.executemany("INSERT INTO notes VALUES (?, ?)", [("a", "[1, 2]"), ("b", None)])
    return db


def truth(db: Path) -> Rows:
    with contextlib.closing(sqlite3.connect(db)) as connection:
        rows = connection.execute("SELECT id, title, body FROM items").fetchall()
    return {key: tuple(None if one is None else json.loads(one) for one in both) for key, *both in rows}  # type: ignore[misc]


def source(db: Path) -> SQLiteSource:
    return SQLiteSource(db, ITEMS, NOTES)


def change(db: Path) -> list[str]:
    """What is not as it was built: one of the two embeddings of a record, one that is gone, a record that is new."""
    execute(db, "UPDATE items SET body = '[7, 8]' WHERE id = 'k1'")
    execute(db, "UPDATE items SET title = NULL WHERE id = 'k2'")
    execute(db, "INSERT INTO items VALUES ('new', '[1, 2, 3]', NULL)")
    execute(db, "DELETE FROM items WHERE id = 'k4'")
    return ["k1", "k2", "k4", "new"]


# --- the states -------------------------------------------------------------------------------------------------------


def opened(path: Path, db: Path, **options: Any) -> Cache:
    mmcache.build(path, source(db))
    return mmcache.open(path, source(db), executor="external", check_interval=3600.0, **options)


def fresh(path: Path, db: Path) -> Cache:
    return opened(path, db)


def dirty(path: Path, db: Path) -> Cache:
    cache = opened(path, db)
    cache.invalidate(change(db))
    return cache


def all_dirty(path: Path, db: Path) -> Cache:
    cache = opened(path, db)
    cache.invalidate([*truth(db), *change(db)])
    return cache


def hard(path: Path, db: Path) -> Cache:
    cache = opened(path, db)
    change(db)
    cache.invalidate()
    return cache


def hard_collection(path: Path, db: Path) -> Cache:
    cache = opened(path, db)
    change(db)
    cache.invalidate(collection="items", hard=True)
    return cache


def expired(path: Path, db: Path) -> Cache:
    cache = opened(path, db, ttl=1e-6, max_stale=math.inf)
    change(db)
    return cache


def missing(path: Path, db: Path) -> Cache:
    return mmcache.open(path, source(db), build=False)


def disabled(path: Path, db: Path) -> Cache:
    """By the environment, which is that of the whole test: a cache without a file polls often."""
    mmcache.build(path, source(db))
    change(db)
    return mmcache.open(path, source(db), check_interval=3600.0)


STATES: list[Callable[[Path, Path], Cache]] = [
    fresh,
    dirty,
    all_dirty,
    hard,
    hard_collection,
    expired,
    missing,
    disabled,
]
WHOLE = [state for state in STATES if state not in (dirty, all_dirty)]
"""In which arrays of all records have the source's records of now."""


@pytest.fixture(params=STATES, ids=lambda state: state.__name__)
def cache(request: pytest.FixtureRequest, path: Path, bank: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    if request.param is disabled:
        monkeypatch.setenv("MMCACHE_DISABLE", "1")
    with request.param(path, bank) as cache:
        yield cache


def plain(vector: Any) -> list[float] | None:
    return None if vector is None else vector.tolist()


def matrix(rows: Rows, keys: list[str], at: int, dim: int) -> list[list[float]]:
    return [rows[key][at] or [0.0] * dim for key in keys]


# --- by key -----------------------------------------------------------------------------------------------------------


def test_each_embedding_is_the_sources_by_name_and_the_first_by_none(cache: Cache, bank: Path) -> None:
    rows = truth(bank)
    for asked in (cache, cache.collection("items")):
        for key, (title, body) in rows.items():
            assert plain(asked.embedding(key)) == title == plain(asked.embedding(key, "title"))
            assert plain(asked.embedding(key, "body")) == body == plain(asked.embedding(key, field="body"))
            record = asked[key]
            assert (plain(record.embedding), plain(record.embedding_of("body"))) == (title, body)
        found = asked.embedding("k1", "body")
        assert found is not None
        assert found.dtype == np.float32
        assert not found.flags.writeable


def test_many_embeddings_are_the_sources_with_zeros_for_none(cache: Cache, bank: Path) -> None:
    rows = truth(bank)
    every = list(rows)
    for keys in ([], every[:2], every, [*every[::-1], *every], ["k0"]):
        for at, (field, dim) in enumerate(FIELDS.items()):
            found = cache.get_embeddings(iter(keys), field)
            assert found.shape == (len(keys), dim)
            assert found.dtype == np.float32
            assert found.tolist() == matrix(rows, keys, at, dim)
        assert cache.get_embeddings(keys).tolist() == cache.get_embeddings(keys, "title").tolist()
    with pytest.raises(KeyError):
        cache.get_embeddings([*every, "nope"], "body")


def test_a_reference_is_to_the_embedding_that_was_named(cache: Cache, bank: Path, let_go: None) -> None:
    rows = truth(bank)
    for key in ("k1", "k3", "k7"):
        for at, field in enumerate(FIELDS):
            try:
                reference = cache.embedding_ref(key, field)
            except SourceError as error:
                assert "send the embedding itself" in str(error)  # noqa: PT017 (only in some of the states)
                continue
            assert plain(pickle.loads(pickle.dumps(reference)).embedding) == rows[key][at]


def test_an_unknown_embedding_is_an_error_naming_those_that_there_are(cache: Cache) -> None:
    for key in ("k1", "k2", "k9", "new", "nope"):
        for ask in (cache.embedding, cache.embedding_ref):
            with pytest.raises(ValueError, match=UNKNOWN):
                ask(key, "other")
    for keys in (["k1"], ["k1", "k9"] * 50, ["nope"]):
        with pytest.raises(ValueError, match=UNKNOWN):
            cache.get_embeddings(keys, "other")
    for ask_all in (cache.embeddings_of, cache.has_embedding_of, cache.where().embeddings_of):
        with pytest.raises(ValueError, match=UNKNOWN):
            ask_all("other")
    for record in (cache["k1"], cache["k9"], cache.where()[1], pickle.loads(pickle.dumps(cache["k1"]))):
        with pytest.raises(ValueError, match=UNKNOWN):
            record.embedding_of("other")


def test_one_embedding_has_a_name_too(cache: Cache) -> None:
    notes = cache.collection("notes")
    assert plain(notes.embedding("a", "vector")) == plain(notes.embedding("a")) == [1, 2]
    assert notes.embedding("b", "vector") is None
    assert notes.get_embeddings(["b", "a"], "vector").tolist() == [[0, 0], [1, 2]]
    assert notes.embeddings_of("vector").tolist() == notes.embeddings.tolist() == [[1, 2], [0, 0]]
    assert notes.has_embedding_of("vector").tolist() == notes.has_embedding.tolist() == [True, False]
    for key in ("a", "b", "nope"):
        with pytest.raises(ValueError, match=r"no embedding 'other'; there are: vector$"):
            notes.embedding(key, "other")
    with pytest.raises(ValueError, match=r"no embedding 'other'; there are: vector$"):
        pickle.loads(pickle.dumps(notes["a"])).embedding_of("other")


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", WHOLE, indirect=True, ids=lambda state: state.__name__)
def test_all_embeddings_are_the_sources_in_its_order(cache: Cache, bank: Path) -> None:
    rows = truth(bank)
    for at, (field, dim) in enumerate(FIELDS.items()):
        assert cache.embeddings_of(field).tolist() == matrix(rows, list(rows), at, dim)
        assert cache.has_embedding_of(field).tolist() == [both[at] is not None for both in rows.values()]
    assert np.array_equal(cache.embeddings, cache.embeddings_of("title"))
    assert np.array_equal(cache.has_embedding, cache.has_embedding_of("title"))
    assert not cache.embeddings_of("body").flags.writeable


@pytest.mark.parametrize("state", [dirty, all_dirty])
def test_dirty_ids_leave_the_arrays_of_all_as_the_file_has_them(
    path: Path, bank: Path, state: Callable[[Path, Path], Cache]
) -> None:
    before = truth(bank)
    with state(path, bank) as cache:
        assert truth(bank) != before
        for at, (field, dim) in enumerate(FIELDS.items()):
            assert cache.embeddings_of(field).tolist() == matrix(before, list(before), at, dim)
            assert cache.has_embedding_of(field).tolist() == [both[at] is not None for both in before.values()]


def test_a_snapshot_has_all_embeddings_by_name(path: Path, bank: Path) -> None:
    rows = truth(bank)
    mmcache.build(path, source(bank))
    with Snapshot.open(path) as snapshot:
        for at, (field, dim) in enumerate(FIELDS.items()):
            assert snapshot.embeddings_of(field).tolist() == matrix(rows, list(rows), at, dim)
            assert snapshot.has_embedding_of(field).tolist() == [both[at] is not None for both in rows.values()]
        assert np.array_equal(snapshot.has_embedding, snapshot.has_embedding_of("title"))
        for ask in (snapshot.embedding, snapshot.embedding_ref):
            for key in ("k1", "nope"):
                with pytest.raises(ValueError, match=UNKNOWN):
                    ask(key, "other")


@pytest.mark.parametrize("part", ["embeddings", "presence"])
def test_a_damaged_block_is_answered_by_the_source(path: Path, bank: Path, part: str) -> None:
    rows, keys = truth(bank), ["k0", "k1", "k5", "k6"]
    mmcache.build(path, source(bank))
    data = bytearray(path.read_bytes())
    with Snapshot.open(path) as snapshot:
        for field in FIELDS:
            data[snapshot.default.layout.sections[f"{part}.{field}"].offset] ^= 1
    path.write_bytes(data)

    def opened_again() -> Cache:
        return mmcache.open(path, source(bank), verify="lazy", executor="external", check_interval=3600.0)

    for at, (field, dim) in enumerate(FIELDS.items()):
        with opened_again() as cache:
            assert [plain(cache.embedding(key, field)) for key in keys] == [rows[key][at] for key in keys]
            assert cache.get_embeddings(keys * 50, field).tolist() == matrix(rows, keys * 50, at, dim)
            assert cache.stats().corruptions > 0
        with opened_again() as cache:
            assert [plain(record.embedding) for record in cache.get_many(keys, embeddings=True) if record] == [
                rows[key][0] for key in keys
            ]
        with opened_again() as cache:
            assert cache.embeddings_of(field).tolist() == matrix(rows, list(rows), at, dim)
            assert cache.has_embedding_of(field).tolist() == [both[at] is not None for both in rows.values()]
        with opened_again() as cache, pytest.raises(SourceError, match="send the embedding itself"):
            cache.embedding_ref("k1", field)


# --- while the source is away, or wrong -------------------------------------------------------------------------------


def test_a_file_that_stands_in_for_its_source_has_every_embedding(path: Path, bank: Path) -> None:
    rows = truth(bank)
    with opened(path, bank, ttl=1e-6, max_stale=math.inf) as cache:
        bank.rename(bank.with_suffix(".away"))
        assert plain(cache.embedding("k1", "body")) == rows["k1"][1]
        assert cache.get_embeddings(["k1", "k0", "k2"], "body").tolist() == matrix(rows, ["k1", "k0", "k2"], 1, 2)
        assert cache.embeddings_of("body").tolist() == matrix(rows, list(rows), 1, 2)
        assert cache.has_embedding_of("title").sum() == N - 14
        with pytest.raises(ValueError, match=UNKNOWN):
            cache.embedding("k1", "other")


def test_a_cache_without_a_source_has_the_files_embeddings(path: Path, bank: Path) -> None:
    mmcache.build(path, source(bank))
    with mmcache.open(path) as cache:
        assert plain(cache.embedding("k1", "body")) == [1, 2]
        assert cache.embeddings_of("body").shape == (N, 2)
        for key in ("k1", "nope"):
            with pytest.raises(ValueError, match=UNKNOWN):
                cache.embedding(key, "other")


def test_the_file_says_how_long_embeddings_are_that_no_schema_declares(path: Path) -> None:
    schema = Schema("items", embedding=("title", "body"))
    records = [{"id": key, "title": [1, 2, 3], "body": None if key == "a" else [4, 5]} for key in "abc"]
    with mmcache.open(path, IterableSource(records, schema), executor="external", check_interval=3600.0) as cache:
        cache.get("a")
        cache.invalidate(["a"])
        assert cache.get_embeddings(["a"], "body").tolist() == [[0, 0]]
        assert cache.get_embeddings(["a", "b"], "body").tolist() == [[0, 0], [4, 5]]
        assert cache.get_embeddings([], "body").shape == (0, 2)


def test_embeddings_of_two_lengths_are_refused_by_key(path: Path, bank: Path) -> None:
    undeclared = SQLiteSource(bank, Schema("items", embedding=("title", "body")))
    with mmcache.open(path, undeclared, executor="external", check_interval=3600.0) as cache:
        cache.get("k1")
        execute(bank, "UPDATE items SET body = '[1, 2, 3]' WHERE id = 'k1'")
        cache.invalidate(["k1"])
        with pytest.raises(SourceError, match="the embedding of 'k1' has 3 numbers, where others have 2"):
            cache.get_embeddings(["k1", "k2"], "body")
