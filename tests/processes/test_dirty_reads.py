"""What one process commits and invalidates is in the very next answer of another, whichever call that is.

Every way to read is asked for one key, as the first call after the invalidation returned; then all of them together are
compared with the source. So it is while single ids are dirty, and while the source answers everything.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, Schema, SQLiteSource
from tests.support.crew import Crew, Worker
from tests.support.waits import PATIENCE, until

pytestmark = pytest.mark.usefixtures("no_leaks")

KINDS = ("a", "b", "c")
SCHEMAS = tuple(Schema(name, key="name", index=("kind",), embedding="vector", dim=2) for name in ("things", "notes"))
ROWS = 12


class Bank:
    """Two tables of the same form, and what is in them. Rows are numbered as they were inserted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.write() as db:
            for table in ("things", "notes"):
                db.execute(f"CREATE TABLE {table} (name TEXT PRIMARY KEY, kind TEXT, number INTEGER, vector BLOB)")
        for table in ("things", "notes"):
            for i in range(ROWS):
                self.insert(table, f"{table}-{i}", KINDS[i % 2], i)

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=PATIENCE)) as db, db:
            yield db

    def insert(self, table: str, key: str, kind: str, number: int) -> None:
        with self.write() as db:
            db.execute(f"INSERT INTO {table} VALUES (?, ?, ?, ?)", (key, kind, number, vector_of(number)))

    def update(self, table: str, key: str, kind: str, number: int) -> None:
        with self.write() as db:
            row = kind, number, vector_of(number), key
            db.execute(f"UPDATE {table} SET kind = ?, number = ?, vector = ? WHERE name = ?", row)

    def delete(self, table: str, key: str) -> None:
        with self.write() as db:
            db.execute(f"DELETE FROM {table} WHERE name = ?", (key,))

    def rows(self, table: str) -> list[tuple[str, str, int]]:
        with contextlib.closing(sqlite3.connect(self.path)) as db:
            return db.execute(f"SELECT name, kind, number FROM {table} ORDER BY rowid").fetchall()

    def source(self) -> SQLiteSource:
        return SQLiteSource(self.path, *SCHEMAS)


def vector_of(number: int) -> bytes:
    return struct.pack("<2f", number, -number)


# --- ways to read: each gives the number of a record, True for one that is there, None for none -----------------------


def by_item(cache: Any, key: str, kind: str) -> Any:
    try:
        return cache[key]["number"]
    except KeyError:
        return None


def by_get(cache: Any, key: str, kind: str) -> Any:
    record = cache.get(key)
    return None if record is None else record["number"]


def by_get_many(cache: Any, key: str, kind: str) -> Any:
    *_, record = cache.get_many(["not there", key])
    return None if record is None else record["number"]


def by_in(cache: Any, key: str, kind: str) -> Any:
    return True if key in cache else None


def by_embedding(cache: Any, key: str, kind: str) -> Any:
    try:
        return int(cache.embedding(key)[0])
    except KeyError:
        return None


def by_get_embeddings(cache: Any, key: str, kind: str) -> Any:
    try:
        return int(cache.get_embeddings([key])[0, 0])
    except KeyError:
        return None


def by_keys(cache: Any, key: str, kind: str) -> Any:
    return only(True for other in cache if other == key)


def by_values(cache: Any, key: str, kind: str) -> Any:
    return only(record["number"] for record in cache.values() if record.id == key)


def by_items(cache: Any, key: str, kind: str) -> Any:
    return only(record["number"] for other, record in cache.items() if other == key)


def by_where(cache: Any, key: str, kind: str) -> Any:
    return only(record["number"] for record in cache.where(kind=kind) if record.id == key)


def by_where_of_two(cache: Any, key: str, kind: str) -> Any:
    return only(record["number"] for record in cache.where(kind=["none", kind]) if record.id == key)


def by_where_of_all(cache: Any, key: str, kind: str) -> Any:
    return only(record["number"] for record in cache.where() if record.id == key)


def by_ids_of_where(cache: Any, key: str, kind: str) -> Any:
    return only(True for other in cache.where(kind=kind).ids if other == key)


def by_embeddings_of_where(cache: Any, key: str, kind: str) -> Any:
    found = cache.where(kind=kind)
    return only(int(row[0]) for other, row in zip(found.ids, found.embeddings, strict=True) if other == key)


def only(found: Iterator[Any]) -> Any:
    """Raises ValueError for more than one: no answer has a record twice."""
    one, *more = [*found] or [None]
    if more:
        raise ValueError(f"{1 + len(more)} times in one answer")
    return one


ALL_OF_THEM = (by_keys, by_values, by_items, by_where_of_all)
OF_ONE_KIND = (by_where, by_where_of_two, by_ids_of_where, by_embeddings_of_where)
WAYS = (by_item, by_get, by_get_many, by_in, by_embedding, by_get_embeddings, *ALL_OF_THEM, *OF_ONE_KIND)


def ask(cache: Cache, collection: str, way: Callable[[Any, str, str], Any], key: str, kind: str) -> Any:
    return way(cache.collection(collection), key, kind)


def count(cache: Cache, collection: str) -> int:
    return len(cache.collection(collection))


def everything(cache: Cache, collection: str) -> dict[str, Any]:
    """All that has an order, of the second time: that may use what the first has asked the source."""
    in_order(cache.collection(collection))
    return in_order(cache.collection(collection))


def in_order(cache: Any) -> dict[str, Any]:
    return {
        "len": len(cache),
        "keys": list(cache),
        "values": [(record.id, record["kind"], record["number"]) for record in cache.values()],
        "items": [(key, record["kind"], record["number"]) for key, record in cache.items()],
        "numbers": [int(row[0]) for row in cache.where().embeddings],
        **{kind: [(record.id, record["number"]) for record in cache.where(kind=kind)] for kind in KINDS},
        "a or c": [record.id for record in cache.where(kind=["c", "a"])],
        "len of where": [len(cache.where(kind=kind)) for kind in KINDS],
    }


def in_the_source(rows: list[tuple[str, str, int]]) -> dict[str, Any]:
    return {
        "len": len(rows),
        "keys": [key for key, *_ in rows],
        "values": rows,
        "items": rows,
        "numbers": [number for *_, number in rows],
        **{kind: [(key, number) for key, its, number in rows if its == kind] for kind in KINDS},
        "a or c": [key for key, kind, _ in rows if kind in "ac"],
        "len of where": [sum(its == kind for _, its, _ in rows) for kind in KINDS],
    }


# --- two processes ----------------------------------------------------------------------------------------------------


class Pair:
    """Process A tells of what is committed, process B reads. Neither rebuilds."""

    def __init__(self, bank: Bank, a: Worker, b: Worker, collection: str) -> None:
        self.bank, self.a, self.b, self.collection = bank, a, b, collection

    def tell(self, *keys: str) -> None:
        assert self.a("invalidate", list(keys), collection=self.collection) == "ids"

    def insert(self, key: str, kind: str, number: int) -> None:
        self.bank.insert(self.collection, key, kind, number)
        self.tell(key)

    def update(self, key: str, kind: str, number: int) -> None:
        self.bank.update(self.collection, key, kind, number)
        self.tell(key)

    def delete(self, key: str) -> None:
        self.bank.delete(self.collection, key)
        self.tell(key)

    def ask(self, way: Callable[[Any, str, str], Any], key: str, kind: str) -> Any:
        return self.b(ask, self.collection, way, key, kind)

    def agrees_with_the_source(self) -> None:
        for collection in ("things", "notes"):
            assert self.b(everything, collection) == in_the_source(self.bank.rows(collection))


def state(cache: Cache) -> str:
    cache.refresh()
    return cache.stats().state


@pytest.fixture(
    params=[*(("things", why) for why in ("ids", "soft", "hard", "expired")), ("notes", "ids"), ("notes", "hard")],
    ids="-".join,
)
def pair(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """things: the first collection; notes: another one. And what else B has heard of its file, or finds."""
    collection, why = request.param
    bank = Bank(tmp_path / "bank.db")
    mmcache.build(path, bank.source())
    options: dict[str, Any] = {"executor": "external", "check_interval": 3600, "ttl": float("inf")}
    if why == "expired":
        options["ttl"] = 1e-3
    with Crew() as crew:
        a, b = crew.hire(lambda: mmcache.open(path, bank.source(), **options), 2)
        a.opened()
        b.opened()
        if why in {"soft", "hard"}:
            a("invalidate", hard=why == "hard")
        expected = {"ids": "fresh", "soft": "stale", "hard": "invalidated", "expired": "expired"}[why]
        until(f"B is {expected}", lambda: b(state) == expected)
        yield Pair(bank, a, b, collection)


def is_told(answer: Any, number: int) -> bool:
    return answer is True or answer == number


def test_the_next_answer_has_what_was_inserted(pair):
    for number, way in enumerate(WAYS, 100):
        key = f"new-{number}"
        assert pair.ask(way, key, "a") is None, way
        pair.insert(key, "a", number)
        assert is_told(pair.ask(way, key, "a"), number), way
    before = pair.b(count, pair.collection)
    pair.insert("one more", "a", 99)
    assert pair.b(count, pair.collection) == before + 1
    pair.agrees_with_the_source()


def test_the_next_answer_lacks_what_was_deleted(pair):
    keys = [f"{pair.collection}-{i}" for i in range(ROWS)]
    for number, way in enumerate(WAYS, 100):
        key = keys.pop() if keys else f"new-{number}"
        if pair.ask(way, key, "b") is None:
            pair.delete(key)
            pair.insert(key, "b", number)
        assert pair.ask(way, key, "b") is not None, way
        pair.delete(key)
        assert pair.ask(way, key, "b") is None, way
    pair.insert("one more", "a", 99)
    before = pair.b(count, pair.collection)
    pair.delete("one more")
    assert pair.b(count, pair.collection) == before - 1
    pair.agrees_with_the_source()


def test_the_next_answer_has_what_was_updated(pair):
    key = f"{pair.collection}-4"
    for number, way in enumerate(WAYS, 100):
        pair.update(key, "a", number)
        assert is_told(pair.ask(way, key, "a"), number), way
    assert pair.b(count, pair.collection) == ROWS
    pair.agrees_with_the_source()


def test_what_moves_to_another_kind_is_in_where_of_the_new_one_only(pair):
    key, old = f"{pair.collection}-4", "a"
    for number, way in enumerate(OF_ONE_KIND, 100):
        for new in ("c", "b", "a"):
            pair.update(key, new, number)
            assert pair.ask(way, key, old) is None, (way, old, new)
            assert is_told(pair.ask(way, key, new), number), (way, old, new)
            old = new
    pair.agrees_with_the_source()


def test_what_was_deleted_comes_back_and_is_deleted_again(pair):
    key = f"{pair.collection}-4"
    for number, way in enumerate(WAYS, 100):
        pair.delete(key)
        assert pair.ask(way, key, "a") is None, way
        pair.insert(key, "a", number)
        assert is_told(pair.ask(way, key, "a"), number), way
    assert pair.b(count, pair.collection) == ROWS


def test_the_next_answer_has_what_many_invalidations_told(pair):
    """At random: inserts, updates and deletes, told of one by one and together; all answers are the source's."""
    draw = random.Random(20)
    added = 0
    for _ in range(12):
        changed = []
        for _ in range(draw.choice((1, 1, 5))):
            key = draw.choice([key for key, *_ in pair.bank.rows(pair.collection)])
            action = draw.choice(("insert", "update", "update", "delete"))
            if action == "insert":
                added += 1
                key = f"new-{added}"
                pair.bank.insert(pair.collection, key, draw.choice(KINDS), 100 + added)
            elif action == "update":
                pair.bank.update(pair.collection, key, draw.choice(KINDS), draw.randrange(1000))
            else:
                pair.bank.delete(pair.collection, key)
            changed.append(key)
        pair.tell(*changed)
        pair.agrees_with_the_source()
