"""Brings an accident on under four reading workers and a writer, lifts it, and says what became of them.

Readers and writer are processes that share an array of words: of each item the version that was begun last, and the one
whose invalidation has returned last. A reader compares each answer with both: it must not be older than what was
invalidated before its get began, nor of another item.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import mmcache
from mmcache import Cache, MmcacheError, Schema, Snapshot, SQLiteSource
from tests.support.observe import rebuilders_of
from tests.support.processes import forked, in_child, seconds_of_a_builder
from tests.support.waits import until

READERS: Final = 4
ITEMS: Final = 12
SCHEMA: Final = Schema("items", index=("kind",))
LONGEST: Final = 5.0
"""Seconds from the end of an accident until every worker serves the newest generation, on a quiet machine."""
QUIET: Final = 0.5
"""Seconds that a builder's process may take on a quiet machine. Where it takes longer, LONGEST grows in proportion."""
BUILDS: Final = 10
DURING: Final = 1.2
"""Seconds for which an accident lasts."""
_BASELINE: Final = 25.0
"""Seconds without an accident, on a quiet machine; more is a fault of the product."""

_REFUSALS: Final = (MmcacheError, MemoryError)
"""What a read or a write may end with while there is an accident, besides a right answer."""


def _slowness(builder: float) -> float:
    """How many times as long as on a quiet machine a builder's process took; at least 1."""
    return max(1.0, builder / QUIET)


class Aborted(BaseException):
    """Raised by a signal handler."""


class Words:
    """Numbers that all processes of a world see. Each is written by one process."""

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, 4096)).cast("q")
        self._names: dict[str, int] = {}

    def place(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))

    def __getitem__(self, name: str) -> int:
        return self._words[self.place(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[self.place(name)] = value

    def add(self, name: str, n: int = 1) -> None:
        self[name] += n

    def total(self, name: str) -> int:
        return sum(self[f"{name} {reader}"] for reader in range(READERS))


@dataclass(frozen=True)
class Accident:
    """begin, end: done once, by the test. enter, leave: by each reader, in its own process. step: by the test, over and
    over while the accident lasts. namespace: it mounts what only its own processes see."""

    begin: Callable[[World], Any] = lambda world: None
    end: Callable[[World], Any] = lambda world: None
    enter: Callable[[], Any] = lambda: None
    leave: Callable[[], Any] = lambda: None
    step: Callable[[World], Any] = lambda world: None
    namespace: bool = False


@dataclass
class Outcome:
    """seconds: from the end of the accident until every reader served the newest generation; limit: that it had.
    builder: what a builder's process took that has nothing to do with either."""

    builder: float
    seconds: float
    limit: float
    reads: int
    refused: int
    wrong: int
    builds: int
    dead: list[str]
    first_fault: str

    @property
    def faults(self) -> list[str]:
        found = [f"died: {each}" for each in self.dead]
        found += [f"{self.wrong} wrong answers; {self.first_fault}"] * bool(self.wrong)
        found += [f"{self.seconds:.1f} s until all serve the newest, of {self.limit:.1f}"] * (self.seconds > self.limit)
        return found + [f"{self.builds} builds"] * (self.builds > BUILDS)

    def __str__(self) -> str:
        return (
            f"healed={self.seconds:5.2f}s limit={self.limit:4.1f}s builder={self.builder:4.2f}s "
            f"builds={self.builds:2} reads={self.reads} refused={self.refused} wrong={self.wrong}"
        )


class World:
    """A directory with a source, a cache file, a writer and readers. A context manager."""

    def __init__(self, place: Path, accident: Accident, mistake: Callable[[], None] = lambda: None) -> None:
        self.place = place
        self.accident = accident
        self.directory, self.db = place / "cache", place / "source" / "items.db"
        self.path = self.directory / "items.mmc"
        self.mistake = mistake
        self.words = Words()
        self.readers: list[int] = []
        self.writer = 0
        for name in self._names():
            self.words.place(name)

    def _names(self) -> Iterator[str]:
        yield from ("stop", "write", "written", "accident", "fault", "rebuilds")
        for i in range(ITEMS):
            yield from (f"begun {i}", f"told {i}")
        for reader in range(READERS):
            for name in ("reads", "refused", "wrong", "started", "generation", "entered", "served"):
                yield f"{name} {reader}"

    def __enter__(self) -> Self:
        for directory in (self.db.parent, self.directory):
            directory.mkdir(exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.db, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
            db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, version INTEGER)")
            db.executemany("INSERT INTO items VALUES (?, ?, 0)", [(f"k{i}", "ab"[i % 2]) for i in range(ITEMS)])
        self.run(self._first_build)
        self.readers = [forked(lambda n=n: Reader(self, n).run()) for n in range(READERS)]  # type: ignore[misc]
        self.writer = forked(self._write)
        until("all read", lambda: all(self.words[f"reads {n}"] for n in range(READERS)))
        return self

    def __exit__(self, *_: object) -> None:
        self.words["stop"] = 1
        for pid in [*self.readers, self.writer]:
            for builder in rebuilders_of(pid):
                _kill(builder)
            _kill(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    def run(self, act: Callable[[], Any]) -> None:
        """In a process of its own."""
        assert in_child(act) == 0

    def source(self) -> SQLiteSource:
        return SQLiteSource(self.db, SCHEMA, timeout=30)

    def _first_build(self) -> None:
        mmcache.build(self.path, self.source())

    def open(self, **options: Any) -> Cache:
        settings: dict[str, Any] = {"check_interval": 0.1, "rebuild_after": 0.3, "ttl": 1e6, "wait": 0.5}
        return mmcache.open(self.path, self.source(), **settings | options)

    # --- the writer

    def _write(self) -> None:
        """Ten changes whenever it is told, each invalidated, and again until that has returned; then a rebuild."""
        cache, done, rebuilt = self.open(executor="external"), 0, 0
        pending: dict[int, int] = {}
        while not self.words["stop"]:
            time.sleep(0.01)
            if done < self.words["write"] or pending:
                if done < self.words["write"]:
                    done += 1
                    pending |= self._change(done)
                self._tell(cache, pending)
                if not done % 10 and not pending and rebuilt < done:
                    rebuilt = done
                    self.words.add("rebuilds")
                    with contextlib.suppress(*_REFUSALS):
                        cache.rebuild(timeout=0.0)
                self.words["written"] = done if not pending else 0

    def _change(self, number: int) -> dict[int, int]:
        """Item -> the version that was committed, if it could be."""
        item = number % ITEMS
        self.words[f"begun {item}"] = number
        try:
            uri = f"file:{self.db}?mode=rw"
            with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)) as db:
                db.execute("PRAGMA synchronous = OFF")
                db.execute("UPDATE items SET version = ? WHERE id = ?", (number, f"k{item}"))
        except sqlite3.Error:
            return {}
        return {item: number}

    def _tell(self, cache: Cache, pending: dict[int, int]) -> None:
        for item, number in list(pending.items()):
            try:
                cache.invalidate([f"k{item}"])
            except _REFUSALS:
                return
            self.words[f"told {item}"] = number
            del pending[item]

    def change(self, n: int) -> None:
        """Have the writer make so many changes."""
        self.words["write"] += n

    # --- what the test sees

    def published(self) -> int:
        """The generation of the published file, if it has all that was written; else 0."""
        if self.words["written"] < self.words["write"]:
            return 0
        try:
            with Snapshot.open(self.path) as snapshot:
                current = all(snapshot[f"k{i}"]["version"] >= self.words[f"told {i}"] for i in range(ITEMS))
                return snapshot.generation if current else 0
        except (MmcacheError, KeyError):
            return 0

    def is_healed(self) -> bool:
        """Whether every reader answers all items from the newest file."""
        newest = self.published()
        return newest > 0 and all(self.words[f"served {n}"] == newest for n in range(READERS))

    def dead(self) -> list[str]:
        found = []
        for name, pid in [("the writer", self.writer), *((f"reader {n}", p) for n, p in enumerate(self.readers))]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                found.append(f"{name} ended with {os.waitstatus_to_exitcode(status)}")
        return found

    def changed_and_served(self, limit: float) -> float:
        """Change something; seconds until every reader serves it from the file, or the limit."""
        self.change(10)
        return self.seconds_until_healed(limit, time.monotonic())

    def seconds_until_healed(self, limit: float, begun: float) -> float:
        while not self.is_healed() and time.monotonic() < begun + limit and not self._has_dead():
            time.sleep(0.02)
        return time.monotonic() - begun

    def _has_dead(self) -> bool:
        return any(not Path(f"/proc/{pid}/fd").exists() or _is_zombie(pid) for pid in [*self.readers, self.writer])

    def undergo(self) -> Outcome:
        """The accident, from its begin until all is well again, or should be."""
        accident = self.accident
        builder = seconds_of_a_builder()
        limit = _BASELINE * _slowness(builder)
        baseline = self.changed_and_served(limit)
        if not self.is_healed():
            return self._outcome(builder, baseline, limit)
        self._command(1)
        accident.begin(self)
        self.change(10)
        end = time.monotonic() + DURING
        while time.monotonic() < end:
            accident.step(self)
            time.sleep(0.02)
        builder = max(builder, seconds_of_a_builder())
        limit = LONGEST * _slowness(builder)
        lifted = time.monotonic()
        accident.end(self)
        self._command(2)
        self.change(10)
        return self._outcome(builder, self.seconds_until_healed(limit + 0.1, lifted), limit)

    def _outcome(self, builder: float, seconds: float, limit: float) -> Outcome:
        total, fault = self.words.total, self.words["fault"]
        text = f"item {fault >> 40} as version {fault & 2**40 - 1}" if fault else ""
        return Outcome(
            builder,
            seconds,
            limit,
            reads=total("reads"),
            refused=total("refused"),
            wrong=total("wrong"),
            builds=total("started") + self.words["rebuilds"],
            dead=self.dead(),
            first_fault=text,
        )

    def _command(self, number: int) -> None:
        """Every reader enters the accident (1), or leaves it (2)."""
        self.words["accident"] = number
        until("readers obey", lambda: self.words.total("entered") == number * READERS or self._has_dead())


class Reader:
    """A process that reads items in turn and compares each answer."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.words, self.number = world, world.words, number
        self.is_armed = False

    def run(self) -> None:
        self.world.mistake()
        signal.signal(signal.SIGUSR1, self._signalled)
        log = logging.getLogger("mmcache")
        log.setLevel(logging.INFO)
        log.addHandler(_Starts(self))
        cache = self.world.open()
        item, done, before = 0, 0, cache.stats()
        while not self.words["stop"]:
            if (command := self.words["accident"]) != done:
                done = command
                (self.world.accident.enter if done == 1 else self.world.accident.leave)()
                self.words[f"entered {self.number}"] = done
            item = (item + 1) % ITEMS
            self._read(cache, item)
            if not item:
                now = cache.stats()
                if now.hits - before.hits == ITEMS and now.generation == before.generation:  # the file answered all
                    self.words[f"served {self.number}"] = now.generation or 0
                before = now
            time.sleep(0.002)

    def _read(self, cache: Cache, item: int) -> None:
        told = self.words[f"told {item}"]
        try:
            self.is_armed = True
            record = cache.get(f"k{item}")
            self.is_armed = False
        except (Aborted, *_REFUSALS):
            self.words.add(f"refused {self.number}")
            return
        finally:
            self.is_armed = False
        self.words.add(f"reads {self.number}")
        version = -1 if record is None else record["version"]
        if record is None or record["id"] != f"k{item}" or not told <= version <= self.words[f"begun {item}"]:
            self.words.add(f"wrong {self.number}")
            self.words["fault"] = (item << 40) + max(version, 0)

    def _signalled(self, *_: object) -> None:
        if self.is_armed:
            self.is_armed = False
            raise Aborted


class _Starts(logging.Handler):
    """Counts the rebuilds that a reader starts."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", "") == "rebuild_started":
            self.reader.words.add(f"started {self.reader.number}")


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    return True
