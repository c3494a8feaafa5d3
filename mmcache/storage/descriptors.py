"""Descriptors that are closed once, by their owner, and only while they are still those of the file that was opened.

An exception may come between any two instructions: see `owner`. A program may close descriptors that it does not know,
and open files under the same numbers: device and inode are compared before a number is closed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from functools import partial
from typing import Any, Final

from ..forks import on_fork
from ..owner import Owner

__all__ = ["RANGES", "Descriptor", "is_byte_locked", "lock_byte", "unlock_byte"]


class Descriptor:
    """One descriptor, or none yet. `fd` is -1 before `open` and after `close`. Closed with its last reference.

    system: the `os` module, or what tests put in its place. is_lock: it is about to carry a lock. A forked child, which
    would keep the lock alive, closes it at once.
    """

    __slots__ = ("__weakref__", "_close", "_fstat", "_open", "_owner", "identity")

    def __init__(self, system: Any, *, is_lock: bool = False) -> None:
        self.identity: tuple[int, int] | None = None
        self._open = system.open
        self._fstat = system.fstat
        self._close = system.close
        self._owner = Owner(system.close)
        if is_lock:
            on_fork(self)

    @property
    def fd(self) -> int:
        found = self._owner.owned
        return -1 if found is None else found

    def fileno(self) -> int:
        return self.fd

    def open(self, path: str, flags: int, mode: int | None = None, directory: int | None = None) -> os.stat_result:
        """Open a path, relative to the descriptor of a directory; what the file is. Raises OSError, and has none then.

        mode: of a file that is created, less the umask."""
        more = {"mode": mode, "dir_fd": directory}
        opening = partial(self._open, **{name: value for name, value in more.items() if value is not None})
        self._owner = Owner(self._close)
        self._owner.take(opening, path, flags)
        try:
            if self.fd <= 2:
                self._leave_the_standard_streams()
            return self.identify()
        except OSError:
            self.close()
            raise

    def _leave_the_standard_streams(self) -> None:
        """Where a stray print would write into the file."""
        low, high = self._owner, Owner(self._close)
        high.take(fcntl.fcntl, low.owned, fcntl.F_DUPFD_CLOEXEC, 3)
        self._owner = high
        low.give_back()

    def receive(self, fd: int) -> None:
        """Own a descriptor that came from the process which started this one. Raises OSError."""
        self._owner.take(int, fd)
        self.identify()

    def copy(self, fd: int) -> None:
        """Own another descriptor of what is open. Raises OSError."""
        self._owner.take(fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC, 3)
        self.identify()

    def identify(self) -> os.stat_result:
        """What the file is, by which its descriptor is known from now on. Raises OSError."""
        status: os.stat_result = self._fstat(self.fd)
        self.identity = status.st_dev, status.st_ino
        return status

    def is_ours(self) -> bool:
        """Whether the number is still that of the file. One `fstat`."""
        fd = self.fd
        if fd < 0 or self.identity is None:
            return fd >= 0
        try:
            status = self._fstat(fd)
        except OSError as error:
            return error.errno != errno.EBADF
        return (status.st_dev, status.st_ino) == self.identity

    def close(self) -> None:
        """And so free its lock."""
        try:
            if self.is_ours():
                self._owner.give_back()
            else:
                self._owner.forget()
        except OSError:
            pass  # it is closed, whatever the system says of it

    begin_process = close

    def __del__(self) -> None:
        if errno is not None and hasattr(self, "_owner"):  # at interpreter exit this module may be half gone
            self.close()


# --- locks on one byte of a file --------------------------------------------------------------------------------------

RANGES: Final = hasattr(fcntl, "F_OFD_SETLK")
"""Whether there are locks that belong to an open file (Linux). Those of a process would drop with any descriptor."""


def lock_byte(fd: int, byte: int) -> bool:
    """Whether the lock was to be had. It excludes no `flock`."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _range(fcntl.F_WRLCK, byte))
    except OSError:
        return False
    return True


def unlock_byte(fd: int, byte: int) -> None:
    """Free it for every process that has the open file. Raises OSError."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _range(fcntl.F_UNLCK, byte))


def is_byte_locked(fd: int, byte: int) -> bool:
    """Whether another open file has the lock. Raises OSError."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _range(fcntl.F_WRLCK, byte))
    return int(struct.unpack("@hhqqi4x", found)[0]) != fcntl.F_UNLCK


def _range(kind: int, byte: int) -> bytes:
    """A `struct flock`."""
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
