"""What a directory can do: tried out with files of our own in it, and with another process, which are gone afterwards.

That other process is this module as a program. It maps the same file as we do and answers through it, then it takes
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
from typing import Final, Literal, NamedTuple

from ..errors import LockTimeoutError, MmcacheError, PublishError
from ..sharing.control import attach, control_name
from ..storage import fs, shared
from ..words import bytes_of, printable, span

__all__ = ["Check", "check_directory"]

_SIZE: Final = 4096
_ASKED, _ANSWERED = 0, 64
"""Words, far enough apart to be on other cache lines."""
_ROUNDS: Final = 200
_PATIENCE: Final = 10.0
"""Seconds for another process to start, to answer, to die."""

_NOT_TRIED: Final = "nothing can be written here, so it was not tried"
_TOLD_LATE: Final = (
    "workers notice what others do once every check_interval (1 s), and nobody can invalidate; "
    "put the file on a local file system that this user may write"
)


class Check(NamedTuple):
    """text: what was found. advice: what to do about it."""

    name: str
    level: Literal["ok", "warn", "fail"]
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
    if status.st_mode & 0o002 and not status.st_mode & 0o1000:
        return Check(name, "fail", f"{where} can be written by anyone, so no file in it is trusted", "chmod o-w it")
    if status.st_mode & 0o002:
        text = f"anyone may put files into {where}: only your own are used, and no other user's worker reads them"
        return Check(name, "warn", text, "use a directory of your own")
    return Check(name, "ok", f"{where} is written by its owner (uid {status.st_uid}) and group only")


def _not_written(error: MmcacheError) -> Check:
    text = f"files here can be read, but not built, invalidated or counted by this user: {error.message}"
    return Check("write access", "warn", text, "to build here, run as the owner of the directory, or use another one")


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
    try:
        yield _check_file_system(directory)
        yield from _check_processes(directory)
    finally:
        for name in (control_name(directory.name), _map_name(directory.name), fs.lock_name(directory.name)):
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
        return Check("hard links", "ok", "there are: a backup costs no space, and the control page appears whole")
    return Check("hard links", "warn", "there are none: backups are copies, and there is no control page", _TOLD_LATE)


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


def _check_file_system(directory: fs.Directory) -> Check:
    kind = shared.kind_of_file_system(os.path.dirname(directory.path)) or "of unknown kind"
    page = attach(directory.path)
    if not page.shared:
        return Check("file system", "warn", f"{kind}: no control page ({page.problem})", _TOLD_LATE)
    if kind in ("tmpfs", "ramfs"):
        return Check("file system", "ok", f"{kind}: has a control page; what is built here is gone after a restart")
    return Check("file system", "ok", f"{kind}: has a control page, which all processes of this machine share")


# --- with another process ---------------------------------------------------------------------------------------------


def _check_processes(directory: fs.Directory) -> Iterator[Check]:
    path = _map_name(directory.path)
    ours = None
    try:
        shared.create(path, bytes(_SIZE))
        ours = shared.open_shared(path, _SIZE)
    except MmcacheError as error:
        yield Check("shared map", "warn", f"no file could be mapped: {error.message}", _TOLD_LATE)
    try:
        with _other(directory.path) as other:
            if ours is not None:
                yield _check_map(ours.words, other)
            yield _check_lock(directory, other)
    except OSError as error:
        text = f"no other process could be started to try it with: {error.strerror}"
        yield Check("build lock", "warn", text, "see whether this user, or this container, may start more processes")


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


def _check_map(words: memoryview, other: subprocess.Popen[bytes]) -> Check:
    """Ask through one word, and be answered through another."""
    name, advice = "shared map", f"a control page does not work here: {_TOLD_LATE}"
    times = []
    for i in range(1, _ROUNDS + 1):
        begun = time.perf_counter()
        words[_ASKED] = i
        if not _wait_for(words, _ANSWERED, i, lambda: other.poll() is None):
            if other.poll() is not None:
                return Check(
                    name, "fail", f"the process to try it with ended with code {other.returncode}", "see above"
                )
            return Check(name, "fail", "a store of one process was not seen by another, or its answer by us", advice)
        times.append(time.perf_counter() - begun)
    typical = span(statistics.median(times))
    return Check(
        name, "ok", f"{_ROUNDS} stores each way were seen by another process and by us, {typical} there and back"
    )


def _wait_for(words: memoryview, word: int, value: int, lives: Callable[[], bool] = lambda: True) -> bool:
    deadline = time.monotonic() + _PATIENCE
    turns = 0
    while words[word] != value:
        turns += 1
        if time.monotonic() > deadline or (turns % 256 == 0 and not lives()):
            return bool(words[word] == value)
        time.sleep(0)
    return True


def _answer(words: memoryview) -> None:
    for i in range(1, _ROUNDS + 1):
        if not _wait_for(words, _ASKED, i):
            raise SystemExit(2)
        words[_ANSWERED] = i


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
        with directory.lock(0.0):
            return Check(name, "fail", "it was given to us while another process held it", advice)
    except LockTimeoutError:
        pass
    except MmcacheError as error:
        return Check(name, "fail", error.message, advice)
    begun = time.perf_counter()
    other.kill()
    try:
        with directory.lock(_PATIENCE):
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
    file = shared.open_shared(_map_name(path), _SIZE)
    if file is not None:
        _answer(file.words)
    sys.stdin.readline()
    with fs.Directory(path) as directory, directory.lock(0.0):
        print("held", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1])
