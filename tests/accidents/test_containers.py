"""Containers of one machine share a directory: each has process ids, host name, mounts and monotonic clock of its own.

Two programs both have the pid 1, and their monotonic clocks differ by days. Nothing may hang on either number.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import mmcache
from tests.accidents.stage import change, source, truth, until

ROOT = Path(__file__).parents[2]
DAYS = 30 * 86_400

PROGRAM = textwrap.dedent("""
    import json, os, signal, sys, time
    import mmcache
    from tests.accidents.stage import source

    path, db, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    cache = mmcache.open(path, source(db), check_interval=0.05, **options)

    def note(key):
        return cache[key]["note"]

    def invalidate(key):
        return cache.invalidate([key])

    def pid():
        return os.getpid(), time.monotonic()

    def state():
        return cache.stats().state, cache.generation

    def flush():
        cache.refresh()

    def fleet():
        return [[worker.pid, worker.counters["hits"]] for worker in cache.status().fleet.workers]

    def hang_in_a_build():
        from tests.support import faults
        with faults.faults(faults.Then("rename", os.path.basename(path), lambda: signal.pause())):
            print(json.dumps("builds"), flush=True)
            cache.rebuild()

    print(json.dumps("here"), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(globals()[name](*arguments)), flush=True)
    cache.close()
""")


class Container:
    """A program in namespaces of its own. A context manager, which kills all that is in it."""

    def __init__(self, path: Path, db: Path, *, clock: int = 0, **options: Any) -> None:
        apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--uts", "--ipc"]
        if clock:
            apart += ["--time", "--monotonic", str(clock), "--boottime", str(clock)]
        settings = {"executor": "external", **options}
        self._process = subprocess.Popen(
            [*apart, sys.executable, "-c", PROGRAM, str(path), str(db), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self.answer() == "here"

    def ask(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the program has ended"
        return json.loads(line)

    def __call__(self, *words: object) -> Any:
        self.ask(*words)
        return self.answer()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@pytest.fixture(autouse=True)
def _needs_namespaces() -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--time", "--monotonic", "1", "true"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no command unshare")
    if done.returncode:
        pytest.skip("no namespaces can be made")


@pytest.fixture
def path(tmp_path: Path, db: Path) -> Path:
    (tmp_path / "volume").mkdir()
    place = tmp_path / "volume" / "items.mmc"
    with contextlib.closing(source(db)) as items:
        mmcache.build(place, items)
    return place


@pytest.fixture
def pair(path: Path, db: Path) -> Iterator[tuple[Container, Container]]:
    """Two containers whose monotonic clocks are a month apart."""
    with Container(path, db) as one, Container(path, db, clock=DAYS) as other:
        (first, earlier), (second, later) = one("pid"), other("pid")
        assert first == second == 1
        assert later - earlier > DAYS / 2
        yield one, other


def test_an_invalidation_in_one_container_is_obeyed_in_the_other(pair, db):
    for i in range(20):
        key, (here, there) = f"k{i}", pair if i % 2 else pair[::-1]
        assert here("note", key) == there("note", key) == "old"
        change(db, key)
        assert here("invalidate", key) == "ids"
        assert there("note", key) == "new"
    assert {container("state")[0] for container in pair} == {"stale"}


def test_workers_of_one_pid_are_several_and_count_for_themselves(pair, path):
    one, other = pair
    for container, reads in ((one, 30), (other, 50)):
        for _ in range(reads):
            container("note", "k1")
        container("flush")
    with mmcache.open(path) as cache:
        until("all is counted", lambda: sum(hits for _, hits in one("fleet")) == 80)
        workers = [worker for worker in cache.status().fleet.workers if worker.counters["hits"]]
    assert sorted(worker.counters["hits"] for worker in workers) == [30, 50]
    assert {worker.pid for worker in workers} == {1}
    one.kill()
    until("only the other lives, with the pid of the dead one", lambda: [n for _, n in other("fleet") if n] == [50])


def test_a_container_killed_while_it_builds_frees_the_lock_for_the_other(pair, db):
    one, other = pair
    change(db)
    one.ask("hang_in_a_build")
    assert one.answer() == "builds"
    until("it builds", lambda: other("state")[1] == 1)
    one.kill()
    change(db, note="newest")
    other("invalidate", "k1")
    assert other("note", "k1") == truth(db, ["k1"])[0]


def test_a_failed_build_pauses_no_container_for_ever(path, db):
    """The pause is told by the monotonic clock of the container that failed, a month ahead of the other's."""
    moved = db.with_name("elsewhere")
    options: dict[str, Any] = {"executor": "thread", "rebuild_after": 0, "ttl": 86_400}
    with Container(path, db, clock=DAYS, **options) as ahead, Container(path, db, **options) as behind:
        assert ahead("note", "k1") == behind("note", "k1") == "old"
        os.rename(db, moved)
        ahead("invalidate", "k1")
        until("it has failed", lambda: mmcache_status(path).failure is not None or ahead("state")[0] == "stale")
        os.rename(moved, db)
        change(db)
        behind("invalidate", "k2")
        until("the other builds", lambda: behind("state") == ["fresh", 2] or behind("state")[1] > 1, 90.0)
        assert behind("note", "k1") == "new"


def mmcache_status(path: Path) -> mmcache.Status:
    with mmcache.open(path) as cache:
        return cache.status()
