"""Ids that were invalidated cost what they cost, and nothing else: other reads stay with the file.

The source is asked by key for the dirty ids alone; counts of its calls say so, whatever the machine does besides.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mmcache
from mmcache import Cache, SQLiteSource
from tests.accidents.stage import (
    ITEMS,
    Crew,
    change,
    database,
    execute,
    note_of,
    notes_of,
    opens,
)

MANY = 16_000
"""Single invalidations that a page keeps."""


class CountingSource(SQLiteSource):
    """Counts how it is asked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fetched: list[list[str]] = []
        self.found = self.reads = 0

    def fetch(self, collection: str, ids: Any) -> Any:
        self.fetched.append(sorted(ids))
        return super().fetch(collection, ids)

    def find(self, collection: str, query: Any) -> Any:
        self.found += 1
        return super().find(collection, query)

    @contextmanager
    def read(self) -> Iterator[Any]:
        self.reads += 1
        with super().read() as reading:
            yield reading

    def forget(self) -> None:
        self.fetched, self.found, self.reads = [], 0, 0


@pytest.fixture
def counted(path: Path, db: Path) -> Iterator[tuple[Cache, CountingSource, Path]]:
    asked = CountingSource(db, ITEMS)
    with mmcache.open(path, asked, executor="external", check_interval=3600.0) as cache:
        note_of(cache)
        asked.forget()
        yield cache, asked, db


OTHERS: dict[str, Callable[[Cache], object]] = {
    "get": lambda c: [c[f"k{i}"] for i in range(50, 150)],
    "in": lambda c: ["k50" in c, "k51" in c],
    "get_many": lambda c: c.get_many([f"k{i}" for i in range(50, 150)]),
    "embedding": lambda c: c.embedding("k50"),
}
ALL: dict[str, Callable[[Cache], object]] = {
    "where": lambda c: c.where(kind="a").ids,
    "where, read": lambda c: list(c.where(kind="a")),
    "len": len,
    "iterate": list,
    "values": lambda c: list(c.values()),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dirty", [["absent"], ["k1"], [f"k{i}" for i in range(40)]], ids=["absent", "one", "forty"])
def test_reads_of_other_ids_do_not_ask_the_source(counted, dirty, name):
    cache, asked, _ = counted
    cache.invalidate(dirty)
    before = cache.stats().fallbacks
    OTHERS[name](cache)
    assert (asked.fetched, asked.found, asked.reads) == ([], 0, 0)
    assert cache.stats().fallbacks == before


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dirty", [["absent"], ["k3"], [f"k{i}" for i in range(40)]], ids=["absent", "one", "forty"])
def test_reads_of_all_ask_once_for_the_dirty_ids(counted, dirty, name):
    cache, asked, _ = counted
    cache.invalidate(dirty)
    for _ in range(3):
        ALL[name](cache)
    assert asked.fetched == [sorted(dirty)]
    assert (asked.found, asked.reads) == (0, 0)


def test_a_get_of_a_dirty_id_asks_each_time(counted):
    cache, _asked, db = counted
    cache.invalidate(["k1"])
    assert cache.where(kind="b").ids
    for i in range(3):
        change(db, "k1", note=f"new-{i}")
        assert note_of(cache, "k1") == f"new-{i}"
        assert cache.get_many(["k1", "k2"])[0]["note"] == f"new-{i}"


def test_an_event_ends_what_the_view_remembers(counted):
    cache, _, db = counted
    change(db, "k0", note="first")
    cache.invalidate(["k0"])
    assert cache.where(kind="a")[0]["note"] == "first"
    change(db, "k0", note="second")
    cache.invalidate(["k0"])
    assert cache.where(kind="a")[0]["note"] == "second"


def test_an_insert_said_here_is_found_there(path, db, crew: Crew):
    one, other = crew.hire(opens(path, db, check_interval=3600.0), 2)
    assert [one(note_of), other(note_of)] == ["old", "old"]
    for i in range(5):
        execute(db, "INSERT INTO items VALUES (?, 'a', 'new')", f"z{i}")
        one("invalidate", [f"z{i}"])
        assert other(sees, f"z{i}", 201 + i)
    execute(db, "DELETE FROM items WHERE id = 'z0'")
    one("invalidate", ["z0"])
    assert not other(sees, "z0", 204)


def sees(cache: Cache, key: str, count: int) -> bool:
    """Whether every way to read has this key; all of them agree."""
    assert len(cache) == count
    found = {
        key in cache.where(kind="a").ids,
        key in list(cache),
        cache.get_many(["k1", key])[1] is not None,
        key in cache,
        any(record.id == key for record in cache.values()),
    }
    assert len(found) == 1
    return found.pop()


def test_16000_single_invalidations_leave_the_others_to_the_file(path, tmp_path, crew: Crew):
    db = database(tmp_path / "many.db", MANY + 1000)
    with mmcache.open(path, CountingSource(db, ITEMS), executor="external", check_interval=3600.0) as cache:
        note_of(cache)
        for i in range(MANY):
            assert cache.invalidate([f"k{i}"]) == "ids"
        assert cache.stats().state == "stale"
    change(db, "k5", f"k{MANY - 1}")
    newcomer = crew.hire(opens(path, db, check_interval=3600.0))
    keys = [f"k{MANY + i}" for i in range(500)]
    assert newcomer(notes_of, keys) == ["old"] * 500
    stats = newcomer("stats")
    assert (stats.state, stats.hits, sum(stats.fallbacks.values())) == ("stale", 500, 0)
    assert newcomer(notes_of, ["k5", f"k{MANY - 1}", "k7"]) == ["new", "new", "old"]
    assert newcomer("stats").fallbacks == {"invalidated": 3}


@pytest.mark.parametrize("dirty", [0, 1, 100, 2_000])
def test_a_get_runs_code_of_two_files_whatever_is_dirty(path, tmp_path, dirty):
    db = database(tmp_path / "many.db", 2_100)
    with mmcache.open(path, SQLiteSource(db, ITEMS), executor="external", check_interval=3600.0) as cache:
        if dirty:
            cache.invalidate([f"k{i}" for i in range(dirty)])
        assert notes_of(cache, ["k2099", "k2098"]) == ["old"] * 2
        with files_that_run() as files:
            cache.get("k2097")
    assert len(files) <= 2, files
    assert mmcache.implementation == "compiled" or files


@contextmanager
def files_that_run() -> Iterator[set[str]]:
    """The files of the package whose functions are called."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("mmcache."):
            files.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)


def test_single_invalidations_in_turn_are_all_heard(path, tmp_path, crew: Crew):
    """A worker that hears all along, one that hears at the end, and one that comes then agree."""
    db = database(tmp_path / "many.db", 4000)
    speaker, listener, sleeper = crew.hire(opens(path, db, check_interval=3600.0), 3)
    assert [worker(note_of) for worker in (speaker, listener, sleeper)] == ["old"] * 3
    change(db)
    for begin in range(0, 3000, 500):
        keys = [f"k{i}" for i in range(begin, begin + 500)]
        speaker(invalidate_each, keys)
        assert listener(notes_of, keys[::50]) == ["new"] * 10
    keys = [f"k{i}" for i in range(0, 4000, 100)]
    newcomer = crew.hire(opens(path, db, check_interval=3600.0))
    expected = ["new"] * 30 + ["old"] * 10
    assert [worker(notes_of, keys) for worker in (listener, sleeper, newcomer)] == [expected] * 3


def invalidate_each(cache: Cache, keys: list[str]) -> None:
    for key in keys:
        cache.invalidate([key])
