"""Workers: forked processes that each have a cache of their own and do what a test tells them, one thing at a time.

What a worker shall do is the name of a method of the cache, or a function of a module, which is called with the cache.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait as wait_for
from pathlib import Path
from typing import Any, Self

from mmcache import Cache, Schema, SQLiteSource
from tests.support import clock, observe
from tests.support.bank import NUMBERS, name_of
from tests.support.observe import children_of, is_builder, stop
from tests.support.waits import PATIENCE, until

fork = mp.get_context("fork")


# --- sources ----------------------------------------------------------------------------------------------------------


class SlowSource(SQLiteSource):
    """Notes in a file each time that it is read, takes its time, and waits for as long as there is a gate."""

    def __init__(self, path: Path, *schemas: Schema, log: Path, pause: float = 0.0, gate: Path | None = None) -> None:
        super().__init__(path, *schemas or (NUMBERS,))
        self.log, self.pause, self.gate = log, pause, gate

    @contextlib.contextmanager
    def read(self) -> Iterator[Any]:
        with super().read() as reading:
            reading.count(self.schemas[0].name)  # from here on it sees nothing newer
            note(self.log)
            time.sleep(self.pause)  # what a large bank costs, in a test that has a small one
            if (gate := self.gate) is not None:
                until("the gate is open", lambda: not gate.exists(), timeout=10 * PATIENCE, pause=0.002)
            yield reading

    def spec(self) -> None:
        """No other process can make it again."""

    def __reduce__(self) -> Any:
        return _slow_source, (self.path, self.schemas, self.log, self.pause, self.gate)


def _slow_source(path: str, schemas: tuple[Schema, ...], log: Path, pause: float, gate: Path | None) -> SlowSource:
    return SlowSource(Path(path), *schemas, log=log, pause=pause, gate=gate)


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

    def close(self) -> None:
        """Hear no more of it."""
        self._here.close()

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
            worker.close()
        for pid in pids:
            if is_builder(pid):
                os.kill(pid, signal.SIGKILL)


# --- what a worker may be told ----------------------------------------------------------------------------------------


def number(cache: Cache, i: int = 0) -> int:
    value: int = cache[name_of(i)]["number"]
    return value


def look_around(cache: Cache) -> int | None:
    """What it would do by itself within `check_interval`; the generation."""
    cache.refresh()
    return cache.generation


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
    return observe.threads()


def step_clock(_: Cache, seconds: float) -> None:
    """The wall clock of this process jumps."""
    clock.step_wall_clock(seconds)


def age_of(cache: Cache) -> float:
    """Seconds, as its freshness has it."""
    found = cache.status().freshness
    assert found is not None
    return found.age
