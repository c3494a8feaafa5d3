"""A thread begins, or is known not to: under a limit of memory, and when it dies before it begins."""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import mmcache
from mmcache import SQLiteSource, threads
from tests.support import inside
from tests.support.bank import NUMBERS, commit
from tests.support.crew import number
from tests.support.processes import in_child
from tests.support.waits import until


def dies(go_on: Callable[[], None]) -> None:
    """What a lack of memory does to a thread."""
    raise SystemExit


def test_a_thread_that_dies_before_it_begins_is_given_up():
    ran, freed, before = [], [], threading.enumerate()
    with inside.threads_begin_by(dies), pytest.raises(RuntimeError, match="it did not begin within 1 s"):
        threads.start("one", lambda: ran.append(1), otherwise=lambda: freed.append(1))
    assert (ran, freed, threading.enumerate()) == ([], [1], before)


def test_a_thread_that_begins_late_does_not_run_what_was_given_up():
    go, ended, ran = threading.Event(), threading.Event(), []

    def late(go_on: Callable[[], None]) -> None:
        go.wait()
        try:
            go_on()
        finally:
            ended.set()

    with inside.threads_begin_by(late), pytest.raises(RuntimeError):
        threads.start("one", lambda: ran.append(1))
    go.set()
    assert ended.wait(30)
    assert not ran


def test_reads_poll_themselves_where_threads_die(path, bank):
    with mmcache.open(path, SQLiteSource(bank, NUMBERS), executor="external", check_interval=0.02) as cache:
        assert number(cache) == 0
        with inside.threads_begin_by(dies):
            commit(bank, 1)
            mmcache.build(path, SQLiteSource(bank, NUMBERS))
            until("the new file is seen", lambda: number(cache) == 1)


def under_a_limit(extra: int) -> None:
    """Thousands of starts, while the memory that is left shrinks to nothing."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, -1))
    hold = []
    for _ in range(3000):
        try:
            threads.start("one", int)
            hold.append(bytearray(700))
        except (RuntimeError, MemoryError):
            pass


@pytest.mark.parametrize("extra", [1_000_000, 8_500_000, 9_000_000, 10_000_000])
def test_no_start_hangs_under_a_limit_of_memory(extra):
    assert in_child(lambda: under_a_limit(extra)) == 0
