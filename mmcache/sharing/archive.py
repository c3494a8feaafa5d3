"""The archive of metrics, `<name>.metrics`: what dead workers have counted, and the last events.

    head     form, schema, when it was made
    halves   two, each: sequence, nonce, lives, sums, checksum
    events   a ring, each: serial, time, kind, value, checksum

Written under the file's lock only. The half with the higher sequence counts. A fold writes the other one, with the
nonce of the slot that it adds; then whoever folds removes that slot. Killed before the checksum is right, it has added
nothing; killed after it, the nonce tells the next one which slot is only to be removed. Nothing is synced: a power cut
may cost counts.
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

__all__ = ["RING", "SUMS", "Archive", "State", "archive_name", "look", "to_write"]

log = logging.getLogger("mmcache")

U64: Final = 2**64 - 1
RING: Final = 256
"""Events kept."""
_FORM: Final = int.from_bytes(b"mmc-sum\x01", "little")
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
    """An archive that is mapped. Reading needs no lock; what is read is whole, and from one moment under the lock."""

    def __init__(self, file: shared.SharedFile) -> None:
        self.file = file

    def state(self) -> State:
        found = [state for at in range(2) if (state := self._half(at)) is not None]
        return max(found, default=State())._replace(since_ns=self.file.words[2])

    def _half(self, at: int) -> State | None:
        data = self.file.words[_HALVES[at] : _HALVES[at] + _HALF].tobytes()
        sequence, nonce, lives, *sums, checksum = memoryview(data).cast("Q").tolist()
        if checksum != xxh3_64_intdigest(data[:-8]) or sequence % 2 != at or sequence >= _LAST:
            return None
        return State(sequence, nonce, lives, sums)

    def fold(self, nonce: int, counts: Sequence[int]) -> None:
        """Add counts, of which there are at most SUMS."""
        old = self.state()
        sums = [min(one + other, U64) for one, other in zip(old.sums, counts, strict=False)]
        half = _packed(State(old.sequence + 1, nonce, min(old.lives + 1, U64), sums))
        begin = _HALVES[(old.sequence + 1) % 2]
        self.file.words[begin : begin + _HALF] = half

    def append(self, time_ns: int, kind: int, value: int) -> None:
        """Add an event; the oldest makes room."""
        serial = max((serial for serial, *_ in self._ring()), default=0) + 1
        event = array("Q", [serial, time_ns, kind, value])
        event.append(xxh3_64_intdigest(event.tobytes()))
        begin = _EVENTS + serial % RING * _EVENT
        self.file.words[begin : begin + _EVENT] = memoryview(event)

    def events(self) -> list[tuple[int, int, int]]:
        """(time in ns, kind, value), oldest first."""
        return [(time_ns, kind, value) for _, time_ns, kind, value in sorted(self._ring())]

    def _ring(self) -> Iterator[tuple[int, int, int, int]]:
        words = self.file.words[_EVENTS:_WORDS].tobytes()
        for at in range(RING):
            data = words[8 * _EVENT * at : 8 * _EVENT * (at + 1)]
            serial, time_ns, kind, value, checksum = memoryview(data).cast("Q")
            if serial and checksum == xxh3_64_intdigest(data[:-8]) and serial % RING == at and serial < _LAST:
                yield serial, time_ns, kind, value


def archive_name(path: str) -> str:
    return f"{path}.metrics"


def look(path: str, schema: int) -> Archive | None:
    """The archive of the cache file at a path, to be read; None where there is none.

    Raises CorruptFileError for one that another version wrote, or nobody; UnusableFileError as `open_shared` does.
    """
    where = archive_name(path)
    file = shared.open_shared(where, SIZE)
    if file is None:
        return None
    if file.words[0] != _FORM or file.words[1] != schema:
        raise CorruptFileError("not the metrics of this version of mmcache", path=where)
    return Archive(file)


@contextlib.contextmanager
def to_write(path: str, schema: int, timeout: float = 1.0) -> Iterator[Archive | None]:
    """The archive, under its exclusive lock, made now if there is none that is right. None where that cannot be done.

    Raises PublishError or UnusableFileError.
    """
    for _ in range(5):
        archive = _made(path, schema)
        if archive is None:
            continue
        if not archive.file.writable:
            break
        with archive.file.locked(timeout) as held:
            if held:
                yield archive
                return
        if archive.file.is_current():
            break
    yield None


def _made(path: str, schema: int) -> Archive | None:
    """The archive; None if it had to be made, or another did so."""
    where = archive_name(path)
    try:
        archive = look(path, schema)
    except CorruptFileError as error:
        log.warning("%s; begun anew", str(error), extra={"event": "archive_replaced", "path": path})
        shared.replace(where, _content(schema), lambda: _is_foreign(path, schema))
        return None
    if archive is None:
        shared.create(where, _content(schema))
    return archive


def _is_foreign(path: str, schema: int) -> bool:
    try:
        look(path, schema)
    except CorruptFileError:
        return True
    return False


def _packed(state: State) -> memoryview:
    half = array("Q", [*state[:3], *state.sums])
    half.extend([0] * (_HALF - 1 - len(half)))
    half.append(xxh3_64_intdigest(half.tobytes()))
    return memoryview(half)


def _content(schema: int) -> bytes:
    """A whole archive of nothing."""
    head = array("Q", [_FORM, schema, time.time_ns()])
    return (head.tobytes().ljust(8 * _HALVES[0], b"\0") + _packed(State()).tobytes()).ljust(SIZE, b"\0")
