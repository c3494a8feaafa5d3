"""A user who may only read locks every file that can be opened, and keeps the locks.

Writers use a lock that such a user cannot open, and no get waits for any: `invalidate` stays quick and exact, rebuilds
happen.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mmcache
from mmcache import Cache
from tests.accidents.stage import NOBODY, Crew, become, change, database, fork, note_of, opens, source, until

QUICK = 0.5
"""Seconds; a call that waits for a lock takes longer, one that does not some microseconds."""
SLOW = 0.04
"""Seconds that no get may take. A busy machine may stop a process for as long now and then."""


def flock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def posix(fd: int) -> None:
    fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def open_file_description(fd: int) -> None:
    """F_OFD_SETLK with a read lock over the whole file."""
    fcntl.fcntl(fd, 37, _FLOCK)


_FLOCK = bytes.fromhex("0000 0000 00000000 0000000000000000 0000000000000000 00000000 00000000".replace(" ", ""))


@contextlib.contextmanager
def locked_by_a_reader(place: Path, lock: Callable[[int], None]) -> Iterator[int]:
    """Another user holds a lock of each file below a directory that can be opened; how many these are."""
    if os.geteuid():
        pytest.skip("needs root, to be two users")
    here, there = fork.Pipe()
    process = fork.Process(target=_hold, args=(there, place, lock))
    process.start()
    try:
        yield int(here.recv())
    finally:
        process.kill()
        process.join()


def _hold(told, place: Path, lock: Callable[[int], None]) -> None:
    become(NOBODY)
    held = []
    for file in sorted(place.iterdir()):
        with contextlib.suppress(OSError):
            fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
            lock(fd)
            held.append(fd)
    told.send(len(held))
    told.recv()  # for ever


LOCKS = [flock, posix, open_file_description]


@pytest.fixture(params=LOCKS, ids=lambda lock: lock.__name__)
def lock(request: pytest.FixtureRequest) -> Callable[[int], None]:
    chosen: Callable[[int], None] = request.param
    return chosen


@pytest.fixture
def home(place: Path) -> Path:
    """A directory that others may enter and list, with a published file and its page; the database is elsewhere."""
    (place / "home").mkdir(mode=0o755)
    with mmcache.open(place / "home" / "c.mmc", source(database(place / "items.db")), executor="external") as cache:
        note_of(cache)
        cache.invalidate(["k199"])
        cache.rebuild()
    return place / "home"


def invalidations(cache: Cache, n: int) -> tuple[set[str], float]:
    """What n of them became, and the seconds of the quickest."""
    kinds: set[str] = set()
    times = []
    for i in range(n):
        begun = time.monotonic()
        kinds.add(cache.invalidate([f"k{i}"]))
        times.append(time.monotonic() - begun)
    return kinds, min(times)


def test_a_reader_that_holds_locks_slows_no_invalidation(home, place, lock, crew: Crew):
    worker = crew.hire(opens(home / "c.mmc", place / "items.db"))
    worker(note_of)
    with locked_by_a_reader(home, lock) as held:
        assert held
        kinds, quickest = worker(invalidations, 5)
        assert kinds == {"ids"}
        assert quickest < QUICK


@pytest.mark.parametrize("executor", ["thread", "subprocess", "inline"])
def test_a_reader_that_holds_locks_stops_no_rebuild(home, place, lock, crew: Crew, executor):
    db = place / "items.db"
    options = {"executor": executor, "rebuild_after": 0.0, "check_interval": 0.05}
    worker = crew.hire(opens(home / "c.mmc", db, **options))
    before = worker("stats").generation or 0
    worker(note_of)
    with locked_by_a_reader(home, lock):
        change(db)
        worker("invalidate", ["k1"])
        until("a rebuild", lambda: worker(note_of, "k5") == "new" and worker("stats").generation > before)


def gets(cache: Cache, n: int) -> float:
    """The share of gets that take long, while a rebuild is due."""
    slow = 0
    for i in range(n):
        begun = time.monotonic()
        cache.get(f"k{i % 100}")
        slow += time.monotonic() - begun > SLOW
        time.sleep(0.002)  # as requests come
    return slow / n


def test_a_reader_that_holds_locks_slows_no_get(home, place, lock, crew: Crew):
    db = place / "items.db"
    options = {"executor": "thread", "rebuild_after": 0.0, "check_interval": 0.05}
    worker = crew.hire(opens(home / "c.mmc", db, **options))
    worker(note_of)
    with locked_by_a_reader(home, lock):
        change(db)
        worker("invalidate", ["k1"])
        assert worker(gets, 500) < 0.05


def test_a_reader_that_holds_locks_bars_no_newcomer(home, place, lock, crew: Crew):
    with locked_by_a_reader(home, lock):
        one, other = crew.hire(opens(home / "c.mmc", place / "items.db"), 2)
        assert [one(note_of), other(note_of)] == ["old", "old"]
        change(place / "items.db", "k3")
        assert one("invalidate", ["k3"]) == "ids"
        assert other(note_of, "k3") == "new"


def test_a_reader_cannot_open_the_lock_of_writers(home):
    if os.geteuid():
        pytest.skip("needs root, to be two users")
    locks = list(home.glob("*.lock"))
    assert locks
    assert not [file.name for file in locks if file.stat().st_mode & 0o007]


def _replace_page_and_stop(told, path: Path, db: Path) -> None:
    """A process puts another page in the place of the one in use, and stops while it holds the lock of writers."""
    path.with_name(f"{path.name}.ctl").unlink()
    with mmcache.open(path, source(db), executor="external") as cache:
        note_of(cache)
    fd = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR)
    fcntl.fcntl(fd, 37, b"\1\0" + _FLOCK[2:])  # F_OFD_SETLK, F_WRLCK
    told.send(fd)
    told.recv()  # for ever


def test_a_writer_stopped_at_a_new_page_slows_no_get(home, place):
    path, db = home / "c.mmc", place / "items.db"
    with mmcache.open(path, source(db), executor="external", check_interval=1e9) as cache:
        assert note_of(cache) == "old"
        change(db, "k3")
        cache.invalidate(["k3"])
        here, there = fork.Pipe()
        process = fork.Process(target=_replace_page_and_stop, args=(there, path, db))
        process.start()
        try:
            here.recv()
            begun = time.monotonic()
            assert note_of(cache, "k5") == "old"
            assert time.monotonic() - begun < QUICK
            assert note_of(cache, "k3") == "new"
        finally:
            process.kill()
            process.join()
