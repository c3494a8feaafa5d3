"""What a directory can do: tried out with files of our own in it, and with another process, which are gone afterwards.

That other process is this module as a program. It opens the same file as we do and answers through it, then it takes
the build lock and waits to be killed.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

from ..errors import (
    LockTimeoutError,
    MissingFileError,
    MmcacheError,
    PublishError,
    UntrustedPathError,
    UnusableFileError,
)
from ..sharing.attach import attach
from ..sharing.page import Page
from ..storage import buildlock, fs, shared
from ..storage.names import control_name, lock_name, wake_name
from ..storage.trust import VARIABLE, accepts_mode
from ..text import bytes_of, printable, span

__all__ = ["Check", "check_directory"]

_SIZE: Final = 4096
_ASKED, _ANSWERED, _TEXT = 0, 64, 128
"""Words, far enough apart to be on other cache lines."""
_WORD: Final = 2**64 - 1
_ROUNDS: Final = 200
_PATIENCE: Final = 10.0
"""Seconds for another process to start, to answer, to die."""

_TOLD_LATE: Final = (
    "workers notice what others do once every check_interval (1 s), and none can invalidate; "
    "put the file on a local file system that this user may write"
)


Level = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """text: what was found. advice: what to do about it."""

    name: str
    level: Level
    text: str
    advice: str = ""


def check_directory(directory: str) -> Iterator[Check]:
    """One after the other, as they are done. What could not be tried is a warning."""
    found = _trust(directory)
    yield found
    if found.level == "fail":
        return
    probe = os.path.join(directory, f".mmcache-doctor-{os.urandom(4).hex()}")
    try:
        opened = fs.Directory(probe)
    except MmcacheError as error:
        yield _not_written(error)
        return
    with opened:
        yield from _check_writing(opened)


def _trust(directory: str) -> Check:
    """Whether readers trust it."""
    name = "directory"
    try:
        status = Path(directory).stat()
    except OSError as error:
        return Check(name, "fail", f"{directory}: {error.strerror}", "create it, or check the path")
    where = printable(os.path.abspath(directory))
    if not accepts_mode(os.path.join(directory, "any"), status):
        advice = f"chmod o-w it, use a sub-directory of it, or name its owner: {VARIABLE}={status.st_uid}"
        return Check(name, "fail", f"{where} can be written by anyone, so no file in it is trusted", advice)
    if status.st_mode & 0o002:
        text = f"anyone may put files into {where}: only your own are used, and no other user's worker reads them"
        return Check(name, "warn", text, "use a directory of your own")
    return Check(name, "ok", f"{where} is written by its owner (uid {status.st_uid}) and group only")


def _not_written(error: MmcacheError) -> Check:
    text = f"files here can be read, but not built, invalidated or counted by this user: {error.message}"
    # Root may write anywhere, so that it is the trust which is missing, and for every worker of this user.
    level: Level = "fail" if isinstance(error, UntrustedPathError) and os.geteuid() == 0 else "warn"
    return Check("write access", level, text, "to build here, run as the owner of the directory, or use another one")


def _check_writing(directory: fs.Directory) -> Iterator[Check]:
    try:
        with directory.create():
            pass
    except PublishError as error:
        yield _not_written(error)
        return
    yield Check("write access", "ok", "this user may build, invalidate and count here")
    yield _check_links(directory)
    yield _check_sync(directory)
    page = attach(directory.path)
    try:
        yield _check_file_system(directory, page)
        yield from _check_processes(directory)
    finally:
        page.close()
        names = [of(directory.name) for of in (control_name, _map_name, lock_name)]
        for name in (*names, wake_name(directory.name, page.nonce)):
            with contextlib.suppress(PublishError):
                directory.unlink(name)


def _check_links(directory: fs.Directory) -> Check:
    with directory.create() as file:
        other = f"{directory.name}.link"
        try:
            linked = directory.link(file.name or "", other)
        except PublishError as error:
            return Check("hard links", "fail", error.message, "see what the system log says of this file system")
        finally:
            directory.unlink(other)
    if linked:
        return Check("hard links", "ok", "there are: a backup costs no space")
    return Check("hard links", "warn", "there are none: a backup is a copy, which takes its time and space")


def _check_sync(directory: fs.Directory) -> Check:
    begun = time.perf_counter()
    try:
        with directory.create() as file:
            file.write(0, bytes(_SIZE))
            file.seal(0o600)
        directory.sync()
    except PublishError as error:
        return Check("fsync", "fail", error.message, "nothing can be published here until that works")
    return Check("fsync", "ok", f"a page and its name were made durable in {span(time.perf_counter() - begun)}")


def _check_file_system(directory: fs.Directory, page: Page) -> Check:
    kind = shared.kind_of_file_system(os.path.dirname(directory.path)) or "of unknown kind"
    if not page.shared:
        return Check("file system", "warn", f"{kind}: no control page ({page.problem})", _TOLD_LATE)
    if kind in ("tmpfs", "ramfs"):
        return Check("file system", "ok", f"{kind}: has a control page; what is built here is gone after a restart")
    return Check("file system", "ok", f"{kind}: has a control page, which all processes of this machine share")


# --- with another process ---------------------------------------------------------------------------------------------


class _Probe:
    """A file as workers use it: a process writes it by `pwrite`, the others see a word of it change in a map which they
    only read. They read the rest by `pread`. A context manager."""

    def __init__(self, path: str) -> None:
        """Raises UnusableFileError."""
        with contextlib.ExitStack() as ending:
            file = shared.open_small(path, _SIZE)
            if file is None:
                raise MissingFileError("there is no such file", path=path)
            self._file = ending.enter_context(file)
            with contextlib.closing(fs.ReadFile(path)) as mapped:
                self._words = memoryview(mapped.map()).cast("Q")
            self._ending = ending.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def write(self, word: int, value: int) -> None:
        """Raises OSError."""
        self._file.write(8 * word, value.to_bytes(8, sys.byteorder))

    def read(self, word: int) -> int:
        return int.from_bytes(self._file.read(8 * word, 8), sys.byteorder)

    def wait(self, word: int, value: int, lives: Callable[[], bool] = lambda: True) -> bool:
        """Until it is seen in the map; whether it is."""
        deadline = time.monotonic() + _PATIENCE
        turns = 0
        while self._words[word] != value:
            turns += 1
            if time.monotonic() > deadline or (turns % 256 == 0 and not lives()):
                return bool(self._words[word] == value)
            time.sleep(0)
        return True


def _check_processes(directory: fs.Directory) -> Iterator[Check]:
    path = _map_name(directory.path)
    with contextlib.ExitStack() as ending:
        ours = None
        try:
            shared.create(path, bytes(_SIZE))
            ours = ending.enter_context(_Probe(path))
        except MmcacheError as error:
            yield Check("shared map", "warn", f"no file could be mapped: {error.message}", _TOLD_LATE)
        try:
            other = ending.enter_context(_other(directory.path))
        except OSError as error:
            text = f"no other process could be started to try it with: {error.strerror}"
            yield Check(
                "build lock", "warn", text, "see whether this user, or this container, may start more processes"
            )
            return
        if ours is not None:
            yield _check_map(ours, other)
        yield _check_lock(directory, other)


@contextlib.contextmanager
def _other(path: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, which ends when its stdin does."""
    root = str(Path(__file__).parent.parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-P", "-m", __spec__.name, path]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, bufsize=0, env=environment, stdin=pipe, stdout=pipe)  # noqa: S603
    with process:
        try:
            yield process
        finally:
            process.kill()


def _check_map(ours: _Probe, other: subprocess.Popen[bytes]) -> Check:
    """Ask through one word, and be answered through another. Each is seen in a map, and what goes with it is read."""
    name, advice = "shared map", f"a control page does not work here: {_TOLD_LATE}"
    times = []
    for i in range(1, _ROUNDS + 1):
        begun = time.perf_counter()
        try:
            ours.write(_TEXT, i)
            ours.write(_ASKED, i)
            seen = ours.wait(_ANSWERED, i, lambda: other.poll() is None) and ours.read(_TEXT) == -i & _WORD
        except OSError as error:
            return Check(name, "fail", f"a file could not be written in place: {error.strerror}", advice)
        except UnusableFileError as error:
            return Check(name, "fail", error.message, advice)
        if not seen:
            if other.poll() is not None:
                return Check(
                    name, "fail", f"the process to try it with ended with code {other.returncode}", "see above"
                )
            return Check(name, "fail", "a write of one process was not seen by another, or its answer by us", advice)
        times.append(time.perf_counter() - begun)
    typical = span(statistics.median(times))
    return Check(
        name, "ok", f"{_ROUNDS} writes each way were seen by another process and by us, {typical} there and back"
    )


def _answer(ours: _Probe) -> None:
    for i in range(1, _ROUNDS + 1):
        if not ours.wait(_ASKED, i) or ours.read(_TEXT) != i:
            raise SystemExit(2)
        ours.write(_TEXT, -i & _WORD)
        ours.write(_ANSWERED, i)


def _check_lock(directory: fs.Directory, other: subprocess.Popen[bytes]) -> Check:
    """The build lock: taken by the other, refused to us, and free as soon as the other is killed."""
    name, advice = "build lock", "two builds could run at once: put the file on another file system"
    assert other.stdin is not None
    assert other.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        other.stdin.write(b"\n")
    if other.stdout.readline() != b"held\n":
        return Check(name, "fail", "another process could not take it", advice)
    try:
        with buildlock.hold(directory, 0.0):
            return Check(name, "fail", "it was given to us while another process held it", advice)
    except LockTimeoutError:
        pass
    except MmcacheError as error:
        return Check(name, "fail", error.message, advice)
    begun = time.perf_counter()
    other.kill()
    try:
        with buildlock.hold(directory, _PATIENCE):
            took = time.perf_counter() - begun
    except MmcacheError as error:
        return Check(name, "fail", f"it was not free after its holder was killed: {error.message}", advice)
    return Check(name, "ok", f"excludes other processes, and was free {span(took)} after its holder was killed")


def _map_name(path: str) -> str:
    return f"{path}.map"


def check_space(directory: str, size: int) -> Check:
    """size: of the file that will be built again here; 0 if there is none yet."""
    name = "disk space"
    try:
        free = fs.free_bytes(directory)
    except PublishError as error:
        return Check(name, "warn", error.message)
    if not size:
        return Check(name, "ok", f"{bytes_of(free)} free")
    text = f"{bytes_of(free)} free, and a rebuild needs about {bytes_of(size)} until it has replaced the old backup"
    if free < size:
        return Check(name, "fail", text, "free some space: no rebuild can succeed")
    return Check(name, "warn" if free < 2 * size else "ok", text, "free some space" if free < 2 * size else "")


def main(path: str) -> None:
    """The other process."""
    with contextlib.suppress(MissingFileError), _Probe(_map_name(path)) as probe:
        _answer(probe)
    sys.stdin.readline()
    with fs.Directory(path) as directory, buildlock.hold(directory, 0.0):
        print("held", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1])
