"""What can be seen from inside only: the one place of the tests that knows private names of mmcache.

A function here is a question or a way to bring something on; what is right is said by the test that calls it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray

import mmcache
from mmcache import Cache, CorruptFileError, Snapshot, SQLiteSource, Status, forks, logs, native, store, threads
from mmcache.cli import doctor, doctor_directory
from mmcache.cli.doctor_directory import Check
from mmcache.filetier import FileTier
from mmcache.format import keys, postings, records, terms
from mmcache.freshness import policy
from mmcache.options import Options
from mmcache.poller import Poller
from mmcache.remote import download
from mmcache.search import blas, chunks, distances, measuring, metrics, scan
from mmcache.sharing import attach, page, publishing
from mmcache.sharing.announce import Announcer
from mmcache.sharing.counters import read_fleet
from mmcache.sharing.fleet import Fleet
from mmcache.sharing.status import status_of
from mmcache.sources import connections, statements
from mmcache.storage import (
    batches,
    buildlock,
    bykey,
    carriers,
    fs,
    lane,
    lookup,
    mapped,
    merging,
    pagefile,
    publish,
    shared,
    signing,
    snapshot,
    staging,
)

# --- functions at which a thread can be stopped -----------------------------------------------------------------------

LOOKS_AT_THE_FILE = FileTier.other.__code__
"""Called by a read that has heard of a file."""
HAS_MOVED = FileTier.take.__code__
"""Called by the thread that moves to it; then it replaces the view, for which it reads the page."""
READS_THE_HEAD = page.Page.head.__code__


@contextlib.contextmanager
def careful_lookups() -> Iterator[list[Any]]:
    """The keys that are looked up the careful way meanwhile."""
    asked: list[Any] = []
    locate = lookup.Lookup.locate

    def located(self: lookup.Lookup, key: Any) -> int:
        asked.append(key)
        return locate(self, key)

    with mock.patch.object(lookup.Lookup, "locate", located):
        yield asked


# --- files beside a cache ---------------------------------------------------------------------------------------------


def fleet_of(path: str | os.PathLike[str]) -> Fleet:
    """What the workers of a file counted."""
    return read_fleet(os.fspath(path))


def status(path: str | os.PathLike[str]) -> Status:
    """As `mmcache status` sees it, without its source."""
    return status_of(os.fspath(path), policy("staging"))


def is_telling(path: str | os.PathLike[str]) -> bool:
    """Whether a process holds the lock of the control page."""
    name = os.path.abspath(path)
    with pagefile.page_lock(page.page_path(name), name, 0.0) as is_held:
        return not is_held


@contextlib.contextmanager
def build_lock(path: str | os.PathLike[str], timeout: float = 10.0) -> Iterator[None]:
    """Hold it, as a build does."""
    with fs.Directory(os.fspath(path)) as directory, buildlock.hold(directory, timeout):
        yield


@contextlib.contextmanager
def no_fsync() -> Iterator[None]:
    def ready(_: int) -> None:
        """A mock would keep a record of each call."""

    with mock.patch.object(fs, "_fsync", ready):
        yield


@contextlib.contextmanager
def temp_names(names: Iterable[str]) -> Iterator[None]:
    """Temporary files get these names, in turn."""
    with mock.patch.object(fs, "temp_name", side_effect=names):
        yield


@contextlib.contextmanager
def on_file_system(kind: str) -> Iterator[None]:
    """Everything is on a file system of this kind, as the system calls it."""
    with mock.patch.object(shared, "kind_of_file_system", return_value=kind):
        yield


# --- files ------------------------------------------------------------------------------------------------------------


def snapshot_of(file: Any, verify: Any = "lazy", access: Any = "mmap") -> Snapshot:
    """A snapshot of what stands in for an opened file: see `Bytes` of tests/storage."""
    return Snapshot._from(file, verify, access)


def forget_logged() -> None:
    """Lines of which one is enough may be written again."""
    logs._logged.clear()


def forget_arrived() -> None:
    """What arrived from other processes stays mapped until the next arrives, or this is called."""
    snapshot._last.clear()


@contextlib.contextmanager
def writer(text: str) -> Iterator[None]:
    """Files name this as their writer, whatever version of the package builds them."""
    with mock.patch.object(publish, "writer", return_value=text):
        yield


@contextlib.contextmanager
def hashing(digest: Callable[..., int]) -> Iterator[None]:
    """Keys, terms and checksums are hashed by `digest(data, seed=0)`, by builder and reader alike."""
    with contextlib.ExitStack() as patches:
        for module in (batches, bykey, carriers, keys, lookup, postings, records, staging, terms):
            patches.enter_context(mock.patch.object(module, "xxh3_64_intdigest", digest))
        native.bound(digest, "hash")
        patches.callback(native.bound, None, "hash")
        yield


@contextlib.contextmanager
def compared_keys() -> Iterator[list[int]]:
    """The rows and the codes of terms whose bytes are compared meanwhile, or whose records are decoded to compare."""
    compared: list[int] = []

    def counted(method: Any) -> Any:
        def counting(self: Any, at: Any, *more: Any) -> Any:
            compared.append(at)
            return method(self, at, *more)

        return counting

    with (
        mock.patch.object(mapped.Mapped, "raw_key", counted(mapped.Mapped.raw_key)),
        mock.patch.object(postings.IndexReader, "_raw_term", counted(postings.IndexReader._raw_term)),
    ):
        yield compared


def plan_of_find(source: Any, query: Any) -> list[str]:
    """What EXPLAIN QUERY PLAN says of the statement with which a SQLite source answers a query."""
    (schema,) = source.schemas
    with source._connections.take() as connection:
        plan = source._plans.of(connection, schema)
        condition = statements.condition(plan, query)
        assert condition is not None
        sql, parameters = condition
        explained = f"EXPLAIN QUERY PLAN {plan.select} {plan.stable} WHERE {sql} {plan.order}"
        return [row[3] for row in connection.execute(explained, parameters)]


def rows_of_bitmap(packed: Any, n: int) -> Any:
    """uint32: the places of the bits that are set, of n."""
    return postings.rows_of_bitmap(packed, n)


def row_type_of_readers() -> Any:
    """The dtype of a row entry, as a reader has it."""
    return mapped._row_type()


HOMES = mmcache._HOMES
"""Public name -> the module that has it."""

# --- the doctor -------------------------------------------------------------------------------------------------------


def probe(path: Any) -> contextlib.AbstractContextManager[Any]:
    """A file as workers use it, which another process answers through."""
    return doctor_directory._Probe(os.fspath(path))


def check_map(found: Any, other: Any) -> Check:
    """What the doctor says of a probe, by what another process answers in it."""
    return doctor_directory._check_map(found, other)


def check_lock(path: Any, other: Any) -> Check:
    """What the doctor says of a build lock, by what another process does about it."""
    with fs.Directory(os.fspath(path)) as directory:
        return doctor_directory._check_lock(directory, other)


DOCTORS_PATIENCE = doctor_directory._PATIENCE


def impatient_doctor() -> contextlib.AbstractContextManager[Any]:
    """It waits for another process for 0.2 s."""
    return mock.patch.object(doctor_directory, "_PATIENCE", 0.2)


def cores(count: int) -> contextlib.AbstractContextManager[Any]:
    """To the doctor, this process has so many."""
    return mock.patch.object(doctor, "_cores", return_value=count)


def any_build_is_long() -> contextlib.AbstractContextManager[Any]:
    """To the doctor, if it takes ten times as long as the last one."""
    return mock.patch.object(doctor, "_LONG_BUILD", 0.0)


# --- caches -----------------------------------------------------------------------------------------------------------


def lock_of(cache: Cache) -> Any:
    """What keeps the threads of a process apart while one of them takes in what is new."""
    return cache._watch._lock


def options_of(cache: Any) -> dict[str, Any]:
    """Of a cache, or of one of its collections."""
    options: Options = cache._watch.options
    return options.given()


def slow_after(cache: Cache, seconds: float) -> None:
    """From now on a lookup that takes longer counts as slow."""
    cache._counting._slow_after = seconds


def policy_of(cache: Any) -> Any:
    return cache._watch.options.policy


def close(collection: Any) -> None:
    """Close the cache of a collection that came from another process alone."""
    collection._watch.close()


def meet_damage(cache: Cache) -> None:
    """A read finds a record damaged, on a disk that reads it well the next time."""
    cache._watch.damaged(CorruptFileError("does not match its checksum", path=cache.path))


@contextlib.contextmanager
def slow_decision(cache: Cache) -> Iterator[tuple[threading.Event, threading.Event]]:
    """One thread that has heard waits before it decides: gives what tells that it does, and what lets it go on."""
    deciding, go_on = threading.Event(), threading.Event()
    decide = cache._watch._decide

    def slowly() -> None:
        deciding.set()
        go_on.wait(30)
        decide()

    with mock.patch.object(cache._watch, "_decide", slowly):
        yield deciding, go_on


@contextlib.contextmanager
def stopped_after_its_look(cache: Cache) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Reads of other threads wait once they have what they look into: gives what tells that one does, and what lets
    them go on."""
    looked, go_on = threading.Event(), threading.Event()
    reader, ours = cache._tiers.reader, threading.current_thread()

    def slowly() -> Any:
        found = reader()
        if threading.current_thread() is not ours:
            looked.set()
            go_on.wait(30)
        return found

    with mock.patch.object(cache._tiers, "reader", slowly):
        yield looked, go_on


def patient_reads() -> None:
    """From now on a read waits longer for the poll that it finds due: what it is to see then depends on no load."""
    Poller.poll.__defaults__ = (30.0,)


def nothing_due(cache: Cache) -> contextlib.AbstractContextManager[Any]:
    """No poll becomes due by itself."""
    return mock.patch.object(cache._watch, "due", float("inf"))


def begin_process() -> None:
    """What a forked child does first."""
    forks._renew()


def clear(path: str | os.PathLike[str]) -> list[str]:
    """As `mmcache clear` does."""
    return publishing.clear(path)


# --- the page ---------------------------------------------------------------------------------------------------------


class _Stores:
    """The stores that this process makes into a page and its word: at number `at` it gets a signal, before or after.

    count: how many there were."""

    def __init__(self, at: int, number: int = signal.SIGKILL, *, after: bool = False) -> None:
        self.at, self.number, self.after, self.count = at, number, after, 0

    def __enter__(self) -> Self:
        self._patches = contextlib.ExitStack()
        write = pagefile.PageFile.write
        self._patches.enter_context(
            mock.patch.object(pagefile.PageFile, "write", lambda file, *args: self._store(write, file, *args))
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _store(self, really: Callable[..., None], *args: Any) -> None:
        if self.count == self.at and not self.after:
            os.kill(os.getpid(), self.number)
        really(*args)
        if self.count == self.at and self.after:
            os.kill(os.getpid(), self.number)
        self.count += 1


NEVER = 10**9


@contextlib.contextmanager
def small_log(size: int) -> Iterator[None]:
    """The ring of a page has so many bytes; half of them are sure to be there."""
    with contextlib.ExitStack() as patches:
        for module in (page, attach):
            patches.enter_context(mock.patch.multiple(module, LOG_SIZE=size, WINDOW=size // 2))
        yield


@contextlib.contextmanager
def page_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of the control page, as whatever writes it does."""
    name = os.path.abspath(path)
    with pagefile.page_lock(page.page_path(name), name, 10.0) as is_held:
        assert is_held
        yield


@contextlib.contextmanager
def on_boot(name: str) -> Iterator[None]:
    """Of another machine, or of this one before or after it was started again."""
    with mock.patch.object(shared, "boot_id", return_value=name.encode()):
        yield


def mounted(monkeypatch: Any, directory: Any, kind: str) -> None:
    """The table of mounts says that a directory is on a file system of a kind."""
    table = f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 0:50 / {directory} rw - {kind} server:/x rw\n".encode()
    rest: dict[int, bytes] = {}

    class Mounted:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def open(self, path: str, *args: int, **more: int) -> int:
            fd = os.open("/dev/null" if path.endswith("mountinfo") else path, *args, **more)
            if path.endswith("mountinfo"):
                rest[fd] = table
            return fd

        def read(self, fd: int, size: int) -> bytes:
            return rest.pop(fd, b"")[:size]

    shared._kind_of_device.cache_clear()
    monkeypatch.setattr(fs, "system", Mounted())


def forget_mounts() -> None:
    shared._kind_of_device.cache_clear()


def say_killed_at_store(told: page.Page, events: Any, at: int = NEVER, *, after: bool = False) -> int:
    """Say, and die at a store; how many stores there were."""
    with _Stores(at, after=after) as stores:
        told.say(events)
    return stores.count


def stop_while_telling(cache: Cache, *ids: str) -> None:
    """Invalidate, and stop this process where it holds the page's lock, with its ids stored and not yet counted."""
    with _Stores(1, signal.SIGSTOP):
        cache.invalidate(ids)


def invalidate_killed_at_store(cache: Cache, ids: Iterable[str], at: int = NEVER, *, after: bool = False) -> int:
    """Invalidate, and die at a store; how many stores there were."""
    with _Stores(at, after=after) as stores:
        cache.invalidate(ids)
    return stores.count


def build_killed_at_store(path: Any, source: Any, at: int = NEVER, *, after: bool = False) -> int:
    """Build, and die at a store into the control page; how many stores there were."""
    with _Stores(at, after=after) as stores:
        publishing.build_once(path, publish.Order(source))
    return stores.count


def fail_killed_at_store(path: Any, error: Exception, at: int = NEVER, *, after: bool = True) -> int:
    """Say on the page that a build failed, and die at a store; how many stores there were."""
    announcer = Announcer(os.fspath(path))
    with _Stores(at, after=after) as stores:
        announcer.failed(error)
    return stores.count


def rebuild(path: Any, *, exact: bool = False) -> None:
    """As `mmcache rebuild` does."""
    publishing.rebuild(path, exact=exact)


def fail(path: Any, error: Exception) -> None:
    """Say on the page that a build failed."""
    Announcer(os.fspath(path)).failed(error)


# --- sources ----------------------------------------------------------------------------------------------------------

MAX_IDLE = connections.MAX_IDLE


def open_connections(source: SQLiteSource) -> list[Any]:
    """All that a source of this process has."""
    return list(source._connections._open)


def idle_connections(source: SQLiteSource) -> list[Any]:
    return list(source._connections._idle)


def is_forking() -> bool:
    """Whether a thread waits for connections to be idle, in order to fork."""
    return bool(connections._forks)


@contextlib.contextmanager
def no_connections(source: SQLiteSource) -> Iterator[None]:
    """Whatever asks the database fails."""
    with mock.patch.object(source._connections, "take", None):
        yield


def remembered_fingerprint(source: SQLiteSource, found: bytes) -> bytes | None:
    """`found`, if the source will give it again without a look into files that look the same."""
    last = source._writes.last_answer
    return found if last is not None and last.answer == found else None


def connection(source: SQLiteSource) -> contextlib.AbstractContextManager[Any]:
    """One of a source's own, as its reads take it."""
    return source._connections.take()


# --- terms that a build keeps as bytes --------------------------------------------------------------------------------


def term_order(values: Sequence[Any]) -> NDArray[np.uint32]:
    """Ordinals of distinct terms as these ascend."""
    return terms.term_order(terms.pack_terms(values))


@contextlib.contextmanager
def rare_terms(*, collide: bool) -> Iterator[None]:
    """All terms but the first few are kept as bytes; collide: with few different hashes."""

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(carriers, "_COMMON", 3))
        stack.enter_context(mock.patch.object(carriers, "_TOGETHER", 2))
        if collide:
            stack.enter_context(hashing(lambda data, seed=0: len(data) % 3 + seed))
        yield


def terms_staged(lists: Iterable[Sequence[Any]]) -> tuple[list[Any], list[int]]:
    """The distinct terms of the lists, and the ordinal of each that was met, as a build holds them."""
    field = carriers.FieldTerms()
    for row, values in enumerate(lists):
        field.add(row, [list(values)])
    codes = field.codes().tolist()
    unpacker = msgpack.Unpacker()
    unpacker.feed(field._settled().data)
    return list(unpacker), codes


@contextlib.contextmanager
def threads_begin_by(begin: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """What a thread does first; it is given what it would have done."""
    bootstrap = threads._Thread._bootstrap

    def begins(thread: threads._Thread) -> None:
        begin(lambda: bootstrap(thread))

    with mock.patch.object(threads._Thread, "_bootstrap", begins):
        yield


@contextlib.contextmanager
def no_threads(why: str) -> Iterator[list[object]]:
    """No thread can be started, by a "limit" of the system, or may be, in the master of "uwsgi"; or one is lost as it
    "begins". What was asked is counted."""
    asked: list[object] = []
    if why == "begins":
        with threads_begin_by(asked.append):
            yield asked
    elif why == "limit":

        def refuse(thread: threading.Thread) -> None:
            asked.append(thread)
            raise RuntimeError("can't start new thread")

        with mock.patch.object(threading.Thread, "start", refuse):
            yield asked
    else:

        def worker_id() -> int:
            asked.append(why)
            return 0

        with mock.patch.dict(sys.modules, {"uwsgi": SimpleNamespace(worker_id=worker_id)}):
            yield asked


def forget(kept: lane.Lane) -> None:
    """As if it were gone without its `__del__`, which no interpreter promises to call."""
    kept._hand = None


@contextlib.contextmanager
def terms_placed_together(count: int) -> Iterator[None]:
    """So many terms of an index have their rows placed at a time."""
    with mock.patch.object(postings, "_TERMS", count):
        yield


# --- searches ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def searched_by(rows: int, *, few: int = 0, together: int = 64) -> Iterator[None]:
    """A search reads so many rows at a time, scores them all in float64 where they are `few` or less, and answers so
    many queries by one reading."""
    with contextlib.ExitStack() as patches:
        for module, name, value in (
            (chunks, "GATHERED", rows),
            (chunks, "SCANNED", rows),
            (chunks, "LEAST", 1),
            (scan, "FEW", few),
            (scan, "TOGETHER", together),
        ):
            patches.enter_context(mock.patch.object(module, name, value))
        yield


def measured_from(rows: int) -> contextlib.AbstractContextManager[Any]:
    """A build measures the sketch of a file of more rows than this, which is then searched by it."""
    return mock.patch.object(measuring, "SMALL", rows)


class _Library:
    """Of BLAS, with so many threads."""

    internal_api, version = "openblas", "0.3"

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def get_num_threads(self) -> int:
        return self._threads


@contextlib.contextmanager
def searched_in_python() -> Iterator[None]:
    """As without the compiled core; the sketch of a build, too."""
    with contextlib.ExitStack() as patches:
        for module in (distances, metrics, scan, signing):
            patches.enter_context(mock.patch.object(module, "core", None))
        yield


@contextlib.contextmanager
def loops_up_to(most: int) -> Iterator[None]:
    """The compiled core takes none that is for a later processor: 0 is for any, 2 for the best."""
    native.bound(most, "processor")
    try:
        yield
    finally:
        native.bound(None, "processor")


def blas_with(threads: int | None) -> contextlib.AbstractContextManager[Any]:
    """BLAS has so many threads; None: threadpoolctl is not installed, and the number is not known."""
    libraries = None if threads is None else [_Library(threads)]
    return mock.patch.object(blas, "_libraries", return_value=libraries)


@contextlib.contextmanager
def no_record_is_encoded_again() -> Iterator[None]:
    """Files that are merged keep the bytes of their records."""

    def never(*_: object) -> None:
        raise AssertionError("records were encoded again")

    with mock.patch.object(merging._Joining, "_encode_again", never):
        yield


def stores_try_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that fails, and a piece of a download that fails, are not tried again."""
    monkeypatch.setattr(store, "_RETRIES", {"max_retries": 0})
    monkeypatch.setattr(download, "_TRIES", 1)


def front_of(watch: Any) -> Any:
    """A collection of a cache, of the compiled core, that looks at this before it reads."""
    front = native.core.Front()
    front._watch, front._counting = watch, native.core.Hits()
    return front
