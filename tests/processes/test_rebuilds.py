"""One rebuild per need, over all processes and threads, in each executor; none waits for it without need."""

# mypy: disable-error-code="misc, unreachable"
# Lambdas that keep a loop's variable, and generators that never get as far as to give anything.

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import mmcache
from mmcache import BuildError, Cache, SourceError, SQLiteSource
from tests.support import inside
from tests.support.bank import LINES, NUMBERS, commit, name_of, touch, write_lines
from tests.support.console import invalidate_from_outside
from tests.support.crew import (
    Crew,
    SlowSource,
    age_of,
    answers,
    fork,
    look_around,
    note,
    noted,
    noted_at,
    number,
    state,
    threads,
    wait_for_generation,
)
from tests.support.hanging import PLACE, hang, hanging_source
from tests.support.observe import children_of, events, is_building, rebuilders_of, state_of, totals
from tests.support.waits import holds, until, until_none

pytestmark = pytest.mark.usefixtures("no_leaks")

BUILD = 0.3
COLD = 16


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Of the reads of a `SlowSource`."""
    return tmp_path / "reads.log"


# --- cold starts ------------------------------------------------------------------------------------------------------


class Broken(SlowSource):
    """Fails when it is read whole, and answers for single things."""

    error: Exception = SourceError("the bank is on fire")

    @contextlib.contextmanager
    def read(self) -> Iterator[Any]:
        note(self.log)
        time.sleep(self.pause)
        raise self.error
        yield


class Bug(Broken):
    error = RuntimeError("the bank is on fire")


def start_cold(crew: Crew, path: Path, source: SlowSource, n: int = COLD, **options: Any) -> tuple[list[Any], float]:
    """Workers that open at one moment, and that moment. Nothing is imported after it."""
    mmcache.build(path.with_name("warm.mmc"), [{"name": "a", "kind": "b"}], LINES)
    arrived, start = fork.Semaphore(0), fork.Event()

    def open_cache() -> Cache:
        logging.getLogger("mmcache").addHandler(Kept())
        arrived.release()
        start.wait()
        cache = mmcache.open(path, source, **options)
        cache.__dict__["ready"] = time.monotonic()
        return cache

    workers = crew.hire(open_cache, n)
    for _ in workers:
        assert arrived.acquire(timeout=20)
    begun = time.monotonic()
    start.set()
    return workers, begun


class Kept(logging.Handler):
    """Keeps what was logged."""

    lines: ClassVar[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def ready_at(cache: Cache) -> float:
    return cache.__dict__["ready"]


def logged(_: Cache, words: str) -> list[str]:
    return [line for line in Kept.lines if words in line]


def failure_of(cache: Cache) -> tuple[str, str, int, float]:
    failure = cache.status().failure
    assert failure is not None
    return type(failure.error).__name__, failure.error.message, failure.attempts, failure.until


def test_sixteen_processes_that_start_cold_cause_one_build(path: Path, bank: Path, log: Path, crew: Crew) -> None:
    workers, started = start_cold(crew, path, SlowSource(bank, log=log, pause=BUILD))
    ready = [worker(ready_at) - started for worker in workers]
    print(f"all {COLD} were ready after {max(ready):.3f} s, {max(ready) / BUILD:.2f} of the build")
    assert len(noted(log)) == 1
    assert {worker(look_around) for worker in workers} == {1}
    assert {worker(number) for worker in workers} == {0}
    counts = totals(path)
    assert (counts["rebuilds_ok"], counts["rebuilds_unchanged"], counts["rebuilds_failed"]) == (1, 0, 0)
    assert (events(path, "rebuild"), events(path, "unchanged")) == (1, 0)
    assert min(ready) >= BUILD


def test_when_the_first_builder_is_killed_half_way_another_takes_over(
    path: Path, bank: Path, log: Path, crew: Crew, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    workers, _ = start_cold(crew, path, SlowSource(bank, log=log, gate=gate))
    first = until("one builds", lambda: noted(log))[0]
    next(worker for worker in workers if worker.pid == first).kill()
    second = until("another builds", lambda: noted(log)[1:])[0]
    gate.unlink()
    others = [worker for worker in workers if worker.pid != first]
    assert {worker(look_around) for worker in others} == {1}
    assert noted(log) == [first, second]
    assert second != first
    assert not [name for name in os.listdir(path.parent) if name.endswith(".tmp")]


@pytest.mark.parametrize("kind", [Broken, Bug])
def test_a_first_build_that_fails_is_tried_once_and_told_to_all(
    path: Path, bank: Path, log: Path, crew: Crew, kind: type[Broken]
) -> None:
    workers, _ = start_cold(crew, path, kind(bank, log=log, pause=BUILD))
    for worker in workers:
        worker(ready_at)
    assert len(noted(log)) == 1, "none tries after the other"
    told = [worker(failure_of) for worker in workers]
    name, message, attempts, over = told[0]
    assert (name, attempts) == ("SourceError", 1)
    assert "the bank is on fire" in message
    if time.monotonic() < over:  # on a busy machine, another may have tried by now
        assert set(told) == {told[0]}
    assert all(worker(logged, "the bank is on fire") for worker in workers)
    begun = time.monotonic()
    assert {worker(number) for worker in workers} == {0}
    assert time.monotonic() - begun < 2
    assert all(worker("stats").hits == 0 for worker in workers)

    def another_tries_again() -> bool:
        for worker in workers[:4]:
            assert worker(number) == 0
        return len(noted(log)) > 1

    until("the next attempt", another_tries_again, pause=0.05)
    assert noted_at(log)[1] >= over - 0.001, "not before the pause is over, whichever process finds the file missing"
    until(
        "it is counted",
        lambda: [w(number) for w in workers] and 1 <= totals(path)["rebuilds_failed"] <= len(noted(log)),
    )


# --- executors --------------------------------------------------------------------------------------------------------

EXECUTORS = ("inline", "thread", "subprocess", "external")
REASONS: dict[str, Callable[[Cache], object]] = {
    "soft": lambda cache: cache.invalidate(hard=False),
    "hard": lambda cache: cache.invalidate(hard=True),
    "ids": lambda cache: cache.invalidate([name_of(0)]),
    "source": lambda cache: None,
    "ttl": lambda cache: None,
}


@pytest.mark.parametrize(("executor", "reason"), list(itertools.product(EXECUTORS, REASONS)))
def test_each_executor_rebuilds_for_each_reason_or_leaves_it(
    path: Path, bank: Path, executor: Any, reason: str
) -> None:
    options: dict[str, Any] = {"rebuild_after": 0} if reason in ("source", "ids") else {}
    if reason == "ttl":
        options = {"ttl": 100.0, "refresh_at": 0.004}
    with mmcache.open(path, SQLiteSource(bank, NUMBERS), executor=executor, check_interval=0.02, **options) as cache:
        assert number(cache) == 0
        children, threads_before = set(children_of(os.getpid())), threads(cache)
        commit(bank, 1)
        REASONS[reason](cache)
        current = {0, 1} if reason in ("soft", "source", "ttl") else {1}

        def is_rebuilt() -> bool:
            assert number(cache) in current
            return cache.generation == 2

        if executor == "external":
            holds("none rebuilds", lambda: not is_rebuilt(), 0.3 if reason != "ttl" else 0.6)
            assert number(cache) == (1 if current == {1} else 0)
            assert cache.stats().rebuilds == 1
            mmcache.build(path, SQLiteSource(bank, NUMBERS))  # as cron would
        until("the rebuild", is_rebuilt)
        assert number(cache) == 1
        until("nothing is due", lambda: state(cache) in ("fresh", "stale" if reason == "ttl" else ""))
        until("the count", lambda: cache.stats().rebuilds == (2 if executor in ("inline", "thread") else 1))
        if reason == "ttl":
            return  # it is due again in less time than a rebuild may take

        def running() -> list[Any]:
            look_around(cache)
            new = set(children_of(os.getpid())) - children
            return [*((each, state_of(each)) for each in new), *(set(threads(cache)) - set(threads_before))]

        until_none("nothing runs", running)


def test_while_a_rebuild_runs_a_soft_file_answers_and_a_hard_one_does_not(
    path: Path, bank: Path, log: Path, tmp_path: Path, crew: Crew
) -> None:
    gate = tmp_path / "gate"
    source = SlowSource(bank, log=log, gate=gate)
    worker, other = crew.hire(lambda: mmcache.open(path, source, executor="thread", check_interval=0.05), 2)
    for content, (hard, served) in enumerate([(False, 0), (True, 2)], 1):
        worker.opened()
        other.opened()
        generation = worker(look_around)
        gate.touch()
        commit(bank, content)
        assert other("invalidate", hard=hard) == ("hard" if hard else "soft")
        until("the rebuild", lambda content=content: (other(look_around), len(noted(log)) == 1 + content)[1])
        before = worker("stats").hits
        reads, slowest, found = worker(answers, 0.3)
        assert found == {served}
        assert slowest < 1
        hits = worker("stats").hits - before
        assert hits == (0 if hard else reads)
        assert worker("stats").state == ("invalidated" if hard else "stale")
        gate.unlink()
        worker(wait_for_generation, generation + 1)
        assert worker(number) == content
        until("the file answers", lambda: worker(state) != "invalidated")


def due_at_once(cache: Cache, n: int, moment: float) -> set[int]:
    """Look in n threads at one moment."""
    found: list[int] = []

    def look() -> None:
        time.sleep(max(0.0, moment - time.monotonic()))
        for _ in range(20):
            found.append(number(cache))

    several = [threading.Thread(target=look) for _ in range(n)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    return set(found)


@pytest.mark.parametrize("executor", ["inline", "thread", "subprocess"])
def test_of_all_that_find_the_file_due_at_once_one_rebuilds(
    path: Path, bank: Path, log: Path, crew: Crew, executor: Any
) -> None:
    source: SQLiteSource = SQLiteSource(bank, NUMBERS)
    if executor != "subprocess":
        source = SlowSource(bank, log=log, pause=0.1)
    workers = crew.hire(lambda: mmcache.open(path, source, executor=executor), 8)
    for worker in workers:
        worker.opened()
    for content in (1, 2):
        before = totals(path)["rebuilds_ok"]
        old = {child for worker in workers for child in children_of(worker.pid)}  # that were not reaped yet
        commit(bank, content)
        invalidate_from_outside(path)
        moment = time.monotonic() + 0.2  # until then none polls
        for worker in workers:
            worker.begin(due_at_once, 2, moment)
        started: set[int] = set()
        while any(worker.is_busy() for worker in workers):
            started.update(child for worker in workers for child in children_of(worker.pid))
        assert len(started - old) <= 1, "one process is started, and not one for each"
        assert set().union(*(worker.result() for worker in workers)) == {content}
        for worker in workers:
            worker(wait_for_generation, 1 + content)
        until("it is counted", lambda before=before: totals(path)["rebuilds_ok"] > before)
        assert totals(path)["rebuilds_ok"] - before == 1
    counts = totals(path)
    assert counts["rebuilds_ok"] == 3
    assert counts["rebuilds_unchanged"] == counts["rebuilds_failed"] == 0
    if executor != "subprocess":
        assert len(noted(log)) == 3
    until(
        "no child is left", lambda: [w(look_around) for w in workers] and not any(children_of(w.pid) for w in workers)
    )


def test_a_loser_never_waits_for_the_lock(path: Path, bank: Path, crew: Crew) -> None:
    """A process holds it for long: nothing is started that would wait for it, and no read is slower."""
    workers = crew.hire(lambda: mmcache.open(path, SQLiteSource(bank, NUMBERS), check_interval=0.02), 2)
    for worker in workers:
        worker.opened()
    with inside.build_lock(path, 0):
        commit(bank, 1)
        invalidate_from_outside(path)
        for worker in workers:
            worker.begin(answers, 0.5)
        while any(worker.is_busy() for worker in workers):
            assert not any(children_of(worker.pid) for worker in workers)
            time.sleep(0.02)
        for worker in workers:
            _, slowest, found = worker.result()
            assert found == {1}
            assert slowest < 0.5
            assert not worker(threads)
    workers[0](wait_for_generation, 2)
    until("it is counted", lambda: totals(path)["rebuilds_ok"] == 2)


# --- the subprocess ---------------------------------------------------------------------------------------------------


def test_a_daemonic_process_rebuilds_by_a_subprocess_and_reaps_it(path: Path, bank: Path, crew: Crew) -> None:
    """As celery's workers are: multiprocessing would not let them have children."""
    worker = crew.hire(lambda: mmcache.open(path, SQLiteSource(bank, NUMBERS), check_interval=0.05)).opened()
    assert worker.process.daemon
    commit(bank, 1)
    worker("invalidate", hard=True)
    (child,) = until("a subprocess", lambda: (worker(look_around), children_of(worker.pid))[1])
    until("it has ended, and its parent did not look", lambda: state_of(child) == "Z")
    worker(look_around)
    assert not children_of(worker.pid), "the next look reaps it"
    assert worker(look_around) == 2
    assert worker("stats").rebuilds in (0, 1)  # its own first build, if any: not that of the subprocess
    until("it is counted", lambda: totals(path)["rebuilds_ok"] >= 2)
    assert totals(path)["rebuilds_ok"] == 2


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those of `hanging_source`."""
    place = tmp_path / "bank.jsonl"
    write_lines(place, 0)
    monkeypatch.setenv(PLACE, str(place))
    return place


@pytest.mark.integration  # it waits for its times
def test_a_rebuild_that_hangs_ends_itself_and_counts_as_failed(path: Path, lines: Path, crew: Crew) -> None:
    options = {"rebuild_after": 0, "check_interval": 0.05, "build_timeout": 5.0}
    worker, other = crew.hire(lambda: mmcache.open(path, hanging_source(), **options), 2)  # type: ignore[call-overload]
    other.opened()
    worker.opened()
    hang(lines)
    worker.begin(answers, 6.5)
    (child,) = until("a rebuild", lambda: rebuilders_of(worker.pid))
    until("it ended itself", lambda: state_of(child) in ("Z", ""))
    _, slowest, found = worker.result()
    assert (found, slowest < 1.5) == ({0}, True)
    until("it is told", lambda: (worker(look_around), worker("status").failure)[1])
    _, message, attempts, over = worker(failure_of)
    assert re.search("killed by signal 9; its limit is 5 s|longer than its limit of 5 s", message)
    assert attempts >= 1
    assert other(failure_of)[1] == message
    worker(look_around)
    if time.monotonic() < over - 0.2:
        other(look_around)
        assert not rebuilders_of(other.pid), "the pause is everybody's"
    write_lines(lines, 1)

    def is_healed() -> bool:
        worker(look_around)
        return worker(number) == 1

    until("it heals by itself", is_healed)
    until("nothing has failed since", lambda: (worker(look_around), worker("status").failure is None)[1])


SCRIPT = """
import sys, time
from pathlib import Path
import mmcache
from tests.support.hanging import hanging_source
def is_started():
    children = "".join(each.read_text() for each in Path("/proc/self/task").glob("*/children"))
    return cache.status().building and (children or {executor!r} == "thread")
cache = mmcache.open(sys.argv[1], hanging_source(), executor={executor!r}, check_interval=0.01, rebuild_after=0)
print(cache["item-0-ä"]["number"], flush=True)
sys.stdin.readline()
cache.invalidate(hard=True)
deadline = time.monotonic() + 20
while not is_started() and time.monotonic() < deadline:
    time.sleep(0.002)
{more}
print("leaving", flush=True)
"""


@pytest.mark.parametrize("executor", ["subprocess", "thread"])
@pytest.mark.parametrize("more", ["", "cache.close()"], ids=["open", "closed"])
def test_a_worker_that_leaves_while_its_rebuild_runs_leaves_at_once_and_without_a_word(
    path: Path, lines: Path, executor: str, more: str
) -> None:
    """And a rebuild in a process of its own goes on."""
    mmcache.build(path, hanging_source())
    code = SCRIPT.format(executor=executor, more=more)
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", code, str(path)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == "0\n"
        hang(lines)
        worker.stdin.write("go\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "leaving\n"
        begun = time.monotonic()
        children = rebuilders_of(worker.pid)
        _, err = worker.communicate(timeout=20)
        assert time.monotonic() - begun < 5
        assert (worker.returncode, err) == (0, "")
    finally:
        worker.kill()
        worker.wait()
    if executor == "thread":
        assert not is_building(path)
        return
    (child,) = children
    assert is_building(path), "it is still about it"
    assert state_of(child) in "SR"
    os.kill(child, signal.SIGKILL)
    until("the lock is free", lambda: not is_building(path))


def test_a_rebuild_outlives_the_worker_that_started_it_and_lands(path: Path, bank: Path, crew: Crew) -> None:
    worker = crew.hire(lambda: mmcache.open(path, SQLiteSource(bank, NUMBERS), check_interval=0.05)).opened()
    commit(bank, 1)
    worker("invalidate", hard=True)
    (child,) = until("a subprocess", lambda: (worker(look_around), rebuilders_of(worker.pid))[1], pause=0.001)
    os.kill(child, signal.SIGSTOP)
    worker.kill()
    os.kill(child, signal.SIGCONT)
    with mmcache.open(path, SQLiteSource(bank, NUMBERS), executor="external") as cache:
        until("it lands", lambda: cache.generation == 2)
        assert number(cache) == 1
        assert cache.stats().state == "fresh"


@pytest.mark.parametrize("why", ["no spec", "no Python", "no process"])
def test_a_thread_rebuilds_where_no_subprocess_can(
    path: Path, bank: Path, log: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    source = SlowSource(bank, log=log) if why == "no spec" else SQLiteSource(bank, NUMBERS)
    if why == "no Python":
        monkeypatch.setattr(sys, "executable", "/usr/sbin/uwsgi")
    elif why == "no process":
        monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    with mmcache.open(path, source, check_interval=0.02) as cache:
        commit(bank, 1)
        cache.invalidate(hard=True)
        until("the rebuild", lambda: number(cache) == 1 and cache.generation == 2)
        until("this process did it itself", lambda: cache.stats().rebuilds == 2)
        until("no thread is left", lambda: "mmcache-rebuild" not in threads(cache))


def test_a_subprocess_that_cannot_even_start_counts_as_failed(
    path: Path, bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "python3"
    broken.symlink_to("/bin/false")
    with mmcache.open(path, SQLiteSource(bank, NUMBERS), check_interval=0.02) as cache:
        monkeypatch.setattr(sys, "executable", str(broken))
        commit(bank, 1)
        cache.invalidate(hard=True)
        until("it is told", lambda: number(cache) == 1 and cache.status().failure)
        assert cache.stats().build_failures == 1
        monkeypatch.undo()
        until("it heals by itself", lambda: number(cache) == 1 and cache.generation == 2)


# --- what happens meanwhile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard", "soft", "ids"])
def test_what_is_invalidated_while_a_rebuild_runs_is_in_the_last_file(
    path: Path, bank: Path, log: Path, crew: Crew, kind: str
) -> None:
    gate = log.with_name("gate")
    source = SlowSource(bank, log=log, gate=gate)
    options = {"executor": "thread", "check_interval": 0.05, "rebuild_after": 0}
    worker = crew.hire(lambda: mmcache.open(path, source, **options)).opened()  # type: ignore[call-overload]
    gate.touch()
    commit(bank, 1)
    worker("invalidate", hard=True)
    until("the rebuild", lambda: (worker(look_around), len(noted(log)) == 2)[1])
    commit(bank, 2, 0)
    if kind == "ids":
        worker("invalidate", [name_of(0)])
    else:
        worker("invalidate", hard=kind == "hard")
    if kind != "soft":
        assert worker(number) == 2
    gate.unlink()

    def has_it() -> bool:
        found = worker(number)
        assert found == 2 or kind == "soft"
        return worker(state) == "fresh"

    until("the last file", has_it)
    assert worker(number) == 2
    with mmcache.Snapshot.open(path) as snapshot:
        assert snapshot.generation == 3
        assert snapshot[name_of(0)]["number"] == 2
        assert snapshot[name_of(1)]["number"] == 1
    assert len(noted(log)) == 3
    until("it is counted", lambda: totals(path)["rebuilds_superseded"] >= 1)
    assert totals(path)["rebuilds_superseded"] == 1


@pytest.mark.parametrize("executor", ["thread", "inline", "subprocess"])
def test_a_rebuild_that_finds_nothing_new_keeps_the_file_and_counts_for_all(
    path: Path, bank: Path, crew: Crew, executor: Any
) -> None:
    options = {"executor": executor, "rebuild_after": 0, "check_interval": 0.1}
    source = SQLiteSource(bank, NUMBERS)
    workers = crew.hire(lambda: mmcache.open(path, source, **options), 3)
    for worker in workers:
        worker.opened()
    inode = path.stat().st_ino
    age, begun = workers[0](age_of), time.monotonic()

    def unchanged() -> int:
        """After all have read for some check_intervals."""
        for worker in workers:
            worker.begin(answers, 0.3)
        for worker in workers:
            assert worker.result()[2] == {0}
        return totals(path)["rebuilds_unchanged"]

    assert unchanged() == 0
    touch(bank)
    until("the rebuild", unchanged)
    assert (unchanged(), totals(path)["rebuilds_ok"]) == (1, 1)
    assert path.stat().st_ino == inode
    assert {worker(look_around) for worker in workers} == {1}
    assert {worker(state) for worker in workers} == {"fresh"}
    for worker in workers:
        passed = time.monotonic() - begun
        assert worker(age_of) < age + passed, "its age counts from the rebuild"
    status = workers[0]("status")
    assert status.revalidated
    assert status.state == "fresh"


def test_a_hard_invalidation_of_nothing_ends_with_the_rebuild_that_finds_the_file_right(
    path: Path, bank: Path, crew: Crew
) -> None:
    workers = crew.hire(lambda: mmcache.open(path, SQLiteSource(bank, NUMBERS), check_interval=0.05), 2)
    workers[1].opened()
    inode = path.stat().st_ino
    workers[0]("invalidate", hard=True)
    assert workers[1]("stats").state != "starting"
    for worker in workers:
        until("the file answers", lambda worker=worker: worker(state) == "fresh")
        before = worker("stats").hits
        worker(number)
        assert worker("stats").hits == before + 1
    assert path.stat().st_ino == inode
    # The others are told first; the process that built counts it, and ends.
    until("it is counted", lambda: totals(path)["rebuilds_unchanged"] == 1)


def test_a_rebuild_that_fails_is_everybodys_pause_and_ends_with_one_that_succeeds(
    path: Path, bank: Path, crew: Crew
) -> None:
    """A record that cannot be stored: the file answers, except for what was invalidated."""
    workers = crew.hire(lambda: mmcache.open(path, SQLiteSource(bank, NUMBERS), check_interval=0.05), 4)
    for worker in workers:
        worker.opened()
    with contextlib.closing(sqlite3.connect(bank, isolation_level=None)) as db:
        db.execute("INSERT INTO items (name, number) VALUES (NULL, 7)")
    workers[0]("invalidate", hard=False)
    for worker in workers:
        worker.begin(answers, 2.5)
    for worker in workers:
        _, slowest, found = worker.result()
        assert found == {0}
        assert slowest < 1
    until("it is told", lambda: [w(look_around) for w in workers] and workers[0]("status").failure)
    told = {worker(failure_of)[:2] for worker in workers}
    assert len(told) == 1
    assert told.pop()[0] == BuildError.__name__

    def counted() -> tuple[int, int, int]:
        return workers[0](failure_of)[2], totals(path)["rebuilds_failed"], events(path, "rebuild_failed")

    # One that fails between two of these looks is in the later of them only; pauses double, so the next looks agree.
    until("each is counted once", lambda: len(set(counted())) == 1)
    assert 1 <= counted()[0] <= 4
    with contextlib.closing(sqlite3.connect(bank, isolation_level=None)) as db:
        db.execute("DELETE FROM items WHERE name IS NULL")
    until("a rebuild succeeds", lambda: [w(look_around) for w in workers] and workers[0]("status").failure is None)
