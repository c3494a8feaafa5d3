"""A search is as true as a get: whatever the state of the cache, it gives what the source holds."""

from __future__ import annotations

import contextlib
import math
import pickle
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import mmcache
from mmcache import Cache, CallableSource, IterableSource, Neighbours, Schema, SQLiteSource
from mmcache.sharing.operate import disable
from tests.search import truth
from tests.search.truth import METRICS
from tests.support import inside
from tests.support.processes import ask_child

pytestmark = pytest.mark.usefixtures("no_disk_wait", "no_leaks")

ITEMS = Schema("items", index=("kind", "size"), embedding="vector", dim=3)
N = 40


def packed(*numbers: float) -> bytes:
    return struct.pack("<3f", *numbers)


def vector_of(i: int) -> bytes | None:
    """With ties, and some records without one."""
    return None if i % 9 == 4 else packed(i % 4 - 1, i % 3, i % 5 - 2)


def execute(db: Path, sql: str, *parameters: object) -> None:
    with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(sql, parameters)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "items.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, size INTEGER, vector BLOB)")
        rows = [(f"k{i:02}", "abc"[i % 3], i % 5, vector_of(i)) for i in range(N)]
        connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
    return path


def source(db: Path) -> SQLiteSource:
    return SQLiteSource(db, ITEMS)


def known(db: Path, kind: str | None = None) -> dict[Any, Any]:
    """The vectors of a kind, or of all, by key, in the order of the table."""
    with contextlib.closing(sqlite3.connect(db)) as connection:
        rows = connection.execute("SELECT id, kind, vector FROM items ORDER BY rowid").fetchall()
    return {key: vector and struct.unpack("<3f", vector) for key, its, vector in rows if kind in (None, its)}


Change = Callable[[Path], Iterable[str]]
"""Writes to the table, and gives the keys of what has changed."""


def nothing(db: Path) -> list[str]:
    return []


def one_moves(db: Path) -> list[str]:
    execute(db, "UPDATE items SET vector = ? WHERE id = 'k06'", packed(9, 9, 9))
    return ["k06"]


def one_leaves(db: Path) -> list[str]:
    execute(db, "DELETE FROM items WHERE id = 'k03'")
    return ["k03"]


def one_changes_its_kind(db: Path) -> list[str]:
    execute(db, "UPDATE items SET kind = 'b' WHERE id = 'k09'")
    return ["k09"]


def one_loses_its_vector(db: Path) -> list[str]:
    execute(db, "UPDATE items SET vector = NULL WHERE id = 'k00'")
    return ["k00"]


def one_gets_a_vector(db: Path) -> list[str]:
    execute(db, "UPDATE items SET vector = ? WHERE id = 'k04'", packed(1, 1, 1))
    return ["k04"]


def some_come(db: Path) -> list[str]:
    """Two as near as others, whose keys are not in the order of the table."""
    for key in ("z01", "a01"):
        execute(db, "INSERT INTO items VALUES (?, 'a', 1, ?)", key, packed(2, 1, 1))
    return ["z01", "a01", "no-such-key"]


def all_change(db: Path) -> list[str]:
    one_moves(db), one_leaves(db), one_changes_its_kind(db), one_loses_its_vector(db), some_come(db)
    return [f"k{i:02}" for i in range(N)] + ["z01", "a01"]


CHANGES = [
    *(nothing, one_moves, one_leaves, one_changes_its_kind, one_loses_its_vector, one_gets_a_vector),
    *(some_come, all_change),
]


@contextlib.contextmanager
def opened(path: Path, db: Path, **options: Any) -> Iterator[Cache]:
    options = {"executor": "external", "check_interval": 3600.0, **options}
    with mmcache.open(path, source(db), **options) as cache:
        yield cache


def is_right(cache: Cache, db: Path, given: Iterable[str] = ()) -> bool:
    """given: keys that the source answers for."""
    for metric in METRICS:
        for kind in (None, "a"):
            vectors = known(db, kind)
            where: dict[str, Any] = {} if kind is None else {"kind": kind}
            for query in ([2, 1, 1], [-1, 0.5, -2]):
                for k in (1, 5, N + 5):
                    found = cache.nearest(query, k, where, metric=metric)
                    expected = truth.nearest(vectors, query, metric, k, last=given)
                    assert list(zip(found.ids, found.scores.tolist(), strict=True)) == expected
                    assert [record.id for record in found] == [key for key, _ in expected]
                    assert all(_same(record.embedding, vectors[record.id]) for record in found)
    return True


def _same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, np.float32(other)))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_ids_that_were_invalidated_are_scored_as_the_source_has_them(path, db, change):
    with opened(path, db) as cache:
        assert is_right(cache, db)
        cache.invalidate(given := list(change(db)))
        assert is_right(cache, db, given)


@pytest.mark.parametrize("state", ["hard", "collection", "expired", "no file", "disabled"])
@pytest.mark.parametrize("change", [nothing, all_change], ids=lambda change: change.__name__)
def test_the_source_answers_where_the_file_may_not(path, db, state, change):
    if state != "no file":
        mmcache.build(path, source(db))
    options: dict[str, dict[str, Any]] = {"expired": {"ttl": 1e-6}, "no file": {"build": False}}
    with opened(path, db, **options.get(state, {})) as cache:
        if state in ("hard", "collection"):
            cache.invalidate(collection="items" if state == "collection" else None, hard=True)
        if state == "disabled":
            disable(path)
            cache.refresh()
        change(db)
        before = cache.stats().hits
        assert is_right(cache, db, known(db))
        assert cache.stats().hits == before


def test_an_expired_file_answers_while_the_source_fails(path):
    """As for a get, and not while an id is invalidated."""
    vectors: dict[str, Any] = {f"k{i:02}": [float(i % 4), 1.0] for i in range(20)}
    fails: list[str] = []

    def load() -> list[dict[str, Any]]:
        if fails:
            raise OSError(fails[0])
        return [{"id": key, "vector": vector} for key, vector in vectors.items()]

    items = CallableSource(load, Schema("items", embedding="vector"))
    mmcache.build(path, items)
    with mmcache.open(path, items, executor="external", ttl=1e-6, max_stale=math.inf) as cache:
        assert cache.nearest([2, 1], 5).rows.tolist() == []
        fails.append("down")
        found = cache.nearest([2, 1], 5)
        assert found.complete
        assert list(zip(found.ids, found.scores.tolist(), strict=True)) == truth.nearest(vectors, [2, 1], "cosine", 5)
        with pytest.raises(ValueError, match="no direction"):
            cache.nearest([0, 0])
        cache.invalidate(["k01"])
        with pytest.raises(OSError, match="down"):
            cache.nearest([2, 1], 5)


def test_a_snapshot_is_searched_as_it_is(path, db):
    with opened(path, db) as cache:
        before = known(db)
        cache.invalidate(list(all_change(db)))
        found = cache.nearest([2, 1, 1], 50, snapshot=True)
        assert list(zip(found.ids, found.scores.tolist(), strict=True)) == truth.nearest(
            before, [2, 1, 1], "cosine", 50
        )
        with cache.pinned() as snapshot:
            assert snapshot.nearest([2, 1, 1], 50).ids == found.ids


def test_a_damaged_block_sends_a_search_to_the_source(path, db):
    """And is counted once. A snapshot raises."""
    execute(db, "CREATE TABLE filler AS SELECT 1")
    wide = Schema("items", index=("kind",), embedding="vector", dim=3)
    mmcache.build(path, SQLiteSource(db, wide))
    with mmcache.Snapshot.open(path) as snapshot:
        at = snapshot.layout.collections["items"].sections["embeddings.vector"].offset
    damaged = bytearray(path.read_bytes())
    damaged[at + 20] ^= 1
    path.chmod(0o600)
    path.write_bytes(damaged)
    with opened(path, db, verify="lazy") as cache:
        assert is_right(cache, db, known(db))
        assert cache.stats().corruptions == 1
        with cache.pinned() as snapshot, pytest.raises(mmcache.CorruptFileError):
            snapshot.nearest([2, 1, 1])


def test_a_selection_is_searched_in_every_state_of_the_cache(path, db):
    with opened(path, db) as cache:
        for change in (nothing, one_moves, some_come):
            cache.invalidate(given := list(change(db)))
            vectors = known(db)
            chosen = cache.where(kind=["a", "b"], size=[0, 1, 2])
            matching = {key: vectors[key] if key in set(chosen.ids) else None for key in vectors}
            expected = truth.nearest(matching, [2, 1, 1], "dot", 7, last=given)
            for selection in (
                chosen,
                chosen.order_by("size", descending=True),
                chosen[::-1],
                pickle.loads(pickle.dumps(chosen)),
            ):
                found = selection.nearest([2, 1, 1], 7, metric="dot")
                assert [(key, score) for key, score in zip(found.ids, found.scores.tolist(), strict=True)] == expected
            few = chosen[2:9].nearest([2, 1, 1], 7, metric="dot")
            assert set(few.ids) == {key for key in chosen[2:9].ids if vectors[key] is not None}
        inside.forget_arrived()


def test_neighbours_of_a_dirty_record_are_those_of_its_present_vector(path, db):
    with opened(path, db) as cache:
        one_moves(db)
        cache.invalidate(["k06"])
        found = cache.nearest(id="k06", k=4)
        vectors = known(db) | {"k06": None}
        assert list(zip(found.ids, found.scores.tolist(), strict=True)) == truth.nearest(
            vectors, [9, 9, 9], "cosine", 4
        )
        one_leaves(db)
        cache.invalidate(["k03"])
        with pytest.raises(KeyError):
            cache.nearest(id="k03")


def test_a_dirty_record_is_skipped_as_any_other(path, db):
    with opened(path, db) as cache:
        cache.invalidate(["k06", "k01"])
        first = cache.nearest([2, 1, 1], 3).ids
        assert cache.nearest([2, 1, 1], 3, skip=["k06", first[0]]).ids[0] == next(
            key for key in cache.nearest([2, 1, 1], N).ids if key not in ("k06", first[0])
        )


@pytest.mark.parametrize("hard", [False, True])
def test_neighbours_pickle_with_their_scores_and_records(path, db, hard):
    with opened(path, db) as cache:
        cache.invalidate(list(some_come(db)))
        if hard:
            cache.invalidate(hard=True)
        found = cache.nearest([2, 1, 1], 12)
        told = [(record.asdict(), score) for record, score in found.pairs()]
        sent = pickle.dumps(found)

        def arrives() -> list[Any]:
            arrived = pickle.loads(sent)
            assert isinstance(arrived, Neighbours)
            assert not arrived.scores.flags.writeable
            return [(record.asdict(), score) for record, score in arrived.pairs()]

        assert ask_child(arrives) == told


@dataclass
class Item:
    id: str
    kind: str
    size: int


def test_neighbours_are_instances_of_the_model_of_the_schema(path, db):
    with opened(path, db) as cache:
        items = cache.collection("items", Item)
        found = items.nearest([2, 1, 1], 3)
        assert [type(item) for item in found] == [Item] * 3
        assert [item.id for item, _ in found.pairs()] == cache.nearest([2, 1, 1], 3).ids
        assert isinstance(found[0], Item)
        assert isinstance(found[1:][0], Item)
        assert isinstance(found.limit(1)[0], Item)
        assert isinstance((found | items.where(kind="a"))[0], Item)
        assert isinstance(pickle.loads(pickle.dumps(found))[0], Item)
        assert isinstance(items.where(kind="a").nearest([2, 1, 1], 1)[0], Item)
        inside.forget_arrived()


def test_a_search_of_several_vectors_reads_the_source_once(path):
    reads = []

    def load() -> Iterator[dict[str, Any]]:
        reads.append(1)
        return ({"id": f"k{i:03}", "vector": [float(i % 7), 1.0]} for i in range(3000))

    schema = Schema("items", embedding="vector")
    with mmcache.open(path, CallableSource(load, schema), executor="external", build=False) as cache:
        found = cache.nearest_many([[1.0, 0.0], [0.0, 1.0], [-1.0, 2.0]], 4)
        assert len(reads) == 1
        assert [len(one) for one in found] == [4, 4, 4]
        assert found[0].ids == ["k006", "k013", "k020", "k027"]
        with pytest.raises(ValueError, match=r"shape \(2,\) is expected"):
            cache.nearest([1.0, 2.0, 3.0])
        with pytest.raises(ValueError, match="no direction"):
            cache.nearest([0.0, 0.0])
        assert len(reads) == 2, "what cannot be searched for at all is refused before the source is asked"


def test_a_vector_without_numbers_is_refused_where_no_file_says_how_many_there_are(path):
    records = [{"id": "a", "kind": "x", "vector": [1.0, 2.0]}]
    schema = Schema("items", index=("kind",), embedding="vector", metric="dot")
    with mmcache.open(path, IterableSource(records, schema), build=False) as cache:
        for search in (cache.nearest, cache.where(kind="x").nearest, cache.where(kind="none").nearest):
            with pytest.raises(ValueError, match="is expected"):
                search([])
        with pytest.raises(ValueError, match="is expected"):
            cache.nearest_many(np.empty((0, 0)))
        assert cache.nearest_many(np.empty((0, 2))) == []
        assert cache.nearest([3.0, 4.0]).scores.tolist() == [11.0]


def test_source_records_of_one_score_are_in_the_order_of_their_key_bytes(path):
    """As msgpack has them: 7 before 300, which takes three bytes, before the text "a"."""
    records: list[Any] = [{"id": key, "vector": [1.0, 1.0]} for key in ("b", 300, 7, b"x", "a", -1)]
    schema = Schema("items", embedding="vector")
    with mmcache.open(path, IterableSource(records, schema), executor="external", build=False) as cache:
        assert cache.nearest([1.0, 0.0]).ids == [7, "a", "b", b"x", 300, -1]


@given(st.data())
def test_any_changes_leave_what_brute_force_finds(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("states")
    numbers = st.integers(-2, 2)
    vector = st.one_of(st.none(), st.tuples(numbers, numbers, numbers))
    held = data.draw(st.dictionaries(st.integers(0, 20), vector, min_size=1))
    held = {f"k{key:02}": value for key, value in held.items()}

    def load() -> list[dict[str, Any]]:
        return [{"id": key, "vector": value and list(value)} for key, value in held.items()]

    schema = Schema("items", embedding="vector", dim=3)
    query = data.draw(st.tuples(numbers, numbers, numbers).filter(any))
    with mmcache.open(
        directory / "items.mmc", CallableSource(load, schema), executor="external", check_interval=3600.0
    ) as cache:
        dirty: set[str] = set()
        for _ in range(data.draw(st.integers(1, 3))):
            key = f"k{data.draw(st.integers(0, 24)):02}"
            if data.draw(st.booleans()):
                held.pop(key, None)
            else:
                held[key] = data.draw(vector)
            cache.invalidate([key])
            dirty.add(key)
            metric, k = data.draw(st.sampled_from(METRICS)), data.draw(st.integers(1, 25))
            found = cache.nearest(query, k, metric=metric)
            assert list(zip(found.ids, found.scores.tolist(), strict=True)) == truth.nearest(
                held, query, metric, k, last=dirty
            )
