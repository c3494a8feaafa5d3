"""Counting from threads, handlers, forks and full disks: exact, without a lock, and without a map to die of."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmcache.sharing import counter_files, counters, metrics, tally
from mmcache.sharing.counters import WorkerCounters, read_fleet, record_event
from mmcache.storage import shared
from tests.support.faults import FailName, Kill, faults
from tests.support.interrupts import Interrupt, Interrupted
from tests.support.observe import open_files
from tests.support.processes import in_child

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.mmc")


def file_of(path: str) -> Path:
    (found,) = Path(path).parent.glob(".*.counts")
    return found


def misses(path: str) -> int:
    return read_fleet(path).totals["misses"]


def written(path: str) -> int:
    """The misses that stand in the counter file."""
    place = file_of(path)
    found = counter_files.read(int(place.name.split(".")[-2], 16), str(place))
    assert found is not None
    return found.block.sums()[metrics.MISSES - metrics.FIRST_COUNTER]


def seen_elsewhere(path: str) -> int:
    """The misses that another process sees, which flushes nothing for us."""
    read, write = os.pipe()
    assert in_child(lambda: os.write(write, b"%d" % misses(path))) == 0
    os.close(write)
    with os.fdopen(read) as answer:
        return int(answer.read())


# --- threads ----------------------------------------------------------------------------------------------------------


def test_threads_that_add_and_flush_at_once_count_exactly(path):
    counters = WorkerCounters.open(path)
    done = threading.Event()

    def count() -> None:
        for _ in range(20_000):
            counters.add(metrics.MISSES)
        for _ in range(1_000):
            counters.observe(metrics.LOOKUP, 1e-6)

    def flush() -> None:
        while not done.is_set():
            counters.flush()

    counting = [threading.Thread(target=count) for _ in range(8)]
    flushing = [threading.Thread(target=flush) for _ in range(2)]
    for thread in (*counting, *flushing):
        thread.start()
    for thread in counting:
        thread.join()
    done.set()
    for thread in flushing:
        thread.join()
    assert counters.counted()["misses"] == 160_000
    counters.flush()
    assert seen_elsewhere(path) == 160_000
    counters.close()
    fleet = read_fleet(path)
    assert fleet.totals["misses"] == 160_000
    assert (fleet.histograms["lookup"].count, fleet.histograms["lookup"].total_ns) == (8_000, 8_000_000)


def test_counters_closed_while_other_threads_flush_count_once(path):
    for life in range(1, 31):
        counters = WorkerCounters.open(path)
        counters.add(metrics.MISSES)
        threads = [threading.Thread(target=act) for act in (counters.flush, counters.close, counters.flush)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not counters.is_shared
        assert misses(path) == life
    assert len(os.listdir(os.path.dirname(path))) == 1


def test_counting_makes_no_system_call(path):
    """So a read that counts waits for no lock and no disk, whichever process holds the archive."""
    counters = WorkerCounters.open(path)
    with faults() as calls:
        for i in range(2_000):
            counters.add(metrics.MISSES)
            counters.observe(metrics.LOOKUP, 1e-6)
            counters.set(metrics.GENERATION, 3)
            counters.hits(i)
            counters.note_event("corruption")
    assert calls.log == []
    counters.close()


def test_what_is_not_flushed_takes_little_memory():
    counters = WorkerCounters()
    counters.add(metrics.MISSES)
    tracemalloc.start()
    try:
        for _ in range(50_000):
            counters.add(metrics.MISSES)
            counters.note_event("corruption")
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
    assert counters.counted()["misses"] == 50_001


def test_the_highest_number_of_hits_counts():
    counters = WorkerCounters()
    for n in (16, 48, 32):
        counters.hits(n)
    assert counters.counted()["hits"] == 48


def test_what_was_counted_before_counters_are_shared_is_kept(path):
    counters = WorkerCounters()
    words = counters.words
    counters.hits(5)
    counters.add(metrics.MISSES, 2)
    counters.share(path, label="web")
    counters.add(metrics.MISSES)
    assert counters.words is words
    (worker,) = read_fleet(path).workers
    assert (worker.label, worker.counters["hits"], worker.counters["misses"]) == ("web", 5, 3)
    counters.share(path)
    assert len(read_fleet(path).workers) == 1
    counters.close()
    counters.share(path)
    assert read_fleet(path).totals["hits"] == 5
    assert len(os.listdir(os.path.dirname(path))) == 1


# --- handlers ---------------------------------------------------------------------------------------------------------


COUNTING = (tally, counters, counter_files)


def test_an_interrupted_flush_loses_nothing_and_counts_nothing_twice(path):
    counters = WorkerCounters.open(path)
    total, at = 5, 0
    counters.add(metrics.MISSES, 5)
    interrupted = True
    while interrupted:
        at += 1
        interrupted = Interrupt(at, *COUNTING).run(counters.flush)
        counters.flush()
        assert written(path) == total, at
        counters.add(metrics.MISSES, 5)
        counters.add(metrics.MISSES, 2)
        total += 7
    assert at > 10
    counters.close()
    assert misses(path) == total


def test_an_interrupted_observation_is_counted_whole_or_not_at_all(path):
    counters = WorkerCounters.open(path)
    begun = ended = 0

    def observe() -> None:
        nonlocal begun, ended
        for _ in range(600):  # folds in between
            begun += 1
            counters.observe(metrics.LOOKUP, 1e-6)
            ended += 1

    at = 1
    while at < 6_000 and Interrupt(at, *COUNTING).run(observe):
        at += 97
        found = read_fleet(path).histograms["lookup"]
        assert ended <= found.count <= begun
        assert found.total_ns == 1_000 * found.count
    assert at > 2_000
    counters.close()


def test_an_interrupted_close_leaves_nothing_open_and_counts_once(path):
    at, interrupted = 1, True
    while interrupted:
        files = open_files()
        before = misses(path)
        counters = WorkerCounters.open(path)
        counters.add(metrics.MISSES)
        counters.flush()
        interrupted = Interrupt(at, *COUNTING).run(counters.close)
        counters.close()
        if open_files() != files:
            gc.collect()  # the exception's frames may be in a cycle
        assert open_files() == files, at
        assert misses(path) == before + 1, at
        at += 3
    assert at > 50


def test_a_handler_in_the_middle_of_a_flush_may_do_anything(path):
    counters = WorkerCounters.open(path)
    counters.add(metrics.MISSES)
    told: list[str] = []

    def handle(number: int, name: str, args: tuple[object, ...], call: Callable[[], object]) -> object:
        if name == "pwrite" and not told:
            told.append(name)
            counters.add(metrics.MISSES)
            counters.note_event("refusal")
            counters.flush()
            assert counters.counted()["misses"] == 2
            counters.close()
        return call()

    with faults(handle):
        counters.flush()
    assert told
    assert not counters.is_shared
    assert misses(path) == 2
    assert len(os.listdir(os.path.dirname(path))) == 1


def test_signal_handlers_that_count_and_raise_lose_nothing(path):
    counters = WorkerCounters.open(path)
    handled = 0

    def handle(number: int, frame: object) -> None:
        nonlocal handled
        counters.add(metrics.OPENS)
        handled += 1
        counters.flush()
        if handled % 3 == 0 and handled < 200:
            raise Interrupted

    before, chance = signal.signal(signal.SIGALRM, handle), random.Random(1)
    added = attempts = 0
    try:
        while handled < 200:
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 3e-4))  # once: none comes after the loop
                attempts += 1
                counters.add(metrics.MISSES)
                added += 1
                counters.flush()
            except Interrupted:
                pass
    except Interrupted:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    counters.flush()
    counts = counters.counted()
    assert counts["opens"] == handled
    assert added <= counts["misses"] <= attempts
    assert seen_elsewhere(path) == counts["misses"]
    counters.close()


# --- maps -------------------------------------------------------------------------------------------------------------


def writable_shared_maps() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if {"w", "s"} <= set(line.split()[1])]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="the system does not list maps")
def test_no_writable_shared_map_exists(path):
    before = writable_shared_maps()
    counters = WorkerCounters.open(path)
    counters.add(metrics.MISSES)
    counters.note_event("refusal")
    counters.flush()
    record_event(path, "rebuild")
    assert len(read_fleet(path).events) == 2
    assert writable_shared_maps() == before
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if path in line]
    counters.close()
    assert writable_shared_maps() == before


# --- files that others emptied, and full disks ------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x", bytes(4096), os.urandom(4096)], ids=["empty", "byte", "zeros", "noise"])
def test_a_file_overwritten_in_place_is_skipped_until_it_is_written_again(path, content):
    counters = WorkerCounters.open(path)
    counters.add(metrics.MISSES, 3)
    counters.flush()
    file_of(path).write_bytes(content)
    assert seen_elsewhere(path) == 0
    counters.add(metrics.MISSES)
    counters.flush()
    assert seen_elsewhere(path) == 4
    file_of(path).write_bytes(content)
    counters.close()
    assert misses(path) == 4
    assert len(os.listdir(os.path.dirname(path))) == 1


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_a_flush_could_not_write_is_written_by_the_next(path, error):
    counters = WorkerCounters.open(path)
    counters.add(metrics.MISSES)
    with faults(FailName("pwrite", error)):
        counters.flush()
        counters.note_event("refusal")
    assert seen_elsewhere(path) == 0
    counters.add(metrics.MISSES)
    counters.flush()
    assert seen_elsewhere(path) == 2
    assert [event.kind for event in read_fleet(path).events] == ["refusal"]
    counters.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_costs_no_count_once_it_has_room_again(small_disk):
    path = str(small_disk / "items.mmc")
    counters = WorkerCounters.open(path)
    counters.add(metrics.MISSES)
    counters.flush()
    file_of(path).write_bytes(b"")  # its page is free, and taken by another file
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1024)):
            pass
    counters.add(metrics.MISSES)
    counters.flush()
    counters.note_event("corruption")
    assert seen_elsewhere(path) == 0
    ballast.unlink()
    counters.flush()
    assert seen_elsewhere(path) == 2
    assert [event.kind for event in read_fleet(path).events] == ["corruption"]
    counters.close()
    assert misses(path) == 2


def test_a_flush_killed_at_any_call_counts_at_most_once(path):
    counters = WorkerCounters.open(path)
    with faults() as made:
        counters.flush()
    counters.close()
    assert "pwrite" in made.log
    for at in range(len(made.log)):
        for late in (False, True):
            before = misses(path)

            def work(at: int = at, late: bool = late) -> None:
                counters = WorkerCounters.open(path)
                counters.add(metrics.MISSES, 10)
                with faults(Kill(at, after=late)):
                    counters.flush()

            assert os.WIFSIGNALED(in_child(work))
            counted = misses(path) - before
            assert counted in (0, 10)
            WorkerCounters.open(path).close()
            assert misses(path) - before == counted


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_process_that_ends_without_close_has_flushed(path):
    code = """
import sys
from mmcache.sharing import metrics
from mmcache.sharing.counters import WorkerCounters
counters = WorkerCounters.open(sys.argv[1])
counters.add(metrics.MISSES, 7)
counters.note_event("refusal")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, path], check=True, timeout=60)
    fleet = read_fleet(path)
    assert (fleet.totals["misses"], [event.kind for event in fleet.events]) == (7, ["refusal"])


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_process_of_a_pool_that_ends_has_flushed(path, method):
    process = multiprocessing.get_context(method).Process(target=_count_in_a_pool, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert misses(path) == 7


def _count_in_a_pool(path: str) -> None:
    counters = WorkerCounters.open(path)
    counters.add(metrics.MISSES, 7)
    multiprocessing.current_process().counters = counters  # type: ignore[attr-defined]  # which lives until the end


@pytest.mark.skipif(sys.platform != "linux", reason="takes fork from the C library by its name")
def test_a_child_forked_by_c_code_leaves_its_parents_counters_alone(path):
    """No hook of Python runs there. The parent's counts, file and lock stay as they are."""
    counters = WorkerCounters.open(path)
    counters.add(metrics.MISSES)
    counters.flush()
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        code = 70
        try:
            assert counters.pid != os.getpid()
            counters.add(metrics.MISSES, 100)
            counters.flush()
            assert (counters.pid, counters.is_shared) == (os.getpid(), False)
            counters.share(path)
            counters.add(metrics.MISSES, 10)
            counters.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert [shared.is_locked(str(file)) for file in Path(path).parent.glob(".*.counts")].count(True) == 1
    counters.add(metrics.MISSES)
    assert misses(path) == 12
    counters.close()
    assert misses(path) == 12


def test_a_descriptor_that_was_closed_and_used_again_is_left_alone(path, tmp_path):
    """Case: a daemon closes all descriptors that it does not know, and opens files of its own under their numbers."""

    def work() -> None:
        counters = WorkerCounters.open(path)
        counters.add(metrics.MISSES)
        counters.flush()
        os.closerange(3, 256)
        mine = [(tmp_path / f"mine{i}").open("wb") for i in range(64)]
        counters.add(metrics.MISSES)
        counters.flush()
        counters.close()
        counters.flush()
        for file in mine:
            assert os.fstat(file.fileno()).st_size == 0

    assert in_child(work) == 0
    assert misses(path) == 1
