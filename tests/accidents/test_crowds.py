"""A hundred processes on one cache file, and a process whose threads read while it forks and closes at random."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

import mmcache
from mmcache import Cache, ClosedError, SourceError
from tests.accidents.stage import apart, change, heard, note_of, opens, source, until
from tests.support.observe import totals
from tests.support.processes import ended, forked

CROWD = 100
SECONDS = 20.0
CHILD = 20


def generation(cache: Cache) -> int | None:
    cache.refresh()
    return cache.generation


def test_a_hundred_processes_share_one_file(tmp_path, db, crew):
    """They start cold and cause one build; each obeys an invalidation, moves to a new file, and is counted."""
    path = tmp_path / "items.mmc"
    workers = crew.hire(opens(path, db, executor="subprocess", wait=300.0), CROWD)
    for worker in workers:
        worker.opened(300.0)
    assert [worker(note_of) for worker in workers] == ["old"] * CROWD
    assert totals(path)["rebuilds_ok"] == 1

    change(db, "k1")
    assert workers[0]("invalidate", ["k1"]) == "ids"
    assert [worker(note_of) for worker in workers] == ["new"] * CROWD

    workers[1]("rebuild")
    assert [worker(generation) for worker in workers] == [2] * CROWD
    assert [worker("stats").adoptions for worker in workers] == [1] * CROWD
    with mmcache.open(path) as cache:
        until("all are seen", lambda: len(cache.status().fleet.workers) >= CROWD)
    assert not any(event in ("degraded", "file_refused") for worker in workers for event in worker(heard))

    for worker in workers[::2]:
        os.kill(worker.pid, signal.SIGKILL)
    change(db, "k2")
    assert workers[1]("invalidate", ["k2"]) == "ids"
    assert [worker(note_of, "k2") for worker in workers[1::2]] == ["new"] * (CROWD // 2)


@pytest.mark.parametrize("seed", range(3))
def test_threads_forks_and_closes_at_random_give_right_answers(path, db, seed):
    assert apart(at_random, path, db, seed, within=SECONDS + 100.0) == []


def at_random(path: Path, db: Path, seed: int) -> list[str]:
    """Eight threads read two caches that are closed and opened again under them, and whose process forks."""
    chance, wrong, done = random.Random(seed), list[str](), threading.Event()

    def opened() -> Cache:
        return mmcache.open(path, source(db), executor="external", check_interval=0.01)

    caches = [opened(), opened()]

    def read(number: int) -> None:
        mine = random.Random(seed * 100 + number)
        while not done.is_set():
            try:
                use(caches[mine.randrange(2)], mine)
            except ClosedError:
                pass
            except Exception as error:  # noqa: BLE001 (reported by the test)
                wrong.append(f"{type(error).__name__}: {error}"[:300])
                return

    def use(cache: Cache, mine: random.Random) -> None:
        key = f"k{mine.randrange(100, 200)}"
        what = mine.randrange(7)
        expected = {"id": key, "kind": "abc"[int(key[1:]) % 3], "note": "old"}
        if what < 3 and (found := dict(cache[key])) != expected:
            wrong.append(f"get of {key}: {found}")
        elif what == 3 and cache.where(kind="a").ids != [f"k{i}" for i in range(0, 200, 3)]:
            wrong.append("where")
        elif what == 4:
            cache.invalidate([f"k{mine.randrange(100)}"])
        elif what == 5 and cache.get_many([key, "absent"])[1] is not None:
            wrong.append("get_many")
        elif what == 6:
            cache.refresh()

    threads = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    children, end = list[int](), time.monotonic() + SECONDS
    while time.monotonic() < end and not wrong:
        at = chance.randrange(2)
        if chance.random() < 0.3:
            caches[at].close()
            caches[at] = opened()
        else:
            children.append(forked(lambda: in_a_child(caches, chance)))
        time.sleep(chance.random() * 0.05)
        while len(children) > 4:
            wrong += judged(children.pop(0))
    done.set()
    for thread in threads:
        thread.join(CHILD)
    wrong += ["a thread hangs"] * any(thread.is_alive() for thread in threads)
    for child in children:
        wrong += judged(child)
    return wrong


def in_a_child(caches: list[Cache], chance: random.Random) -> int:
    """Reads, or closes and opens again; 0 where the answers are right."""
    faulthandler.disable()
    signal.alarm(CHILD)
    code = 1
    try:
        for cache in caches:
            with contextlib.suppress(ClosedError, SourceError):  # which a thread of the parent was closing, or asking
                code = 0 if note_of(cache, "k150") == "old" and len(cache) == 200 else 2
                if code == 0 and chance.random() < 0.5:
                    cache.close()
            if code == 1:
                code = 0
    finally:
        os._exit(code)


def judged(child: int) -> list[str]:
    code = ended(child)
    return [] if code == 0 else [f"a child ended with {code}"]
