"""Every file-system call of mmcache. Which owners a path is trusted from is the rule of `trust`.

All calls go through the name `system`, which is the `os` module; tests put a proxy there that counts the
calls, fails them or kills the process at one of them. Names are relative to an open directory, so that nothing
done to its path afterwards can redirect us. An `OSError` leaves this module as the `MmcacheError` that a caller
can act on.

Symbolic links, devices and pipes are never followed or waited on.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, Self

from ..errors import MissingFileError, PublishError, UntrustedPathError, UnusableFileError
from ..text import open_files
from .descriptors import Descriptor
from .failures import failed, kind_of, mounted
from .names import is_leftover, temp_name
from .trust import check_directory, check_file, check_readable

Identity = tuple[int, int, int, int]
"""Device, inode, size, and time of the last write in ns, which no rename and no link changes."""

system: Any = os
map_file: Any = mmap.mmap

CHUNK = 2**20
"""Bytes per read or write call: large enough to cost nothing, small enough to keep out of the heap's way."""
_LARGEST_CALL = 2**30
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_HARD_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}


# --- reading ----------------------------------------------------------------------------------------------------------


class ReadFile:
    """A file opened for reading, found to be a regular file of trusted owner; `size` is of that moment.

    Reads are `pread`, so that a file that shrinks gives fewer bytes, not a signal. Closed by `close` or with the
    last reference.
    """

    __slots__ = ("_descriptor", "identity", "path", "size")

    def __init__(self, path: str, directory: int | None = None) -> None:
        self.path = path
        self._descriptor = Descriptor(system)
        try:
            status = self._descriptor.open(path, os.O_RDONLY | _FLAGS, directory=directory)
            if not stat.S_ISREG(status.st_mode):
                raise UntrustedPathError(f"expected a regular file, found {kind_of(status.st_mode)}", path=path)
            if directory is None:
                check_readable(path, status, system.stat(os.path.dirname(path) or "."))
        except OSError as error:
            self.close()
            raise (error if isinstance(error, UntrustedPathError) else unusable(error, path, directory)) from None
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    @property
    def fd(self) -> int:
        return self._descriptor.fd

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from an offset, fewer only where the file ends. Raises UnusableFileError."""
        try:
            data: bytes = system.pread(self.fd, min(length, _LARGEST_CALL), offset)
            while len(data) < length:
                more = system.pread(self.fd, min(length - len(data), _LARGEST_CALL), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise unusable(error, self.path) from None
        return data

    def written(self) -> tuple[int, int]:
        """Its size, and when it was written to last, as now: the end of `identity`. Raises OSError."""
        return (now := system.fstat(self.fd)).st_size, now.st_mtime_ns

    def chunks(self, offset: int, end: int) -> Iterator[bytes]:
        """The bytes from an offset to an end, a chunk at a time."""
        while offset < end and (data := self.read(offset, min(CHUNK, end - offset))):
            yield data
            offset += len(data)

    def map(self) -> mmap.mmap:
        """The whole file, mapped read-only and shared. Not for an empty file. Raises UnusableFileError."""
        try:
            # Without trackfd=False the map would hold a descriptor of its own.
            extra = {"trackfd": False} if sys.version_info >= (3, 13) else {}
            return map_file(self.fd, self.size, prot=mmap.PROT_READ, **extra)  # type: ignore[no-any-return]
        except (OSError, ValueError) as error:
            raise UnusableFileError(f"cannot be mapped ({error})", path=self.path) from None

    def close(self) -> None:
        self._descriptor.close()


def open_to_write(descriptor: Descriptor, path: str) -> tuple[os.stat_result, bool]:
    """Open a path for writing where we may, else for reading: what it is, and which of the two. Raises OSError."""
    try:
        return descriptor.open(path, os.O_RDWR | _FLAGS), True
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
    return descriptor.open(path, os.O_RDONLY | _FLAGS), False


def copied(fd: int) -> Descriptor:
    """Another descriptor of what is open, which a forked child closes. Raises OSError."""
    copy = Descriptor(system, is_lock=True)
    copy.copy(fd)
    return copy


def identity_of(path: str) -> Identity | None:
    """Of what is at a path now; None if there is nothing to be seen there."""
    try:
        status = system.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def same_directory(one: str, other: str) -> bool:
    """Whether two paths lead into one directory, which is there."""
    try:
        both = [system.stat(os.path.dirname(path) or ".") for path in (one, other)]
    except OSError:
        return False
    return (both[0].st_dev, both[0].st_ino) == (both[1].st_dev, both[1].st_ino)


def check_owner(path: str) -> None:
    """By its status alone. Raises UntrustedPathError for what is no regular file, or of an owner not not trusted."""
    try:
        status, directory = system.stat(path, follow_symlinks=False), system.stat(os.path.dirname(path) or ".")
    except OSError as error:
        raise unusable(error, path) from None
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedPathError(f"expected a regular file, found {kind_of(status.st_mode)}", path=path)
    check_readable(path, status, directory)


def free_bytes(directory: str) -> int:
    """That an ordinary user may still write there. Raises PublishError."""
    try:
        found = system.statvfs(directory)
    except OSError as error:
        raise failed(error, directory, "ask for the free space") from None
    return int(found.f_bavail * found.f_frsize)


def leftovers(path: str) -> list[str]:
    """The temporary files of writers of a path, dead or not; nothing where the directory cannot be read."""
    parent, name = os.path.split(os.path.abspath(path))
    try:
        return [os.path.join(parent, there) for there in system.listdir(parent) if is_leftover(there, name)]
    except OSError:
        return []


def unusable(error: OSError, path: str, directory: int | None = None) -> UnusableFileError:
    """directory: that the path is relative to."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MissingFileError("there is no such file: build it, or check the path", path=path)
    if error.errno == errno.ELOOP:
        own = _target(path, directory)
        hint = "give the file's own path" if own is None else f"give the file's own path, {own!r}"
        return UntrustedPathError(f"is a symbolic link, which is not followed: {hint}", path=path)
    if error.errno == errno.ENXIO:
        return UntrustedPathError("expected a regular file, found a socket or device", path=path)
    hint = open_files(error.errno)
    return UnusableFileError(f"cannot be read: {os.strerror(error.errno or 0)}{hint}", path=path)


def _target(path: str, directory: int | None) -> str | None:
    """Where a link leads: a ConfigMap's to a path through the link `..data`, which follows each update."""
    try:
        return os.path.join(os.path.dirname(path), system.readlink(path, dir_fd=directory))
    except OSError:
        return None


# --- writing ----------------------------------------------------------------------------------------------------------


def with_name(path: str | os.PathLike[str]) -> str:
    """The absolute path of a file. Raises PublishError for "/", which names none."""
    absolute = os.path.abspath(os.fspath(path))
    if not os.path.basename(absolute):
        raise PublishError("is a directory: give the name of a file in it", path=absolute)
    return absolute


def make_directory(path: str) -> None:
    """Make a directory, and those above it, where they are missing; only we may write them. Raises PublishError."""
    if os.path.isdir(path):
        return
    try:
        try:
            system.mkdir(path, 0o755)
        except FileNotFoundError:
            make_directory(os.path.dirname(path))
            system.mkdir(path, 0o755)
    except FileExistsError as error:  # made by another process
        if not os.path.isdir(path):
            raise failed(error, path, "make the directory") from None
    except PublishError:
        raise
    except OSError as error:
        raise failed(error, path, "make the directory") from None


class Directory:
    """The directory of a cache, opened and found trustworthy; what a writer does, it does in here.

    `name` is the published file's. Every method raises PublishError for what the system refuses, or
    UntrustedPathError. A context manager.
    """

    def __init__(self, path: str, *, make: bool = False) -> None:
        """make: the directory, where it is missing."""
        self._descriptor = Descriptor(system)
        parent, self.name = os.path.split(with_name(path))
        self.path = os.path.join(parent, self.name)
        try:
            try:
                self._status = self._descriptor.open(parent, _DIRECTORY_FLAGS)
            except FileNotFoundError:
                if not make:
                    raise
                make_directory(parent)
                self._status = self._descriptor.open(parent, _DIRECTORY_FLAGS)
            check_directory(self.path, self._status)
        except UntrustedPathError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise (error if isinstance(error, PublishError) else failed(error, parent, "open the directory")) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._descriptor.close()

    @property
    def fd(self) -> int:
        return self._descriptor.fd

    def read(self, name: str) -> ReadFile:
        """Open one of the directory's files for reading. Raises UnusableFileError."""
        path = os.path.join(os.path.dirname(self.path), name)
        try:
            file = ReadFile(name, self.fd)
        except UnusableFileError as error:
            error.path = path
            raise
        file.path = path
        self.check_ours(name)
        return file

    def check_ours(self, name: str) -> None:
        """Refuse to touch what stands under a name unless it is a regular file of an owner we trust, or nothing."""
        status = self._stat(name)
        if status is not None:
            self.check(name, status)

    def check(self, name: str, status: os.stat_result) -> None:
        """Raises UntrustedPathError unless a status is that of a regular file of an owner we trust. name: its own."""
        path = os.path.join(os.path.dirname(self.path), name)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedPathError(f"expected a regular file, found {kind_of(status.st_mode)}: remove it", path=path)
        check_file(path, status, self._status)

    def _stat(self, name: str) -> os.stat_result | None:
        try:
            return system.stat(name, dir_fd=self.fd, follow_symlinks=False)  # type: ignore[no-any-return]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise failed(error, self.path, f"look at {name!r}") from None

    def create(self, mode: int = 0o600) -> WriteFile:
        """A new temporary file, which no reader looks at. mode: less the umask."""
        for _ in range(100):
            try:
                return self.make(temp_name(self.name), mode)
            except FileExistsError:
                continue
            except OSError as error:
                raise failed(error, self.path, "create a temporary file beside it") from None
        raise PublishError("could not find a free temporary name in 100 tries", path=self.path)

    def make(self, name: str, mode: int) -> WriteFile:
        """A new file of this name. mode: less the umask. Raises OSError."""
        file = WriteFile(self, name)
        try:
            file.descriptor.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, mode, self.fd)
        except OSError as error:
            if isinstance(error, FileExistsError):
                file.published()  # what has the name is another's
            file.close()
            raise
        return file

    def scratch(self) -> WriteFile:
        """A new temporary file without a name: gone when it is closed, however that happens."""
        file = self.create()
        try:
            file.unlink()
        except BaseException:
            file.close()
            raise
        return file

    def sweep(self) -> None:
        """Remove what dead writers left. Only under the lock, which proves that they are dead.

        Those of the shared files may live, and then try again: see `shared.create`."""
        try:
            names = system.listdir(self.fd)
        except OSError as error:
            raise failed(error, self.path, "list the directory") from None
        for name in names:
            if is_leftover(name, self.name):
                status = self._stat(name)
                if status is not None and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    self.unlink(name)

    def touch(self, name: str) -> None:
        """Have a file be written just now, as its status says; nothing where it cannot be."""
        with contextlib.suppress(OSError):
            system.utime(name, dir_fd=self.fd, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        try:
            system.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise failed(error, self.path, f"remove {name!r}") from None

    def rename(self, old: str, new: str) -> None:
        try:
            system.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise PublishError(mounted(self.path, new), path=self.path, errno=error.errno) from None
            raise failed(error, self.path, f"rename {old!r} to {new!r}") from None

    def link(self, old: str, new: str) -> bool:
        """Give a file a second name; False where the file system has no hard links or does not permit this one."""
        try:
            system.link(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in _NO_HARD_LINK:
                return False
            raise failed(error, self.path, f"link {old!r} to {new!r}") from None
        return True

    def sync(self) -> None:
        """Make the names durable."""
        try:
            _fsync(self.fd)
        except OSError as error:
            raise failed(error, self.path, "sync the directory") from None

    def is_at(self, name: str, status: os.stat_result) -> bool:
        """Whether it is the file of this status that stands under a name now."""
        current = self._stat(name)
        return current is not None and os.path.samestat(current, status)


class WriteFile:
    """A temporary file being written. Discarded on `close` unless `directory.rename` gave it its place.

    Raises PublishError for what the system refuses; a failed `sync` is final, for a retry would report a
    success that did not happen.
    """

    def __init__(self, directory: Directory, name: str) -> None:
        self.directory = directory
        self.name: str | None = name
        self.descriptor = Descriptor(system)

    @property
    def fd(self) -> int:
        return self.descriptor.fd

    def allocate(self, size: int) -> None:
        """Reserve the room, so that a full disk is known before anything is written."""
        if size and hasattr(system, "posix_fallocate"):
            try:
                system.posix_fallocate(self.fd, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise self._failed(error, f"reserve {size} bytes") from None

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as whole, whole.cast("B") as view:
            done = 0
            while done < len(view):
                try:
                    moved = system.pwrite(self.fd, view[done : done + _LARGEST_CALL], offset + done)
                    if not moved:  # POSIX leaves it open; trying again could take for ever
                        raise OSError(errno.EIO, "nothing was written")
                except OSError as error:
                    raise self._failed(error, f"write {len(view)} bytes") from None
                done += moved

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes, which we wrote."""
        parts = []
        while length:
            try:
                data = system.pread(self.fd, min(length, _LARGEST_CALL), offset)
            except OSError as error:
                raise self._failed(error, f"read back {length} bytes") from None
            if not data:
                raise PublishError(f"a temporary file ended {length} bytes early", path=self.directory.path)
            parts.append(data)
            offset += len(data)
            length -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def shorten(self, size: int) -> None:
        """Give the memory and the room behind this size back; later, where the system refuses it now."""
        with contextlib.suppress(OSError):
            system.ftruncate(self.fd, size)

    def identity(self) -> Identity:
        """Of the file, whatever its name will be. Raises PublishError."""
        try:
            status = system.fstat(self.fd)
        except OSError as error:
            raise self._failed(error, "look at the new file") from None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def seal(self, mode: int) -> None:
        """Set the final permissions and make the bytes durable."""
        try:
            system.fchmod(self.fd, mode)
            _fsync(self.fd)
        except OSError as error:
            raise self._failed(error, "make the new file durable") from None

    def unlink(self) -> None:
        if self.name is not None:
            self.directory.unlink(self.name)
            self.name = None

    def published(self) -> None:
        """The name is no longer a temporary one: keep the file."""
        self.name = None

    def leave(self) -> None:
        """Keep it under its temporary name, for a writer that goes on with what is in it, and sweeps it away."""
        self.name = None

    def close(self) -> None:
        self.descriptor.close()
        if self.name is not None:
            with contextlib.suppress(PublishError):
                self.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _failed(self, error: OSError, doing: str) -> PublishError:
        return failed(error, self.directory.path, doing)


def _fsync(fd: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        system.fsync(fd)
