"""A process forks while another of its threads is anywhere inside a call; the child then uses the cache, too.

Each test holds a thread at one line of the package after the other, forks there, and lets the child read, invalidate
and poll. Locks that a thread of the parent held are made anew in the child, so that none hangs.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import mmcache
from mmcache import Cache, SourceError
from tests.accidents.stage import apart, change, note_of, source

PACKAGE = os.path.dirname(mmcache.__file__)
FORKS = 100
"""At most, spread evenly over the lines of a call."""
CHILD = 10
"""Seconds for what takes a child milliseconds."""
BUDGET = 40.0
"""Seconds for all forks of one test, so that a busy machine makes fewer."""


class Tracer:
    """Holds the thread that is at the n-th line of a call until the test lets it go."""

    def __init__(self, n: int) -> None:
        self.n, self.seen, self.place = n, 0, ""
        self.inside, self.go = threading.Event(), threading.Event()
        self._count = threading.Lock()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event != "line":
            return self._line
        with self._count:
            self.seen += 1
            is_here = self.seen == self.n
        if is_here:
            self.place = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
            self.inside.set()
            self.go.wait(CHILD)
        return self._line

    def run(self, call: Callable[[], object]) -> None:
        """The call, and threads that it starts, under the tracer."""
        threading.settrace(self)
        sys.settrace(self)
        try:
            call()
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.inside.set()


def lines_of(call: Callable[[], object]) -> int:
    tracer = Tracer(0)
    tracer.run(call)
    return tracer.seen


def in_a_child(cache: Cache) -> int:
    """What a forked child does; 0 where its answers are right, else what was wrong."""
    signal.alarm(CHILD)
    sys.settrace(None)
    threading.settrace(None)
    try:
        return use(cache)
    except SourceError:
        return 0  # a connection that a thread of the parent was reading from: the documented limit


def use(cache: Cache) -> int:
    if note_of(cache, "k2") != "old":
        return 2
    cache.invalidate(["k3"])
    if note_of(cache, "k3") != "old" or cache.get_many(["k4", "absent"])[1] is not None:
        return 3
    cache.refresh()
    cache.stats()
    return 0 if len(cache.where(kind="a")) == 67 else 4


def fork_at(cache: Cache, prepare: Callable[[], object], call: Callable[[], object], n: int) -> str:
    """Fork while a thread is at the n-th line of a call; how the child ended where that is not well."""
    prepare()
    tracer = Tracer(n)
    thread = threading.Thread(target=tracer.run, args=(call,), daemon=True)
    thread.start()
    tracer.inside.wait(CHILD)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            faulthandler.disable()
            code = in_a_child(cache)
        finally:
            os._exit(code)
    tracer.go.set()
    thread.join(CHILD)
    end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if thread.is_alive():
        return f"{tracer.place}: the thread of the parent hangs"
    if end == 0:
        return ""
    return f"{tracer.place}: {'the child hangs' if end == -signal.SIGALRM else f'the child ended with {end}'}"


def fork_everywhere(path: Path, db: Path, name: str) -> tuple[list[str], int]:
    """How children of forks inside a call ended badly, and how many forks there were."""
    with mmcache.open(path, source(db), executor="external", check_interval=0.0) as cache:
        note_of(cache)
        prepare, call = CALLS[name](cache, path, db)
        total = 0
        for _ in range(2):  # the first imports
            prepare()
            total = lines_of(call)
        step = max(1.0, total / FORKS)
        lines = sorted({1 + int(step * i) for i in range(min(total, FORKS))})
        bad: list[str] = []
        forks, end = 0, time.monotonic() + BUDGET
        for n in lines:
            if time.monotonic() > end or len(bad) == 2:
                break
            forks += 1
            if found := fork_at(cache, prepare, call, n):
                bad.append(found)
        return bad, forks


Call = tuple[Callable[[], object], Callable[[], object]]


def nothing() -> None:
    pass


def inside_invalidate(cache: Cache, path: Path, db: Path) -> Call:
    return nothing, lambda: cache.invalidate(["k1"])


def inside_invalidate_all(cache: Cache, path: Path, db: Path) -> Call:
    return cache.rebuild, lambda: cache.invalidate(hard=False)


def inside_get(cache: Cache, path: Path, db: Path) -> Call:
    return nothing, lambda: (cache.get("k5"), cache.get("absent"), cache.get_many(["k5", "k6"]))


def inside_get_of_a_dirty_id(cache: Cache, path: Path, db: Path) -> Call:
    return lambda: cache.invalidate(["k9"]), lambda: (cache.get("k9"), cache.where(kind="a").ids, len(cache))


def inside_first_get(cache: Cache, path: Path, db: Path) -> Call:
    opened: list[Cache] = []

    def open_and_get() -> None:
        opened.append(mmcache.open(path, source(db), executor="external"))
        opened[-1].get("k1")

    def close() -> None:
        while opened:
            opened.pop().close()

    return close, open_and_get


def inside_hear(cache: Cache, path: Path, db: Path) -> Call:
    """Another cache object of the same file says something, as another process would."""
    other = mmcache.open(path, source(db), executor="external", check_interval=3600.0)
    return lambda: other.invalidate(["k8"]), lambda: cache.get("k8")


def inside_poll(cache: Cache, path: Path, db: Path) -> Call:
    return nothing, cache.refresh


def inside_adopt(cache: Cache, path: Path, db: Path) -> Call:
    rounds = iter(range(1_000_000))

    def publish() -> None:
        change(db, "k11", note=f"new-{next(rounds)}")
        mmcache.build(path, source(db))

    return publish, lambda: (cache.refresh(), cache.get("k5"))


def inside_rebuild(cache: Cache, path: Path, db: Path) -> Call:
    rounds = iter(range(1_000_000))
    return lambda: change(db, "k11", note=f"new-{next(rounds)}"), cache.rebuild


def inside_stats_and_status(cache: Cache, path: Path, db: Path) -> Call:
    return nothing, lambda: (cache.stats(), cache.status())


CALLS: dict[str, Callable[[Cache, Path, Path], Call]] = {
    call.__name__: call
    for call in (
        inside_invalidate,
        inside_invalidate_all,
        inside_get,
        inside_get_of_a_dirty_id,
        inside_first_get,
        inside_hear,
        inside_poll,
        inside_adopt,
        inside_rebuild,
        inside_stats_and_status,
    )
}


@pytest.mark.parametrize("name", CALLS)
def test_a_fork_leaves_no_child_that_hangs(path, db, name):
    bad, forks = apart(fork_everywhere, path, db, name, within=100.0)
    assert not bad
    assert forks > 3


# --- without lines: forks at random ----------------------------------------------------------------------------------


def test_forks_beside_busy_threads_leave_no_child_that_hangs(path, db):
    assert apart(fork_beside_threads, path, db, within=100.0) == []


def fork_beside_threads(path: Path, db: Path) -> list[int]:
    ended = threading.Event()

    def repeat(call: Callable[[], object]) -> None:
        while not ended.is_set():
            call()

    with mmcache.open(path, source(db), executor="external", check_interval=0.0) as cache:
        note_of(cache)
        calls = (lambda: cache.invalidate(["k1"]), lambda: cache.get("k2"), cache.refresh, cache.stats)
        workers = [threading.Thread(target=repeat, args=(call,), daemon=True) for call in calls]
        for worker in workers:
            worker.start()
        bad, end = [], time.monotonic() + BUDGET
        for _ in range(FORKS):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = in_a_child(cache)
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code:
                bad.append(code)
            if len(bad) == 2 or time.monotonic() > end:
                break
        ended.set()
        for worker in workers:
            worker.join(CHILD)
    return bad
