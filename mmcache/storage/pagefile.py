"""Files through which processes tell each other: read by `pread`, written by `pwrite`, and one word that is mapped.

A `PageFile` is never mapped, so no truncation and no full disk can end its reader with a signal. What readers compare
before each get is the word of a `.wake` file, mapped read-only: 8 bytes that writers store with `pwrite`.

The page lock is a range lock on the lock file, which only writers can open, so that no reader can hold up a writer. It
belongs to the open file and not to the process. It dies with its holder, and does not exclude the build lock, a `flock`
on the same file. Where the system has no such locks, it is a `flock` on the page.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from ..errors import UntrustedPathError, UnusableFileError
from . import fs, shared
from .descriptors import RANGES, Descriptor, lock_byte, unlock_byte
from .failures import failed
from .names import lock_name
from .trust import check_readable

__all__ = ["NO_WORD", "PageFile", "Wake", "Word", "create_wake", "open_page_file", "open_wake", "page_lock"]

_FLAGS: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MODE: Final = 0o664
"""Of pages and wake files, less the umask: who may write the directory can tell, who may read the file can hear."""
_LOCK_MODE: Final = 0o660
_LOCK_BYTE: Final = 1


class PageFile:
    """A page that is open. Any thread may use it, and a forked child: no call moves a file position."""

    __slots__ = ("_descriptor", "identity", "path", "writable")

    def __init__(self, path: str, descriptor: Descriptor, *, writable: bool) -> None:
        assert descriptor.identity is not None
        self.path = path
        self.writable = writable
        self.identity = descriptor.identity
        self._descriptor = descriptor

    @property
    def fd(self) -> int:
        return self._descriptor.fd

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from an offset, fewer where the file ends or cannot be read."""
        try:
            data: bytes = fs.system.pread(self.fd, length, offset)
            while len(data) < length and (more := fs.system.pread(self.fd, length - len(data), offset + len(data))):
                data += more
        except OSError:
            return b""
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Raises PublishError."""
        try:
            done = 0
            while done < len(data):
                moved = fs.system.pwrite(self.fd, data[done:], offset + done)
                if not moved:
                    raise OSError(errno.EIO, "nothing was written")
                done += moved
        except OSError as error:
            raise failed(error, self.path, "write the control page") from None

    def is_current(self) -> bool:
        """Whether the path still names this file, and it has no other name. One `stat`."""
        try:
            status = fs.system.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.identity and status.st_nlink == 1

    def links(self) -> int:
        """How many names it has."""
        try:
            return int(fs.system.fstat(self.fd).st_nlink)
        except OSError:
            return 0

    def close(self) -> None:
        self._descriptor.close()


def open_page_file(path: str) -> PageFile | None:
    """Open what is at a path, for writing where we may; None where there is nothing.

    Raises UnusableFileError for what cannot be trusted or read.
    """
    descriptor = Descriptor(fs.system)
    try:
        status, writable = fs.open_to_write(descriptor, path)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedPathError("expected a regular file: remove it", path=path)
        check_readable(path, status, fs.system.stat(os.path.dirname(path) or "."))
    except FileNotFoundError:
        return None
    except OSError as error:
        descriptor.close()
        raise (error if isinstance(error, UnusableFileError) else fs.unusable(error, path)) from None
    return PageFile(path, descriptor, writable=writable)


# --- the word that is mapped ------------------------------------------------------------------------------------------

Word = Any
"""What a get compares: `word[0]`, an int. A memoryview of format "Q", or an object that stands in for one."""

NO_WORD: Final[Word] = memoryview(bytes(8)).cast("Q")
"""The word of what is closed."""

_LAYERED: Final = ("overlay", "aufs", "unionfs")
"""File systems on which a file is copied when it is first opened for writing: a map that was made before shows what
the file was."""


class Wake:
    """A wake file that is open. word: mapped read-only. Its descriptor stays open, for a name that was given to another
    file must not keep a writer from those that have this one mapped."""

    __slots__ = ("_file", "word")

    def __init__(self, file: PageFile) -> None:
        """Raises OSError or ValueError."""
        self._file = file
        if not file.writable and shared.kind_of_file_system(os.path.dirname(file.path)).startswith(_LAYERED):
            self.word: Word = _ReadWord(file)
            return
        extra = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        mapped = fs.map_file(file.fd, 8, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, **extra)
        self.word = memoryview(mapped).cast("Q")

    @property
    def inode(self) -> int:
        return self._file.identity[1]

    def is_current(self) -> bool:
        return self._file.is_current()

    def store(self, value: int) -> None:
        """Raises PublishError."""
        self._file.write(0, struct.pack("=Q", value))

    def close(self) -> None:
        """The map goes with the last that refers to it."""
        self._file.close()
        self.word = NO_WORD


class _ReadWord:
    """A word that is read each time: about a microsecond."""

    def __init__(self, file: PageFile) -> None:
        self._file = file

    def __getitem__(self, _: int) -> int:
        return int.from_bytes(self._file.read(0, 8), sys.byteorder)


def create_wake(directory: fs.Directory, name: str, value: int) -> int:
    """A new wake file; its inode. Raises PublishError."""
    try:
        made = directory.make(name, MODE)
    except OSError as error:
        raise failed(error, directory.path, f"create {name!r}") from None
    with made as file:
        file.write(0, struct.pack("=Q", value))
        inode = file.identity()[1]
        file.published()
    return inode


def open_wake(path: str) -> Wake | None:
    """The wake file at a path; None for one that is missing or wrong. Raises UnusableFileError where it may be right,
    and this process has no room left to open or map it: a page must not be replaced for that."""
    file = None
    try:
        file = open_page_file(path)
        if file is None:
            return None
        status = fs.system.fstat(file.fd)
        if status.st_size == 8 and status.st_nlink == 1:
            return Wake(file)
    except UntrustedPathError:
        return None
    except (OSError, ValueError) as error:
        if file is not None:
            file.close()
        raise UnusableFileError(f"cannot be mapped ({error})", path=path) from None
    file.close()
    return None


# --- the page lock ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def page_lock(page: str, path: str, timeout: float) -> Iterator[bool]:
    """Hold the page lock of the cache file at a path, for microseconds; False, without it, when it was not to be had.

    page: path of the page. timeout: seconds. Raises PublishError where the lock file cannot be opened or trusted.
    """
    lock = _lock_file(path, lock_name(path) if RANGES else page)
    try:
        deadline, pause = time.monotonic() + timeout, 0.00005
        while not (is_held := _try_lock(lock.fd)) and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, 0.002)
        yield is_held
    finally:
        _unlock(
            lock.fd
        )  # a child that was forked meanwhile has the open file too: closing ours would not free the lock
        lock.close()


def _lock_file(cache: str, path: str) -> Descriptor:
    """The lock file, opened, and not locked."""
    lock = Descriptor(fs.system, is_lock=True)
    try:
        try:
            status = lock.open(path, os.O_RDWR | _FLAGS)
        except FileNotFoundError:
            with fs.Directory(cache) as directory:  # which refuses to write where the directory is not to be trusted
                name = os.path.basename(path)
                status = lock.open(name, os.O_RDWR | os.O_CREAT | _FLAGS, _LOCK_MODE, directory.fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise UntrustedPathError(
                f"expected a lock file of one name, found {status.st_nlink} names: remove it", path=path
            )
        check_readable(path, status, fs.system.stat(os.path.dirname(path) or "."))
    except OSError as error:
        lock.close()
        if isinstance(error, UntrustedPathError):
            raise
        raise failed(error, path, "open the lock file") from None
    return lock


def _try_lock(fd: int) -> bool:
    if RANGES:
        return lock_byte(fd, _LOCK_BYTE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(fd: int) -> None:
    with contextlib.suppress(OSError):
        if RANGES:
            unlock_byte(fd, _LOCK_BYTE)
        else:
            fcntl.flock(fd, fcntl.LOCK_UN)
