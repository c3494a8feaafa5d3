"""What the workers of one cache file count, each by itself, and all of them together.

A cache object counts in a slot: private memory, and a file of its own, `.<name>.<nonce>.slot`, which `flush` writes.
Counting takes no lock and does no I/O; a worker that is killed loses what it counted after its last flush. It holds the
slot's lock for life, which shows other processes that it lives, whatever its pid and its container. A slot without its
owner is added to the archive and removed by the next process that opens a slot; `close` does so for its own. The nonce
makes each count once.

Nothing here fails a cache: where a slot cannot be shared it is private, and seen by its own process only.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import struct
import sys
import time
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from xxhash import xxh3_64_intdigest

from ..errors import MmcacheError, UnusableFileError
from ..storage import fs, shared
from . import archive, slot_files
from .fleet import CAUSES, STATES, Event, Fleet, Histogram, Worker
from .slot_files import log_once
from .tally import U64, Tally

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

T = TypeVar("T")

log = logging.getLogger("mmcache")

# --- the words of a slot ----------------------------------------------------------------------------------------------

GAUGES: Final = (
    *("pid", "started_ns", "seen_ns"),  # wall clock; seen: last slow check
    *("generation", "state", "pinned", "mapped_bytes", "private_bytes", "load_ns"),  # state: index into STATES
)
COUNTERS: Final = (
    "hits",  # answers from the file one by one; in a slot's words, and looks besides: both are set, not added to
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
IDLE: Final = "idle"
_IDLE_AFTER: Final = 60.0
"""Seconds without a look, after which what a worker said of itself is of no use: nobody asks it anything."""
HISTOGRAMS: Final = ("lookup", "fallback", "load", "build")
EVENTS: Final = ("rebuild", "unchanged", "rebuild_failed", "corruption", "invalidation", "refusal")

_LABEL, _LABEL_BYTES = 3, 64  # after form, schema and nonce
_FIRST_GAUGE = 16
_FIRST_COUNTER = _FIRST_GAUGE + len(GAUGES)
_FIRST_BUCKET = _FIRST_COUNTER + len(COUNTERS)
_BUCKETS = 48
_HISTOGRAM = _BUCKETS + 1  # and their sum, in ns
_END = _FIRST_BUCKET + len(HISTOGRAMS) * _HISTOGRAM
_COUNTED = slice(_FIRST_COUNTER, _END)
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


# --- counting ---------------------------------------------------------------------------------------------------------


class Slot:
    """The counters of one cache object in this process. Any thread may call any method at any time.

    words: array "Q", private memory, always the same object until a fork: what was set, and is stored there directly.
    A word index is the name of a counter or gauge in upper case.
    shared: whether others see it.
    pid: the process that it belongs to. In a forked child it begins at nothing, private and unseen.
    """

    __slots__ = ("__weakref__", "_events", "_held", "_leaving", "_nonce", "_path", "_tally", "_turn", "pid", "words")

    words: array[int]

    def __init__(self) -> None:
        self._held: shared.Holding | None = None
        self._begin()

    def _begin(self) -> None:
        self.pid = os.getpid()
        self.words = array("Q", bytes(slot_files.SIZE))
        self._tally = Tally(_END)
        self._events: deque[tuple[int, int, int]] = deque(maxlen=archive.RING)
        self._path, self._nonce = "", 0
        self._leaving = False
        self._turn = True

    @classmethod
    def private(cls) -> Slot:
        return cls()

    @classmethod
    def open(cls, path: str, *, label: str = "") -> Slot:
        """A slot for the cache file at a path, shared if that is possible."""
        slot = cls()
        slot.share(path, label=label)
        return slot

    @property
    def shared(self) -> bool:
        return self._held is not None

    def share(self, path: str, *, label: str = "") -> None:
        """Count on where others see it, if that is possible. Adds what the dead left to the archive. Once in its life.

        label: what this worker is called, of which 64 bytes are kept.
        """
        if self._nonce:
            return
        self._path = os.path.abspath(path)
        self.words[PID], self.words[STARTED_NS], self.words[SEEN_NS] = self.pid, *2 * [time.time_ns()]
        error: Exception | None = None
        for _ in range(5):
            nonce = os.urandom(8)
            self.words[:_FIRST_GAUGE] = _head(nonce, label)
            try:
                self._held = shared.create_held(
                    slot_files.name_of(self._path, int.from_bytes(nonce, "big")), self._counts().tobytes()
                )
            except (FileNotFoundError, BlockingIOError) as refused:
                error = refused  # a folder was faster than our lock
            except (MmcacheError, OSError, ValueError) as refused:
                error = refused
                break
            else:
                self._nonce = int.from_bytes(nonce, "big")
                _shared_slots[self._nonce] = weakref.ref(self), self._held
                _flush_at_exit_of_a_pool()
                slot_files.fold_dead(self._path, self._nonce, _OURS, _COUNTED)
                return
        text = f"only this process sees what it counts: {error}"
        log_once("metrics_private", self._path, text, logging.INFO)

    # --- counting: takes no lock, and does no I/O

    def add(self, word: int, n: int = 1) -> None:
        self._tally.add((word, n))

    def set(self, word: int, value: int) -> None:
        """A value that no word can hold is kept as the nearest that it can."""
        self.words[word] = min(max(value, 0), U64)

    def hits(self, n: int) -> None:
        """The number of hits and looks so far: the highest that was given, but for threads that store in the wrong
        order, which the next call mends."""
        self.words[HITS] = max(self.words[HITS], n)

    def observe(self, histogram: int, seconds: float) -> None:
        ns = int(seconds * 1e9) if 0.0 < seconds < _LONGEST else 0
        first = _FIRST_BUCKET + histogram * _HISTOGRAM
        self._tally.add((first + min(ns.bit_length(), _BUCKETS - 1), 1), (first + _BUCKETS, ns))

    def note_event(self, kind: str, value: int = 0) -> None:
        """Remember what happened, for `flush_events`. kind: one of EVENTS."""
        self._events.append((time.time_ns(), EVENTS.index(kind), min(max(value, 0), U64)))

    def counters(self) -> dict[str, int]:
        """Of this slot alone; hits without looks."""
        return _counters(self._counts(_FIRST_BUCKET)[_FIRST_COUNTER:_FIRST_BUCKET])

    # --- upkeep: a poll, an invalidation, a build, the end

    def flush(self) -> None:
        """Write what was counted to the file. What cannot be written now is written by the next flush."""
        if self.pid != os.getpid():
            self._leave_to_parent()
            return
        try:
            del self._turn  # as in `Tally.fold`: a second caller leaves, and nothing waits
        except AttributeError:
            return
        try:
            self._write()
        finally:
            self._turn = True
            if self._leaving:
                self._leave()

    def _write(self) -> None:
        held = self._held
        if held is None:
            return
        if not held.is_ours():
            # The lock is gone with the descriptor: others add what is in the file, so nothing may be written any more.
            self._end_sharing()
            return
        try:
            held.write(self._counts().tobytes())
        except OSError as error:
            log.debug("%s: %s", self._path, str(error), extra={"event": "slot_not_written", "path": self._path})

    def flush_events(self, timeout: float = 0.0) -> None:
        """Write the events to the archive, if its lock is to be had in time. What is not written now stays noted."""
        if not self._events or not self._path or self.pid != os.getpid():
            return
        try:
            with archive.to_write(self._path, _OURS, timeout) as totals:
                if totals is not None:
                    self._move_events(totals)
        except (MmcacheError, OSError) as error:
            text = "%s: events are written later: %s"
            log.debug(text, self._path, str(error), extra={"event": "events_kept_back", "path": self._path})

    def _move_events(self, totals: archive.Archive) -> None:
        with contextlib.suppress(IndexError):
            while True:
                event = self._events.popleft()
                try:
                    totals.append(*event)
                except BaseException:
                    self._events.appendleft(event)
                    raise

    def close(self) -> None:
        """Add what was counted to the archive, and remove the file. What is counted later is seen by this process."""
        if self.pid != os.getpid():
            self._leave_to_parent()
            return
        self._leaving = True
        self._leave()

    def _leave(self) -> None:
        try:
            del self._turn
        except AttributeError:
            return  # Case: a flush is under way, which this call interrupts or another thread does. It calls this.
        held = None
        try:
            self._write()
            held, self._held = self._held, None  # Case: interrupted from here on, it is not added again
            if held is not None:
                self._move_to_archive()
        finally:
            self._turn = True
            _shared_slots.pop(self._nonce, None)
            if held is not None:
                held.close()

    def _move_to_archive(self) -> None:
        try:
            with archive.to_write(self._path, _OURS) as totals, fs.Directory(self._path) as directory:
                if totals is not None:
                    self._move_events(totals)
                    slot_files.fold(totals, directory, self._nonce, self._counts()[_COUNTED])
        except (MmcacheError, OSError) as error:
            log.debug(
                "%s: slot left to others: %s", self._path, str(error), extra={"event": "slot_left", "path": self._path}
            )

    def __del__(self) -> None:
        # Dropped without `close`, a slot is folded by the next one. At interpreter exit the system does the rest.
        if getattr(self, "_held", None) is not None and sys is not None and not sys.is_finalizing():
            self.flush()
            self._end_sharing()

    def _end_sharing(self) -> None:
        held, self._held = self._held, None
        _shared_slots.pop(self._nonce, None)
        if held is not None:
            held.close()

    def _counts(self, end: int = _END) -> array[int]:
        """All words: what was set, and up to an end what was added."""
        words = self.words[:]
        sums = self._tally.sums()
        for word in range(_FIRST_COUNTER, end):
            words[word] = words[word] + sums[word] & U64
        return words

    def _leave_to_parent(self) -> None:
        """In a forked child: begin at nothing. The file and its lock are the parent's, and a turn that another thread
        took never ends here. Where C code forked, no hook ran, and the descriptor is still open."""
        self._end_sharing()
        self._begin()


# The lock is held here, too: so the garbage collector does not end it before the slot's last flush.
_shared_slots: dict[int, tuple[weakref.ref[Slot], shared.Holding]] = {}


def _living_slots() -> list[Slot]:
    return [slot for ref, _ in list(_shared_slots.values()) if (slot := ref()) is not None]


def _forget_slots() -> None:
    for slot in _living_slots():
        slot._leave_to_parent()
    _shared_slots.clear()


def _flush_slots() -> None:
    for slot in _living_slots():
        slot.flush()
        slot.flush_events()


def _flush_at_exit_of_a_pool() -> None:
    """A child that `multiprocessing` forked ends by `os._exit`, after the finalizers of its own."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _pool_of != [os.getpid()]:
        _pool_of[:] = [os.getpid()]
        util.Finalize(None, _flush_slots, exitpriority=-100)


_pool_of: list[int] = []
"""The process that has the finalizer."""

os.register_at_fork(after_in_child=_forget_slots)
atexit.register(_flush_slots)


def _head(nonce: bytes, label: str) -> array[int]:
    head = struct.pack("=QQQ", slot_files.FORM, _OURS, int.from_bytes(nonce, "big"))
    text = label.encode("utf-8", "replace")[:_LABEL_BYTES].ljust(_LABEL_BYTES, b"\0")
    return array("Q", (head + text).ljust(8 * _FIRST_GAUGE, b"\0"))


# --- reading ----------------------------------------------------------------------------------------------------------


def read_fleet(path: str) -> Fleet:
    """What all workers of the cache file at a path count. Writes nothing but what this process has counted so far, and
    keeps no worker from counting."""
    path = os.path.abspath(path)
    for slot in _living_slots():
        if slot._path == path:
            slot.flush()
    tries = 4
    while True:
        tries -= 1
        with _look(path) as totals:
            held = totals is not None and totals.file.lock(exclusive=False)
            state = _state(path, totals)
            slots = list(_slots_in_use(path, state.nonce))
            events: list[tuple[int, int, int]] = [] if totals is None else _read(path, totals.events, [])
        with _look(path) as totals:
            now = _state(path, totals)
        # Without the lock, the archive may have got a slot after we read it and before we came to the slot.
        if held or not tries or (state.since_ns, state.sequence) == (now.since_ns, now.sequence):
            return _fleet(state, slots, events)


@contextlib.contextmanager
def _look(path: str) -> Iterator[archive.Archive | None]:
    with contextlib.ExitStack() as stack:
        yield _read(path, lambda: stack.enter_context(archive.look(path, _OURS)), None)


def _read(path: str, read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except UnusableFileError as error:
        log_once("archive_unusable", path, f"what dead workers counted is not known: {error}")
        return otherwise


def _state(path: str, totals: archive.Archive | None) -> archive.State:
    return archive.State() if totals is None else _read(path, totals.state, archive.State())


def _slots_in_use(path: str, folded: int) -> Iterator[tuple[array[int], bool]]:
    """(words, whether the owner lives) of all slots that the archive does not have."""
    for nonce, where in slot_files.names(path):
        if nonce != folded:
            try:
                words = slot_files.read(path, nonce, where, _OURS)
            except UnusableFileError as error:
                log_once("slot_unusable", path, f"a slot is not counted: {error}")
                continue
            if words is not None:
                yield words, shared.is_held(where)


def _fleet(
    state: archive.State, slots: Sequence[tuple[array[int], bool]], events: Sequence[tuple[int, int, int]]
) -> Fleet:
    columns = zip(state.sums, *(words[_COUNTED] for words, _ in slots), strict=False)
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

    Raises as `slot_files.remove`. dry_run: only look.
    """
    return slot_files.remove(path, _OURS, dry_run=dry_run)
