"""A cache goes where its users go: threads, fork, spawn and forkserver; and is built once, whichever comes first."""

from __future__ import annotations

import multiprocessing as mp
import os
import pickle
import signal
import sqlite3
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, IterableSource, Schema
from tests.support import inside
from tests.support.bank import ITEMS, insert_item, source_of, truth
from tests.support.crew import SlowSource, noted
from tests.support.waits import until

METHODS = ("fork", "forkserver", "spawn")


def read_all(cache: Cache, keys: list[str]) -> tuple[int, int | None, int]:
    """In a worker: sum of sizes, generation, answers from the file."""
    total = sum(cache[key]["size"] for key in keys)
    for key in keys:
        cache.embedding(key)
    return total, cache.generation, cache.stats().hits


@pytest.mark.parametrize("method", METHODS)
def test_a_cache_pickles_and_reopens_in_a_pool(path: Path, bank: Path, method: str) -> None:
    source = source_of(bank)
    cache = mmcache.open(path, source)
    keys = list(truth(bank))
    cache["item-1-ä"], cache.get("nope")  # the source's connection of this process is in use, too
    assert len(pickle.dumps(cache)) < 2000
    expected = (sum(cache[key]["size"] for key in keys), 1, 2 * len(keys))
    with ProcessPoolExecutor(2, mp_context=mp.get_context(method)) as pool:
        assert [pool.submit(read_all, cache, keys).result() for _ in range(4)] == [expected] * 4


def test_one_collection_of_a_cache_pickles_too(path: Path, bank: Path) -> None:
    with mmcache.open(path, source_of(bank), ttl=77) as cache:
        notes = pickle.loads(pickle.dumps(cache.collection("notes")))
        assert type(notes) is type(cache.collection("notes"))
        assert dict(notes) == dict(cache.collection("notes")) != {}
        assert inside.options_of(notes) == inside.options_of(cache)
        inside.close(notes)


def test_a_relative_path_is_the_same_file_in_every_process(
    path: Path, bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    cache = mmcache.open(path.name, source_of(bank))
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(cache)).generation == 1
    assert cache.path == str(path)


def test_a_forked_child_shares_the_map_and_counts_for_itself(path: Path, bank: Path) -> None:
    cache = mmcache.open(path, source_of(bank))
    for _ in range(5):
        cache["item-1-ä"]
    context = mp.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def child() -> None:
        cache["item-2-ä"]
        cache.get("nope")
        send.send((cache.stats().hits, cache.stats().misses, cache["item-3-ä"]["size"]))

    process = context.Process(target=child)
    process.start()
    assert receive.recv() == (1, 1, 3)
    process.join()
    assert process.exitcode == 0
    assert (cache.stats().hits, cache.stats().misses) == (5, 0)


def test_fork_while_another_thread_holds_the_caches_lock(path: Path, bank: Path) -> None:
    """The lock's holder does not exist in the child: a child that waited for it would wait for ever."""
    cache = mmcache.open(path, source_of(bank))
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with inside.lock_of(cache):
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    context = mp.get_context("fork")
    process = context.Process(target=lambda: (cache.refresh(), cache.stats(), cache["item-1-ä"]))
    process.start()
    process.join(20)
    release.set()
    thread.join()
    assert process.exitcode == 0


def test_many_threads_read_count_exactly_and_never_fail_during_swaps(path: Path, bank: Path) -> None:
    cache = mmcache.open(path, source_of(bank))
    keys = list(truth(bank))
    failures: list[BaseException] = []
    reads = [0] * 6
    enough = threading.Event()

    def work(seed: int) -> None:
        try:
            while not enough.is_set():
                key = keys[(reads[seed] * 7 + seed) % len(keys)]
                assert cache[key].id == key
                reads[seed] += 1
        except BaseException as error:  # noqa: BLE001  any failure of a thread fails the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(reads))]
    for thread in threads:
        thread.start()
    for swap in range(5):
        with sqlite3.connect(bank) as db:
            insert_item(db, 3, kind=f"k{swap}")
        db.close()
        assert cache.rebuild().changed
    enough.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache["item-3-ä"]["kind"] == "k4"
    assert cache.stats().hits == sum(reads) + 1


def first_use(path: Path, bank: Path, log: Path, start: Any, wait: float) -> tuple[int | None, dict[str, int], int]:
    start.wait()
    source = SlowSource(bank, ITEMS, log=log, pause=0.3)
    cache = mmcache.open(path, source, wait=wait)
    cache["item-1-ä"]
    stats = cache.stats()
    return cache.generation, dict(stats.fallbacks), stats.rebuilds


def run_first_uses(path: Path, bank: Path, log: Path, n: int, wait: float) -> list[Any]:
    context = mp.get_context("fork")
    with context.Manager() as manager, ProcessPoolExecutor(n, mp_context=context) as pool:
        start = manager.Event()
        futures = [pool.submit(first_use, path, bank, log, start, wait) for _ in range(n)]
        start.set()
        return [future.result(60) for future in futures]


def test_one_process_builds_and_the_others_wait_for_it(path: Path, bank: Path, tmp_path: Path) -> None:
    log = tmp_path / "reads.log"
    results = run_first_uses(path, bank, log, 8, wait=30)
    assert len(noted(log)) == 1
    assert [generation for generation, _, _ in results] == [1] * 8
    assert all(fallbacks == {} for _, fallbacks, _ in results)
    assert sum(rebuilds for _, _, rebuilds in results) == 1


def test_those_that_may_not_wait_are_answered_by_the_source(path: Path, bank: Path, tmp_path: Path) -> None:
    log = tmp_path / "reads.log"
    results = run_first_uses(path, bank, log, 4, wait=0)
    assert len(noted(log)) == 1
    assert sorted(generation or 0 for generation, _, _ in results) == [0, 0, 0, 1]
    assert sum(fallbacks == {"building": 1} for _, fallbacks, _ in results) == 3


def test_waiting_processes_take_over_from_a_builder_that_is_killed(path: Path, bank: Path, tmp_path: Path) -> None:
    context = mp.get_context("fork")
    log = tmp_path / "reads.log"
    victim = context.Process(target=lambda: mmcache.open(path, SlowSource(bank, ITEMS, log=log, pause=60)))
    victim.start()
    until("the victim builds", lambda: noted(log))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(mmcache.open, path, source_of(bank), wait=30)
        os.kill(victim.pid or 0, signal.SIGKILL)
        cache = other.result(25)
    victim.join()
    assert cache.generation == 1
    assert cache.stats().rebuilds == 1
    assert [name for name in os.listdir(path.parent) if name.endswith(".tmp")] == []


def test_rebuild_is_single_flight_and_covers_what_was_committed_before_it(
    path: Path, bank: Path, tmp_path: Path
) -> None:
    """Two wait for one that has begun: it may have read before their commits, so one of them builds, for both."""
    log = tmp_path / "reads.log"
    with sqlite3.connect(bank) as db:
        db.execute("PRAGMA journal_mode=WAL")  # so that a reader does not keep a writer waiting
    db.close()
    source = SlowSource(bank, ITEMS, log=log, pause=0.5)
    cache = mmcache.open(path, source)
    reads = len(noted(log))
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(cache.rebuild)
        until("the first has begun", lambda: len(noted(log)) > reads)
        with sqlite3.connect(bank) as db:
            insert_item(db, 7, kind="late")
        db.close()
        reports = [future.result(30) for future in [pool.submit(cache.rebuild), pool.submit(cache.rebuild), first]]
    assert len(noted(log)) - reads == 2
    assert cache["item-7-ä"]["kind"] == "late"
    assert max(report.generation for report in reports) == cache.generation


def test_an_iterable_source_goes_with_the_cache(path: Path) -> None:
    source = IterableSource([{"id": "a", "kind": "x"}], Schema("things", index=("kind",)))
    cache = mmcache.open(path, source)
    with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
        assert pool.submit(read_one, cache).result(60) == {"id": "a", "kind": "x"}


def read_one(cache: Cache) -> dict[str, Any]:
    return cache["a"].asdict()
