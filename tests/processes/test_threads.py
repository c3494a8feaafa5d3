"""A thread begins, or is known not to: under a limit of memory, and when it dies before it begins."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import pytest

import mmcache
from mmcache import SQLiteSource, threads
from tests.support.bank import NUMBERS, commit
from tests.support.crew import number
from tests.support.processes import in_child
from tests.support.waits import until


def dies(self: threading.Thread) -> None:
    """What a lack of memory makes of the first instruction of a thread."""
    raise SystemExit


def test_a_thread_that_dies_before_it_begins_is_given_up(monkeypatch):
    monkeypatch.setattr(threading.Thread, "_bootstrap", dies)
    ran, freed, before = [], [], threading.enumerate()
    with pytest.raises(RuntimeError, match="it did not begin within 1 s"):
        threads.start("one", lambda: ran.append(1), otherwise=lambda: freed.append(1))
    assert (ran, freed, threading.enumerate()) == ([], [1], before)


def test_a_thread_that_begins_late_does_not_run_what_was_given_up(monkeypatch):
    go, bootstrap, ended = threading.Event(), threading.Thread._bootstrap, []  # type: ignore[attr-defined]

    def late(self):
        go.wait()
        try:
            bootstrap(self)
        finally:
            ended.append(self)

    ran = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "_bootstrap", late)
        patch.setattr(threads, "_forget", lambda thread: None)
        with pytest.raises(RuntimeError):
            threads.start("one", lambda: ran.append(1))
    go.set()
    until("it has ended", lambda: ended)
    assert not ran


def test_reads_poll_themselves_where_threads_die(path, bank, monkeypatch):
    with mmcache.open(path, SQLiteSource(bank, NUMBERS), executor="external", check_interval=0.02) as cache:
        assert number(cache) == 0
        monkeypatch.setattr(threading.Thread, "_bootstrap", dies)
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
