"""What the workers of one cache file count, each by itself, and all of them together.

A cache object counts in a slot: a file of its own, `.<name>.<nonce>.slot`, mapped shared, and written by nobody else.
A count is one store, so a worker that is killed loses none that it had stored. It holds the slot's lock for life: that
is how others know that it lives, whatever its pid is, and in which container. A slot without its owner is added to
the archive and removed by whoever opens a slot next; its own owner does so on `close`. The nonce makes each count once.

Nothing here fails a cache: where a slot cannot be shared it is private, and nobody else sees it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Final

from xxhash import xxh3_64_intdigest

from ..errors import CorruptFileError, LockTimeoutError, MmcacheError, UntrustedPathError, UnusableFileError
from ..storage import fs, shared
from . import archive
from .archive import U64
from .fleet import CAUSES, Event, Fleet, Histogram, Worker

__all__ = [
    "BUILD",
    "CAUSES",
    "COUNTERS",
    "EVENTS",
    "FALLBACK",
    "GAUGES",
    "HISTOGRAMS",
    "IDLE",
    "LOAD",
    "LOOKUP",
    "STATES",
    "Event",
    "Fleet",
    "Histogram",
    "Slot",
    "Worker",
    "read_fleet",
    "record_event",
    "remove",
]

log = logging.getLogger("mmcache")

# --- the words of a slot ----------------------------------------------------------------------------------------------

GAUGES: Final = (
    *("pid", "started_ns", "seen_ns"),  # wall clock; seen: last slow check
    *("generation", "state", "pinned", "mapped_bytes", "private_bytes", "load_ns"),  # state: index into STATES
)
COUNTERS: Final = (
    "hits",  # answers from the file one by one; in a slot's words, and looks besides
    "looks",  # what a look at the number of hits added to it
    "batch_hits",  # answers from the file in batches
    "misses",
    "stale_served",  # answers from a file that is stale, or expired while the source failed
    *(f"fallback_{cause}" for cause in CAUSES),  # answers from the source
    "fallback_ns",
    *("corruptions", "opens", "adoptions", "refusals", "slow_lookups"),
    *("rebuilds_ok", "rebuilds_unchanged", "rebuilds_failed", "rebuilds_superseded", "rebuilds_lost_race"),
    *("invalidations_ids", "invalidations_soft", "invalidations_hard", "invalidated_ids"),
)
STATES: Final = ("starting", "fresh", "stale", "expired", "invalidated", "slow", "no file", "disabled")
IDLE: Final = "idle"
_IDLE_AFTER: Final = 60.0
"""Seconds without a look, after which what a worker said of itself is of no use: nobody asks it anything."""
HISTOGRAMS: Final = ("lookup", "fallback", "load", "build")
EVENTS: Final = ("rebuild", "unchanged", "rebuild_failed", "corruption", "invalidation", "refusal")

_FORM: Final = int.from_bytes(b"mmc-slot", "little")
_LABEL, _LABEL_BYTES = 3, 64  # form, schema and nonce are before it
_FIRST_GAUGE = 16
_FIRST_COUNTER = _FIRST_GAUGE + len(GAUGES)
_FIRST_BUCKET = _FIRST_COUNTER + len(COUNTERS)
_BUCKETS = 48
_HISTOGRAM = _BUCKETS + 1  # and their sum, in ns
_END = _FIRST_BUCKET + len(HISTOGRAMS) * _HISTOGRAM
_WORDS = 512
_SIZE = 8 * _WORDS
assert _END - _FIRST_COUNTER <= archive.SUMS

# fmt: off
(PID, STARTED_NS, SEEN_NS, GENERATION, STATE, PINNED, MAPPED_BYTES, PRIVATE_BYTES, LOAD_NS) = range(
    _FIRST_GAUGE, _FIRST_COUNTER)
(HITS, LOOKS, BATCH_HITS, MISSES, STALE_SERVED,
 FALLBACK_ABSENT, FALLBACK_RECORD, FALLBACK_BUILDING, FALLBACK_DISABLED, FALLBACK_MISSING,
 FALLBACK_CORRUPT, FALLBACK_INCOMPATIBLE, FALLBACK_UNREADABLE, FALLBACK_UNTRUSTED,
 FALLBACK_INVALIDATED, FALLBACK_EXPIRED, FALLBACK_SLOW, FALLBACK_NS,
 CORRUPTIONS, OPENS, ADOPTIONS, REFUSALS, SLOW_LOOKUPS,
 REBUILDS_OK, REBUILDS_UNCHANGED, REBUILDS_FAILED, REBUILDS_SUPERSEDED, REBUILDS_LOST_RACE,
 INVALIDATIONS_IDS, INVALIDATIONS_SOFT, INVALIDATIONS_HARD, INVALIDATED_IDS) = range(_FIRST_COUNTER, _FIRST_BUCKET)
# fmt: on
LOOKUP, FALLBACK, LOAD, BUILD = range(len(HISTOGRAMS))

_OURS: Final = xxh3_64_intdigest(repr((GAUGES, COUNTERS, STATES, HISTOGRAMS, EVENTS, _BUCKETS, _FIRST_GAUGE)).encode())
"""Changes with any of these: what carries another number was counted by another version, and is not understood."""
_LONGEST = 2.0**33
"""Seconds; what claims to take longer, or less than nothing, counts as nothing."""
_FOLDS = 64
"""Slots of dead workers that one opening adds to the archive, at most."""


# --- counting ---------------------------------------------------------------------------------------------------------


class Slot:
    """The counters of one cache object in this process.

    words: format "Q"; the hot path stores `words[HITS] = n`, the rest is for callers who serialise it. A word index is
    the name of a counter or gauge in upper case. They stay valid after `close`, and in a forked child, where they are
    other words, which nobody reads: a child opens a slot of its own.
    shared: whether others see it.
    """

    __slots__ = ("__weakref__", "_held", "_nonce", "_path", "shared", "words")

    words: memoryview

    def __init__(self) -> None:
        self.words = _private_words()
        self.shared = False
        self._path = ""
        self._nonce = 0
        self._held: shared.Holding | None = None

    @classmethod
    def private(cls) -> Slot:
        return cls()

    @classmethod
    def open(cls, path: str, *, label: str = "") -> Slot:
        """A slot for the cache file at a path, shared if that is possible. Adds what the dead left to the archive.

        label: what this worker is called, of which 64 bytes are kept.
        """
        slot = cls()
        path = os.path.abspath(path)
        error: Exception | None = None
        for _ in range(5):
            nonce = os.urandom(8)
            try:
                file, slot._held = shared.create_held(_slot_name(path, nonce), _content(nonce, label))
            except (FileNotFoundError, BlockingIOError) as refused:
                error = refused  # a folder was faster than our lock
            except (MmcacheError, OSError, ValueError) as refused:
                error = refused
                break
            else:
                slot._path, slot._nonce = path, int.from_bytes(nonce, "big")
                slot.words, slot.shared = file.words, True
                # Dropped without `close`, a slot is folded by the next one.
                weakref.finalize(slot, slot._held.close).atexit = False
                _shared_slots.add(slot)
                _fold_dead(path, slot._nonce)
                return slot
        _tell_once("metrics_private", path, f"nobody else sees what this process counts: {error}", logging.INFO)
        return slot

    def add(self, word: int, n: int = 1) -> None:
        self.words[word] = self.words[word] + n & U64

    def set(self, word: int, value: int) -> None:
        """A value that no word can hold is kept as the nearest that it can."""
        self.words[word] = min(max(value, 0), U64)

    def observe(self, histogram: int, seconds: float) -> None:
        ns = int(seconds * 1e9) if 0.0 < seconds < _LONGEST else 0
        first = _FIRST_BUCKET + histogram * _HISTOGRAM
        self.add(first + min(ns.bit_length(), _BUCKETS - 1))
        self.add(first + _BUCKETS, ns)

    def counters(self) -> dict[str, int]:
        """Of this slot alone; hits without looks."""
        return _counters(self.words[_FIRST_COUNTER:_FIRST_BUCKET].tolist())

    def close(self) -> None:
        """Add what was counted to the archive, and remove the file."""
        held, self._held = self._held, None
        if held is None:
            return
        try:
            with archive.to_write(self._path, _OURS) as totals, fs.Directory(self._path) as directory:
                if totals is not None:
                    _remove_folded(totals, directory)
                    _fold(totals, directory, self._nonce, self.words)
        except (MmcacheError, OSError) as error:
            log.debug(
                "%s: slot left to others: %s", self._path, str(error), extra={"event": "slot_left", "path": self._path}
            )
        finally:
            self.shared = False
            held.close()
            kept = _private_words()
            kept[:] = self.words
            self.words = kept

    def _forget(self) -> None:
        """In a forked child: the file and its lock are the parent's."""
        if self._held is not None:
            self._held.forget()
            self._held = None
        self.words = _private_words()
        self.shared = False


_shared_slots: weakref.WeakSet[Slot] = weakref.WeakSet()


def _forget_slots() -> None:
    for slot in list(_shared_slots):
        slot._forget()
    _shared_slots.clear()


os.register_at_fork(after_in_child=_forget_slots)


def _private_words() -> memoryview:
    return memoryview(bytearray(_SIZE)).cast("Q")


def _content(nonce: bytes, label: str) -> bytes:
    head = struct.pack("=QQQ", _FORM, _OURS, int.from_bytes(nonce, "big"))
    text = label.encode("utf-8", "replace")[:_LABEL_BYTES].ljust(_LABEL_BYTES, b"\0")
    gauges = struct.pack("=QQQ", os.getpid(), *2 * [time.time_ns()])
    return ((head + text).ljust(8 * _FIRST_GAUGE, b"\0") + gauges).ljust(_SIZE, b"\0")


# --- slots of the dead ------------------------------------------------------------------------------------------------


def _slot_name(path: str, nonce: bytes) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.{nonce.hex()}.slot")


def _slots(path: str) -> list[tuple[int, str]]:
    """(nonce, path) of all that are there."""
    directory, name = os.path.split(path)
    prefix, suffix = f".{name}.", ".slot"
    found = []
    for candidate in shared.names_beside(path):
        if candidate.startswith(prefix) and candidate.endswith(suffix):
            token = candidate[len(prefix) : -len(suffix)]
            if len(token) == 16 and set(token) <= set("0123456789abcdef"):
                found.append((int(token, 16), os.path.join(directory, candidate)))
    return found


def _fold_dead(path: str, own: int) -> None:
    """Add the slots whose owners are dead to the archive. Not now, if somebody else is about it."""
    dead = [(nonce, where) for nonce, where in _slots(path) if nonce != own and not shared.is_held(where)]
    if not dead:
        return
    try:
        with archive.to_write(path, _OURS, 0.0) as totals, fs.Directory(path) as directory:
            if totals is None:
                return
            _remove_folded(totals, directory)
            for nonce, where in dead[:_FOLDS]:
                # One that cannot be trusted or read now stays, and keeps no other.
                with contextlib.suppress(UnusableFileError), _left(where) as is_dead:
                    if is_dead:
                        words = _words_of(path, nonce, where)
                        if words is None:
                            directory.unlink(os.path.basename(where))
                        else:
                            _fold(totals, directory, nonce, words)
    except (MmcacheError, OSError) as error:
        _tell_once("slots_left", path, f"what dead workers counted cannot be put away: {error}")


@contextlib.contextmanager
def _left(where: str) -> Iterator[bool]:
    """Hold the lock of a slot that its owner left; False if it did not. An owner who was just about to take it for the
    first time finds that we were faster, and makes another slot."""
    try:
        held = shared.Holding(where)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        held.close()


def _fold(totals: archive.Archive, directory: fs.Directory, nonce: int, words: Sequence[int]) -> None:
    totals.fold(nonce, words[_FIRST_COUNTER:_END])
    _remove_folded(totals, directory)


def _remove_folded(totals: archive.Archive, directory: fs.Directory) -> None:
    """Remove the slot that was folded last, if it is still there: its count must not be added again, and the archive
    remembers only one."""
    nonce = totals.state().nonce
    directory.unlink(os.path.basename(_slot_name(directory.path, nonce.to_bytes(8, "big"))))


def _words_of(path: str, nonce: int, where: str) -> list[int] | None:
    """All words of a slot; None if there is nothing in it that we know. Raises UnusableFileError as `open_shared`."""
    try:
        file = shared.open_shared(where, _SIZE)
    except CorruptFileError:
        return None
    if file is None:
        return None
    words: list[int] = file.words.tolist()
    if words[:3] == [_FORM, _OURS, nonce]:
        return words
    _tell_once("slot_foreign", path, "a slot of another version of mmcache is not counted")
    return None


_told: set[tuple[str, str]] = set()


def _tell_once(event: str, path: str, text: str, level: int = logging.WARNING) -> None:
    if (event, path) not in _told:
        _told.add((event, path))
        log.log(level, "%s: %s", path, text, extra={"event": event, "path": path})


# --- reading ----------------------------------------------------------------------------------------------------------


def read_fleet(path: str) -> Fleet:
    """What all workers of the cache file at a path count. Writes nothing, and keeps no worker from counting."""
    path = os.path.abspath(path)
    tries = 4
    while True:
        tries -= 1
        totals = _look(path)
        with contextlib.ExitStack() as stack:
            held = totals is not None and stack.enter_context(totals.file.locked(exclusive=False))
            state = _state(totals)
            slots = list(_slots_in_use(path, state.nonce))
            events = [] if totals is None else totals.events()
        # Without the lock, somebody may have folded a slot after we read the archive and before we came to the slot.
        if held or not tries or _moment(state) == _moment(_state(_look(path))):
            return _fleet(state, slots, events)


def _state(totals: archive.Archive | None) -> archive.State:
    return archive.State() if totals is None else totals.state()


def _moment(state: archive.State) -> tuple[int, int]:
    """Equal for two looks between which nothing was folded."""
    return state.since_ns, state.sequence


def _look(path: str) -> archive.Archive | None:
    try:
        return archive.look(path, _OURS)
    except UnusableFileError as error:
        _tell_once("archive_unusable", path, f"what dead workers counted is not known: {error}")
        return None


def _slots_in_use(path: str, folded: int) -> Iterator[tuple[list[int], bool]]:
    """(words, whether the owner lives) of all slots that the archive does not have."""
    for nonce, where in _slots(path):
        if nonce != folded:
            try:
                words = _words_of(path, nonce, where)
            except UnusableFileError as error:
                _tell_once("slot_unusable", path, f"a slot is not counted: {error}")
                continue
            if words is not None:
                yield words, shared.is_held(where)


def _fleet(
    state: archive.State, slots: Sequence[tuple[list[int], bool]], events: Sequence[tuple[int, int, int]]
) -> Fleet:
    columns = zip(state.sums, *(words[_FIRST_COUNTER:_END] for words, _ in slots), strict=False)
    sums = [min(sum(column), U64) for column in columns]
    workers = [_worker(words) for words, lives in slots if lives]
    return Fleet(
        tuple(sorted(workers, key=lambda worker: (worker.started, worker.pid))),
        _counters(sums),
        _histograms(sums[_FIRST_BUCKET - _FIRST_COUNTER :]),
        state.lives,
        tuple(Event(at / 1e9, EVENTS[kind], value) for at, kind, value in events if kind < len(EVENTS)),
        state.since_ns / 1e9,
    )


def _worker(words: Sequence[int]) -> Worker:
    label = struct.pack(f"={_LABEL_BYTES // 8}Q", *words[_LABEL : _LABEL + _LABEL_BYTES // 8])
    state = STATES[words[STATE]] if words[STATE] < len(STATES) else "unknown"
    return Worker(
        pid=words[PID],
        label=label.rstrip(b"\0").decode("utf-8", "ignore"),
        started=words[STARTED_NS] / 1e9,
        seen=words[SEEN_NS] / 1e9,
        generation=words[GENERATION] or None,
        state=IDLE if time.time() - words[SEEN_NS] / 1e9 > _IDLE_AFTER else state,
        pinned=words[PINNED],
        mapped_bytes=words[MAPPED_BYTES],
        private_bytes=words[PRIVATE_BYTES],
        load_seconds=words[LOAD_NS] / 1e9,
        counters=_counters(words[_FIRST_COUNTER:_FIRST_BUCKET]),
        histograms=_histograms(words[_FIRST_BUCKET:_END]),
    )


def _counters(words: Sequence[int]) -> dict[str, int]:
    counters = dict(zip(COUNTERS, words, strict=False))
    counters["hits"] = max(0, counters["hits"] - counters["looks"])
    return counters


def _histograms(words: Sequence[int]) -> dict[str, Histogram]:
    histograms = {}
    for i, name in enumerate(HISTOGRAMS):
        *buckets, total_ns = words[i * _HISTOGRAM : (i + 1) * _HISTOGRAM]
        histograms[name] = Histogram(tuple(buckets), total_ns, sum(buckets))
    return histograms


# --- events, and the end ----------------------------------------------------------------------------------------------


def record_event(path: str, kind: str, value: int = 0) -> None:
    """Remember what happened, for all to see. kind: one of EVENTS. Where nothing can be written, nothing is."""
    number = EVENTS.index(kind)
    path = os.path.abspath(path)
    try:
        with archive.to_write(path, _OURS) as totals:
            if totals is not None:
                totals.append(time.time_ns(), number, min(max(value, 0), U64))
    except (MmcacheError, OSError) as error:
        log.debug("%s: event not kept: %s", path, str(error), extra={"event": "event_lost", "path": path})


def remove(path: str, *, dry_run: bool = False) -> list[str]:
    """Remove the archive, and the slots of the dead. The paths of those; the living keep theirs, and count on.

    Raises PublishError, UntrustedPathError, or LockTimeoutError where somebody holds the archive.
    dry_run: only look.
    """
    where = archive.archive_name(path)
    with fs.Directory(path) as directory:
        found = [slot for _, slot in _slots(path) if not shared.is_held(slot)]
        exists = fs.identity_of(where) is not None
        if dry_run:
            return [*[where][: int(exists)], *found]
        if exists:
            directory.check_ours(os.path.basename(where))
            with archive.to_write(path, _OURS) as totals:
                if totals is None:
                    raise LockTimeoutError("the metrics are in use: try later", path=where)
                removed = list(_remove_dead(directory, found))
                directory.unlink(os.path.basename(where))
                return [where, *removed]
        return list(_remove_dead(directory, found))


def _remove_dead(directory: fs.Directory, slots: Sequence[str]) -> Iterator[str]:
    for where in slots:
        with contextlib.suppress(UntrustedPathError), _left(where) as is_dead:
            if is_dead:
                directory.check_ours(os.path.basename(where))
                directory.unlink(os.path.basename(where))
                yield where
