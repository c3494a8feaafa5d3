"""The control page: `<name>.ctl`, a few words that every process maps shared, and through which one tells the others.

    generation   of the published file
    soft, hard   nonces: whoever invalidates everything stores a fresh one, and never reads it
    ring         hashes of single ids, and how many there have been
    wake         a nonce stored after any of these: the one word that a get compares

A builder captures soft, hard and ring *before* it begins to read the source, and puts them into the file's header. A
reader compares the header with the page: what differs was invalidated after the capture, and the file may lack it. So
no invalidation can be lost, and none can be undone by a builder that was slow: nobody ever writes back what he read.

Nothing is decided by the order in which two words are seen. An entry of the ring carries its lap, and the records that
take more than a word carry a checksum: what is seen in part counts as not there, which costs a rebuild or a read of the
source and never an answer. The page is a hint otherwise. Delete it, and it is made again; truth is in the header.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from .. import errors
from ..errors import CorruptFileError, MmcacheError, SourceError, UnusableFileError
from ..format.header import HEADER_SIZE, Header, Tokens, parse_header
from ..storage import shared
from ..storage.fs import Identity, ReadFile, control_name

__all__ = [
    "REASONS",
    "ControlPage",
    "Failure",
    "Reason",
    "Revalidation",
    "attach",
    "control_name",
    "entry_of",
    "look",
    "wildcard_of",
]

RING_SIZE: Final = 4096
"""Ids that can be dirty at a time; more, and everything counts as dirty."""

_MAGIC, _NONCE, _BOOT, _CREATED_NS, _DISTRUST = 0, 1, 2, 3, 4
WAKE: Final = 8
_GENERATION, _SOFT, _HARD, _RING = 9, 10, 11, 12
_SOFT_INFO, _HARD_INFO, _RING_INFO = 13, 14, 15
_BUILDER_PID, _BUILDER_SINCE, _BUILDER_TAKES, _CLAIMED_UNTIL = 16, 17, 18, 19
_VERIFIED, _REVALIDATED, _FAILURE = 32, (48, 64), 96
_ENTRIES = 512
_WORDS = _ENTRIES + RING_SIZE
SIZE: Final = 8 * _WORDS

_FORM = int.from_bytes(b"mmc-ctl\x01", "little")
_LAP_SHIFT, _COLLECTION_SHIFT = 56, 48
_ENTRY = (1 << _LAP_SHIFT) - 1
_BOOT_TAG = 0xFFFF
_TEXT_WORDS = 64

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds without an attempt after a build that failed: doubled with each that fails in a row."""
_CLAIM = 10.0
"""Seconds that a process which says it starts a build has, until others think it died."""

_INCOHERENT = ("nfs", "cifs", "smb", "9p", "fuse", "lustre", "ceph", "afs", "gfs", "ocfs", "glusterfs", "beegfs")
"""File systems that may not show one host's stores through a shared map to another, or to anybody."""

_fence = threading.Lock()


@dataclass(frozen=True, slots=True)
class Reason:
    """What a reason of an invalidation means unless the caller says otherwise; hard: for one without ids."""

    name: str
    hard: bool


REASONS: Final = {
    reason.name: reason
    for reason in (
        Reason("manual", hard=True),
        Reason("record_stored", hard=False),
        Reason("record_deleted", hard=True),
        Reason("config_updated", hard=True),
        Reason("schema_migration", hard=True),
        Reason("ttl_expired", hard=False),
    )
}
_NUMBERS = {name: number for number, name in enumerate(REASONS)}


class Revalidation(NamedTuple):
    """A rebuild that found the published file still right: from when on, and what it had captured."""

    generation: int
    build: int
    tokens: Tokens
    checked_ns: int
    elapsed_ns: int
    fingerprint: bytes


class Failure(NamedTuple):
    """The last build that failed, until one succeeds. at, until: time.monotonic(); until: nobody tries before."""

    attempts: int
    at: float
    until: float
    error: MmcacheError


class Builder(NamedTuple):
    """Who said to be building. since: time.monotonic(); takes: seconds that the last build took."""

    pid: int
    since: float
    takes: float


class Notice(NamedTuple):
    """When and why something was invalidated last; at: wall clock."""

    at: float
    reason: str


def entry_of(collection: str, key: str) -> int:
    """An id in 56 bits. Two ids with one entry cost a look into the source, no more."""
    number = xxh3_64_intdigest(collection.encode("utf-8", "surrogatepass")) & 0xFF
    return number << _COLLECTION_SHIFT | xxh3_64_intdigest(key.encode("utf-8", "surrogatepass")) >> 16


def wildcard_of(collection: str) -> int:
    """The entry that stands for every id of a collection."""
    return entry_of(collection, "") >> _COLLECTION_SHIFT << _COLLECTION_SHIFT


def collection_of(entry: int) -> int:
    """The wildcard of an entry's collection."""
    return entry >> _COLLECTION_SHIFT << _COLLECTION_SHIFT


def nonce() -> int:
    """Never zero, never the same again."""
    return int.from_bytes(os.urandom(8), "little") or 1


def _boot() -> int:
    return xxh3_64_intdigest(shared.boot_id())


class ControlPage:
    """A page that is mapped, or one of our own that stands in where none can be: then `shared` is False and `problem`
    says why. Any thread may use it.

    words: what a get compares, `words[WAKE]`. writable: whether we may tell the others anything. superseded: whether
    something was invalidated while the file was built that we published last.
    """

    def __init__(self, file: shared.SharedFile | None, problem: str | None = None) -> None:
        self._file = file
        self.problem = problem
        self.shared = file is not None
        self.superseded = False
        self.words: memoryview = memoryview(bytearray(_content(ours=True))).cast("Q") if file is None else file.words
        self.writable = file is None or file.writable

    @property
    def nonce(self) -> int:
        return self.words[_NONCE]

    @property
    def created(self) -> float:
        return float(self.words[_CREATED_NS] / 1e9)

    def is_current(self) -> bool:
        """Whether this is still the page that everybody uses. One `stat`."""
        return self._file is not None and self._file.is_current()

    def close(self) -> None:
        """Let go of the file. What was read stays."""
        self._file = None
        self.shared = False
        self.words = memoryview(bytearray(self.words)).cast("Q")

    # --- what was said

    def tokens(self) -> Tokens:
        """Of now. Each is read once."""
        words = self.words
        return Tokens(words[_SOFT], words[_HARD], words[_RING], words[_NONCE])

    @property
    def generation(self) -> int:
        """Of the published file; 0 if nobody has published since the page was made."""
        return self.words[_GENERATION]

    def entries(self, since: int, until: int) -> list[int] | None:
        """The ids that were invalidated from one position to another; None if they are not all there (any more)."""
        if not 0 <= until - since <= RING_SIZE:
            return None
        found: list[int] = []
        while since < until:
            begin = since % RING_SIZE
            end = min(begin + until - since, RING_SIZE)
            part = self.words[_ENTRIES + begin : _ENTRIES + end].tolist()
            lap = _lap(since) << _LAP_SHIFT
            if min(part) < lap or max(part) > lap | _ENTRY:
                return None
            found += [word - lap for word in part]
            since += end - begin
        return found

    def distrusts(self, page: int) -> bool:
        """Whether something may have been invalidated, on a page that is gone, after a file was built with that page.

        It may if the page went missing while this machine ran; a file that came from elsewhere, or from before the
        machine started, has no such page, unless somebody who knew it said so."""
        return bool(self.words[_DISTRUST]) or page & _BOOT_TAG == _boot() & _BOOT_TAG

    def last(self, kind: str) -> Notice | None:
        """kind: "soft", "hard" or "ids"."""
        value = self.words[{"soft": _SOFT_INFO, "hard": _HARD_INFO, "ids": _RING_INFO}[kind]]
        names = list(REASONS)
        if not value or value & 7 >= len(names):
            return None
        return Notice((value >> 3) / 1e3, names[value & 7])

    # --- saying it

    def append(self, entries: Sequence[int], reason: str) -> bool:
        """Invalidate ids; False if that could not be done, because the page was replaced or its lock is stuck.

        More than the ring holds at a time is for `invalidate`."""
        words = self.words
        if self._file is None:
            self._append(words, entries, reason)
            return True
        with self._file.locked() as held:
            if held:
                self._append(words, entries, reason)
        return held

    def _append(self, words: memoryview, entries: Sequence[int], reason: str) -> None:
        position = words[_RING]
        for i, entry in enumerate(entries, position):
            words[_ENTRIES + i % RING_SIZE] = _lap(i) << _LAP_SHIFT | entry
        words[_RING_INFO] = _info(reason)
        with _fence:
            words[_RING] = position + len(entries)
        self.wake()

    def invalidate(self, reason: str, *, hard: bool) -> None:
        """Invalidate everything. hard includes soft."""
        if hard:
            self.words[_HARD_INFO] = _info(reason)
            self.words[_HARD] = nonce()
        else:
            self.words[_SOFT_INFO] = _info(reason)
        self.words[_SOFT] = nonce()
        self.wake()

    def distrust(self) -> None:
        """Say that an earlier page knew of something which files of that page may lack."""
        self.words[_DISTRUST] = 1
        self.wake()

    def wake(self) -> None:
        """Make everybody look."""
        # Taking a lock keeps the stores before from moving behind the one that tells of them, on any processor.
        with _fence:
            pass
        self.words[WAKE] = nonce()

    # --- building; only the holder of the build lock writes these, but for the claim

    def claim(self) -> bool:
        """Say that we are about to start a build, unless somebody said so a moment ago, or we may not say so: whoever
        may not write the page may not publish either."""
        if self._file is None:
            return True
        if not self.writable:
            return False
        with self._file.locked(0.05) as held:
            now = time.monotonic_ns()  # not before: whoever held the lock meanwhile has claimed later than that
            if not held or now < self.words[_CLAIMED_UNTIL] <= now + int(_CLAIM * 1e9):
                return False
            self.words[_CLAIMED_UNTIL] = now + int(_CLAIM * 1e9)
        return True

    def begin(self) -> None:
        """We hold the build lock and build."""
        if not self.writable:
            return
        self.words[_BUILDER_PID] = os.getpid()
        self.words[_BUILDER_SINCE] = time.monotonic_ns()
        self.words[_CLAIMED_UNTIL] = 0  # the lock says it from now on, and does not outlive us

    def end(self) -> None:
        """We do not build any more."""
        if not self.writable:
            return
        took = time.monotonic_ns() - self.words[_BUILDER_SINCE]
        self.words[_BUILDER_TAKES] = max(0, min(took, 2**62))
        self.words[_BUILDER_PID] = 0
        self.words[_CLAIMED_UNTIL] = 0

    @property
    def builder(self) -> Builder | None:
        """A hint: it may have been killed. Who holds the build lock is building."""
        words = self.words
        if not words[_BUILDER_PID]:
            return None
        return Builder(words[_BUILDER_PID], words[_BUILDER_SINCE] / 1e9, words[_BUILDER_TAKES] / 1e9)

    def published(self, header: Header, identity: Identity) -> None:
        """A file is at the path, whole and verified."""
        self.verified(header, identity)
        self.superseded = header.tokens != self.tokens()
        if self.writable:
            self.words[_GENERATION] = header.generation
            self.wake()

    def revalidated(self, header: Header, tokens: Tokens, checked_ns: int, elapsed_ns: int, fingerprint: bytes) -> bool:
        """The published file was found to be what a build would make now. False where that cannot be noted for all."""
        if not (self.shared and self.writable):
            return False
        values = [header.generation, _low(header.build_id), *tokens, checked_ns, elapsed_ns]
        values += struct.unpack("<4Q", fingerprint)
        # Numbered, for the clock may have gone back since the one before.
        numbers = {at: found[12] if (found := _checked(self.words, at, 13)) else 0 for at in _REVALIDATED}
        values.append(max(numbers.values()) + 1)
        older = min(_REVALIDATED, key=numbers.__getitem__)
        _store(self.words, older, values)
        self.superseded = tokens != self.tokens()
        self.words[_GENERATION] = header.generation
        self.wake()
        return True

    def revalidation(self, header: Header) -> Revalidation | None:
        """The latest of a published file."""
        words = self.words
        found = [values for at in _REVALIDATED if words[at] and (values := _checked(words, at, 13)) is not None]
        values = max(found, key=lambda values: values[12], default=[0, 0])
        if values[:2] != [header.generation, _low(header.build_id)]:
            return None
        fingerprint = struct.pack("<4Q", *values[8:12])
        return Revalidation(values[0], values[1], Tokens(*values[2:6]), values[6], values[7], fingerprint)

    def verified(self, header: Header, identity: Identity) -> None:
        """Every byte of this file was checked on this machine since it started."""
        if self.writable:
            _store(self.words, _VERIFIED, _proof(header, identity))

    def knows(self, header: Header, identity: Identity) -> bool:
        """Whether somebody said so of this very file."""
        return self.shared and _checked(self.words, _VERIFIED, 6) == _proof(header, identity)

    def failed(self, error: Exception) -> None:
        """A build has failed: nobody tries for a while, and whoever waits for it gets the same error."""
        if not self.writable:
            return
        before = self.failure
        attempts = before.attempts + 1 if before is not None else 1
        now = time.monotonic_ns()
        spread = 0.75 + os.urandom(1)[0] / 512
        pause = min(_FIRST_PAUSE * 2 ** min(attempts - 1, 10), _LONGEST_PAUSE) * spread
        text = _text_of(error).encode("utf-8", "replace")[: 8 * _TEXT_WORDS]
        padded = text.ljust(8 * _TEXT_WORDS, b"\0")
        values = [attempts, now, now + int(pause * 1e9), *struct.unpack(f"<{_TEXT_WORDS}Q", padded)]
        _store(self.words, _FAILURE, values)
        self.words[_CLAIMED_UNTIL] = 0
        self.wake()

    def succeeded(self) -> None:
        """No build has failed since."""
        if self.writable:
            self.words[_FAILURE] = 0

    @property
    def failure(self) -> Failure | None:
        if not self.words[_FAILURE]:
            return None
        values = _checked(self.words, _FAILURE, 3 + _TEXT_WORDS)
        if values is None:
            return None
        text = struct.pack(f"<{_TEXT_WORDS}Q", *values[3:]).rstrip(b"\0").decode("utf-8", "replace")
        # A clock that is not the one of whoever wrote this must not keep us waiting.
        until = min(values[2] / 1e9, time.monotonic() + _LONGEST_PAUSE)
        return Failure(values[0], values[1] / 1e9, until, _error_of(text))


def attach(path: str) -> ControlPage:
    """The page of the cache file at a path, made now if there is none.

    Where that is not possible, one of our own, which says why.
    """
    where = control_name(path)
    try:
        kind = shared.kind_of_file_system(os.path.dirname(os.path.abspath(path)))
        if kind.startswith(_INCOHERENT):
            raise UnusableFileError(f"on a {kind} file system, where processes may not see each other's stores")
        for _ in range(5):
            try:
                file = shared.open_shared(where, SIZE)
            except CorruptFileError:
                shared.replace(where, _content(distrust=True), lambda: _needs_replacement(where))
                continue
            if file is None:
                shared.create(where, _content())
            elif not _is_valid(file):
                shared.replace(where, _content(distrust=_left_open(file, path)), lambda: _needs_replacement(where))
            else:
                return ControlPage(file)
        raise UnusableFileError("is replaced again and again by another process", path=where)
    except MmcacheError as error:
        return ControlPage(None, str(error))


def look(path: str) -> ControlPage | None:
    """The page of the cache file at a path, if there is one that can be used now."""
    try:
        file = shared.open_shared(control_name(path), SIZE)
    except MmcacheError:
        return None
    return ControlPage(file) if file is not None and _is_valid(file) else None


def _content(*, distrust: bool = False, ours: bool = False) -> bytes:
    """A whole page. Its nonce tells on which boot it was made; not that of a page of our own, for nobody else can miss
    what was said there."""
    words = [0] * _WORDS
    words[_MAGIC], words[_BOOT], words[_CREATED_NS] = _FORM, _boot(), time.time_ns()
    words[_NONCE] = nonce() & ~_BOOT_TAG | (_boot() ^ ours) & _BOOT_TAG
    words[_DISTRUST] = int(distrust)
    return struct.pack(f"={_WORDS}Q", *words)


def _is_valid(file: shared.SharedFile) -> bool:
    return bool(file.words[_MAGIC] == _FORM and file.words[_BOOT] == _boot())


def _needs_replacement(where: str) -> bool:
    try:
        file = shared.open_shared(where, SIZE)
    except CorruptFileError:
        return True
    return file is not None and not _is_valid(file)


def _left_open(old: shared.SharedFile, path: str) -> bool:
    """Whether an old page, from before the machine started, had something invalidated that the file may lack."""
    words = old.words
    if words[_MAGIC] != _FORM:
        return True
    try:
        file = ReadFile(path)
        try:
            header = parse_header(file.read(0, HEADER_SIZE), file.size)
        finally:
            file.close()
    except UnusableFileError:
        return False
    said = Tokens(words[_SOFT], words[_HARD], words[_RING], words[_NONCE])
    known = ControlPage(old).revalidation(header)
    return said[1:] not in (header.tokens[1:], known.tokens[1:] if known else None)


def _lap(position: int) -> int:
    return (position // RING_SIZE + 1) & 0xFF


def _info(reason: str) -> int:
    return (time.time_ns() // 10**6) << 3 | _NUMBERS[reason]


def _low(build_id: bytes) -> int:
    return int.from_bytes(build_id[:8], "little")


def _proof(header: Header, identity: Identity) -> list[int]:
    return [*(value & (2**64 - 1) for value in identity), *struct.unpack("<2Q", header.build_id)]


def _store(words: memoryview, at: int, values: Sequence[int]) -> None:
    """Words that belong together, and a checksum over them."""
    for i, value in enumerate(values, at):
        words[i] = value
    words[at + len(values)] = xxh3_64_intdigest(struct.pack(f"={len(values)}Q", *values))


def _checked(words: memoryview, at: int, count: int) -> list[int] | None:
    """Words that belong together; None if they do not."""
    read = words[at : at + count].tobytes()
    return list(struct.unpack(f"={count}Q", read)) if words[at + count] == xxh3_64_intdigest(read) else None


def _text_of(error: Exception) -> str:
    if isinstance(error, MmcacheError):
        return f"{type(error).__name__}\n{error.path or ''}\n{error.message}"
    return f"SourceError\n\n{type(error).__name__}: {error}"


def _error_of(text: str) -> MmcacheError:
    """The same error as another process had. Its type comes from our own table."""
    name, path, message = (*text.split("\n", 2), "", "")[:3]
    kind = getattr(errors, name) if name in errors.__all__ else SourceError
    error: MmcacheError = kind(message, path=path or None)
    return error
