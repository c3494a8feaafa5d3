"""What can be seen from inside only: the one place of the tests that knows private names of mmcache.

A function here is a question or a way to bring something on; what is right is said by the test that calls it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import mmcache
from mmcache import Cache, CorruptFileError, Snapshot, SQLiteSource, Status
from mmcache.cli import doctor, doctor_directory
from mmcache.cli.doctor_directory import Check
from mmcache.format import postings
from mmcache.freshness import policy
from mmcache.sharing import control, publishing
from mmcache.sharing.fleet import Fleet
from mmcache.sharing.metrics import read_fleet
from mmcache.sharing.status import status_of
from mmcache.sources import connections
from mmcache.storage import builder, fs, publish, shared, snapshot

# --- files beside a cache ---------------------------------------------------------------------------------------------


def fleet_of(path: str | os.PathLike[str]) -> Fleet:
    """What the workers of a file counted."""
    return read_fleet(os.fspath(path))


def status(path: str | os.PathLike[str]) -> Status:
    """As `mmcache status` sees it, without its source."""
    return status_of(os.fspath(path), policy("staging"))


def is_telling(path: str | os.PathLike[str]) -> bool:
    """Whether a process holds the lock of the control page."""
    return shared.is_held(control.control_name(os.fspath(path)))


@contextlib.contextmanager
def build_lock(path: str | os.PathLike[str], timeout: float = 10.0) -> Iterator[None]:
    """Hold it, as a build does."""
    with fs.Directory(os.fspath(path)) as directory, directory.lock(timeout):
        yield


@contextlib.contextmanager
def no_fsync() -> Iterator[None]:
    with mock.patch.object(fs, "_fsync", return_value=None):
        yield


@contextlib.contextmanager
def temp_names(names: Iterable[str]) -> Iterator[None]:
    """Temporary files get these names, in turn."""
    with mock.patch.object(fs, "_temp_name", side_effect=names):
        yield


# --- files ------------------------------------------------------------------------------------------------------------


def snapshot_of(file: Any, verify: Any = "lazy", access: Any = "mmap") -> Snapshot:
    """A snapshot of what stands in for an opened file: see `Bytes` of tests/storage."""
    return Snapshot._from(file, verify, access)


def forget_arrived() -> None:
    """What arrived from other processes stays mapped until the next arrives, or this is called."""
    snapshot._last.clear()


@contextlib.contextmanager
def writer(text: str) -> Iterator[None]:
    """Files name this as their writer, whatever version of the package builds them."""
    with mock.patch.object(publish, "_writer", return_value=text):
        yield


@contextlib.contextmanager
def hashing(digest: Callable[..., int]) -> Iterator[None]:
    """Keys, terms and checksums are hashed by `digest(data, seed=0)`, by builder and reader alike."""
    with contextlib.ExitStack() as patches:
        for module in (postings, builder, snapshot):
            patches.enter_context(mock.patch.object(module, "xxh3_64_intdigest", digest))
        yield


def rows_of_bitmap(packed: Any, n: int) -> Any:
    """uint32: the places of the bits that are set, of n."""
    return postings._rows_of_bitmap(packed, n)


READERS_ROW = snapshot._ROW
"""The dtype of a row entry, as a reader has it."""
HOMES = mmcache._HOMES
"""Public name -> the module that has it."""

# --- the doctor -------------------------------------------------------------------------------------------------------


def check_map(words: memoryview, other: Any) -> Check:
    """What the doctor says of a map, by what another process answers in it."""
    return doctor_directory._check_map(words, other)


def check_lock(path: Any, other: Any) -> Check:
    """What the doctor says of a build lock, by what another process does about it."""
    with fs.Directory(os.fspath(path)) as directory:
        return doctor_directory._check_lock(directory, other)


DOCTORS_PATIENCE = doctor_directory._PATIENCE


def impatient_doctor() -> contextlib.AbstractContextManager[Any]:
    """It waits for another process for 0.2 s."""
    return mock.patch.object(doctor_directory, "_PATIENCE", 0.2)


def any_build_is_long() -> contextlib.AbstractContextManager[Any]:
    """To the doctor, if it takes ten times as long as the last one."""
    return mock.patch.object(doctor, "_LONG_BUILD", 0.0)


# --- caches -----------------------------------------------------------------------------------------------------------


def lock_of(cache: Cache) -> Any:
    """What keeps the threads of a process apart while one of them looks around."""
    return cache._tiers.lock


def options_of(cache: Any) -> dict[str, Any]:
    """Of a cache, or of one of its collections; the test may change them."""
    found: dict[str, Any] = cache._tiers.options
    return found


def policy_of(cache: Any) -> Any:
    return cache._tiers.policy


def close(collection: Any) -> None:
    """Close the cache of a collection that came from another process alone."""
    collection._tiers.close()


def meet_damage(cache: Cache) -> None:
    """A read finds a record damaged, on a disk that reads it well the next time."""
    cache._tiers.damaged(CorruptFileError("does not match its checksum", path=cache.path))


# --- telling ----------------------------------------------------------------------------------------------------------


def stop_while_telling(cache: Cache, *ids: str) -> None:
    """Invalidate, and stop this process where it holds the page's lock, with its ids stored and not yet counted."""
    page = cache._tiers.page
    assert page is not None
    real = page.words
    page.words = _Words(real, {control._RING: signal.SIGSTOP})  # type: ignore[assignment]
    try:
        cache.invalidate(ids)
    finally:
        page.words = real


class _Words:
    """The words of a page. signals: word -> what this process gets before it stores there."""

    def __init__(self, words: memoryview, signals: dict[int, int]) -> None:
        self.words, self.signals = words, signals

    def __getitem__(self, i: Any) -> Any:
        return self.words[i]

    def __setitem__(self, i: int, value: int) -> None:
        if i in self.signals:
            os.kill(os.getpid(), self.signals[i])
        self.words[i] = value


class _Stores:
    """The words of a page, which kill this process at store number `at`, before or after it."""

    def __init__(self, words: memoryview, at: int, *, after: bool) -> None:
        self.words, self.at, self.after, self.count = words, at, after, 0

    def __getitem__(self, i: Any) -> Any:
        return self.words[i]

    def __setitem__(self, i: int, value: int) -> None:
        if self.count == self.at and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.words[i] = value
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


NEVER = 10**9


def build_killed_at_store(path: Any, source: Any, at: int = NEVER, *, after: bool = False) -> int:
    """Build, and die at a store into the control page; how many stores there were."""
    page = control.attach(os.fspath(path))
    page.words = stores = _Stores(page.words, at, after=after)  # type: ignore[assignment]
    publishing.build_once(path, source, control=page)
    return stores.count


def fail_killed_at_store(path: Any, error: Exception, at: int = NEVER, *, after: bool = True) -> int:
    """Say on the page that a build failed, and die at a store; how many stores there were."""
    page = control.attach(os.fspath(path))
    page.words = stores = _Stores(page.words, at, after=after)  # type: ignore[assignment]
    page.failed(error)
    return stores.count


def fail(path: Any, error: Exception) -> None:
    """Say on the page that a build failed."""
    control.attach(os.fspath(path)).failed(error)


# --- sources ----------------------------------------------------------------------------------------------------------

MAX_IDLE = connections.MAX_IDLE


def open_connections(source: SQLiteSource) -> list[Any]:
    """All that a source of this process has."""
    return list(source._connections._open)


def idle_connections(source: SQLiteSource) -> list[Any]:
    return list(source._connections._idle)


@contextlib.contextmanager
def no_connections(source: SQLiteSource) -> Iterator[None]:
    """Whatever asks the database fails."""
    with mock.patch.object(source._connections, "take", None):
        yield


def remembered_fingerprint(source: SQLiteSource, found: bytes) -> bytes | None:
    """`found`, if the source will give it again without a look into files that look the same."""
    return found if source._look is not None and source._look.answer == found else None


def connection(source: SQLiteSource) -> contextlib.AbstractContextManager[Any]:
    """One of a source's own, as its reads take it."""
    return source._connections.take()
