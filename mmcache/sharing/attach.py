"""Attaching: open the page of a cache file, or make it, or take one over that was made for another place.

A page is where it was made: its file's device and inode stand in it. One whose own differ, or that has a second name,
is a copy, made by `cp -a`, an image's layer or a restored backup; one of an earlier boot has outlived its readers. In
both cases a new page takes over the events, under the page lock. Headers of the old page count up to the count at
take-over.

Where the page at the path is of another boot although ours was there a moment ago, another machine uses the directory.
Then each keeps a page of its own: `.<name>.<boot>.ctl`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from ..errors import MmcacheError, PublishError, UntrustedPathError, UnusableFileError
from ..storage import fs, shared
from ..storage.names import wake_name
from ..storage.pagefile import MODE, PageFile, create_wake, open_page_file, open_wake, page_lock
from .head import FAR, HEAD_SIZE, PANIC, VERIFIED, Head, PageIdentity, pack_head, parse_head
from .page import (
    BOOT_TAG,
    LOG_SIZE,
    WINDOW,
    Page,
    boot_number,
    nonce,
    page_path,
    private_page,
    wake_path,
)

__all__ = ["PATIENCE", "attach", "open_existing", "sweep"]

PATIENCE: Final = 0.02
"""Seconds that a read waits for the page lock when it has to make a page."""

_INCOHERENT: Final = (
    *("nfs", "cifs", "smb", "9p", "fuse", "lustre", "ceph", "afs", "gfs", "ocfs", "glusterfs", "beegfs"),
    *("virtiofs", "vboxsf", "vmhgfs", "prl_fs", "gpfs", "wekafs", "panfs", "pvfs2", "orangefs", "mutagen"),
)
"""File systems that may not show one host's stores to another, or to any process, through a map."""

_DENIED: Final = (errno.EACCES, errno.EPERM)


class _Found(NamedTuple):
    """A page file that is open. head: None for bytes that are no page."""

    file: PageFile
    head: Head | None


def attach(path: str, *, previous: Page | None = None, lost: bool = False, patience: float = PATIENCE) -> Page:
    """The page of the cache file at a path, made now if there is none that can be used.

    Where that is not possible, one of our own, which says why. previous: the page that was in use so far; lost: it was
    put back to an earlier state, and must be replaced. patience: seconds to wait for the page lock.
    """
    try:
        kind = shared.kind_of_file_system(os.path.dirname(path))
        if kind.startswith(_INCOHERENT):
            raise UnusableFileError(f"on a {kind} file system, where processes may not see each other's stores")
        refused = previous.nonce if previous is not None and lost else 0
        return _usable(path, refused) or _make(path, None if refused else previous, patience, refused)
    except MmcacheError as error:
        denied = isinstance(error, UntrustedPathError) or getattr(error, "errno", None) in _DENIED
        return private_page(path, str(error), watched=denied)


def open_existing(path: str) -> Page | None:
    """The page of the cache file at a path, if there is one that can be used now."""
    try:
        return _usable(path)
    except MmcacheError:
        return None


def _own_path(path: str) -> str:
    """The page of this boot, in a directory that several machines use."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{boot_number() & BOOT_TAG:04x}.ctl")


def _usable(path: str, refused: int = 0) -> Page | None:
    """refused: nonce of a page that will not do."""
    for where in (_own_path(path), page_path(path)):
        found = _open(where)
        if found is not None:
            page = _page_of(path, found, refused)
            if page is not None:
                return page
            found.file.close()
    return None


def _open(where: str) -> _Found | None:
    file = open_page_file(where)
    return None if file is None else _Found(file, parse_head(file.read(0, HEAD_SIZE)))


def _page_of(path: str, found: _Found, refused: int) -> Page | None:
    """The page, if it is one of this boot, in the file that it was made in, with the wake file that was made for it."""
    file, head = found
    if head is None or head.logged is None or head.identity.boot != boot_number() or head.identity.nonce == refused:
        return None
    if (head.identity.device, head.identity.inode) != file.identity or file.links() != 1:
        return None
    wake = open_wake(wake_path(path, head.identity.nonce))
    if wake is not None and wake.inode == head.identity.wake:
        return Page(path, file, head.identity, wake)
    if wake is not None:
        wake.close()
    return None


def _make(path: str, previous: Page | None, patience: float, refused: int) -> Page:
    """Put a page at the path. Raises MmcacheError."""
    where = page_path(path)
    # The directory first: where none of ours may be, no lock file is made either.
    with fs.Directory(path), page_lock(where, path, patience) as is_held:
        if not is_held:
            raise PublishError("the page lock is held by another process, which may be stopped", path=path)
        if (page := _usable(path, refused)) is not None:
            return page
        at_path = _open(where)
        if previous is not None and _is_of_another_machine(at_path, previous):
            where = _own_path(path)
        old = _to_take_over(at_path, previous, refused)
        with fs.Directory(where) as directory, directory.create(MODE) as file:
            device, inode, *_ = file.identity()
            number = nonce() & ~BOOT_TAG | boot_number() & BOOT_TAG
            name = wake_name(os.path.basename(path), number)
            wake = create_wake(directory, name, 0)
            identity = PageIdentity(number, boot_number(), time.time_ns(), device, inode, wake)
            if old is None:
                head = pack_head(identity._replace(suspect=int(at_path is not None)))
            else:
                identity, head = _take_over(identity, old)
                for offset, data in _log_of(old, identity.origin):
                    file.write(offset, data)
            file.write(0, head)
            try:
                directory.rename(file.name or "", directory.name)
            except PublishError:
                directory.unlink(name)
                raise
            if old is not None:  # Case: everything was invalidated there, without the lock, after its head was read
                file.write(PANIC, old.file.read(PANIC, 8))
            file.published()
            _sweep(directory, path)
    if previous is not None and previous.shared:
        with contextlib.suppress(MmcacheError):
            previous.wake_readers()
    page = _usable(path)
    if page is None:
        raise UnusableFileError("was replaced at once by another process", path=where)
    return page


def _is_of_another_machine(at_path: _Found | None, previous: Page) -> bool:
    """Whether a page that is of another boot has taken the place of ours, which is of this one."""
    if at_path is None or at_path.head is None or not previous.shared:
        return False
    return at_path.head.identity.boot != boot_number() == previous.identity.boot


def _to_take_over(at_path: _Found | None, previous: Page | None, refused: int) -> _Found | None:
    """The page whose events the new one keeps: that of this process where it still has it, else the one at the path."""
    if at_path is not None and at_path.head is not None and at_path.head.identity.nonce == refused:
        return None
    if previous is not None and isinstance(previous._store, PageFile):
        head = previous.head()
        if head is not None and head.logged is not None:
            return _Found(previous._store, head)
    if at_path is not None and at_path.head is not None and at_path.head.logged is not None:
        return at_path
    return None


def _take_over(identity: PageIdentity, old: _Found) -> tuple[PageIdentity, bytes]:
    assert old.head is not None
    assert old.head.logged is not None
    before, count = old.head.identity, min(old.head.logged, FAR)
    identity = identity._replace(
        parent=before.nonce,
        taken=count,
        chain=old.head.chain,
        origin=max(before.origin, count - WINDOW, 0),
        suspect=before.suspect & 1,
    )
    head = bytearray(pack_head(identity, old.file.read(0, HEAD_SIZE)))
    if before.boot != identity.boot:
        # What was verified, who builds and what failed is of the boot that recorded it.
        fresh = pack_head(identity)
        for begin, end in ((VERIFIED[0], 384), (640, HEAD_SIZE)):
            head[begin:end] = fresh[begin:end]
    return identity, bytes(head)


def _log_of(old: _Found, origin: int) -> Iterator[tuple[int, bytes]]:
    """The bytes of a log from a position on, with their places in the file."""
    assert old.head is not None
    position, until = origin, old.head.logged or 0
    while position < until:
        begin = position % LOG_SIZE
        data = old.file.read(HEAD_SIZE + begin, min(until - position, LOG_SIZE - begin, fs.CHUNK))
        if not data:
            return
        yield HEAD_SIZE + begin, data
        position += len(data)


def sweep(path: str) -> None:
    """Remove wake files whose makers were killed before their page had its name."""
    with contextlib.suppress(MmcacheError):
        if len(_wakes(path)) > 1:
            with fs.Directory(path) as directory, page_lock(page_path(path), path, PATIENCE) as is_held:
                if is_held:
                    _sweep(directory, path)


def _wakes(path: str) -> list[str]:
    begin = f".{os.path.basename(path)}."
    return [each for each in shared.names_beside(path) if each.startswith(begin) and each.endswith(".wake")]


def _sweep(directory: fs.Directory, path: str) -> None:
    """Wake the readers of pages that are gone, whose words get no more stores, and remove their words."""
    parent, name = os.path.split(path)
    begin = f".{name}."
    pages = [page_path(path)] + [
        os.path.join(parent, each)
        for each in shared.names_beside(path)
        if each.startswith(begin) and each.endswith(".ctl")
    ]
    used = set()
    for each in pages:
        try:
            found = _open(each)
        except MmcacheError:
            continue
        if found is not None and found.head is not None:
            used.add(wake_name(name, found.head.identity.nonce))
    for each in set(_wakes(path)) - used:
        try:
            wake = open_wake(os.path.join(parent, each))
            if wake is not None:
                with contextlib.closing(wake):
                    wake.store((1 << 63) | nonce())
            directory.unlink(each)
        except MmcacheError:
            continue
