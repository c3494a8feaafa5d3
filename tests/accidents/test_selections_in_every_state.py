"""`where` gives a `Selection` in every state of a cache, with the same members, and with the answer of the source.

Order: rows of the file ascending, a dirty record that still matches at its old row, then records without a row in the
order of the source.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Cache, Schema, Selection, SQLiteSource
from tests.accidents.stage import apart

DIM = 3
VECTORS = Schema("items", index=("kind", "size"), embedding="vector", dim=DIM)
N = 30


def vector(i: int) -> bytes:
    return struct.pack("<3f", i, i + 0.5, -i)


def execute(db: Path, sql: str, *parameters: object) -> None:
    with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(sql, parameters)


def make_table(db: Path, n: int) -> Path:
    execute(db, "CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, size INTEGER, vector BLOB)")
    with contextlib.closing(sqlite3.connect(db)) as connection, connection:
        rows = [(f"k{i}", "abc"[i % 3], i % 5, vector(i)) for i in range(n)]
        connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
    return db


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """Items with embeddings."""
    return make_table(tmp_path / "vectors.db", N)


def insert(db: Path, key: str, kind: str, i: int) -> None:
    execute(db, "INSERT INTO items VALUES (?, ?, ?, ?)", key, kind, i % 5, vector(i))


def source(db: Path) -> SQLiteSource:
    return SQLiteSource(db, VECTORS)


State = Callable[[Cache, Path], list[str]]
FILE_ORDER = [f"k{i}" for i in range(0, N, 3)]
"""The items of kind a as they were built."""


def fresh(cache: Cache, db: Path) -> list[str]:
    return FILE_ORDER


def another_dirty(cache: Cache, db: Path) -> list[str]:
    cache.invalidate(["k1"])
    return FILE_ORDER


def absent_dirty(cache: Cache, db: Path) -> list[str]:
    cache.invalidate(["no-such-id"])
    return FILE_ORDER


def matching_dirty(cache: Cache, db: Path) -> list[str]:
    execute(db, "UPDATE items SET vector = ? WHERE id = 'k6'", vector(1000))
    cache.invalidate(["k6"])
    return FILE_ORDER


def left_dirty(cache: Cache, db: Path) -> list[str]:
    execute(db, "UPDATE items SET kind = 'b' WHERE id = 'k6'")
    cache.invalidate(["k6"])
    return [key for key in FILE_ORDER if key != "k6"]


def deleted_dirty(cache: Cache, db: Path) -> list[str]:
    execute(db, "DELETE FROM items WHERE id = 'k0'")
    cache.invalidate(["k0"])
    return FILE_ORDER[1:]


def joined_dirty(cache: Cache, db: Path) -> list[str]:
    """A record of the file that matches only now has a row, and takes its place there."""
    execute(db, "UPDATE items SET kind = 'a' WHERE id = 'k7'")
    cache.invalidate(["k7"])
    return sorted([*FILE_ORDER, "k7"], key=lambda key: int(key[1:]))


def inserted_dirty(cache: Cache, db: Path) -> list[str]:
    insert(db, "z1", "a", 101)
    insert(db, "a1", "a", 102)
    cache.invalidate(["a1", "z1"])
    return [*FILE_ORDER, "z1", "a1"]


def many_dirty(cache: Cache, db: Path) -> list[str]:
    execute(db, "UPDATE items SET kind = 'b' WHERE id = 'k3'")
    execute(db, "DELETE FROM items WHERE id = 'k9'")
    insert(db, "new", "a", 103)
    cache.invalidate([*(f"k{i}" for i in range(N)), "new"])
    return [*(key for key in FILE_ORDER if key not in ("k3", "k9")), "new"]


def collection_hard(cache: Cache, db: Path) -> list[str]:
    insert(db, "new", "a", 104)
    cache.invalidate(collection="items")
    return [*FILE_ORDER, "new"]


def hard(cache: Cache, db: Path) -> list[str]:
    insert(db, "new", "a", 105)
    cache.invalidate()
    return [*FILE_ORDER, "new"]


def soft(cache: Cache, db: Path) -> list[str]:
    cache.invalidate(hard=False)
    return FILE_ORDER


DIRTY: list[State] = [
    fresh,
    another_dirty,
    absent_dirty,
    matching_dirty,
    left_dirty,
    deleted_dirty,
    joined_dirty,
    inserted_dirty,
    many_dirty,
    collection_hard,
    hard,
    soft,
]


def expired(path: Path, db: Path) -> Cache:
    mmcache.build(path, source(db))
    return mmcache.open(path, source(db), executor="external", ttl=1e-6, max_stale=math.inf)


def no_file(path: Path, db: Path) -> Cache:
    return mmcache.open(path, source(db), executor="external", build=False)


@pytest.fixture(params=[*DIRTY, expired, no_file], ids=lambda state: state.__name__)
def answer(request: pytest.FixtureRequest, path: Path, bank: Path) -> Iterator[tuple[Cache, list[str], Path]]:
    """A cache in one state, and the ids of kind a, in order."""
    if request.param in (expired, no_file):
        cache, ids = request.param(path, bank), FILE_ORDER
    else:
        cache = mmcache.open(path, source(bank), executor="external", check_interval=3600.0)
        cache.get("k1")
        ids = request.param(cache, bank)
    with cache:
        yield cache, ids, bank


def matrix_of(db: Path, ids: list[str]) -> Any:
    with contextlib.closing(sqlite3.connect(db)) as connection:
        found = dict(connection.execute("SELECT id, vector FROM items").fetchall())
    return np.frombuffer(b"".join(found[key] for key in ids), "<f4").reshape(len(ids), DIM)


def is_this(chosen: Any, ids: list[str], db: Path) -> bool:
    """All members of a selection say the same."""
    assert isinstance(chosen, Selection)
    assert chosen.ids == ids
    assert len(chosen) == len(ids)
    assert [record.id for record in chosen] == ids
    assert [chosen[i].id for i in range(-len(ids), len(ids))] == [*ids, *ids]
    assert np.array_equal(chosen.embeddings, matrix_of(db, ids))
    assert chosen.embeddings.dtype == np.float32
    assert all(
        one.embedding is not None and np.array_equal(one.embedding, row)
        for one, row in zip(chosen, chosen.embeddings, strict=True)
    )
    return True


def test_where_gives_a_selection_with_the_answer_of_the_source(answer):
    cache, ids, db = answer
    assert is_this(cache.where(kind="a"), ids, db)
    assert {record["kind"] for record in cache.where(kind="a")} <= {"a"}


def test_rows_of_a_selection_are_rows_of_the_file(answer):
    cache, ids, _ = answer
    chosen = cache.where(kind="a")
    assert chosen.rows.dtype == np.uint32
    assert len(chosen.rows) <= len(ids)
    assert list(chosen.rows) == sorted(chosen.rows)
    assert chosen.complete is (len(chosen.rows) == len(ids))


def test_a_selection_of_nothing_has_the_same_members(answer):
    cache, _, _db = answer
    chosen = cache.where(kind="none")
    assert isinstance(chosen, Selection)
    assert (chosen.ids, len(chosen), list(chosen), len(chosen.rows)) == ([], 0, [], 0)
    assert chosen.embeddings.shape == (0, DIM)
    assert chosen.to_arrow().num_rows == 0
    assert pickle.loads(pickle.dumps(chosen)).ids == []


@pytest.mark.parametrize("part", [slice(1, 4), slice(None, None, 2), slice(None, None, -1), slice(-2, None)], ids=str)
def test_a_slice_is_a_selection_in_order(answer, part):
    cache, ids, db = answer
    assert is_this(cache.where(kind="a")[part], ids[part], db)


def test_a_selection_pickles_with_its_records(answer):
    cache, ids, db = answer
    assert is_this(pickle.loads(pickle.dumps(cache.where(kind="a"))), ids, db)


def test_a_selection_arrives_in_another_process(answer):
    cache, ids, db = answer
    sent = pickle.dumps(cache.where(kind="a"))
    assert apart(arrives, sent, ids, db)


def arrives(sent: bytes, ids: list[str], db: Path) -> bool:
    return is_this(pickle.loads(sent), ids, db)


def test_a_pickle_with_one_id_dirty_is_as_small_as_one_without(path, tmp_path):
    db = make_table(tmp_path / "many.db", 3000)
    with mmcache.open(path, source(db), executor="external") as cache:
        clean = len(pickle.dumps(cache.where(kind="a")))
        for key in ("k1", "k3", "no-such-id"):
            cache.invalidate([key])
            assert len(pickle.dumps(cache.where(kind="a"))) < 2 * clean


def test_a_selection_is_a_table(answer):
    pytest.importorskip("pyarrow")
    cache, ids, db = answer
    table = cache.where(kind="a").to_arrow()
    assert table.column("id").to_pylist() == ids
    assert set(table.column("kind").to_pylist()) <= {"a"}
    assert np.array_equal(np.array(table.column("vector").to_pylist(), np.float32), matrix_of(db, ids))


def test_two_fields_and_lists_select_as_one_does(answer):
    cache, ids, _ = answer
    chosen = cache.where(kind="a", size=[0, 1])
    assert isinstance(chosen, Selection)
    assert chosen.ids == [key for key in ids if cache[key]["size"] in (0, 1)]


def test_terms_and_their_counts_are_those_of_the_source_in_order(answer):
    cache, _, db = answer
    for field in VECTORS.index:
        with contextlib.closing(sqlite3.connect(db)) as connection:
            counts = connection.execute(f"SELECT {field}, count(*) FROM items GROUP BY 1 ORDER BY 1").fetchall()
        assert list(cache.terms(field).items()) == counts
    with pytest.raises(ValueError, match="no index on 'vector'"):
        cache.terms("vector")


def test_len_and_iteration_agree_with_the_selection(answer):
    cache, ids, db = answer
    with contextlib.closing(sqlite3.connect(db)) as connection:
        count = connection.execute("SELECT count(*) FROM items").fetchone()[0]
    assert len(cache) == len(list(cache)) == count
    assert [key for key in cache if cache[key]["kind"] == "a"] == ids
    assert sorted(record.id for record in cache.values()) == sorted(cache)


def test_a_selection_outlives_what_happens_next(answer):
    cache, ids, _ = answer
    chosen = cache.where(kind="a")
    chosen.ids, chosen.embeddings  # noqa: B018 (read once)
    cache.invalidate()
    cache.rebuild()
    assert chosen.ids == ids
    assert [record.id for record in chosen] == ids
