"""The stage of the accident tests: one small table, workers beside it, processes that may hang, users and mounts.

Each test brings one accident on, lets it pass, and compares what the workers answer with the source.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, MmcacheError, Schema, SQLiteSource
from tests.support.crew import Crew, fork
from tests.support.waits import PATIENCE, until

__all__ = [
    "ITEMS",
    "NOBODY",
    "PATIENCE",
    "Crew",
    "apart",
    "become",
    "change",
    "companions",
    "database",
    "execute",
    "fork",
    "heard",
    "invalidate_changed",
    "listen",
    "mount",
    "note_of",
    "notes_of",
    "opens",
    "outcome",
    "run",
    "shared_writable_maps",
    "source",
    "threads",
    "truth",
    "until",
]

ITEMS = Schema("items", index=("kind",))
NOBODY = 65534
"""The user without rights."""


# --- the table --------------------------------------------------------------------------------------------------------


def database(path: Path, n: int = 200) -> Path:
    """Items k0 to k(n-1), all with the note "old". In WAL mode, so that a slow build keeps no writer waiting."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, note TEXT)")
        rows = [(f"k{i}", "abc"[i % 3], "old") for i in range(n)]
        db.execute("BEGIN")
        db.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
        db.execute("COMMIT")
    return path


def execute(db: Path, sql: str, *parameters: object) -> None:
    with contextlib.closing(sqlite3.connect(db, isolation_level=None, timeout=PATIENCE)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(sql, parameters)


def change(db: Path, *keys: str, note: str = "new") -> str:
    """Give these items another note, or all of them; the note."""
    if not keys:
        execute(db, "UPDATE items SET note = ?", note)
    for key in keys:
        execute(db, "UPDATE items SET note = ? WHERE id = ?", note, key)
    return note


def truth(db: Path, keys: Iterable[str]) -> list[str]:
    """The notes of these keys in the database."""
    with contextlib.closing(sqlite3.connect(db, timeout=PATIENCE)) as connection:
        return [connection.execute("SELECT note FROM items WHERE id = ?", (key,)).fetchone()[0] for key in keys]


def source(db: Path) -> SQLiteSource:
    return SQLiteSource(db, ITEMS, timeout=PATIENCE)


# --- workers ----------------------------------------------------------------------------------------------------------


def opens(path: Path, db: Path, **options: Any) -> Callable[[], Cache]:
    """How a worker of a `Crew` opens its cache: it listens to the log first."""
    settings: dict[str, Any] = {"executor": "external", "check_interval": 0.05} | options

    def open_cache() -> Cache:
        listen()
        return mmcache.open(path, source(db), **settings)

    return open_cache


class _Ear(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.events.append(getattr(record, "event", ""))


_ear = _Ear()


def listen() -> None:
    """Keep the events that mmcache logs in this process from now on."""
    log = logging.getLogger("mmcache")
    log.setLevel(logging.INFO)
    _ear.events.clear()
    if _ear not in log.handlers:
        log.addHandler(_ear)


def heard(_: Cache | None = None) -> list[str]:
    """The events that were logged in this process, in order."""
    return list(_ear.events)


def note_of(cache: Cache, key: str = "k1") -> str:
    note: str = cache[key]["note"]
    return note


def notes_of(cache: Cache, keys: Iterable[str]) -> list[str]:
    return [note_of(cache, key) for key in keys]


def outcome(cache: Cache, *keys: str) -> str:
    """What an invalidation became, or the name of the MmcacheError that it raised."""
    try:
        return cache.invalidate(list(keys) or None)
    except MmcacheError as error:
        return type(error).__name__


def invalidate_changed(cache: Cache, db: Path, key: str, note: str = "new") -> bool:
    """Change an item in the database and invalidate it; whether that returned. An MmcacheError is the other end."""
    change(db, key, note=note)
    return outcome(cache, key) in ("ids", "soft", "hard")


def companions(path: Path, *patterns: str) -> list[Path]:
    """The files beside the published one, its backup not among them, whose names contain one of these texts."""
    beside = list(sorted(path.parent.glob(f"*{path.name}*")) + sorted(path.parent.glob(f".{path.name}*")))
    found = [file for file in dict.fromkeys(beside) if file.name not in (path.name, f"{path.name}.bak")]
    return [file for file in found if not patterns or any(pattern in file.name for pattern in patterns)]


def shared_writable_maps(place: Path) -> list[str]:
    """The lines of /proc/self/maps with shared writable mappings of files below a directory."""
    with open("/proc/self/maps") as lines:
        found = [line.split(maxsplit=5) for line in lines]
    mapped = [fields for fields in found if len(fields) == 6 and fields[5].startswith(f"{place}/")]
    return [" ".join(fields).strip() for fields in mapped if "w" in fields[1] and "s" in fields[1]]


# --- processes apart --------------------------------------------------------------------------------------------------


def apart(function: Callable[..., Any], *args: Any, within: float = 60.0, namespace: bool = False) -> Any:
    """What the function returns in a forked process, which a hang or a signal cannot take beyond the test.

    namespace: in a mount namespace of its own; its mounts end with it.
    """
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=_apart, args=(there, namespace, function, args))
    process.start()
    there.close()
    try:
        if here.poll(within):
            worked, value = here.recv()
        else:
            worked, value = False, f"no answer within {within:g} s"
            process.join(0.0)
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGUSR1)  # where it hangs, on standard error
                process.join(1.0)
        process.join(2.0 if worked else 0.0)
    except EOFError:
        process.join(2.0)
        worked, value = False, "no answer"
    finally:
        here.close()
        end_group(process)
    if isinstance(value, _Skipped):
        pytest.skip(str(value))
    if isinstance(value, BaseException):
        raise value
    assert worked, f"{value}: {_end_of(process.exitcode)}"
    return value


def end_group(process: Any) -> None:
    """What the process started ends with it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


class _Skipped(Exception):  # noqa: N818 (nothing failed)
    pass


def _end_of(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _apart(told: Any, namespace: bool, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with the process that started it
    faulthandler.register(
        signal.SIGUSR1, all_threads=True
    )  # not its timer, which a fork of this process would wait for
    try:
        if namespace:
            enter_mount_namespace()
        told.send((True, function(*args)))
    except pytest.skip.Exception as reason:
        told.send((False, _Skipped(str(reason))))
    except BaseException as error:  # noqa: BLE001 (reported by the test)
        import traceback

        traceback.print_exc(file=sys.stderr)
        told.send((False, AssertionError(f"{type(error).__name__}: {error}")))
    os._exit(0)  # threads that hang and handlers of the parent stay behind


def enter_mount_namespace() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000):  # CLONE_NEWNS
        pytest.skip(f"no mount namespace can be made: {os.strerror(ctypes.get_errno())}")
    run("mount", "--make-rprivate", "/")


def run(*command: object) -> None:
    """Run a command that the machine must have; skip where it fails."""
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"there is no command {command[0]}")
    if done.returncode:
        pytest.skip(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def mount(*args: object) -> None:
    """`mount ARGS` inside a mount namespace, which ends with its process."""
    run("mount", *args)


def become(user: int, *owned: Path) -> None:
    """Give these paths to another user and become that user."""
    for path in owned:
        os.chown(path, user, user)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


# --- threads ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def threads(*functions: Callable[[], Any]) -> Iterator[list[str]]:
    """Run these over and over in threads of their own; gives the errors that ended any. Threads that hang fail it."""
    errors: list[str] = []
    ended = threading.Event()

    def repeat(function: Callable[[], Any]) -> None:
        try:
            while not ended.is_set():
                function()
        except BaseException as error:  # noqa: BLE001 (reported by the test)
            errors.append(f"{type(error).__name__}: {error}"[:200])

    started = [threading.Thread(target=repeat, args=(function,), daemon=True) for function in functions]
    for thread in started:
        thread.start()
    yield errors
    ended.set()
    deadline = time.monotonic() + PATIENCE
    for thread in started:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in started), "threads hang"
