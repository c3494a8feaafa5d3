"""Processes that share one cache file, a bank that they are built from, and waits on conditions.

A `Worker` is a forked process with a cache of its own, that does what the test tells it, one thing at a time. What it
shall do is the name of a method of the cache, or a function of a module, which is called with the cache.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait as wait_for
from pathlib import Path
from typing import Any, Self

from mmcache import Cache, Schema, SQLiteSource
from mmcache.sharing.metrics import read_fleet

THINGS = Schema("things", key="name", index=("kind",))
PATIENCE = 30.0
"""Seconds for what takes none on an idle machine."""

fork = mp.get_context("fork")


# --- the bank ---------------------------------------------------------------------------------------------------------


def make_bank(path: Path, n: int = 20) -> None:
    """Things of number 0. In WAL mode, so that a build that takes its time keeps no writer waiting."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE things (name TEXT PRIMARY KEY, kind TEXT, number INTEGER)")
        db.execute("CREATE TABLE others (number INTEGER)")
        db.executemany("INSERT INTO things VALUES (?, ?, 0)", [(name_of(i), f"k{i % 3}") for i in range(n)])


def name_of(i: int) -> str:
    return f"thing-{i}"


def commit(path: Path, number: int, i: int | None = None) -> None:
    """Give one thing, or all of them, another number."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as db:
        db.execute("PRAGMA synchronous = OFF")
        if i is None:
            db.execute("UPDATE things SET number = ?", (number,))
        else:
            db.execute("UPDATE things SET number = ? WHERE name = ?", (number, name_of(i)))


def touch(path: Path) -> None:
    """Write to the database what is in no file: its fingerprint changes, and a build of it does not."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=PATIENCE)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("INSERT INTO others VALUES (1)")


def write_lines(path: Path, number: int, n: int = 20) -> None:
    """The same things as lines of JSON, put in their place at once."""
    things = ({"name": name_of(i), "kind": f"k{i % 3}", "number": number} for i in range(n))
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(f"{json.dumps(thing)}\n" for thing in things))
    fresh.replace(path)


class SlowSource(SQLiteSource):
    """Notes in a file each time that it is read, takes its time, and waits for as long as there is a gate."""

    def __init__(self, path: Path, *, log: Path, pause: float = 0.0, gate: Path | None = None) -> None:
        super().__init__(path, THINGS)
        self.log, self.pause, self.gate = log, pause, gate

    @contextlib.contextmanager
    def read(self) -> Iterator[Any]:
        with super().read() as reading:
            reading.count("things")  # from here on it sees nothing newer
            note(self.log)
            time.sleep(self.pause)  # what a large bank costs, in a test that has a small one
            while self.gate is not None and self.gate.exists():
                time.sleep(0.002)
            yield reading

    def spec(self) -> None:
        """No other process can make it again."""

    def __reduce__(self) -> Any:
        return _slow_source, (self.path, self.log, self.pause, self.gate)


def _slow_source(path: str, log: Path, pause: float, gate: Path | None) -> SlowSource:
    return SlowSource(Path(path), log=log, pause=pause, gate=gate)


def note(log: Path) -> None:
    with log.open("a") as file:
        file.write(f"{os.getpid()} {time.monotonic()}\n")


def noted(log: Path) -> list[int]:
    """The processes that noted something, in that order."""
    return [int(line.split()[0]) for line in _lines(log)]


def noted_at(log: Path) -> list[float]:
    """When, by `time.monotonic`."""
    return [float(line.split()[1]) for line in _lines(log)]


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


# --- conditions -------------------------------------------------------------------------------------------------------


def until(what: str, condition: Callable[[], Any], timeout: float = PATIENCE, pause: float = 0.005) -> Any:
    """What the condition says when it says anything; fails after the time."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:g} s for: {what}"
        time.sleep(pause)
    return found


def holds(what: str, condition: Callable[[], Any], seconds: float, pause: float = 0.01) -> None:
    """Fails when the condition is not true all the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert condition(), what
        time.sleep(pause)


def totals(path: Path) -> dict[str, int]:
    """What all processes counted, the dead ones too."""
    return dict(read_fleet(str(path)).totals)


def events(path: Path, kind: str) -> int:
    """How often something happened, by the archive."""
    return sum(event.kind == kind for event in read_fleet(str(path)).events)


def state_of(pid: int) -> str:
    """As /proc tells: R, S, D, T, Z; or "" for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    """Zombies too."""
    with contextlib.suppress(OSError):
        return [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    return []


def rebuilders_of(pid: int) -> list[int]:
    """The children of a worker that rebuild a file, zombies not among them."""
    found = []
    for child in children_of(pid):
        with contextlib.suppress(OSError):
            if b"mmcache.sharing.background" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return found


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(f"process {pid} is stopped", lambda: state_of(pid) == "T")


# --- workers ----------------------------------------------------------------------------------------------------------


class Worker:
    """A forked process that has a cache. Made by `Crew`."""

    def __init__(self, open_cache: Callable[[], Cache], *, daemon: bool) -> None:
        self._here, there = fork.Pipe()
        self.process = fork.Process(target=_work, args=(there, open_cache), daemon=daemon)
        self.process.start()
        there.close()
        self.is_opening = True

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def begin(self, what: str | Callable[..., Any], *args: Any, **options: Any) -> Self:
        """Tell it, and do not wait."""
        self._await_opened()
        self._here.send((what, args, options))
        return self

    def result(self, timeout: float = PATIENCE) -> Any:
        """Of what was begun; raises what it raised there."""
        self._await_opened()
        return self._receive(timeout)

    def __call__(self, what: str | Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self.begin(what, *args, **options).result()

    def opened(self, timeout: float = PATIENCE) -> Self:
        """Wait until it has its cache."""
        if self.is_opening:
            self.is_opening = False
            self._receive(timeout)
        return self

    def is_busy(self) -> bool:
        """Whether it has not answered yet."""
        return not self._here.poll()

    def _await_opened(self) -> None:
        self.opened()

    def _receive(self, timeout: float) -> Any:
        wait_for([self._here, self.process.sentinel], timeout)
        assert self._here.poll(), f"no answer within {timeout:g} s; exit code: {self.process.exitcode}"
        worked, value = self._here.recv()
        if not worked:
            raise value
        return value

    def stop(self) -> None:
        stop(self.pid)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.join(PATIENCE)

    def end(self) -> int | None:
        """Have it close its cache and leave; its exit code."""
        if self.process.is_alive():
            self.begin(None)  # type: ignore[arg-type]
        self.process.join(PATIENCE)
        return self.process.exitcode


def _work(told: Connection, open_cache: Callable[[], Cache]) -> None:
    cache: Any = None
    while True:
        try:
            if cache is None:
                answer, cache = None, open_cache()
            else:
                what, args, options = told.recv()
                if what is None:
                    break
                answer = getattr(cache, what)(*args, **options) if isinstance(what, str) else what(cache, *args)
            told.send((True, answer))
        except EOFError:
            break
        except Exception as error:  # noqa: BLE001 (raised again where it was asked for)
            traceback.print_exc(file=sys.stderr)
            told.send((False, error))
    if cache is not None:
        cache.close()


class Crew:
    """The workers of one test. A context manager: none is left behind."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []

    def hire(self, open_cache: Callable[[], Cache], n: int | None = None, *, daemon: bool = True) -> Any:
        """A worker, or n of them, which open the cache at once."""
        hired = [Worker(open_cache, daemon=daemon) for _ in range(n or 1)]
        self.workers += hired
        return hired if n else hired[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pids = [worker.pid for worker in self.workers] + [pid for w in self.workers for pid in children_of(w.pid)]
        for worker in self.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.go_on()
                worker.process.kill()
            worker.process.join(PATIENCE)
            worker._here.close()
        for pid in pids:
            if state_of(pid) and b"mmcache.sharing.background" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


# --- what a worker may be told ----------------------------------------------------------------------------------------


def number(cache: Cache, i: int = 0) -> int:
    value: int = cache[name_of(i)]["number"]
    return value


def look_around(cache: Cache) -> int | None:
    """What it would do by itself within `check_interval`; the generation."""
    cache._tiers.due = 0.0
    cache._tiers.view()
    return cache._tiers.snapshot.generation if cache._tiers.snapshot is not None else None


def state(cache: Cache) -> str:
    look_around(cache)
    return cache.stats().state


def answers(cache: Cache, seconds: float, i: int = 0) -> tuple[int, float, set[int]]:
    """Reads for a while: how many, the seconds of the slowest, and what was read."""
    deadline = time.monotonic() + seconds
    reads, slowest, found = 0, 0.0, set()
    while (begun := time.monotonic()) < deadline:
        found.add(number(cache, i))
        slowest = max(slowest, time.monotonic() - begun)
        reads += 1
        if reads % 64 == 0:
            time.sleep(0.001)
    return reads, slowest, found


def wait_for_generation(cache: Cache, generation: int) -> float:
    """Reads until the cache is on a generation; how long that took."""
    begun = time.monotonic()
    until(f"generation {generation}", lambda: (number(cache), (cache.generation or 0) >= generation)[1])
    return time.monotonic() - begun


def threads(_: Cache) -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())


def step_clock(_: Cache, seconds: float) -> None:
    """The wall clock of this process jumps."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)
