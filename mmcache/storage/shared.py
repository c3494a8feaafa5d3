"""Small files of 64-bit words that processes share: the archive and the slots of metrics, and the control page.

A `SmallFile` is read by `pread` and written by `pwrite`: a file that others emptied, or a full disk, is an error and
never a signal. The control page is still mapped, as a `SharedFile`: a word of it is written only as `words[i] = value`,
one aligned 8-byte store, which no reader ever sees in part. (The `struct` module zero-fills before it writes.)

A file is created whole, written out with zeros and linked into its place, and never truncated or resized.

The locks here are the kernel's, on a descriptor of their own: they die with their holder, and a forked child does
not inherit them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Self

from ..errors import CorruptFileError, PublishError, UnusableFileError
from . import fs
from .trust import check_readable

__all__ = [
    "Holding",
    "SharedFile",
    "SmallFile",
    "create",
    "create_held",
    "is_held",
    "names_beside",
    "open_shared",
    "open_small",
    "replace",
]

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_MODE = 0o664
"""Less the umask: who may write the directory may signal, who may read the file may listen."""


class SmallFile:
    """An open file of a known size. A context manager; a forked child, whose parent may hold the lock, loses it."""

    __slots__ = ("fd", "identity", "path", "writable")

    def __init__(self, path: str, fd: int, *, writable: bool) -> None:
        """The descriptor is this object's from now on."""
        self.fd = -1
        fs.hold(fd)
        self.path = path
        self.identity = _identity(fd)
        self.writable = writable
        self.fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the lock, too."""
        fd, self.fd = self.fd, -1
        _close(fd, self.identity)

    def __del__(self) -> None:
        # At interpreter exit these modules may be half gone, and the system closes what is left.
        if self.fd >= 0 and fs is not None and fs.system is not None:
            self.close()

    def read(self, offset: int, length: int) -> bytes:
        """All of these bytes. Raises CorruptFileError where the file ends before, UnusableFileError as the system."""
        data = b""
        try:
            while len(data) < length and (more := fs.system.pread(self.fd, length - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise fs.unusable(error, self.path) from None
        if len(data) < length:
            raise CorruptFileError(f"ends before byte {offset + length}: remove it", path=self.path)
        return data

    def write(self, offset: int, data: bytes) -> None:
        """In one call, unless the system takes a part at a time. Raises OSError."""
        _write(self.fd, offset, data)

    def is_current(self) -> bool:
        """Whether the path still names this file. One `stat`."""
        return identity_at(self.path) == self.identity

    def lock(self, timeout: float = 1.0, *, exclusive: bool = True) -> bool:
        """Take the file's lock, which is freed when the file is closed. False, without the lock, when it was not to be
        had in time, or another file stands at the path by now: see `is_current`."""
        deadline = time.monotonic() + timeout
        pause = 0.00005
        while not _try_lock(self.fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH):
            if time.monotonic() >= deadline or not self.is_current():
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.005)
        return self.is_current()


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _identity(fd: int) -> tuple[int, int]:
    status = fs.system.fstat(fd)
    return status.st_dev, status.st_ino


def _is_same(fd: int, identity: tuple[int, int]) -> bool:
    try:
        return fd >= 0 and _identity(fd) == identity
    except OSError as error:
        return error.errno != errno.EBADF


def _close(fd: int, identity: tuple[int, int]) -> None:
    """Close a descriptor while it is still that of a file: another may have been opened under its number."""
    if _is_same(fd, identity):
        fs.release(fd)
    else:
        fs.disown(fd)


def _write(fd: int, offset: int, data: bytes) -> None:
    while data:
        moved = fs.system.pwrite(fd, data, offset)
        if not moved:  # POSIX leaves it open; trying again could take for ever
            raise OSError(errno.EIO, "nothing was written")
        data, offset = data[moved:], offset + moved


class SharedFile:
    """A mapped file. `words`: memoryview of format "Q", in native byte order; read-only unless `writable`.

    Unmapped with its last reference.
    """

    __slots__ = ("identity", "path", "words", "writable")

    def __init__(self, path: str, fd: int, size: int, *, writable: bool) -> None:
        status = fs.system.fstat(fd)
        self.path = path
        self.identity = status.st_dev, status.st_ino
        self.writable = writable
        extra = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.words = memoryview(fs.map_file(fd, size, flags=mmap.MAP_SHARED, prot=prot, **extra)).cast("Q")

    def is_current(self) -> bool:
        """Whether the path still names this file. One `stat`."""
        return identity_at(self.path) == self.identity

    @contextlib.contextmanager
    def locked(self, timeout: float = 1.0, *, exclusive: bool = True) -> Iterator[bool]:
        """Hold the file's lock, for microseconds. False, without the lock, when it was not to be had in time, or
        another file stands at the path by now: see `is_current`."""
        fd = _lock(self.path, self.identity, timeout, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        try:
            yield fd >= 0
        finally:
            fs.release(fd)


def _lock(path: str, identity: tuple[int, int] | None, timeout: float, kind: int) -> int:
    """A descriptor that holds the lock of the file at a path, or -1. identity: the only file that will do."""
    deadline = time.monotonic() + timeout
    pause = 0.00005
    while True:
        try:
            fd = fs.system.open(path, os.O_RDONLY | _FLAGS)
        except OSError:
            return -1
        fs.hold(fd)
        found = None
        try:
            status = fs.system.fstat(fd)
            found = status.st_dev, status.st_ino
            if identity in (None, found):
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
                # Someone may have put another file there between our open and our lock.
                if identity_at(path) == found:
                    return fd  # type: ignore[no-any-return]
        except BlockingIOError:
            pass
        except OSError:
            deadline = 0.0
        fs.release(fd)
        if (identity is not None and found != identity) or time.monotonic() >= deadline:
            return -1
        time.sleep(pause)
        pause = min(2 * pause, 0.005)


class Holding:
    """A lock held for as long as its process lives or until `close`: that is how others know that it lives.

    Its descriptor writes, too, where `create_held` made it. It is used and closed only while it is still that file: a
    program that closes descriptors which it does not know may have opened another file under the same number.
    """

    def __init__(self, path: str) -> None:
        """Raises OSError, or BlockingIOError where another holds it."""
        self._lock(fs.system.open(path, os.O_RDONLY | _FLAGS))

    @classmethod
    def _of(cls, fd: int) -> Holding:
        holding = cls.__new__(cls)
        holding._lock(fd)
        return holding

    def _lock(self, fd: int) -> None:
        self.fd = -1
        fs.hold(fd)
        try:
            self._identity = _identity(fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            fs.release(fd)
            raise
        self.fd = fd

    def is_ours(self) -> bool:
        """Whether the descriptor is still that of the file. One `fstat`."""
        return _is_same(self.fd, self._identity)

    def write(self, content: bytes) -> None:
        """From the file's begin. Raises OSError."""
        _write(self.fd, 0, content)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        _close(fd, self._identity)

    def __del__(self) -> None:
        # At interpreter exit these modules may be half gone, and the system closes what is left.
        if getattr(self, "fd", -1) >= 0 and fs is not None and fs.system is not None:
            self.close()


def is_held(path: str) -> bool:
    """Whether another descriptor, of any process, holds the lock of the file at a path. False where there is none."""
    try:
        fd = fs.system.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return False
    fs.hold(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        fs.release(fd)
    return False


@cache
def boot_id() -> bytes:
    """That changes when the machine starts; b"" where the system does not tell."""
    try:
        fd = fs.system.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return fs.system.read(fd, 64).strip()  # type: ignore[no-any-return]
    except OSError:
        return b""
    finally:
        fs.close_quietly(fd)


def private_bytes() -> int:
    """Resident bytes that this process shares with no file; 0 where the system does not tell."""
    try:
        fd = fs.system.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fields = fs.system.read(fd, 256).split()
        return (int(fields[1]) - int(fields[2])) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return 0
    finally:
        fs.close_quietly(fd)


@lru_cache(maxsize=256)
def _kind_of_device(device: int, directory: str) -> str:
    try:
        fd = fs.system.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        text = b"".join(iter(lambda: fs.system.read(fd, 65_536), b"")).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        fs.close_quietly(fd)
    number = f"{os.major(device)}:{os.minor(device)}"
    best, kind = "", ""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        place = fields[4].replace("\\040", " ")
        inside = directory == place or directory.startswith(place.rstrip("/") + "/")
        # The device tells where a mount hides another; some file systems give their files other devices.
        if (inside and len(place) >= len(best)) or (fields[2] == number and not kind):
            best, kind = place, right.split(" ")[0]
    return kind


def kind_of_file_system(directory: str) -> str:
    """As in /proc/self/mountinfo ("ext4", "nfs4", "fuse.sshfs"); "" where the system does not tell."""
    try:
        return _kind_of_device(fs.system.stat(directory).st_dev, os.path.abspath(directory))
    except OSError:
        return ""


def identity_at(path: str) -> tuple[int, int] | None:
    """Device and inode of what is at a path now."""
    identity = fs.identity_of(path)
    return None if identity is None else identity[:2]


def open_shared(path: str, size: int) -> SharedFile | None:
    """Map what is at a path, writable where we may; None where there is nothing.

    Raises CorruptFileError for a file of another size, UnusableFileError for what cannot be trusted, read or mapped.
    """
    small = open_small(path, size)
    if small is None:
        return None
    with small:
        try:
            return SharedFile(path, small.fd, size, writable=small.writable)
        except (OSError, ValueError) as error:
            raise UnusableFileError(f"cannot be mapped ({error})", path=path) from None


def open_small(path: str, size: int) -> SmallFile | None:
    """Open what is at a path, to be written where we may; None where there is nothing.

    Raises CorruptFileError for a file of another size, UnusableFileError for what cannot be trusted or read.
    """
    fd = -1
    try:
        fd, writable = _opened(path)
        status = fs.system.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableFileError("expected a regular file: remove it", path=path)
        check_readable(path, status, fs.system.stat(os.path.dirname(path) or "."))
        if status.st_size != size:
            raise CorruptFileError(f"expected {size} bytes, found {status.st_size}: remove it", path=path)
        return SmallFile(path, fd, writable=writable)
    except BaseException as error:
        fs.release(fd)
        if fd < 0 and isinstance(error, FileNotFoundError):
            return None
        if isinstance(error, OSError) and not isinstance(error, UnusableFileError):
            raise fs.unusable(error, path) from None
        raise


def _opened(path: str) -> tuple[int, bool]:
    try:
        return fs.system.open(path, os.O_RDWR | _FLAGS), True
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
    return fs.system.open(path, os.O_RDONLY | _FLAGS), False


def create(path: str, content: bytes) -> bool:
    """Put a whole file at a path where there is none. Raises PublishError.

    False if another process was first, or swept our temporary file away: look again.
    """
    with fs.Directory(path) as directory, directory.create(_MODE) as file:
        file.write(0, content)
        try:
            if directory.link(file.name or "", directory.name):
                return True
        except PublishError as error:
            if error.errno in (errno.EEXIST, errno.ENOENT):
                return False
            raise
    raise PublishError("the file system has no hard links", path=path)


def create_held(path: str, content: bytes) -> Holding:
    """A new file whose lock its maker holds from before there is anything in it.

    Empty and not locked for a moment: whoever finds it so may remove it, under its lock, as what a dead maker left.
    Raises PublishError, or OSError where that happened, or where the system refuses it.
    """
    with fs.Directory(path) as directory:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS
        fd = fs.off_the_standard_streams(fs.system.open(directory.name, flags, _MODE, dir_fd=directory.fd))
        try:
            holding = Holding._of(fd)
            try:
                if not fs.system.fstat(fd).st_nlink:
                    raise FileNotFoundError(errno.ENOENT, "was removed before it was locked", path)
                holding.write(content)
            except BaseException:
                holding.close()
                raise
        except BaseException:
            with contextlib.suppress(PublishError):
                directory.unlink(directory.name)
            raise
    return holding


def names_beside(path: str) -> list[str]:
    """What is in the directory of a path; nothing where it cannot be read."""
    try:
        return fs.system.listdir(os.path.dirname(path) or ".")  # type: ignore[no-any-return]
    except OSError:
        return []


def replace(path: str, content: bytes, judge: Callable[[], bool]) -> None:
    """Put a whole file in the place of one that is not right. Raises PublishError.

    judge: asked under the old file's lock whether it is still there and still not right.
    """
    fd = _lock(path, None, 1.0, fcntl.LOCK_EX)
    try:
        if fd >= 0 and judge():
            with fs.Directory(path) as directory, directory.create(_MODE) as file:
                file.write(0, content)
                directory.rename(file.name or "", directory.name)
                file.published()
    finally:
        fs.release(fd)
