"""Which owners a path is trusted from.

A directory is trusted when this user or root owns it and the world cannot write it; its group is trusted with it. In a
sticky directory that anyone may write, as /tmp is, every file touched must be our own. A reader also trusts the owner
of the directory that it was told to read from.

`trust=` of `mmcache.open` and `mmcache.build`, and MMCACHE_TRUST, name further owners. A directory of a named owner is
trusted, and so are their files. One that anyone may write is accepted without the sticky bit only if its owner is
named; every file touched there must be ours or a named owner's.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from ..errors import UntrustedPathError

__all__ = [
    "VARIABLE",
    "accepts_mode",
    "check_directory",
    "check_file",
    "check_readable",
    "environment",
    "name_owners",
    "uids_of",
]

VARIABLE: Final = "MMCACHE_TRUST"

_named: Final[dict[str, frozenset[int]]] = {}
"""Directory -> owners that `trust=` named for it in this process."""


def uids_of(owners: str | int | Iterable[str | int]) -> tuple[int, ...]:
    """The uids of users, each given by name or uid. Raises ValueError for one that this system does not know."""
    listed = owners if isinstance(owners, Iterable) and not isinstance(owners, str) else [owners]
    return tuple(dict.fromkeys(map(_uid, listed)))


def _uid(owner: str | int) -> int:
    if isinstance(owner, int) and not isinstance(owner, bool) and 0 <= owner < 2**32:
        return owner
    if isinstance(owner, str) and owner.isascii() and owner.isdigit():
        return _uid(int(owner))
    if isinstance(owner, str):
        import pwd

        try:
            return pwd.getpwnam(owner).pw_uid
        except KeyError:
            pass
    raise ValueError(f"trust must name users of this system, by name or uid, not {owner!r}")


def name_owners(path: str, uids: Sequence[int]) -> None:
    """Trust these owners, too, with the directory of a path, in this process."""
    if uids:
        where = _directory(path)
        _named[where] = _named.get(where, frozenset()).union(uids)


def environment(path: str) -> dict[str, str]:
    """What a process that we start needs in order to trust the same owners."""
    owners = _named.get(_directory(path))
    if not owners:
        return {}
    return {VARIABLE: ",".join(filter(None, (os.environ.get(VARIABLE, ""), *map(str, sorted(owners)))))}


def _directory(path: str) -> str:
    return os.path.dirname(os.path.abspath(path))


def _owners(path: str) -> frozenset[int]:
    """The named ones. A name in the environment that this system does not know is no owner of anything."""
    named = _named.get(_directory(path), frozenset()) if _named else frozenset()
    text = os.environ.get(VARIABLE, "")
    return named | _parsed(text) if text else named


@lru_cache(maxsize=8)
def _parsed(text: str) -> frozenset[int]:
    found = set()
    for word in text.replace(",", " ").split():
        with contextlib.suppress(ValueError):
            found.add(_uid(word))
    return frozenset(found)


def _is_open_to_all(directory: os.stat_result) -> bool:
    return bool(directory.st_mode & stat.S_IWOTH)


def _is_accepted(directory: os.stat_result, named: frozenset[int]) -> bool:
    """Whether its mode is."""
    return bool(not _is_open_to_all(directory) or directory.st_mode & stat.S_ISVTX or directory.st_uid in named)


def _naming(uid: int) -> str:
    return f"name the owner: trust=[{uid}], or {VARIABLE}={uid}"


def accepts_mode(path: str, directory: os.stat_result) -> bool:
    """Whether the mode of the directory of a path, whose status this is, lets any file in it be trusted."""
    return _is_accepted(directory, _owners(path))


def check_directory(path: str, directory: os.stat_result) -> None:
    """For a writer. path: of the cache file. Raises UntrustedPathError."""
    named, where = _owners(path), os.path.dirname(path)
    if not _is_accepted(directory, named):
        raise UntrustedPathError(_everyone(directory), path=where)
    if directory.st_uid not in {os.geteuid(), 0} | named:
        raise UntrustedPathError(
            f"owned by uid {directory.st_uid}, neither us ({os.geteuid()}) nor root: build as its owner, or "
            + _naming(directory.st_uid),
            path=where,
        )


def check_file(path: str, file: os.stat_result, directory: os.stat_result) -> None:
    """For a writer, of a file that it touches. Raises UntrustedPathError."""
    if _is_open_to_all(directory) and file.st_uid not in {os.geteuid()} | _owners(path):
        raise UntrustedPathError(
            f"owned by uid {file.st_uid} in a directory that anyone may write: use a directory of your own, or "
            + _naming(file.st_uid),
            path=path,
        )


def check_readable(path: str, file: os.stat_result, directory: os.stat_result) -> None:
    """For a reader. Raises UntrustedPathError."""
    named = _owners(path)
    trusted = {os.geteuid(), 0} | named
    if not _is_accepted(directory, named):
        raise UntrustedPathError(f"the directory {_everyone(directory)}", path=path)
    if not _is_open_to_all(directory):
        trusted.add(directory.st_uid)
    if file.st_uid not in trusted:
        raise UntrustedPathError(
            f"owned by uid {file.st_uid}; trusted here: {', '.join(map(str, sorted(trusted)))}; to trust it, "
            + _naming(file.st_uid),
            path=path,
        )


def _everyone(directory: os.stat_result) -> str:
    return (
        "can be written by anyone: chmod o-w it, or use a sub-directory of it; where only the users of these files can "
        "reach it, " + _naming(directory.st_uid)
    )
