"""Code of others that mmcache calls (a source, a log handler, a signal handler) asks the cache itself.

No lock of the cache is held while such code runs, so that no order of locks can end in a deadlock; and a line is
logged after the fact that it reports, so that a handler which reads the cache meets no second line of that kind.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, MmcacheError, SQLiteSource
from tests.accidents.stage import ITEMS, apart, change, note_of, opens, source, threads, until
from tests.support.observe import await_polls

READS: dict[str, Callable[[Cache], object]] = {
    "get": lambda c: c.get("k1"),
    "get of a dirty id": lambda c: c.get("k2"),
    "getitem": lambda c: c["k3"],
    "get_many": lambda c: c.get_many(["k1", "k2", "k3", "absent"]),
    "contains": lambda c: "k1" in c,
    "embedding": lambda c: c.embedding("k1"),
    "get_embeddings": lambda c: c.get_embeddings(["k1", "k2"]),
    "where": lambda c: c.where(kind="a").ids,
    "len": len,
    "iterate": list,
    "values": lambda c: list(c.values()),
    "items": lambda c: list(c.items()),
    "schema": lambda c: c.schema,
    "collection": lambda c: c.collection("items").get("k1"),
    "snapshot": lambda c: c.snapshot,
    "generation": lambda c: c.generation,
    "stats": lambda c: c.stats(),
    "status": lambda c: c.status(),
    "repr": lambda c: (repr(c), c._repr_html_()),
    "pickle": pickle.dumps,
}
WRITES: dict[str, Callable[[Cache], object]] = {
    "invalidate ids": lambda c: c.invalidate(["k2"]),
    "invalidate softly": lambda c: c.invalidate(hard=False),
    "invalidate": lambda c: c.invalidate(),
    "refresh": lambda c: c.refresh(),
    "rebuild": lambda c: c.rebuild(timeout=0.05),
    "close": lambda c: c.close(),
}
EVERY = READS | WRITES
HARMLESS = {name: call for name, call in EVERY.items() if name not in ("close", "rebuild", "invalidate")}


class Meddler:
    """Calls a cache, at most once within each call of its own in a thread; gathers what is no answer."""

    def __init__(self) -> None:
        self.cache: Cache | None = None
        self.calls: dict[str, Callable[[Cache], object]] = {}
        self.wrong: list[str] = []
        self.called = 0
        self._inside = threading.local()

    def __call__(self, where: str) -> None:
        if self.cache is None or getattr(self._inside, "now", False):
            return
        self._inside.now = True
        try:
            self.call_all(where)
        finally:
            self._inside.now = False

    def call_all(self, where: str) -> None:
        assert self.cache is not None
        for name, call in self.calls.items():
            self.called += 1
            try:
                call(self.cache)
            except (MmcacheError, KeyError):
                pass
            except Exception as error:  # noqa: BLE001 (reported by the test)
                self.wrong.append(f"{name} in {where}: {type(error).__name__}: {error}"[:200])


PLACES = ("fingerprint", "changes", "fetch", "find", "read", "records")


class MeddlingSource(SQLiteSource):
    """Calls the meddler inside one of its methods."""

    meddler: Meddler
    place: str = ""

    def _meddle(self, place: str) -> None:
        if place == self.place:
            self.meddler(place)

    def fingerprint(self) -> bytes:
        self._meddle("fingerprint")
        return super().fingerprint()

    def changes(self, since: bytes) -> Any:
        self._meddle("changes")
        return super().changes(since)

    def fetch(self, collection: str, ids: Any) -> Any:
        self._meddle("fetch")
        return super().fetch(collection, ids)

    def find(self, collection: str, query: Any) -> Any:
        self._meddle("find")
        return super().find(collection, query)

    @contextmanager
    def read(self) -> Iterator[Any]:
        self._meddle("read")
        with super().read() as reading:
            self._meddle("records")
            yield reading

    def spec(self) -> None:
        """No other process can make it again."""


def drive(cache: Cache, db: Path) -> None:
    """One of everything that asks a source, a cache that was closed meanwhile included."""
    for step in (
        lambda: cache.get("k1"),
        lambda: (change(db, "k2"), cache.invalidate(["k2"]), cache.get("k2")),
        lambda: (cache.where(kind="a").ids, len(cache), list(cache)),
        lambda: (change(db, "k5"), cache.refresh(), cache.get("k5")),
        lambda: (cache.status(), cache.stats()),
        lambda: (cache.invalidate(), cache.get("k7"), cache.where(kind="b").ids, len(cache), list(cache)),
        lambda: cache.rebuild(timeout=1.0),
        lambda: (change(db, "k8"), cache.rebuild(timeout=1.0), cache.get("k8")),
    ):
        with suppress(MmcacheError):
            step()


def meddling(path: Path, db: Path, place: str, calls: dict[str, Callable[[Cache], object]]) -> tuple[Cache, Meddler]:
    asked = MeddlingSource(db, ITEMS)
    asked.meddler, asked.place = Meddler(), place
    cache = mmcache.open(path, asked, executor="external", check_interval=0.0)
    asked.meddler.cache, asked.meddler.calls = cache, calls
    return cache, asked.meddler


@pytest.mark.parametrize("call", EVERY)
@pytest.mark.parametrize("place", PLACES)
def test_a_source_may_call_the_cache(path, db, place, call):
    wrong, called = apart(call_from_a_source, path, db, place, call, within=40.0)
    assert not wrong
    assert called or place == "find"  # a file that answers for all but some keys is asked by key


def call_from_a_source(path: Path, db: Path, place: str, call: str) -> tuple[list[str], int]:
    source(db).track()
    cache, meddler = meddling(path, db, place, {call: EVERY[call]})
    drive(cache, db)
    cache.close()
    return meddler.wrong, meddler.called


@pytest.mark.parametrize("place", PLACES)
def test_a_source_may_call_the_cache_in_every_thread(path, db, place):
    assert apart(call_from_threads, path, db, place) == ([], [])


def call_from_threads(path: Path, db: Path, place: str) -> tuple[list[str], list[str]]:
    source(db).track()
    cache, meddler = meddling(path, db, place, HARMLESS)
    with threads(*(lambda: drive(cache, db) for _ in range(3)), lambda: note_of(cache, "k9")) as errors:
        until("the source was asked often", lambda: meddler.called > 400 or place == "find")
    cache.close()
    return errors, meddler.wrong


# --- log handlers -----------------------------------------------------------------------------------------------------


class AskingHandler(logging.Handler):
    """Calls a cache for each line of any logger, lines of mmcache included."""

    def __init__(self, meddler: Meddler, unguarded: dict[str, Callable[[Cache], object]]) -> None:
        super().__init__()
        self.meddler, self.unguarded, self.lines = meddler, unguarded, 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += 1
        if self.meddler.cache is None:
            return
        for name, call in self.unguarded.items():
            try:
                call(self.meddler.cache)
            except (MmcacheError, KeyError):
                pass
            except Exception as error:  # noqa: BLE001 (reported by the test)
                self.meddler.wrong.append(f"{name} in a handler: {type(error).__name__}"[:200])
        self.meddler(f"a handler of {getattr(record, 'event', record.name)}")


def listened(path: Path, db: Path, calls: dict[str, Callable[[Cache], object]]) -> tuple[Cache, Meddler, AskingHandler]:
    """A cache whose lines, and all others, reach a handler that reads it always, and calls it in turn."""
    meddler = Meddler()
    handler = AskingHandler(meddler, READS)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    cache = mmcache.open(path, source(db), executor="external", check_interval=0.0)
    meddler.cache, meddler.calls = cache, calls
    return cache, meddler, handler


@pytest.mark.parametrize("call", WRITES)
def test_a_log_handler_may_call_the_cache(path, db, call):
    assert apart(call_from_a_handler, path, db, call, within=40.0) == []


def call_from_a_handler(path: Path, db: Path, call: str) -> list[str]:
    cache, meddler, handler = listened(path, db, {call: WRITES[call]})
    drive(cache, db)
    path.with_suffix(".ctl").unlink(missing_ok=True)
    drive(cache, db)
    cache.close()
    assert handler.lines
    return meddler.wrong


def test_log_handlers_may_call_the_cache_in_every_thread(path, db):
    assert apart(log_from_threads, path, db, within=100.0) == ([], [])


def log_from_threads(path: Path, db: Path) -> tuple[list[str], list[str]]:
    cache, meddler, handler = listened(path, db, HARMLESS)
    app = logging.getLogger("app")

    def rebuild() -> None:
        change(db, "k1", note=f"{handler.lines}")
        mmcache.build(path, source(db))

    with threads(lambda: app.info("x"), lambda: app.info("y"), lambda: note_of(cache, "k9"), rebuild) as errors:
        until("many lines are logged", lambda: handler.lines > 300 or errors, 90.0)
    cache.close()
    return errors, meddler.wrong


def test_a_handler_that_reads_meets_no_line_twice(path, db):
    """An adoption is logged once, whatever a handler of that line reads."""
    assert apart(count_adoptions, path, db) == 3


def count_adoptions(path: Path, db: Path) -> int:
    events: list[str] = []
    cache = opens(path, db, check_interval=0.0)()

    class Reading(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            events.append(getattr(record, "event", ""))
            note_of(cache)

    logging.getLogger("mmcache").addHandler(Reading())
    note_of(cache)
    for i in range(3):
        change(db, note=f"new-{i}")
        with_other_process = opens(path, db)
        await_polls()  # whose thread may be in the stream of a handler, which a fork leaves locked in the child
        apart(rebuild_with, with_other_process)
        until("the file is adopted", functools.partial(has_note, cache, f"new-{i}"))
    cache.close()  # which waits for the poll that writes the last line
    return events.count("adopted")


def has_note(cache: Cache, note: str) -> bool:
    return note_of(cache, "k5") == note


def rebuild_with(open_cache: Callable[[], Cache]) -> None:
    with open_cache() as cache:
        cache.rebuild()


class Raising(logging.Handler):
    """Raises at each line, as a handler whose service is gone may."""

    lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += 1
        raise OSError(f"the log server is gone, {getattr(record, 'event', record.name)} is lost")


@pytest.mark.parametrize("executor", ["thread", "inline"])
def test_a_log_handler_that_raises_costs_its_lines_and_nothing_else(path, db, executor):
    lines, notes, said = apart(work_with_a_raising_handler, path, db, executor)
    assert lines > 0
    assert notes == ["new-0", "new-1", "new-2"]
    assert "OSError: the log server is gone, " in said, "as logging itself shows what its own handlers raise"


def work_with_a_raising_handler(path: Path, db: Path, executor: str) -> tuple[int, list[str], str]:
    handler, notes, said = Raising(), [], io.StringIO()
    logging.getLogger("mmcache").addHandler(handler)
    logging.getLogger("mmcache").setLevel(logging.DEBUG)
    with contextlib.redirect_stderr(said):
        cache = opens(path, db, executor=executor, check_interval=0.0)()
        for i in range(3):
            change(db, note=f"new-{i}")
            before = cache.generation
            cache.invalidate()
            notes.append(note_of(cache, "k5"))
            until("a rebuild was adopted", functools.partial(is_beyond, cache, before))
        cache.close()
    return handler.lines, notes, said.getvalue()


def is_beyond(cache: Cache, generation: int | None) -> bool:
    cache.get("k1")
    return cache.generation != generation


# --- signal handlers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [*READS, "invalidate ids", "invalidate softly", "refresh"])
def test_a_signal_handler_may_call_the_cache(path, db, call):
    assert apart(call_from_signals, path, db, call, within=40.0) == []


def call_from_signals(path: Path, db: Path, call: str) -> list[str]:
    cache = mmcache.open(path, source(db), executor="external", check_interval=0.0)
    meddler = Meddler()
    meddler.cache, meddler.calls = cache, {call: EVERY[call]}
    signal.signal(signal.SIGALRM, lambda *_: meddler("a signal handler"))
    signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
    while meddler.called < 150:
        note_of(cache)
        cache.invalidate(["k2"])
        cache.refresh()
        note_of(cache, "k2")
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    cache.close()
    return meddler.wrong
