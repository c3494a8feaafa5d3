"""What the system refuses a writer, as errors that say what to do about it; no I/O."""

from __future__ import annotations

import errno
import os
import stat

from ..errors import PublishError
from ..text import open_files

__all__ = ["failed", "kind_of", "mounted"]


def failed(error: OSError, path: str, doing: str) -> PublishError:
    """What to raise where the system refused a writer something. doing: what, as in "rename a file"."""
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


def mounted(path: str, name: str) -> str:
    """Why a rename to a name in the directory of a path was refused as busy."""
    where = os.path.dirname(path)
    return (
        f"could not rename a file to {name!r} (Device or resource busy): that file is a mount point of its own, as by "
        f"a bind mount of this one file; mount its whole directory at {where} in its place; what is published stays"
    )


def kind_of(mode: int) -> str:
    """What a file is that is no regular one, for messages. mode: of its status."""
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
