"""Threads that read while one of them opens the first file, or the next."""

from __future__ import annotations

import contextlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType, FrameType

import pytest

import mmcache
from mmcache import Cache, SQLiteSource
from tests.support import inside
from tests.support.bank import NUMBERS, commit
from tests.support.crew import number
from tests.support.faults import Then, faults
from tests.support.processes import in_child
from tests.support.waits import PATIENCE, until

pytestmark = pytest.mark.usefixtures("no_leaks")


def waits(ident: int | None) -> bool:
    """Whether a thread stays at one instruction."""
    assert ident is not None
    seen = set()
    for _ in range(20):
        frame = sys._current_frames()[ident]
        seen.add((frame.f_code, frame.f_lasti))
        threading.Event().wait(0.005)
    return len(seen) == 1


def test_a_read_that_waits_for_the_first_open_sees_what_was_rebuilt_before(path: Path, bank: Path) -> None:
    """The file that is being opened was the last one when that began, and is not when the second read begins."""
    is_opening, may_go_on, second = threading.Event(), threading.Event(), []

    def pause() -> None:
        is_opening.set()
        assert may_go_on.wait(PATIENCE)

    def read_second() -> int:
        second.append(threading.get_ident())
        return number(cache)

    with (
        contextlib.ExitStack() as stack,
        mmcache.open(path, SQLiteSource(bank, NUMBERS), build=False, check_interval=3600) as cache,
        ThreadPoolExecutor(2) as pool,
    ):
        assert in_child(lambda: mmcache.build(path, SQLiteSource(bank, NUMBERS))) == 0
        stack.enter_context(faults(Then("open", "items.mmc", pause)))
        first = pool.submit(cache.refresh)
        assert is_opening.wait(PATIENCE)
        commit(bank, 1)
        assert in_child(lambda: mmcache.build(path, SQLiteSource(bank, NUMBERS))) == 0
        late = pool.submit(read_second)
        until("the second read waits", lambda: second and waits(second[0]))
        may_go_on.set()
        assert late.result(PATIENCE) == 1
        assert first.result(PATIENCE)
        assert number(cache) == 1


class Pauses:
    """A read that pauses when it calls this function; once it has called the function `after`, if that is given."""

    def __init__(self, function: CodeType, *, after: CodeType | None = None) -> None:
        self.function, self.after = function, after
        self.thread: int | None = None
        self.is_paused, self.may_go_on = threading.Event(), threading.Event()

    def _called(self, frame: FrameType, event: str, arg: object) -> None:
        if frame.f_code is self.after:
            self.after = None
        elif frame.f_code is self.function and self.after is None and not self.is_paused.is_set():
            self.is_paused.set()
            assert self.may_go_on.wait(PATIENCE)

    def __call__(self, cache: Cache) -> int:
        self.thread = threading.get_ident()
        sys.settrace(self._called)
        try:
            return number(cache)
        finally:
            sys.settrace(None)


def test_no_read_is_answered_by_the_file_that_another_thread_has_moved_from(path: Path, bank: Path) -> None:
    """One read has heard of a file, and is about to look at it; another has moved to it, and not replaced the view."""
    mmcache.build(path, SQLiteSource(bank, NUMBERS))
    late = Pauses(inside.LOOKS_AT_THE_FILE)
    mover = Pauses(inside.READS_THE_HEAD, after=inside.HAS_MOVED)
    with (
        mmcache.open(path, SQLiteSource(bank, NUMBERS), executor="external", check_interval=3600) as cache,
        ThreadPoolExecutor(2) as pool,
    ):
        assert number(cache) == 0
        commit(bank, 1)
        assert in_child(lambda: mmcache.build(path, SQLiteSource(bank, NUMBERS))) == 0
        answers = [pool.submit(late, cache)]
        assert late.is_paused.wait(PATIENCE)
        answers.append(pool.submit(mover, cache))
        assert mover.is_paused.wait(PATIENCE)
        late.may_go_on.set()
        until("it is answered, or waits", lambda: answers[0].done() or waits(late.thread))
        mover.may_go_on.set()
        assert [answer.result(PATIENCE) for answer in answers] == [1, 1]
