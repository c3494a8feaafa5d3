"""Files that an operator puts beside a cache file, of one line each, and going back to the backup.

    roll back   lock  verify .bak  copy it under a new header  fsync  verify  .hold  rename  .bak  fsync dir
                                                                                     ^ commit

The present file becomes the backup after the rename. So a kill at any point leaves the records that were asked for
either in the published file or in the backup.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from .. import wallclock
from ..errors import MissingFileError, PublishError, UnusableFileError
from ..format.header import HEADER_SIZE
from ..format.layout import Layout
from . import fs
from .buildlock import hold
from .commit import MODE, BuildReport, Control, Published, check_replaceable, commit, next_generation
from .names import backup_name, hold_name
from .verify import verify_bytes

__all__ = ["put_line", "remove_line", "roll_back"]

_TRIES = 3
_LINE_MODE = 0o644


def put_line(directory: fs.Directory, name: str, line: str) -> None:
    """Put a file of one line under a name. Raises PublishError."""
    directory.check_ours(name)
    for left in reversed(range(_TRIES)):
        with directory.create(_LINE_MODE) as file:
            file.write(0, f"{line}\n".encode("utf-8", "backslashreplace"))
            file.seal(_LINE_MODE)  # whatever the umask is: all workers read it
            try:
                directory.rename(file.name or "", name)
            except PublishError as error:
                if error.errno == errno.ENOENT and left:  # Case: a builder has swept the temporary file away
                    continue
                raise
            file.published()
            return


def remove_line(directory: fs.Directory, name: str) -> bool:
    """Whether there was one."""
    was_there = fs.identity_of(os.path.join(os.path.dirname(directory.path), name)) is not None
    if was_there:
        directory.unlink(name)
    return was_there


def roll_back(
    path: str,
    *,
    control: Control,
    fingerprint: bytes,
    line: Callable[[int, int], str],
    timeout: float,
) -> BuildReport:
    """Publish the records of the backup under a new generation, and hold it there; the present file becomes the backup.

    line: what the hold says, from the generation that is left and the one whose records come back. Raises
    MissingFileError where there is no backup, CorruptFileError for one that is damaged, LockTimeoutError, and
    PublishError; then the published file is as it was.
    """
    begun = time.monotonic()
    seen = fs.identity_of(path)
    with fs.Directory(path) as directory, hold(directory, timeout), directory.create() as file:
        if fs.identity_of(path) != seen:
            raise PublishError("another file was published meanwhile, so the backup is another, too: look", path=path)
        check_replaceable(directory, directory.name)
        backup = _copy_backup(directory, file)
        present = Published.of(directory).layout
        tokens = control.tokens()
        header = replace(
            backup.header,
            generation=next_generation(directory, control.generation),
            created_ns=wallclock.now_ns(),
            fingerprint=fingerprint,
            **tokens._asdict(),
        )
        left = 0 if present is None else present.header.generation
        keeping = _exchanged(directory, file, line(left, backup.header.generation), there=present is not None)
        return commit(directory, file, header, control=control, before=present, keeping=keeping, begun=begun)


@contextlib.contextmanager
def _exchanged(directory: fs.Directory, file: fs.WriteFile, line: str, *, there: bool) -> Iterator[None]:
    with _held(directory, file, line), _kept(directory, file, there=there):
        yield


def _has_its_name(directory: fs.Directory, file: fs.WriteFile, new: fs.Identity) -> bool:
    """Whether a file was published: also where a signal handler raised just after the rename."""
    return file.name is None or fs.identity_of(directory.path) == new


@contextlib.contextmanager
def _held(directory: fs.Directory, file: fs.WriteFile, line: str) -> Iterator[None]:
    """Hold what is published from now on; if nothing is, nothing is held that was not before."""
    name, new = hold_name(directory.name), file.identity()
    was_held = fs.identity_of(hold_name(directory.path)) is not None
    try:
        put_line(directory, name, line)
        yield
    except BaseException:
        if not was_held and not _has_its_name(directory, file, new):
            directory.unlink(name)
        raise


@contextlib.contextmanager
def _kept(directory: fs.Directory, file: fs.WriteFile, *, there: bool) -> Iterator[None]:
    """Make the present file the backup, once another has taken its place."""
    if not there:  # or damaged: then the backup is the better one
        yield
        return
    fresh, new = f"{backup_name(directory.name)}.new", file.identity()
    directory.unlink(fresh)
    try:
        try:
            if not directory.link(directory.name, fresh):
                with directory.create() as copy, contextlib.closing(directory.read(directory.name)) as present:
                    _copy(present, copy, 0)
                    copy.seal(MODE)
                    directory.rename(copy.name or "", fresh)
                    copy.published()
            yield
        finally:
            _settle(directory, fresh, is_backup=_has_its_name(directory, file, new))
    except BaseException:
        # Case: a signal handler raised where that was done. The records that were published are lost otherwise.
        _settle(directory, fresh, is_backup=_has_its_name(directory, file, new))
        raise


def _settle(directory: fs.Directory, fresh: str, *, is_backup: bool) -> None:
    """Give the name of the backup to the copy, or remove that; a second time does nothing more."""
    if is_backup and fs.identity_of(os.path.join(os.path.dirname(directory.path), fresh)) is not None:
        directory.rename(fresh, backup_name(directory.name))
    directory.unlink(fresh)


def _copy_backup(directory: fs.Directory, file: fs.WriteFile) -> Layout:
    """All but its header. Raises UnusableFileError."""
    name = backup_name(directory.name)
    try:
        backup = directory.read(name)
    except MissingFileError as error:
        raise MissingFileError("there is no backup, so there is nothing to go back to", path=error.path) from None
    with contextlib.closing(backup):
        try:
            layout = verify_bytes(backup.read, backup.size, digests=False)
        except UnusableFileError as error:
            error.path = error.path or backup.path
            raise
        file.allocate(backup.size)
        _copy(backup, file, HEADER_SIZE)
    return layout


def _copy(file: fs.ReadFile, copy: fs.WriteFile, offset: int) -> None:
    for chunk in file.chunks(offset, file.size):
        copy.write(offset, chunk)
        offset += len(chunk)
