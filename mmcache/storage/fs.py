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
import time
from collections.abc import Iterator
from typing import Any, Self

from ..errors import LockTimeoutError, MissingFileError, PublishError, UntrustedPathError, UnusableFileError
from ..words import open_files
from .descriptors import RANGES, Descriptor, is_locked, lock_byte
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
_TEMP_SUFFIX = ".tmp"


def lock_name(name: str) -> str:
    return f"{name}.lock"


def control_name(name: str) -> str:
    return f"{name}.ctl"


def backup_name(name: str) -> str:
    return f"{name}.bak"


def hold_name(name: str) -> str:
    return f"{name}.hold"


def disabled_name(name: str) -> str:
    return f"{name}.disabled"


def follow_name(name: str) -> str:
    return f"{name}.follow"


def _temp_name(name: str) -> str:
    return f".{name}.{os.urandom(8).hex()}{_TEMP_SUFFIX}"


def _own_page_names(candidate: str, name: str) -> tuple[str, ...]:
    """The page of one boot that this may be a temporary file of: see `sharing.attach`."""
    begin = f"..{name}."
    tag = candidate[len(begin) : len(begin) + 4]
    return (f".{name}.{tag}.ctl",) if candidate.startswith(begin) and set(tag) <= set("0123456789abcdef") else ()


def _is_leftover(candidate: str, name: str) -> bool:
    """Whether this is a temporary file of `name` that a dead writer left."""
    if candidate == f"{backup_name(name)}.new":
        return True
    token = candidate[-len(_TEMP_SUFFIX) - 16 : -len(_TEMP_SUFFIX)]
    owners = (name, control_name(name), *_own_page_names(candidate, name))
    return set(token) <= set("0123456789abcdef") and any(
        candidate == f".{owner}.{token}{_TEMP_SUFFIX}" for owner in owners
    )


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
                raise UntrustedPathError(f"expected a regular file, found {_kind(status.st_mode)}", path=path)
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


def identity_of(path: str) -> Identity | None:
    """Of what is at a path now; None if there is nothing to be seen there."""
    try:
        status = system.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_owner(path: str) -> None:
    """By its status alone. Raises UntrustedPathError for what is no regular file, or of an owner not not trusted."""
    try:
        status, directory = system.stat(path, follow_symlinks=False), system.stat(os.path.dirname(path) or ".")
    except OSError as error:
        raise unusable(error, path) from None
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedPathError(f"expected a regular file, found {_kind(status.st_mode)}", path=path)
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
        return [os.path.join(parent, there) for there in system.listdir(parent) if _is_leftover(there, name)]
    except OSError:
        return []


def _kind(mode: int) -> str:
    for name, test in (
        ("a directory", stat.S_ISDIR),
        ("a symbolic link", stat.S_ISLNK),
        ("a named pipe", stat.S_ISFIFO),
        ("a socket", stat.S_ISSOCK),
        ("a block device", stat.S_ISBLK),
        ("a character device", stat.S_ISCHR),
    ):
        if test(mode):
            return name
    return "something else"


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
            self._check(name, status)

    def _check(self, name: str, status: os.stat_result) -> None:
        path = os.path.join(os.path.dirname(self.path), name)
        if not stat.S_ISREG(status.st_mode):
            raise UntrustedPathError(f"expected a regular file, found {_kind(status.st_mode)}: remove it", path=path)
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
                return self.make(_temp_name(self.name), mode)
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
            if _is_leftover(name, self.name):
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
                raise PublishError(_mounted(self.path, new), path=self.path, errno=error.errno) from None
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

    @contextlib.contextmanager
    def lock(self, timeout: float, held: Descriptor | None = None) -> Iterator[None]:
        """Hold the build lock: one writer at a time, over all processes and threads. Freed when we die.

        timeout: seconds to wait for another holder; 0 tries once. held: a descriptor that holds it already, and that
        stays the caller's. Raises LockTimeoutError, which names the holder.
        """
        if held is not None:
            self.check_lock(held)
            _sign(held.fd)
            yield
            return
        lock = self.take_lock(timeout)
        try:
            yield
        finally:
            free(lock)

    def take_lock(self, timeout: float) -> Descriptor:
        """A descriptor that holds the build lock until it is closed, or is handed to a child process to `lock` with."""
        return self._locked_descriptor(time.monotonic() + timeout)

    def check_lock(self, held: Descriptor) -> None:
        """Raises PublishError unless this descriptor is of the lock file that is there."""
        try:
            is_ours = self._names(lock_name(self.name), held.identify())
        except OSError as error:
            raise failed(error, self.path, "take over the lock") from None
        if not is_ours:
            raise PublishError("the lock that was handed over is not that of this file", path=self.path)

    def _locked_descriptor(self, deadline: float) -> Descriptor:
        from filelock import lock_descriptor

        name = lock_name(self.name)
        flags = os.O_RDWR | os.O_CREAT | _FLAGS
        pause = 0.001
        while True:
            lock = Descriptor(system, is_lock=True)
            try:
                status = lock.open(name, flags, 0o660, self.fd)
                self._check(name, status)
                if status.st_nlink > 1:
                    raise UntrustedPathError(f"the lock file has {status.st_nlink} names: remove it", path=self.path)
                # Someone may have replaced the file between our open and our lock: only the lock on the file that
                # stands under the name excludes the others.
                if lock_descriptor(lock.fd, blocking=False) and not _is_built_elsewhere(lock):
                    if self._names(name, status):
                        _sign(lock.fd)
                        return lock
                    free(lock)
                    continue
                holder = _signature(lock.fd)
            except OSError as error:
                free(lock)
                if isinstance(error, UntrustedPathError):
                    raise
                raise failed(error, self.path, f"take the lock {name!r}") from None
            free(lock)
            if (left := deadline - time.monotonic()) <= 0:
                raise LockTimeoutError(f"another build holds {name!r}{holder}: try later", path=self.path)
            time.sleep(min(pause, left))
            pause = min(2 * pause, 0.05)

    def _names(self, name: str, status: os.stat_result) -> bool:
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


def _mounted(path: str, name: str) -> str:
    where = os.path.dirname(path)
    return (
        f"could not rename a file to {name!r} (Device or resource busy): that file is a mount point of its own, as by "
        f"a bind mount of this one file; mount its whole directory at {where} in its place; what is published stays"
    )


def failed(error: OSError, path: str, doing: str) -> PublishError:
    hint = open_files(error.errno) or {
        errno.ENOSPC: ": free some space",
        errno.EDQUOT: ": the quota is used up",
        errno.EACCES: ": this user may not write here",
        errno.EROFS: ": the file system is read-only",
        errno.ENOENT: ": create the directory first",
        errno.ENOTDIR: ": a part of the path is a file",
        errno.EEXIST: ": what is there is no directory",
    }.get(error.errno or 0, "")
    return PublishError(
        f"could not {doing} ({os.strerror(error.errno or 0)}){hint}; what is published stays",
        path=path,
        errno=error.errno,
    )


def _fsync(fd: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        system.fsync(fd)


# --- the lock's descriptor --------------------------------------------------------------------------------------------

_BUILD_BYTE = 2
"""Of the lock file. A process that builds for another holds it by an open file of its own: see `receive`."""


def receive(fd: int) -> Descriptor:
    """The build lock, from the process that started this one and gave it the descriptor. Raises PublishError.

    A host that forks in C may have forked the parent when it had the open file: then other processes have it, too, and
    keep the lock though this one dies. So it is held by an open file that no process but this one has.
    """
    given, lock = Descriptor(system, is_lock=True), Descriptor(system, is_lock=True)
    try:
        given.receive(fd)
        system.set_inheritable(fd, False)  # noqa: FBT003 (the system's own signature)
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


def copied(fd: int) -> Descriptor:
    """Another descriptor of what is open, which a forked child closes. Raises OSError."""
    copy = Descriptor(system, is_lock=True)
    copy.copy(fd)
    return copy


def free(lock: Descriptor) -> None:
    """Free the build lock, also where a process that C code forked has the open file, too."""
    import fcntl

    if lock.is_ours():
        with contextlib.suppress(OSError):
            fcntl.flock(lock.fd, fcntl.LOCK_UN)
    lock.close()


def _take(fd: int) -> bool:
    """The byte, if this file system has such locks, and the lock."""
    return (lock_byte(fd, _BUILD_BYTE) or not is_locked(fd, _BUILD_BYTE)) and _try_flock(fd)


def _try_flock(fd: int) -> bool:
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_built_elsewhere(lock: Descriptor) -> bool:
    return RANGES and is_locked(lock.fd, _BUILD_BYTE)


def _sign(fd: int) -> None:
    """Write into the file which process holds the lock, for the error message of a process that waits in vain."""
    with contextlib.suppress(OSError):
        system.pwrite(fd, f"pid {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}".ljust(64).encode(), 0)


def _signature(fd: int) -> str:
    try:
        text = system.pread(fd, 64, 0).decode("ascii", "replace").strip()
    except OSError:
        text = ""
    return f" ({text})" if text.isprintable() and text else ""
