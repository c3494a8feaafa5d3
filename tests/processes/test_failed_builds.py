"""A build that fails, in whatever way, is recorded on the page, and pauses all workers together."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import LockTimeoutError, SQLiteSource
from tests.support.bank import NUMBERS, commit
from tests.support.crew import number, threads
from tests.support.hanging import PLACE, hang, hanging_source
from tests.support.observe import failure_of, is_building
from tests.support.samples import sampled
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")


class Raising(SQLiteSource):
    """Raises when it is read whole, while told to."""

    reads = 0
    error: BaseException | None = None

    @contextlib.contextmanager
    def read(self) -> Iterator[Any]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        with super().read() as reading:
            yield reading

    def spec(self) -> None:
        """No other process can make it again."""


KINDS = sampled([asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError], 6)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_source_raises_pauses_all(path: Path, bank: Path, kind: type[BaseException]) -> None:
    source = Raising(bank, NUMBERS)
    options: dict[str, Any] = {"executor": "thread", "check_interval": 0.02, "rebuild_after": 0}
    with mmcache.open(path, source, **options) as cache, mmcache.open(path, source, **options) as other:
        assert number(cache) == number(other) == 0
        source.reads, source.error = 0, kind("enough")
        commit(bank, 1)
        failure = until("it is recorded", lambda: (number(cache), number(other), failure_of(path))[2])
        assert kind.__name__ in failure.error.message
        until("a second attempt", lambda: (number(cache), number(other), failure_of(path).attempts > 1)[2])
        assert source.reads == 2, "one after the pause, by whichever worker"
        source.error = None
        until("it heals", lambda: number(cache) == number(other) == 1 and failure_of(path) is None)


def test_an_interrupt_of_an_explicit_build_goes_to_its_caller(path: Path, bank: Path) -> None:
    source = Raising(bank, NUMBERS)
    with mmcache.open(path, source, executor="external") as cache:
        source.error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            cache.rebuild()
        assert failure_of(path).attempts == 1
        assert not is_building(path)
        source.error = None
        assert cache.rebuild().generation == 1, "no failure of before keeps an explicit build"
        assert failure_of(path) is None


def test_a_build_for_which_no_thread_can_start_pauses_all(
    path: Path, bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, tries = threading.Thread.start, []

    def refused(thread: threading.Thread) -> None:
        if thread.name == "mmcache-rebuild":
            tries.append(time.monotonic())
            raise RuntimeError("can't start new thread")
        start(thread)

    with mmcache.open(path, SQLiteSource(bank, NUMBERS), check_interval=0.02, rebuild_after=0) as cache:
        assert number(cache) == 0
        monkeypatch.setattr(sys, "executable", "/nowhere/python3")
        monkeypatch.setattr(threading.Thread, "start", refused)
        commit(bank, 1)
        failure = until("it is recorded", lambda: (number(cache), failure_of(path))[1])
        assert "no thread can be started" in failure.error.message
        while time.monotonic() < failure.until - 0.05:
            assert len(tries) == 1
            number(cache)
        assert not is_building(path)
        monkeypatch.undo()
        until("it heals", lambda: number(cache) == 1 and cache.generation == 2)


@pytest.mark.parametrize("executor", ["subprocess", "thread", "inline"])
@pytest.mark.parametrize("accident", ["failed", "cleared", "damaged"])
def test_a_worker_without_a_file_gets_one_in_the_background(
    path: Path, bank: Path, executor: Any, accident: str
) -> None:
    """Case: the first build failed. Case: another process gave it up. Case: what is there cannot be used."""
    away = bank.with_name("away.db")
    shutil.copy(bank, away)
    source = SQLiteSource(bank, NUMBERS)
    if accident == "failed":
        os.rename(bank, away)
    elif accident == "damaged":
        path.write_bytes(b"\x89MMC\r\n\x1a\n" + bytes(100))
        os.rename(bank, away)
    with mmcache.open(path, source, executor=executor, check_interval=0.05) as cache:
        if accident == "cleared":
            for name in (path, Path(f"{path}.bak")):
                name.unlink(missing_ok=True)
        else:
            assert cache.generation is None
            os.rename(away, bank)

        def is_there() -> bool:
            assert number(cache) == 0
            return path.exists() and cache.generation is not None and cache.stats().state == "fresh"

        until("a file", is_there)
        until("no thread is left", lambda: "mmcache-rebuild" not in threads(cache))
        until("the failure is taken back", lambda: failure_of(path) is None)


def test_a_pause_grows_and_is_kept_by_a_worker_without_a_file(path: Path, bank: Path) -> None:
    source = Raising(bank, NUMBERS)
    source.error = ValueError("enough")
    with mmcache.open(path, source, executor="thread", check_interval=0.02) as cache:
        assert number(cache) == 0
        begun = time.monotonic()
        pauses: list[tuple[int, float]] = []
        while time.monotonic() < begun + 4:
            assert number(cache) == 0
            failure = failure_of(path)
            if failure is not None and (not pauses or pauses[-1][0] != failure.attempts):
                pauses.append((failure.attempts, failure.until - failure.at))
            time.sleep(0.01)
        assert source.reads <= 4
        assert [attempts for attempts, _ in pauses] == list(range(1, len(pauses) + 1))
        assert all(0.7 * 2**i <= pause <= 1.3 * 2**i for i, (_, pause) in enumerate(pauses))


# --- forks that Python does not see -----------------------------------------------------------------------------------


def fork_in_c(seconds: float) -> int:
    """A child that no hook of Python's sees, as of a server written in C; it sleeps and ends."""
    libc = ctypes.PyDLL(None)
    pid: int = libc.fork()
    if pid == 0:
        libc.sleep(int(seconds))
        libc._exit(0)
    return pid


def test_a_build_in_a_thread_frees_its_lock_beside_a_child_forked_in_c(path: Path, bank: Path) -> None:
    source = Raising(bank, NUMBERS)
    heirs: list[int] = []

    class Forking(Raising):
        @contextlib.contextmanager
        def read(self) -> Iterator[Any]:
            heirs.append(fork_in_c(60))
            with super().read() as reading:
                yield reading

    try:
        mmcache.build(path, Forking(bank, NUMBERS))
        assert not is_building(path)
        mmcache.build(path, source, timeout=0)
    finally:
        for pid in heirs:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def test_a_killed_builder_frees_its_lock_beside_a_child_forked_while_it_started(
    path: Path, bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker forks in C while it starts the process that builds, and so the child has the lock's open file."""
    started: list[int] = []
    heirs: list[int] = []
    init = subprocess.Popen.__init__

    def forking(process: Any, *args: Any, **more: Any) -> None:
        heirs.append(fork_in_c(60))
        init(process, *args, **more)
        started.append(process.pid)

    lines = bank.with_name("lines.jsonl")
    lines.write_text('{"name": "a", "kind": null, "number": 0}\n')
    monkeypatch.setenv(PLACE, str(lines))
    source = hanging_source()
    try:
        with mmcache.open(path, source, check_interval=0.02, rebuild_after=0) as cache:
            assert cache["a"]["number"] == 0
            hang(lines)
            monkeypatch.setattr(subprocess.Popen, "__init__", forking)
            cache.invalidate(hard=False)
            pid = until("a builder", lambda: (cache.refresh(), started)[1])[0]
            until("it holds a lock of its own", lambda: f" {pid} " in Path("/proc/locks").read_text())
            monkeypatch.setattr(subprocess.Popen, "__init__", init)
            with pytest.raises(LockTimeoutError):
                mmcache.build(path, source, timeout=0)
            os.kill(pid, 9)
            os.unlink(lines)
            lines.write_text('{"name": "a", "kind": null, "number": 1}\n')
            until("it is dead", lambda: not is_building(path))
            assert os.waitpid(heirs[0], os.WNOHANG) == (0, 0), "the heir lives"
            mmcache.build(path, source, timeout=0)
    finally:
        for heir in heirs:
            os.kill(heir, 9)
            os.waitpid(heir, 0)
