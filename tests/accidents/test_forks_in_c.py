"""Hosts that fork in C: Python runs no hook, and the child has whatever its parent had open.

A builder that is killed frees its lock at once all the same, wherever the fork fell; and a worker's next poll closes
what it has inherited.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mmcache
from mmcache import Cache, LockTimeoutError
from mmcache.storage import buildlock, fs
from tests.accidents.stage import apart, change, database, source, until
from tests.support import inside
from tests.support.observe import rebuilders_of, state_of

STARTS = ("rebuild.py", "storage/fs.py", "storage/buildlock.py")
FORKS = 8


def fork_in_c() -> int:
    """As a host written in C does."""
    return int(ctypes.PyDLL(None).fork())


class Forker:
    """Forks at the n-th line of what starts a rebuild; the child does nothing and lives on."""

    def __init__(self, n: int) -> None:
        self.n, self.seen, self.child = n, 0, 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.endswith(STARTS) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.seen += 1
            if self.seen == self.n:
                self.child = fork_in_c()
                if not self.child:
                    while True:
                        signal.pause()
        return self._line

    @contextmanager
    def tracing(self) -> Iterator[None]:
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(None)


def _opened(path: Path, db: Path) -> Cache:
    cache = mmcache.open(path, source(db), check_interval=0.0, rebuild_after=0.0)
    cache.get("k1")
    return cache


def has_a_lock_of_its_own(pid: int) -> bool:
    """Whether the builder holds the lock by an open file that none but it has; True where it has ended."""
    if state_of(pid) in ("", "Z"):
        return True
    try:
        return any("OFDLCK" in Path(f"/proc/{pid}/fdinfo/{fd}").read_text() for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def free_after_a_killed_builder(place: Path, n: int) -> tuple[int, int]:
    """Lines of a start of a rebuild, and builders that were killed alive."""
    place.mkdir()
    db, path = database(place / "items.db"), place / "items.mmc"
    mmcache.build(path, source(db))
    cache, forker = _opened(path, db), Forker(n)
    change(db, "k1")
    with forker.tracing():
        cache.refresh()
    try:
        builders = rebuilders_of(os.getpid())
        for builder in builders:
            until("the builder has its lock", partial(has_a_lock_of_its_own, builder), pause=0.001)
            os.kill(builder, signal.SIGKILL)
        begun = time.monotonic()
        with inside.build_lock(path, 20.0):
            assert time.monotonic() - begun < 10.0
        return forker.seen, len(builders)
    finally:
        if forker.child:
            os.kill(forker.child, signal.SIGKILL)
            os.waitpid(forker.child, 0)


def test_a_killed_builder_frees_its_lock_wherever_c_code_forked(place):
    def act() -> int:
        lines, killed = free_after_a_killed_builder(place / "0", 0)
        chosen = [lines * i // FORKS for i in range(1, FORKS)]
        return sum(free_after_a_killed_builder(place / str(n), n)[1] for n in chosen) + killed

    assert apart(act, within=110.0) >= FORKS // 2


def test_a_child_forked_in_c_closes_inherited_locks_at_its_next_poll(place):
    def act() -> None:
        db, path = database(place / "items.db"), place / "items.mmc"
        mmcache.build(path, source(db))
        cache = mmcache.open(path, source(db), executor="external")
        cache.get("k1")
        read, write = os.pipe()
        with fs.Directory(str(path)) as directory:
            lock = buildlock.take(directory, 0.0)
            if not fork_in_c():
                os.close(write)
                os.read(read, 1)
                cache.refresh()
                signal.pause()
            lock.close()  # as by a kill, which frees nothing that another process has open
        with pytest.raises(LockTimeoutError), inside.build_lock(path, 0.0):
            pass
        os.write(write, b".")
        with inside.build_lock(path, 20.0):
            pass

    apart(act)


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_a_build_that_ends_frees_its_lock_though_c_code_forked(place, executor):
    def act() -> None:
        db, path = database(place / "items.db"), place / "items.mmc"
        mmcache.build(path, source(db))
        forked: list[int] = []

        class Forking(mmcache.SQLiteSource):
            def read(self) -> Any:
                forked.append(fork_in_c())
                if not forked[-1]:
                    signal.pause()
                return super().read()

        with mmcache.open(
            path, Forking(db, *source(db).schemas), executor=executor, check_interval=0.0, rebuild_after=0.0
        ) as cache:
            cache.get("k1")
            change(db, "k1")
            until("rebuilt", lambda: cache.refresh() or cache["k1"]["note"] == "new")
        with inside.build_lock(path, 20.0):
            assert forked

    apart(act)
