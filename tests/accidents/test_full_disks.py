"""A file system without room: a reader lives, `invalidate` succeeds or raises, and all is well once there is room.

A store into a mapped page of a full copy-on-write file system ends a process with SIGBUS, so no process maps a file of
the cache for writing.
"""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, MmcacheError
from tests.accidents.disks import SYSTEMS, fill, full_place, make_room
from tests.accidents.stage import (
    Crew,
    apart,
    change,
    database,
    invalidate_changed,
    note_of,
    opens,
    shared_writable_maps,
    source,
    truth,
    until,
)

ROUNDS = 30


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def invalidate_and_read(cache: Cache, db: Path, rounds: range) -> int:
    """How many invalidations were refused. Every get gives what the source has of what was invalidated."""
    refused = 0
    for i in rounds:
        key = f"k{i}"
        if invalidate_changed(cache, db, key):
            assert note_of(cache, key) == "new"
        else:
            refused += 1
        others = [f"k{j}" for j in range(500, 560)]
        assert [note_of(cache, other) for other in others] == ["old"] * 60
        os.sync()
    return refused


FREED = 120.0
"""Seconds in which a file system gives back what was freed; btrfs takes about 30."""


def test_a_worker_on_a_full_disk_lives_and_is_right(place, system):
    apart(fill_up_under_a_worker, place, system, namespace=True, within=FREED + 60)


def fill_up_under_a_worker(place: Path, system: str) -> None:
    full, db = full_place(place, system), database(place / "items.db", 1000)
    with mmcache.open(full / "c.mmc", source(db), executor="external", check_interval=0.05) as cache:
        note_of(cache)
        os.sync()
        fill(full)
        invalidate_and_read(cache, db, range(ROUNDS))
        make_room(full)
        until("invalidate works", lambda: invalidate_changed(cache, db, "k100"), timeout=FREED)
        assert note_of(cache, "k100") == "new"
        until("a rebuild works", lambda: rebuilds(cache), timeout=FREED)
        assert [note_of(cache, key) for key in ("k1", "k100", "k500")] == truth(db, ["k1", "k100", "k500"])


def rebuilds(cache: Cache) -> bool:
    """Whether it does; a file system may need a moment to give freed space back."""
    try:
        cache.rebuild()
    except MmcacheError:
        return False
    return True


def test_an_equal_hears_of_what_returned_on_a_full_disk(place, system):
    apart(hear_on_a_full_disk, place, system, namespace=True, within=FREED + 60)


def hear_on_a_full_disk(place: Path, system: str) -> None:
    full, db = full_place(place, system), database(place / "items.db", 1000)
    with Crew() as crew:
        one, other = crew.hire(opens(full / "c.mmc", db), 2)
        assert [one(note_of), other(note_of)] == ["old", "old"]
        fill(full)
        for i in range(ROUNDS):
            if one(invalidate_changed, db, f"k{i}"):
                assert other(note_of, f"k{i}") == "new"
        make_room(full)
        until("invalidate works", lambda: one(invalidate_changed, db, "k100"), timeout=FREED)
        assert other(note_of, "k100") == "new"
        assert all(worker.process.is_alive() for worker in (one, other))


def test_a_cache_opened_on_a_full_disk_answers(place, system):
    apart(open_on_a_full_disk, place, system, namespace=True, within=FREED + 60)


def open_on_a_full_disk(place: Path, system: str) -> None:
    full, db = full_place(place, system), database(place / "items.db", 1000)
    mmcache.build(full / "c.mmc", source(db))
    for file in full.glob("*c.mmc*"):
        if file.name != "c.mmc":
            file.unlink()  # no page yet, and no room for one
    fill(full)
    with mmcache.open(full / "c.mmc", source(db), executor="external", check_interval=0.05) as cache:
        assert note_of(cache) == "old"
        invalidate_and_read(cache, db, range(5))
        make_room(full)
        until("invalidate works", lambda: invalidate_changed(cache, db, "k100"), timeout=FREED)
        assert note_of(cache, "k100") == "new"


def test_a_limit_of_file_size_ends_no_reader(tmp_path, db):
    apart(reach_the_limit_of_file_size, tmp_path, db)


def reach_the_limit_of_file_size(place: Path, db: Path) -> None:
    with mmcache.open(place / "c.mmc", source(db), executor="external", check_interval=0.05) as cache:
        note_of(cache)
        for limit in (0, 1024, 5000):
            for key in ("k1", "k2"):
                change(db, key, note=f"new-{limit}")
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                returned = bool(cache.invalidate(["k1"]))
            except MmcacheError:
                returned = False
            read = note_of(cache)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert read == f"new-{limit}" or not returned
            until("invalidate works", lambda: cache.invalidate(["k2"]), timeout=FREED)
            assert note_of(cache, "k2") == f"new-{limit}"


# --- no map to store into ---------------------------------------------------------------------------------------------


def read_all(cache: Cache, db: Path) -> None:
    assert note_of(cache) == "old"
    list(cache.where(kind="a"))


def invalidate(cache: Cache, db: Path) -> None:
    cache.invalidate(["k2"])
    cache.invalidate(hard=False)
    cache.invalidate()
    note_of(cache, "k2")


def rebuild(cache: Cache, db: Path) -> None:
    change(db, "k3")
    cache.rebuild()
    assert note_of(cache, "k3") == "new"


def poll(cache: Cache, db: Path) -> None:
    cache.refresh()
    cache.status()
    cache.stats()


@pytest.mark.parametrize("executor", ["external", "thread", "inline"])
def test_no_file_of_the_cache_is_mapped_for_writing(tmp_path, db, executor):
    (tmp_path / "cache").mkdir()
    apart(look_for_maps, tmp_path / "cache", db, executor)


def look_for_maps(place: Path, db: Path, executor: Any) -> None:
    watched, ended = [], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            watched.extend(shared_writable_maps(place))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with mmcache.open(place / "c.mmc", source(db), executor=executor, check_interval=0.0) as cache:
            for step in (read_all, invalidate, rebuild, poll):
                step(cache, db)
                assert not shared_writable_maps(place), step.__name__
    finally:
        ended.set()
        watcher.join()
    assert not watched
