"""Threads that read for the first time while one of them opens the file."""

from __future__ import annotations

import contextlib
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mmcache
from mmcache import SQLiteSource
from tests.support.bank import NUMBERS, commit
from tests.support.crew import number
from tests.support.faults import Then, faults
from tests.support.processes import in_child
from tests.support.waits import PATIENCE, until

pytestmark = pytest.mark.usefixtures("no_leaks")


def waits(ident: int) -> bool:
    """Whether a thread stays at one instruction."""
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
