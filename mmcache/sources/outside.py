"""What a SQLite database looks like from outside: by the identity, size and times of its files, unopened."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import NamedTuple

from .fingerprint import Stamp, fingerprint_of, stamp_of, unsettled

__all__ = ["LastAnswer", "Outside", "outside_of"]


class Outside(NamedTuple):
    """identity: of the files of the databases. wait: see `unsettled`."""

    identity: tuple[object, ...]
    fingerprint: bytes
    wait: float


class LastAnswer(NamedTuple):
    """What the files looked like from outside, once their times could tell, and what `fingerprint` made of it."""

    outside: bytes
    answer: bytes


def outside_of(path: str, attached: Iterable[str]) -> Outside:
    """A database, those that are attached to it, and the -wal of each. An empty -wal is as good as none, since a reader
    creates one. Raises OSError where there is no database."""
    begun = time.time_ns()
    real = os.path.realpath(path)
    database = stamp_of(os.stat(real))
    stamps: list[Stamp | None] = [database, _wal(real)]
    for other in attached:
        found = _stat(other)
        stamps += [found and stamp_of(found), _wal(other)]
    identity = tuple(stamp and stamp[:2] for stamp in stamps[::2])
    return Outside(identity, fingerprint_of(*stamps), unsettled(begun, *stamps))


def _wal(path: str) -> Stamp | None:
    """A process that opens a -wal as root calls chown on it, which sets its ctime: not a write."""
    found = _stat(path + "-wal")
    return stamp_of(found, by_ctime=False) if found and found.st_size else None


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
