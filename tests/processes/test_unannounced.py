"""A builder that is killed after its rename has not announced its file, or not to all: the next rebuild that returns
has.

The reader looks at files once an hour. It learns of a generation by what processes announce, or not at all.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, Snapshot, SQLiteSource
from mmcache.storage.names import lock_name
from tests.support.bank import NUMBERS, commit, make_bank
from tests.support.crew import Crew, note, noted, number
from tests.support.faults import faults
from tests.support.waits import PATIENCE, until

pytestmark = pytest.mark.usefixtures("no_leaks")


class GatedSource(SQLiteSource):
    """Notes when it is asked for its fingerprint, which a builder asks for first of all, and waits at the gate."""

    def __init__(self, path: Path, log: Path, gate: Path) -> None:
        super().__init__(path, NUMBERS)
        self.log, self.gate = log, gate

    def fingerprint(self) -> bytes:
        note(self.log)
        until("the gate is gone", lambda: not self.gate.exists())
        return super().fingerprint()


STORES = 3
"""Of an announcement, by `pwrite`: the record of the file, the event, and the count. Then the word is stored."""


class KilledAfterRename:
    """Ends this process when a file has its name, and so many stores of its announcement are done."""

    def __init__(self, name: str, stores: int) -> None:
        self.name, self.left, self.is_renamed = name, stores, False

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        result = call()
        self.left -= self.is_renamed and name == "pwrite"
        self.is_renamed = self.is_renamed or (name == "rename" and args[1] == self.name)
        if self.is_renamed and not self.left:
            signal.raise_signal(signal.SIGKILL)
        return result


class NotesOpening:
    """Notes each time that a file of this name is opened by a process that would write it, as for its lock."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log

    def __call__(self, number: int, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if name == "open" and Path(args[0]).name == self.name and args[1] & os.O_RDWR:
            note(self.log)
        return call()


def rebuild_until(cache: Cache, stores: int) -> None:
    with faults(KilledAfterRename(Path(cache.path).name, stores)):
        cache.rebuild()


def rebuild(cache: Cache) -> int:
    return cache.rebuild().generation


def build(cache: Cache) -> int:
    assert cache.source is not None
    return mmcache.build(cache.path, cache.source).generation


def noting_locks(cache: Cache, what: Callable[[Cache], Any], log: Path) -> Any:
    with faults(NotesOpening(lock_name(Path(cache.path).name), log)):
        return what(cache)


def generation_and_number(cache: Cache) -> tuple[int | None, int]:
    """A get comes first: it has to find out by itself."""
    found = number(cache)
    return cache.generation, found


class Scene:
    """A file of generation 1 with number 0, and caches that look at files once an hour. At the gate the builder has the
    build lock, and has read neither the clock nor the bank."""

    def __init__(self, path: Path, directory: Path, crew: Crew) -> None:
        self.path, self.bank = path, directory / "bank.db"
        self.log, self.locks, self.gate = directory / "log", directory / "locks", directory / "gate"
        make_bank(self.bank)
        mmcache.build(path, SQLiteSource(self.bank, NUMBERS))
        self.reader, self.third = (crew.hire(self.open) for _ in range(2))
        self.builder = crew.hire(lambda: self.open(GatedSource(self.bank, self.log, self.gate)))
        for worker in (self.reader, self.third, self.builder):
            assert worker(generation_and_number) == (1, 0)
        commit(self.bank, 7)

    def open(self, source: SQLiteSource | None = None) -> Cache:
        source = source or SQLiteSource(self.bank, NUMBERS)
        return mmcache.open(self.path, source, executor="external", check_interval=3600, ttl=float("inf"))

    def start_builder(self, stores: int) -> None:
        """Until it waits at the gate. It will be killed after so many stores of its announcement."""
        self.gate.touch()
        before = len(noted(self.log))
        self.builder.begin(rebuild_until, stores)
        until("the builder waits at the gate", lambda: len(noted(self.log)) > before)
        assert self.reader(generation_and_number) == (1, 0), "it has heard all that was said so far"

    def start_third(self, what: Callable[[Cache], Any]) -> None:
        """Until it tries to have the build lock."""
        self.third.begin(noting_locks, what, self.locks)
        until("the third waits for the lock", lambda: noted(self.locks))

    def let_builder_die(self) -> None:
        """When its file, generation 2, is at the path, and no process was woken."""
        self.gate.unlink()
        self.builder.process.join(PATIENCE)
        assert self.builder.process.exitcode == -signal.SIGKILL
        with Snapshot.open(self.path) as snapshot:
            assert snapshot.generation == 2


@pytest.fixture
def scene(path: Path, tmp_path: Path) -> Iterator[Scene]:
    with Crew() as crew:
        yield Scene(path, tmp_path, crew)


@pytest.mark.parametrize("stores", range(STORES + 1))
@pytest.mark.parametrize("again", [rebuild, build])
def test_a_rebuild_that_finds_an_unannounced_file_right_announces_it(scene, again, stores):
    scene.start_builder(stores)
    scene.let_builder_die()
    assert scene.reader(generation_and_number) == (1, 0), "it cannot know yet"
    assert scene.third(again) == 2
    assert scene.reader(generation_and_number) == (2, 7)


@pytest.mark.parametrize("stores", range(STORES + 1))
def test_a_rebuild_that_waited_for_a_killed_builder_announces_its_file(scene, stores):
    """The file is from after the call of rebuild, which returns it as it is."""
    scene.start_builder(stores)
    scene.start_third(rebuild)
    scene.let_builder_die()
    assert scene.third.result() == 2
    assert scene.reader(generation_and_number) == (2, 7)
