"""The archive of metrics, `<name>.metrics`: what dead workers have counted, and the last events.

    head     form, schema, when it was made
    halves   two, each: sequence, nonce, lives, sums, checksum
    events   a ring, each: serial, time, kind, value, checksum

Written under the file's lock only. The half with the higher sequence counts. A fold writes the other one, in one call,
with the nonce of the slot that it adds; then whoever folds removes that slot. Killed before the checksum is right, it
has added nothing; killed after it, the nonce tells the next one which slot is only to be removed. Nothing is synced: a
power cut may cost counts. Nothing is mapped: an archive that was emptied in place is damaged, and begun anew.
"""

from __future__ import annotations

import contextlib
import logging
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from ..errors import CorruptFileError
from ..storage import shared
from .tally import U64

__all__ = ["RING", "SUMS", "Archive", "State", "archive_name", "look", "to_write"]

log = logging.getLogger("mmcache")

RING: Final = 256
"""Events kept."""
_FORM: Final = int.from_bytes(b"mmc-sum\x01", "little")
_HEAD = 3
_HALF = 512
_HALVES = (512, 1024)
SUMS: Final = _HALF - 4
"""Words that may be summed."""
_EVENTS = 1536
_EVENT = 5
_WORDS = _EVENTS + RING * _EVENT
SIZE: Final = 8 * _WORDS
_LAST = 2**63
"""No sequence or serial gets as far: what claims to have is not ours."""


class State(NamedTuple):
    """nonce: of what was folded last. lives: how often. since_ns: when the archive was made; 0 for that of none."""

    sequence: int = 0
    nonce: int = 0
    lives: int = 0
    sums: Sequence[int] = (0,) * SUMS
    since_ns: int = 0


class Archive:
    """An archive that is open. Reading needs no lock; what is read is whole, and from one moment under the lock.

    Every method raises CorruptFileError for what is no archive (any more), UnusableFileError or OSError as the system.
    """

    def __init__(self, file: shared.SmallFile, schema: int) -> None:
        self.file = file
        self.schema = schema

    def check(self) -> int:
        """When it was made, in ns."""
        form, schema, since_ns = self._words(0, _HEAD)
        if form != _FORM or schema != self.schema:
            raise CorruptFileError("not the metrics of this version of mmcache", path=self.file.path)
        return since_ns

    def state(self) -> State:
        since_ns = self.check()
        found = [state for at in range(2) if (state := self._half(at)) is not None]
        return max(found, default=State())._replace(since_ns=since_ns)

    def _half(self, at: int) -> State | None:
        words = self._words(_HALVES[at], _HALF)
        sequence, nonce, lives, *sums, checksum = words
        if checksum != xxh3_64_intdigest(words[:-1]) or sequence % 2 != at or sequence >= _LAST:
            return None
        return State(sequence, nonce, lives, sums)

    def fold(self, nonce: int, counts: Sequence[int]) -> None:
        """Add counts, of which there are at most SUMS."""
        old = self.state()
        sums = [min(one + other, U64) for one, other in zip(old.sums, counts, strict=False)]
        half = _packed(State(old.sequence + 1, nonce, min(old.lives + 1, U64), sums))
        self.file.write(8 * _HALVES[(old.sequence + 1) % 2], half)

    def append(self, time_ns: int, kind: int, value: int) -> None:
        """Add an event; the oldest makes room."""
        serial = max((serial for serial, *_ in self._ring()), default=0) + 1
        event = array("Q", [serial, time_ns, kind, value])
        event.append(xxh3_64_intdigest(event))
        self.file.write(8 * (_EVENTS + serial % RING * _EVENT), event.tobytes())

    def events(self) -> list[tuple[int, int, int]]:
        """(time in ns, kind, value), oldest first."""
        return [(time_ns, kind, value) for _, time_ns, kind, value in sorted(self._ring())]

    def _ring(self) -> Iterator[tuple[int, int, int, int]]:
        words = self._words(_EVENTS, RING * _EVENT)
        for at in range(RING):
            event = words[_EVENT * at : _EVENT * (at + 1)]
            serial, time_ns, kind, value, checksum = event
            if serial and checksum == xxh3_64_intdigest(event[:-1]) and serial % RING == at and serial < _LAST:
                yield serial, time_ns, kind, value

    def _words(self, begin: int, count: int) -> array[int]:
        return array("Q", self.file.read(8 * begin, 8 * count))


def archive_name(path: str) -> str:
    return f"{path}.metrics"


@contextlib.contextmanager
def look(path: str, schema: int) -> Iterator[Archive | None]:
    """The archive of the cache file at a path, to be read; None where there is none.

    Raises CorruptFileError for one that another version wrote, or nobody; UnusableFileError as `open_small` does.
    """
    file = shared.open_small(archive_name(path), SIZE)
    if file is None:
        yield None
        return
    with file:
        archive = Archive(file, schema)
        archive.check()
        yield archive


@contextlib.contextmanager
def to_write(path: str, schema: int, timeout: float = 1.0) -> Iterator[Archive | None]:
    """The archive, under its exclusive lock, made now if there is none that is right. None where that cannot be done.

    Raises PublishError or UnusableFileError.
    """
    for _ in range(5):
        with contextlib.ExitStack() as stack:
            try:
                archive = stack.enter_context(look(path, schema))
            except CorruptFileError as error:
                _replace(path, schema, error)
                continue
            if archive is None:
                shared.create(archive_name(path), _content(schema))
                continue
            if archive.file.writable and archive.file.lock(timeout):
                archive.check()  # as nothing keeps others from writing over it in place
                yield archive
                return
            if not archive.file.writable or archive.file.is_current():
                break
    yield None


def _replace(path: str, schema: int, error: CorruptFileError) -> None:
    log.warning("%s; begun anew", str(error), extra={"event": "archive_replaced", "path": path})
    shared.replace(archive_name(path), _content(schema), lambda: _is_foreign(path, schema))


def _is_foreign(path: str, schema: int) -> bool:
    try:
        with look(path, schema):
            return False
    except CorruptFileError:
        return True


def _packed(state: State) -> bytes:
    half = array("Q", [*state[:3], *state.sums])
    half.extend([0] * (_HALF - 1 - len(half)))
    half.append(xxh3_64_intdigest(half))
    return half.tobytes()


def _content(schema: int) -> bytes:
    """A whole archive of nothing."""
    head = array("Q", [_FORM, schema, time.time_ns()])
    return (head.tobytes().ljust(8 * _HALVES[0], b"\0") + _packed(State())).ljust(SIZE, b"\0")
