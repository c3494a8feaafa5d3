"""What a file, or its backup, says of itself: its layout, whose checksums are right whatever else is damaged."""

from __future__ import annotations

import contextlib

from ..errors import UnusableFileError
from ..format.layout import Layout, validate
from . import fs
from .names import backup_name

__all__ = ["description_in", "layout_from_file_or_backup"]


def layout_from_file_or_backup(path: str, *, older: bool = False) -> Layout:
    """What the file says of itself, or its backup where the file cannot be read.

    older: also of an older major version, where its description reads and its checksums are right. Raises
    UnusableFileError.
    """
    try:
        return _layout(fs.ReadFile(path), older=older)
    except UnusableFileError as error:
        try:
            return _layout(fs.ReadFile(backup_name(path)), older=older)
        except UnusableFileError:
            raise error from None


def description_in(directory: fs.Directory) -> Layout | None:
    """The same under the lock, also of an older major version; None where nothing says anything."""
    for name in (directory.name, backup_name(directory.name)):
        with contextlib.suppress(UnusableFileError):
            return _layout(directory.read(name), older=True)
    return None


def _layout(file: fs.ReadFile, *, older: bool) -> Layout:
    with contextlib.closing(file):
        try:
            return validate(file.read, file.size, older=older)
        except UnusableFileError as error:
            error.path = error.path or file.path
            raise
