"""The control page: `<name>.ctl`, a head and a log of events, through which the processes of a machine tell each other.

Say      under the page lock: the events, then the count; then the word of the wake file. A process that is killed in
         between has said nothing, or has said it without waking the others, which then read it at their next poll.
Hear     compare the mapped word; if it differs, read the head, and the events after the position that was heard last.
Nothing is undone: a builder captures the count before it reads the source, and its file lacks what is logged behind.

The page is a hint: delete it, and it is made again; the truth is in the file's header. See docs/sharing.md.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from xxhash import xxh3_64_intdigest

from .. import wallclock
from ..errors import PublishError
from ..forks import Lock
from ..format.header import Header, Tokens
from ..storage import shared
from ..storage.fs import Identity, identity_of
from ..storage.names import control_name, wake_name
from ..storage.pagefile import NO_WORD, PageFile, Wake, Word, page_lock
from .events import MAX_APPEND, Event, Extent, decode, encode
from .head import (
    ANNOUNCED,
    BUILDER,
    COUNT,
    COVERED,
    FAILURE,
    FAR,
    HEAD_SIZE,
    PANIC,
    TAKEN,
    VERIFIED,
    Failure,
    Head,
    PageIdentity,
    pack_head,
    pack_record,
    parse_head,
    proof_of,
    text_of,
)

__all__ = [
    "BOOT_TAG",
    "LOG_SIZE",
    "WINDOW",
    "MovedError",
    "News",
    "Page",
    "boot_number",
    "nonce",
    "page_path",
    "private_page",
    "wake_path",
]

LOG_SIZE: Final = 32 * 2**20
"""Bytes of the ring; what the file has of it on disk is what was used. 16,384 events of the longest keys fit."""

WINDOW: Final = LOG_SIZE - MAX_APPEND
"""Bytes of the log that are sure to be there: an append that is not finished may overwrite what is older."""

_BLIND: Final = 1 << 63
"""Of a word that was stored without the page lock: nothing that is heard explains it."""
_POSITION: Final = FAR - 1
"""Bits of a word that hold a position; the others are drawn, so that no two stores give the same word."""

BOOT_TAG: Final = 0xFFFF
"""Bits of a nonce that tell on which boot its page was made."""

_PATIENCE: Final = 1.0
"""Seconds to wait for the page lock, which is held for microseconds, before its holder counts as stopped."""

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds without an attempt after a build that failed: doubled with each that fails in a row."""


class MovedError(Exception):
    """Another page stands at the path, or this one is damaged: attach again."""


class News(NamedTuple):
    """What was found. extent: the log after a position, or None where it is not all there. until, chain: of the log."""

    head: Head
    extent: Extent | None
    until: int
    chain: int

    @property
    def events(self) -> list[Event] | None:
        """Those after the position; None where they are not all there."""
        return None if self.extent is None else self.extent.events


def nonce() -> int:
    """Never zero, and never the same again."""
    return int.from_bytes(os.urandom(8), "little") or 1


def boot_number() -> int:
    """Of this boot of this machine."""
    return xxh3_64_intdigest(shared.boot_id())


class Page:
    """A page that is open, or one in memory that stands in where none can be shared: then `problem` says why.

    path: of the cache file. word: what a get compares, `word[0]`. Any thread may use it.
    """

    def __init__(
        self,
        path: str,
        store: PageFile | _Memory,
        identity: PageIdentity,
        wake: Wake | _OwnWake,
        problem: str | None = None,
    ) -> None:
        self.path = path
        self.identity = identity
        self.word = wake.word
        self.problem = problem
        self._store = store
        self._wakes = wake

    @property
    def shared(self) -> bool:
        return isinstance(self._store, PageFile)

    @property
    def writable(self) -> bool:
        return self._store.writable

    @property
    def nonce(self) -> int:
        return self.identity.nonce

    def is_current(self) -> bool:
        """Whether this is still the page that every process uses, and its word that which they map. Two `stat`s."""
        return self._store.is_current() and self._wakes.is_current()

    def distrusts(self, page: int) -> bool:
        """Whether something may have been said on a page that is gone, after a file was built with that page.

        It may if that page went missing while this machine ran; a file of another machine, or of an earlier boot, has
        none that could have."""
        return bool(self.identity.suspect) or page & BOOT_TAG == self.identity.boot & BOOT_TAG

    def position_of(self, tokens: Tokens) -> tuple[int, int] | None:
        """The position in this page's log that a builder captured, and the chain there; None for another page's."""
        if tokens.page == self.nonce:
            return tokens.ring, tokens.soft
        if tokens.page == self.identity.parent and tokens.page:
            if tokens.ring < self.identity.taken:
                return tokens.ring, tokens.soft
            return self.identity.taken, self.identity.chain
        return None

    def close(self) -> None:
        self._store.close()
        self._wakes.close()
        self.word = NO_WORD

    # --- hearing

    def head(self) -> Head | None:
        """One `pread`. None where it is damaged, or another page was written over it."""
        head = parse_head(self._store.read(0, HEAD_SIZE))
        return head if head is not None and head.identity.nonce == self.nonce else None

    def since(self, position: int, chain: int) -> News:
        """The head, and the events after a position, whose chain shows that they continue what was heard up to there.

        Raises MovedError where the page is damaged, or was put back to an earlier state.
        """
        for _ in range(3):
            head = self.head()
            if head is None or head.logged is None or not _continues(head, position, chain):
                continue  # it may have been read while it was stored
            extent = self._read(position, head.logged, chain)
            if extent is not None or head.logged - position > WINDOW:
                return News(head, extent, head.logged, head.chain)
        return self._under_lock(position, chain)

    def _read(self, position: int, until: int, chain: int) -> Extent | None:
        if until == position:
            return Extent([], [], chain, [])
        if until - position > WINDOW or position < self.identity.origin or (position and not chain):
            return None
        data = self._extent(position, until)
        # Case: a read that fails, or ends early, where a record ends: what is missing must not pass for heard.
        return decode(data, position, chain) if len(data) == until - position else None

    def _extent(self, position: int, until: int) -> bytes:
        begin, length = position % LOG_SIZE, until - position
        data = self._store.read(HEAD_SIZE + begin, min(length, LOG_SIZE - begin))
        if length > LOG_SIZE - begin:
            data += self._store.read(HEAD_SIZE, length - (LOG_SIZE - begin))
        return data

    def _under_lock(self, position: int, chain: int) -> News:
        """What could not be read is read again while no process writes; what cannot be read then is lost."""
        try:
            with self._lock(0.01):
                head = self.head()
                if head is None or head.logged is None or not _continues(head, position, chain):
                    raise MovedError
                return News(head, self._read(position, head.logged, chain), head.logged, head.chain)
        except PublishError:  # a page that we may only read
            head = self.head()
            if head is None or head.logged is None or not _continues(head, position, chain):
                raise MovedError from None
            return News(head, None, head.logged, head.chain)

    def last_said(self) -> float:
        """Wall clock of the last event of a page in memory; 0.0 if nothing was said on it."""
        head = self.head()
        if head is None or not head.logged:
            return 0.0
        found = decode(self._extent(0, head.logged), 0, 0) if head.logged <= WINDOW else None
        return wallclock.now() if found is None else found.times[-1] / 1e9

    # --- saying

    def say(self, events: Sequence[Event], patience: float = _PATIENCE) -> bool:
        """Log events and wake every process. False where the page lock was not to be had in time: see `panic`.

        Raises MovedError where another page is at the path, and PublishError for what the system refuses: before the
        count was stored, nothing was said; after it, only waking has failed.
        """
        with self._lock(patience) as is_held:
            if not is_held:
                return False
            head = self.head()
            if head is None or head.logged is None or (self.shared and not self.is_current()):
                raise MovedError
            position = head.logged
            data, chain = encode(events, position, wallclock.now_ns(), head.chain)
            begin = position % LOG_SIZE
            first = data[: LOG_SIZE - begin]
            self._store.write(HEAD_SIZE + begin, first)
            if len(first) < len(data):
                self._store.write(HEAD_SIZE, data[len(first) :])
            self._store.write(COUNT, pack_record(COUNT, position + len(data), chain))
            self._wakes.store(_word_of(position + len(data)))
        return True

    def panic(self) -> None:
        """Invalidate everything without the page lock. Raises MovedError and PublishError as `say`."""
        self._store.write(PANIC, nonce().to_bytes(8, "little"))
        if self.shared and not self.is_current():
            raise MovedError
        self._wakes.store(_BLIND | nonce())

    def accepts(self, woken: int, head: Head) -> bool:
        """Whether what was heard explains the word, so that it need not be heard again."""
        if not self.shared:
            return True
        return not woken & _BLIND and head.logged is not None and woken & _POSITION <= head.logged

    def wake_again(self) -> None:
        """Wake every process as the last writer should have, who may have been killed before. Raises as `say`."""
        with self._lock(_PATIENCE) as is_held:
            head = self.head()
            if head is None or head.logged is None or (self.shared and not self.is_current()):
                raise MovedError
            self._wakes.store(_word_of(head.logged) if is_held else _BLIND | nonce())

    def wake_readers(self) -> None:
        """Make readers that still compare this page's word look what became of it."""
        self._wakes.store(_BLIND | nonce())

    def settle(self, head: Head) -> None:
        """Bring the word in line with the count, where a killed or blind writer left it behind."""
        if self.writable and self.shared and not _is_in_line(self, head):
            with self._lock(0.0) as is_held:
                now = self.head() if is_held else None
                if now is not None and now.logged is not None and not _is_in_line(self, now):
                    self._wakes.store(_word_of(now.logged))

    def _lock(self, timeout: float) -> Any:
        if isinstance(self._store, PageFile):
            return page_lock(self._store.path, self.path, timeout)
        return self._store.locked()

    # --- what builders record; only the holder of the build lock writes these

    def tokens(self) -> Tokens:
        """What a builder captures before it reads the source. Raises MovedError."""
        head = self.head()
        if head is None or head.logged is None:
            raise MovedError
        return Tokens(head.chain, head.panic, head.logged, self.nonce)

    def record_builder(self, pid: int, since_ns: int, takes_ns: int) -> None:
        self._store.write(BUILDER, pack_record(BUILDER, pid, since_ns, takes_ns))

    def record_verified(self, header: Header, identity: Identity) -> None:
        """A reader has checked every byte of this file, on this machine since it started."""
        proof = proof_of(header, identity)
        self._store.write(VERIFIED[2], pack_record(VERIFIED[2], *_unpacked(proof)))

    def record_built(self, header: Header, identity: Identity, *, keep: Identity | None) -> None:
        """So has a builder, of a file that it is about to publish. keep: of the file whose record stays."""
        head = self.head()
        known = () if head is None else head.verified
        proof = proof_of(header, identity)
        kept = None if keep is None else proof_of(header, keep)[:32]
        if proof in known:
            return
        at = VERIFIED[1] if kept is not None and known and known[0][:32] == kept else VERIFIED[0]
        self._store.write(at, pack_record(at, *_unpacked(proof)))

    def knows(self, header: Header, identity: Identity) -> bool:
        """Whether that was recorded of this very file."""
        head = self.head() if self.shared else None
        return head is not None and proof_of(header, identity) in head.verified

    def record_announced(self, header: Header, *, is_taken: bool = False) -> None:
        """is_taken: whether it took the place of a file with schemas that are not additive."""
        if is_taken:
            self._store.write(TAKEN, pack_record(TAKEN, time.monotonic_ns()))
        self._store.write(ANNOUNCED, pack_record(ANNOUNCED, header.generation, header.build_id))

    def record_covered(
        self, header: Header, tokens: Tokens, checked_ns: int, elapsed_ns: int, fingerprint: bytes
    ) -> None:
        values = header.generation, header.build_id, *tokens, checked_ns, max(0, elapsed_ns), fingerprint
        self._store.write(COVERED, pack_record(COVERED, *values))

    def record_failure(self, error: BaseException | None) -> None:
        """A build has failed, or with None has not: after more failures in a row a longer pause."""
        if error is None:
            self._store.write(FAILURE, bytes(8))
            return
        now = time.monotonic_ns()
        before = self.failure
        attempts = min(before.attempts + 1, FAR) if before is not None else 1
        spread = 0.75 + os.urandom(1)[0] / 512
        pause = min(_FIRST_PAUSE * 2 ** min(attempts - 1, 10), _LONGEST_PAUSE) * spread
        self._store.write(FAILURE, pack_record(FAILURE, attempts, now, now + int(pause * 1e9), text_of(error)))

    @property
    def failure(self) -> Failure | None:
        head = self.head()
        return None if head is None else head.failure(time.monotonic())


def _unpacked(proof: bytes) -> tuple[Any, ...]:
    words = [int.from_bytes(proof[i : i + 8], "little") for i in range(0, 32, 8)]
    return *words, proof[32:]


def page_path(path: str) -> str:
    """The page of the cache file at a path."""
    return control_name(path)


def wake_path(path: str, number: int) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, wake_name(name, number))


class _Memory:
    """The bytes of a page that only this process sees."""

    path = ""
    writable = True

    def __init__(self, head: bytes) -> None:
        self._data = bytearray(head)
        self._lock = Lock()

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        if len(self._data) < offset:
            self._data.extend(bytes(offset - len(self._data)))
        self._data[offset : offset + len(data)] = data

    def is_current(self) -> bool:
        return False

    def close(self) -> None:
        pass

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        with self._lock:
            yield True


def _continues(head: Head, position: int, chain: int) -> bool:
    """Whether the log may hold what was heard up to a position. Where nothing is new, the chain must be the same."""
    assert head.logged is not None
    return head.logged > position or (head.logged == position and head.chain == chain)


def _is_in_line(page: Page, head: Head) -> bool:
    """Whether the word is that of the count."""
    return page.accepts(page.word[0], head) and page.word[0] & _POSITION == head.logged


def _word_of(position: int) -> int:
    return nonce() & ~(_BLIND | _POSITION) | position


class _OwnWake:
    """The word of a page that no other process sees."""

    def __init__(self, word: Word) -> None:
        self.word = word

    def store(self, value: int) -> None:
        self.word[0] = value

    def is_current(self) -> bool:
        return True

    def close(self) -> None:
        pass


class _PathWord:
    """The word of a page that cannot be mapped: it differs when another file is at the page's path. One `stat`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getitem__(self, _: int) -> int:
        identity = identity_of(self._path)
        return 0 if identity is None else hash(identity[:2])

    def __setitem__(self, _: int, value: int) -> None:
        pass


def private_page(path: str, problem: str | None, *, watched: bool = False) -> Page:
    """A page in memory, whose nonce shows that no other process can have missed what was said on it.

    watched: another user may put a page at the path, so that a get looks whether there is one.
    """
    boot = boot_number()
    identity = PageIdentity(nonce() & ~BOOT_TAG | (boot ^ 1) & BOOT_TAG, boot, wallclock.now_ns(), 0, 0)
    word: Word = _PathWord(page_path(path)) if watched else memoryview(bytearray(8)).cast("Q")
    return Page(path, _Memory(pack_head(identity)), identity, _OwnWake(word), problem)
