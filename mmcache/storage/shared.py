"""Small files that processes share: counter files, the control page, and locks that show that a process lives.

A `SmallFile` is read by `pread` and written by `pwrite`, never mapped: a file that others emptied, or a full disk, is
an error and never a signal.

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
import time
from functools import cache, lru_cache
from typing import Self

from ..errors import CorruptFileError, PublishError, UnusableFileError
from . import fs
from .descriptors import Descriptor
from .trust import check_readable

__all__ = [
    "HeldLock",
    "SmallFile",
    "create",
    "create_held",
    "is_locked",
    "names_beside",
    "open_small",
    "take_held",
]

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE = 0o664
"""Less the umask: who may write the directory may signal, who may read the file may listen."""


class SmallFile:
    """An open file of a known size. A context manager; a forked child loses it."""

    __slots__ = ("_descriptor", "identity", "path", "writable")

    def __init__(self, path: str, descriptor: Descriptor, *, writable: bool) -> None:
        """descriptor: opened, and this object's from now on."""
        assert descriptor.identity is not None
        self.path = path
        self.identity = descriptor.identity
        self.writable = writable
        self._descriptor = descriptor

    @property
    def fd(self) -> int:
        return self._descriptor.fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the lock, too."""
        self._descriptor.close()

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


def _write(fd: int, offset: int, data: bytes) -> None:
    while data:
        moved = fs.system.pwrite(fd, data, offset)
        if not moved:  # POSIX leaves it open; trying again could take for ever
            raise OSError(errno.EIO, "nothing was written")
        data, offset = data[moved:], offset + moved


class HeldLock:
    """A lock held for as long as its process lives or until `close`: that is how others know that it lives.

    Its descriptor writes, too, where `create_held` or `take_held` made it. It is used and closed only while it is
    still that file: a program that closes descriptors which it does not know may have opened another file under the
    same number.
    """

    def __init__(self, path: str, access: int = os.O_RDONLY) -> None:
        """Raises OSError, or BlockingIOError where another holds it."""
        descriptor = Descriptor(fs.system, is_lock=True)
        descriptor.open(path, access | _FLAGS)
        self._lock(descriptor)

    @classmethod
    def _of(cls, descriptor: Descriptor) -> HeldLock:
        holding = cls.__new__(cls)
        holding._lock(descriptor)
        return holding

    def _lock(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        try:
            assert descriptor.identity is not None
            self.identity = descriptor.identity
            fcntl.flock(descriptor.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.close()
            raise

    @property
    def fd(self) -> int:
        return self._descriptor.fd

    def is_ours(self) -> bool:
        """Whether the descriptor is still that of the file. One `fstat`."""
        return self._descriptor.is_ours()

    def read(self, length: int) -> bytes:
        """From the file's begin, fewer bytes where it ends before. Raises OSError."""
        return fs.system.pread(self.fd, length, 0)  # type: ignore[no-any-return]

    def write(self, content: bytes, offset: int = 0) -> None:
        """Raises OSError."""
        _write(self.fd, offset, content)

    def close(self) -> None:
        self._descriptor.close()


def is_locked(path: str) -> bool:
    """Whether another descriptor, of any process, holds the lock of the file at a path. False where there is none."""
    lock = Descriptor(fs.system, is_lock=True)
    try:
        lock.open(path, os.O_RDONLY | _FLAGS)
        fcntl.flock(lock.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        lock.close()
    return False


def _text_of(path: str) -> bytes:
    """What the system tells in a file of its own. Raises OSError."""
    descriptor = Descriptor(fs.system)
    try:
        descriptor.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return b"".join(iter(lambda: fs.system.read(descriptor.fd, 65_536), b""))
    finally:
        descriptor.close()


@cache
def boot_id() -> bytes:
    """That changes when the machine starts; b"" where the system does not tell."""
    try:
        return _text_of("/proc/sys/kernel/random/boot_id").strip()
    except OSError:
        return b""


def private_bytes() -> int:
    """Resident bytes that this process shares with no file; 0 where the system does not tell."""
    try:
        fields = _text_of("/proc/self/statm").split()
        return (int(fields[1]) - int(fields[2])) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return 0


@lru_cache(maxsize=256)
def _kind_of_device(device: int, directory: str) -> str:
    try:
        text = _text_of("/proc/self/mountinfo").decode("utf-8", "replace")
    except OSError:
        return ""
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


def open_small(path: str, size: int) -> SmallFile | None:
    """Open what is at a path, to be written where we may; None where there is nothing.

    Raises CorruptFileError for a file of another size, UnusableFileError for what cannot be trusted or read.
    """
    descriptor = Descriptor(fs.system, is_lock=True)
    try:
        status, writable = fs.open_to_write(descriptor, path)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableFileError("expected a regular file: remove it", path=path)
        check_readable(path, status, fs.system.stat(os.path.dirname(path) or "."))
        if status.st_size != size:
            raise CorruptFileError(f"expected {size} bytes, found {status.st_size}: remove it", path=path)
    except OSError as error:
        descriptor.close()
        if isinstance(error, FileNotFoundError):
            return None
        raise (error if isinstance(error, UnusableFileError) else fs.unusable(error, path)) from None
    return SmallFile(path, descriptor, writable=writable)


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


def create_held(path: str, content: bytes) -> HeldLock:
    """A new file whose lock its maker holds from before there is anything in it.

    Empty and not locked for a moment: a process that finds it so may remove it, under its lock, as of a killed maker.
    Raises PublishError, or OSError where that happened, or where the system refuses it.
    """
    with fs.Directory(path) as directory:
        descriptor = Descriptor(fs.system, is_lock=True)
        try:
            descriptor.open(directory.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, _MODE, directory.fd)
            holding = HeldLock._of(descriptor)
            try:
                if not descriptor.identify().st_nlink:
                    raise FileNotFoundError(errno.ENOENT, "was removed before it was locked", path)
                holding.write(content)
            except BaseException:
                holding.close()
                raise
        except BaseException as error:
            if not isinstance(error, FileExistsError):
                with contextlib.suppress(PublishError):
                    directory.unlink(directory.name)
            raise
    return holding


def take_held(path: str) -> HeldLock | None:
    """The lock of a file that lost its holder, to be written; None where another holds it, or it is gone.

    A reader that asks `is_locked` has it for a moment, so a lock that is only shared is tried again, some times.
    Raises UnusableFileError or OSError for what cannot be trusted or written.
    """
    for pause in (0.0002, 0.001, 0.004, None):
        try:
            holding = HeldLock(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            if pause is None or is_locked(path):
                return None
            time.sleep(pause)
            continue
        try:
            status = fs.system.fstat(holding.fd)
            if not stat.S_ISREG(status.st_mode):
                raise UnusableFileError("expected a regular file: remove it", path=path)
            check_readable(path, status, fs.system.stat(os.path.dirname(path) or "."))
            if status.st_nlink == 1 and identity_at(path) == holding.identity:
                return holding
        except BaseException:
            holding.close()
            raise
        holding.close()  # Case: it was removed meanwhile. Case: it has a second name, and may be another's
        return None
    return None


def names_beside(path: str) -> list[str]:
    """What is in the directory of a path; nothing where it cannot be read."""
    try:
        return fs.system.listdir(os.path.dirname(path) or ".")  # type: ignore[no-any-return]
    except OSError:
        return []
