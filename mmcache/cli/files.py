"""What a file says of itself, from its header, table and meta: no numpy, no map, O(1) in its size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..errors import UnusableFileError
from ..format.header import MAGIC
from ..format.layout import Layout, validate
from ..storage import fs
from .options import UsageError

__all__ = ["layout_of", "opened", "refuse_cache", "refuse_foreign"]


@contextlib.contextmanager
def opened(path: str) -> Iterator[fs.ReadFile]:
    """A file open for reading; errors from within name its path. Raises UnusableFileError."""
    file = fs.ReadFile(path)
    try:
        yield file
    except UnusableFileError as error:
        error.path = error.path or path
        raise
    finally:
        file.close()


def layout_of(path: str) -> Layout:
    """Raises UnusableFileError."""
    with opened(path) as file:
        return validate(file.read, file.size)


def refuse_foreign(path: str) -> None:
    """Raise UsageError if a file that mmcache did not write is in the way, such as the database itself."""
    head = _head_of(path)  # None: missing, or what publishing refuses with its own words
    if head is not None and head != MAGIC:
        raise UsageError(f"{path} is there and is not an mmcache file: choose another name, or remove it first")


def refuse_cache(path: str) -> None:
    """Raise UsageError if a cache file would be written over."""
    if _head_of(path) == MAGIC:
        raise UsageError(f"{path} is a cache file: choose another name, or `mmcache clear` it first")


def _head_of(path: str) -> bytes | None:
    try:
        with opened(path) as file:
            return file.read(0, len(MAGIC))
    except UnusableFileError:
        return None
