"""A rebuild that is killed, at any one of its calls and stores, costs nothing but itself.

The next builder has the lock within a second, also while forked children of the dead one live. Everyone ends on a whole
file; who had the old one open moves to the new one by itself; and no generation comes again, or goes back.
"""

# mypy: disable-error-code="misc, unreachable"
# Lambdas that keep a loop's variable, and generators that never get as far as to give anything.

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, JSONLinesSource, Snapshot, SQLiteSource
from mmcache.sharing.publishing import rebuild
from mmcache.storage.names import backup_name
from tests.support import inside
from tests.support.bank import LINES, NUMBERS, commit, name_of, write_lines
from tests.support.crew import Crew, SlowSource, look_around, noted, number, state, wait_for_generation
from tests.support.faults import Kill, faults
from tests.support.observe import children_of, failure_of, is_building, rebuilders_of, totals
from tests.support.processes import ask_child, ended, forked
from tests.support.profile import NIGHTLY
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")

LOCK_WITHIN = 1.0
CHANGES = {"open", "pwrite", "unlink", "rename", "link", "fchmod", "posix_fallocate"}
"""Calls that may change something outside this process; the others change nothing, and what a page is told between two
calls is the matter of tests of its own."""

STEP = 1 if NIGHTLY else 5
"""Of the calls before which a process is killed, which differ from those after a change by what was read."""


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Lines of JSON: unlike a database, they are read at once after they were written."""
    write_lines(tmp_path / "bank.jsonl", 0)
    return tmp_path / "bank.jsonl"


class Town:
    """A bank, a file of it, a reader that has it open all the time, and what was seen of it."""

    def __init__(self, path: Path, lines: Path) -> None:
        self.path, self.lines, self.source = path, lines, JSONLinesSource(lines, LINES)
        self.content = 0
        self.generation = 0
        self.reader: Cache | None = None

    def read_by(self, reader: Cache) -> None:
        self.reader = reader
        self.check()

    def commit(self) -> None:
        self.content += 1
        write_lines(self.lines, self.content)
        # Of a file that was written just now no fingerprint lasts, and what is built from it is stale at once.
        until("it lasts", lambda: self.source.fingerprint() == self.source.fingerprint(), pause=0.002)

    def check(self, *, where: str = "") -> None:
        """What is at the path is whole, and of a generation that is not older than any seen before. So is what the
        reader has."""
        with Snapshot.open(self.path, verify="full") as snapshot:
            snapshot.verify(deep=True)
            found = {record["number"] for record in snapshot.values()}
            assert len(found) == 1, where
            assert found <= {self.content, self.content - 1}, where
            assert snapshot.generation >= self.generation, where
            self.generation = snapshot.generation
        if os.path.exists(backup_name(str(self.path))):
            with Snapshot.open(backup_name(str(self.path)), verify="full") as snapshot:
                snapshot.verify(deep=True)
        if self.reader is not None:
            before = self.reader.stats().generation or 0
            assert number(self.reader) in (self.content, self.content - 1), where
            assert (self.reader.stats().generation or 0) >= before, where

    def next_builder(self, *, where: str) -> None:
        """Builds, and has the lock for it within a second, or raises."""
        report = (
            rebuild(self.path, timeout=LOCK_WITHIN)
            if self.path.exists()
            else mmcache.build(self.path, self.source, timeout=LOCK_WITHIN)
        )
        assert report.generation >= self.generation, where
        self.check(where=where)
        with Snapshot.open(self.path) as snapshot:
            assert snapshot[name_of(3)]["number"] == self.content, where
        if self.reader is not None:
            assert number(self.reader) == self.content, f"{where}: the reader did not move to the next file by itself"
            assert self.reader.generation == self.generation, where
        assert not is_building(self.path), where
        left = [name for name in os.listdir(self.path.parent) if name.endswith((".tmp", ".new"))]
        assert not [name for name in left if ".ctl." not in name], where


def calls_of(action: Any) -> list[str]:
    """The calls of a child that does it all."""
    gc.collect()  # what other tests dropped is not closed while we count

    def count() -> list[str]:
        with faults() as calls:
            action()
        return calls.log

    found: list[str] = ask_child(count)
    return found


def moments(calls: list[str], step: int = STEP) -> Iterator[tuple[Kill, str]]:
    """Before every so many calls, and after each that changes something."""
    for at, name in enumerate(calls):
        if at % step == 0:
            yield Kill(at), f"killed before call {at} of {len(calls)}, {name}"
        if name in CHANGES:
            yield Kill(at, after=True), f"killed after call {at} of {len(calls)}, {name}"


def killed_at(kill: Kill, action: Any, where: str) -> None:
    """An action that needs fewer calls than when they were counted, as the last of them may, ends by itself."""

    def act() -> None:
        with faults(kill) as calls:
            action()
        assert len(calls.log) <= kill.at

    assert ended(forked(act)) in (0, -signal.SIGKILL), where


@contextlib.contextmanager
def read_by_a_cache(town: Town) -> Iterator[None]:
    """It looks around once an hour: what it notices, it was told by the page, or finds at the path."""
    with mmcache.open(town.path, town.source, executor="external", check_interval=3600) as reader:
        town.read_by(reader)
        yield
        town.reader = None


# --- at every call ----------------------------------------------------------------------------------------------------


def test_a_rebuild_killed_at_any_call_costs_nothing_but_itself(path: Path, lines: Path) -> None:
    town = Town(path, lines)
    mmcache.build(path, town.source)
    town.commit()
    calls = calls_of(lambda: rebuild(path))
    assert calls.count("rename") == 2
    assert calls.index("rename") > 20
    assert len(calls) - calls.index("rename") > 20, "the page and the metrics are told after it"
    outcomes = set()
    with read_by_a_cache(town):
        for kill, where in moments(calls):
            town.commit()
            before = town.generation
            killed_at(kill, lambda: rebuild(path), where)
            town.check(where=where)
            outcomes.add("new" if town.generation > before else "old")
            town.next_builder(where=where)
    assert outcomes == {"old", "new"}


@pytest.mark.integration  # it takes long
def test_a_first_build_killed_at_any_call_costs_nothing_but_itself(tmp_path: Path, lines: Path) -> None:
    source = JSONLinesSource(lines, LINES)
    calls = calls_of(lambda: mmcache.build(tmp_path / "counted.mmc", source))
    outcomes = set()
    for i, (kill, where) in enumerate(moments(calls)):
        directory = tmp_path / str(i)
        directory.mkdir()
        town = Town(directory / "items.mmc", lines)
        killed_at(kill, lambda: mmcache.build(town.path, source), where)  # noqa: B023
        outcomes.add(town.path.exists())
        town.next_builder(where=where)
        assert town.generation == 1, where
        shutil.rmtree(directory)
    assert outcomes == {False, True}


@pytest.mark.integration  # it takes long
def test_a_rebuild_that_finds_nothing_new_killed_at_any_call(path: Path, lines: Path) -> None:
    """It changes no file, and may have told that the old one is right, or not."""
    town = Town(path, lines)
    mmcache.build(path, town.source)
    calls = calls_of(lambda: rebuild(path))
    inode = path.stat().st_ino
    with read_by_a_cache(town):
        assert town.reader is not None
        for kill, where in moments(calls):
            town.reader.invalidate(hard=True)
            assert town.reader.stats().state == "invalidated"
            killed_at(kill, lambda: rebuild(path), where)
            town.check(where=where)
            town.next_builder(where=where)
            assert town.reader.stats().state == "fresh", where
            assert path.stat().st_ino == inode, where
    assert town.generation == 1


def test_a_rebuild_killed_at_any_store_into_the_control_page(path: Path, lines: Path) -> None:
    """Between any two of them the page tells what is true, or what costs a rebuild."""
    town = Town(path, lines)
    mmcache.build(path, town.source)

    town.commit()
    stores = inside.build_killed_at_store(path, town.source)
    assert stores > 5
    with read_by_a_cache(town):
        assert town.reader is not None
        for at in range(stores):
            for late in (False, True):
                where = f"killed {'after' if late else 'before'} store {at} of {stores}"
                town.commit()
                town.reader.invalidate(hard=True)
                assert number(town.reader) == town.content, where
                pid = forked(lambda at=at, late=late: inside.build_killed_at_store(path, town.source, at, after=late))
                assert ended(pid) == -signal.SIGKILL, where
                assert number(town.reader) == town.content, f"{where}: what was invalidated is answered as it was"
                town.check(where=where)
                town.next_builder(where=where)
                assert town.reader.stats().state == "fresh", where


def test_a_build_that_fails_killed_at_any_store_into_the_control_page(path: Path, lines: Path, tmp_path: Path) -> None:
    """The next one fails or builds by what it finds itself, and waits no longer than anyone should."""
    town = Town(path, lines)
    mmcache.build(path, town.source)
    error = mmcache.SourceError("x" * 600)
    stores = inside.fail_killed_at_store(path, error)
    for at in range(0, stores, 5):
        assert ended(forked(lambda at=at: inside.fail_killed_at_store(path, error, at))) == -signal.SIGKILL
        failure = failure_of(path)
        assert failure is None or failure.until - time.monotonic() < 61
        assert failure is None or "xxx" in str(failure.error)
        town.commit()
        town.next_builder(where=f"killed at store {at} of {stores}")
        assert failure_of(path) is None


# --- with children that live on ---------------------------------------------------------------------------------------


class Leaves:
    """Before this process is killed at a call, it forks or starts a child, which lives until the pipe is closed."""

    def __init__(self, at: int, pipe: tuple[int, int], how: str) -> None:
        self.at, self.pipe, self.how = at, pipe, how

    def __call__(self, at: int, name: str, args: tuple[Any, ...], call: Any) -> Any:
        if at != self.at:
            return call()
        result = call()
        reading, writing = self.pipe
        if self.how == "fork":
            forked(lambda: _wait(*self.pipe))
        else:
            os.close(writing)
            subprocess.Popen(["sleep", "60"], stdin=reading, close_fds=False)
        os.kill(os.getpid(), signal.SIGKILL)
        return result


def _wait(reading: int, writing: int) -> None:
    os.close(writing)
    select.select([reading], [], [], 60)


@pytest.mark.parametrize("how", ["fork", "exec"])
def test_children_of_a_killed_builder_do_not_keep_its_lock(path: Path, lines: Path, how: str) -> None:
    town = Town(path, lines)
    mmcache.build(path, town.source)
    town.commit()
    calls = calls_of(lambda: rebuild(path))
    lived = 0
    with read_by_a_cache(town):
        for at in (*range(2, 12), *range(12, len(calls), 9)):  # each about the lock, and some of the others
            where = f"killed after call {at}, {calls[at]}"
            town.commit()
            pipe = os.pipe()

            def act(at: int = at, pipe: tuple[int, int] = pipe) -> None:
                os.setpgid(0, 0)
                with faults(Leaves(at, pipe, how)):
                    rebuild(path)

            pid = forked(act)
            try:
                code = ended(pid)
                if code == 0:  # with fewer calls than when they were counted: none was killed
                    continue
                assert code == -signal.SIGKILL, where
                os.killpg(pid, 0)  # a child of its group lives
                lived += 1
                town.next_builder(where=where)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                for fd in pipe:
                    os.close(fd)
    assert lived > 10


# --- by the workers themselves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_another_worker_rebuilds_when_the_one_that_did_is_killed(
    path: Path, bank: Path, tmp_path: Path, executor: Any
) -> None:
    """It is not notified: it finds that the file is due, and that no process builds it any more."""
    log, gate = tmp_path / "log", tmp_path / "gate"
    source = SlowSource(bank, log=log, gate=gate)
    with Crew() as crew:
        one, two = crew.hire(lambda: mmcache.open(path, source, executor=executor, check_interval=0.05), 2)
        one.opened()
        two.opened()
        gate.touch()
        commit(bank, 1)
        one.begin("invalidate", hard=True)
        until("the build has begun", lambda: (one.is_busy() or one(look_around), len(noted(log)) == 2)[1])
        assert is_building(path)
        assert two(number) == 1
        one.kill()
        gate.unlink()
        assert two(wait_for_generation, 2) < 5
        assert noted(log)[1:] == [one.pid, two.pid]
        assert two(state) != "invalidated"


def test_a_rebuilding_subprocess_that_is_killed_counts_as_failed(path: Path, bank: Path, tmp_path: Path) -> None:
    """The worker that started it finds out, notifies all, and none tries again for a moment."""
    source = SQLiteSource(bank, NUMBERS)
    with Crew() as crew:
        one, two = crew.hire(lambda: mmcache.open(path, source, check_interval=0.05), 2)
        two.opened()
        one("invalidate", hard=True)
        (child,) = until("the rebuild has begun", lambda: (one(look_around), rebuilders_of(one.pid))[1], pause=0.001)
        os.kill(child, signal.SIGKILL)
        killed = time.monotonic()
        until("it is told", lambda: one(look_around) and failure_of(path))
        failure = failure_of(path)
        assert failure is not None
        assert "killed by signal 9" in str(failure.error)
        assert not children_of(one.pid), "it was reaped"
        assert one(number) == two(number) == 0
        until("a process rebuilt it", lambda: (one(look_around), two(state) == "fresh")[1])
        assert time.monotonic() >= min(failure.until, killed + 0.5)
        until("it is counted", lambda: totals(path)["rebuilds_unchanged"] == 1)
        assert totals(path)["rebuilds_failed"] == 1


def let_the_system_reap(_: Cache) -> None:
    """As a host does that does not care for its children; `waitpid` then knows nothing of how they ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def test_how_it_ended_is_judged_by_what_it_built_where_another_waits(path: Path, bank: Path, tmp_path: Path) -> None:
    with Crew() as crew:
        one = crew.hire(lambda: mmcache.open(path, SQLiteSource(bank, NUMBERS), check_interval=0.05))
        one(let_the_system_reap)
        one("invalidate", hard=True)
        (child,) = until("the rebuild has begun", lambda: (one(look_around), rebuilders_of(one.pid))[1], pause=0.001)
        os.kill(child, signal.SIGKILL)
        until("it is told", lambda: one(look_around) and failure_of(path))
        failure = failure_of(path)
        assert failure is not None
        assert "ended with an unknown status, and built nothing" in str(failure.error)
        until("it was rebuilt", lambda: one(state) == "fresh")
        until("it is counted", lambda: totals(path)["rebuilds_unchanged"] == 1)
        commit(bank, 7)
        one("invalidate", hard=True)
        until("it was rebuilt with something new", lambda: one(state) == "fresh")
        assert one(number) == 7
        assert totals(path)["rebuilds_failed"] == 1
