"""The build lock: one writer of a file at a time, over all processes and threads. It is freed when its holder dies.

It is an `flock` of the lock file beside the cache file, by `take` or `hold`. A worker that starts a builder takes the
lock and hands the descriptor on; the builder makes it its own by `receive`. The lock file says which process holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from typing import Final

from ..errors import LockTimeoutError, PublishError, UntrustedPathError
from . import fs
from .descriptors import RANGES, Descriptor, is_byte_locked, lock_byte
from .failures import failed
from .names import lock_name

__all__ = ["check", "free", "hold", "receive", "take"]

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE: Final = 0o660
"""Of the lock file, less the umask."""
_BUILD_BYTE: Final = 2
"""Of the lock file. A process that builds for another holds it by an open file of its own: see `receive`."""


@contextlib.contextmanager
def hold(directory: fs.Directory, timeout: float, given: Descriptor | None = None) -> Iterator[None]:
    """Hold the lock of the directory's file.

    timeout: seconds to wait for another holder; 0 tries once. given: a descriptor that holds it already, and that stays
    the caller's. Raises LockTimeoutError, which names the holder, and PublishError.
    """
    if given is not None:
        check(directory, given)
        _sign(given.fd)
        yield
        return
    lock = take(directory, timeout)
    try:
        yield
    finally:
        free(lock)


def take(directory: fs.Directory, timeout: float) -> Descriptor:
    """A descriptor that holds the lock until it is closed, or is handed to a child process to `hold` with.

    timeout, errors: as of `hold`.
    """
    deadline, pause = time.monotonic() + timeout, 0.001
    while True:
        found = _tried(directory)
        if isinstance(found, Descriptor):
            return found
        if (left := deadline - time.monotonic()) <= 0:
            name = lock_name(directory.name)
            raise LockTimeoutError(f"another build holds {name!r}{found}: try later", path=directory.path)
        time.sleep(min(pause, left))
        pause = min(2 * pause, 0.05)


def check(directory: fs.Directory, given: Descriptor) -> None:
    """Raises PublishError unless this descriptor is of the lock file that is there."""
    try:
        is_ours = directory.is_at(lock_name(directory.name), given.identify())
    except OSError as error:
        raise failed(error, directory.path, "take over the lock") from None
    if not is_ours:
        raise PublishError("the lock that was handed over is not that of this file", path=directory.path)


def receive(fd: int) -> Descriptor:
    """The build lock, from the process that started this one and gave it the descriptor. Raises PublishError.

    A host that forks in C may have forked the parent when it had the open file: then other processes have it, too, and
    keep the lock though this one dies. So it is held by an open file that no process but this one has.
    """
    given, lock = Descriptor(fs.system, is_lock=True), Descriptor(fs.system, is_lock=True)
    try:
        given.receive(fd)
        fs.system.set_inheritable(fd, False)  # noqa: FBT003 (the system's own signature)
        with contextlib.suppress(FileNotFoundError):  # without /proc the one that was given must do
            lock.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        if not RANGES or lock.identity != given.identity:
            return given
        free(given)  # first: else one that is killed between leaves it to those that C code forked
        while not _take(lock.fd):  # others have it for as long as it takes them to see the byte, or build
            time.sleep(0.001)
    except OSError as error:
        raise failed(error, f"descriptor {fd}", "take over the lock") from None
    return lock


def free(lock: Descriptor) -> None:
    """Free the lock, also where a process that C code forked has the open file, too."""
    if lock.is_ours():
        with contextlib.suppress(OSError):
            fcntl.flock(lock.fd, fcntl.LOCK_UN)
    lock.close()


def _tried(directory: fs.Directory) -> Descriptor | str:
    """A descriptor that holds the lock, if it is free; else what the lock file says of its holder."""
    from filelock import lock_descriptor

    name = lock_name(directory.name)
    while True:
        lock = Descriptor(fs.system, is_lock=True)
        try:
            status = lock.open(name, _FLAGS, _MODE, directory.fd)
            directory.check(name, status)
            if status.st_nlink > 1:
                raise UntrustedPathError(f"the lock file has {status.st_nlink} names: remove it", path=directory.path)
            if lock_descriptor(lock.fd, blocking=False) and not _is_built_elsewhere(lock):
                if directory.is_at(name, status):
                    _sign(lock.fd)
                    return lock
                # Case: the file was replaced between our open and our lock. Only the lock on the file that stands under
                # the name excludes others.
                free(lock)
                continue
            holder = _signature(lock.fd)
        except OSError as error:
            free(lock)
            if isinstance(error, UntrustedPathError):
                raise
            raise failed(error, directory.path, f"take the lock {name!r}") from None
        free(lock)
        return holder


def _take(fd: int) -> bool:
    """The byte, if this file system has such locks, and the lock."""
    return (lock_byte(fd, _BUILD_BYTE) or not is_byte_locked(fd, _BUILD_BYTE)) and _try_flock(fd)


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_built_elsewhere(lock: Descriptor) -> bool:
    return RANGES and is_byte_locked(lock.fd, _BUILD_BYTE)


def _sign(fd: int) -> None:
    """Write into the file which process holds the lock, for the error message of a process that waits in vain."""
    with contextlib.suppress(OSError):
        fs.system.pwrite(fd, f"pid {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".ljust(64).encode(), 0)


def _signature(fd: int) -> str:
    try:
        text = fs.system.pread(fd, 64, 0).decode("ascii", "replace").strip()
    except OSError:
        text = ""
    return f" ({text})" if text.isprintable() and text else ""
