"""What the workers of one cache file count, each by itself, and all of them together.

A cache object counts in private memory. Counting takes no lock and does no I/O; `flush` writes all of it to a counter
file of its own: see `counter_files`. A worker that is killed loses what it counted after its last flush. `close` leaves
the file to the next worker. A forked child begins at zero, in a file of its own: also where it was forked in C, and no
hook of Python's ran, as every flush compares the process id.

Nothing here fails a cache: where no counter file can be had, the counters are seen by their own process only.
"""

from __future__ import annotations

import atexit
import contextlib
import operator
import os
import sys
import time
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from ..errors import MmcacheError, UnusableFileError
from ..forks import in_child
from ..logs import INFO, log, log_once
from ..storage import shared
from . import counter_files, metrics
from .counter_files import RING, CounterFile, Found, sample_of
from .fleet import STATES, Event, Fleet, Histogram, Worker
from .metrics import BUCKETS, COUNTED, COUNTERS, EVENTS, FIRST_BUCKET, FIRST_COUNTER, HISTOGRAM, HISTOGRAMS, WORDS
from .tally import U64, Tally

__all__ = ["IDLE", "WorkerCounters", "read_fleet", "record_event", "remove"]

IDLE: Final = "idle"
_IDLE_AFTER: Final = 60.0
"""Seconds without a poll, after which the gauges of a worker are out of date: it is not asked anything."""
_LONGEST: Final = 2.0**33
"""Seconds; what claims to take longer, or less than nothing, counts as nothing."""


class WorkerCounters:
    """The counters of one cache object in this process. Any thread may call any method at any time.

    words: array "Q", private memory, always the same object until a fork: what was set, and is stored there directly.
    A word index is one of the table of metrics.
    is_shared: whether others see it.
    pid: the process that it belongs to. In a forked child it begins at nothing, private and unseen.
    """

    __slots__ = (
        "__weakref__",
        "_events",
        "_file",
        "_is_closed",
        "_label",
        "_lost",
        "_path",
        "_tally",
        "_turn",
        "pid",
        "words",
    )

    words: array[int]

    def __init__(self) -> None:
        self._file: CounterFile | None = None
        self._begin()

    def _begin(self) -> None:
        self.pid = os.getpid()
        self.words = array("Q", bytes(8 * WORDS))
        self._tally = Tally(WORDS)
        self._events: deque[tuple[int, int, int]] = deque(maxlen=RING)
        self._path, self._label = "", b""
        self._lost: array[int] | None = None
        self._is_closed = False
        self._turn = True

    @classmethod
    def open(cls, path: str, *, label: str = "") -> WorkerCounters:
        """Counters for the cache file at a path, shared if that is possible."""
        counters = cls()
        counters.share(path, label=label)
        return counters

    @property
    def is_shared(self) -> bool:
        return self._file is not None

    def share(self, path: str, *, label: str = "") -> None:
        """Count on where others see it, if that is possible; in a new file, where the one so far was removed.

        label: what this worker is called, of which 64 bytes are kept.
        """
        if self._is_closed or (self._file is not None and self._file.is_current()):
            return
        if not self._path:
            self._path, self._label = os.path.abspath(path), label.encode("utf-8", "replace")
            self.words[metrics.PID] = self.pid
            self.words[metrics.STARTED_NS] = self.words[metrics.SEEN_NS] = time.time_ns()
        self._in_turn(self._open)

    def _open(self) -> None:
        """Case: there is no file yet. Case: its path is gone, and it is kept until another one is made. Case: its
        descriptor is gone, and with it the lock: what was written stays there, for the next worker."""
        if self._file is not None and not self._file.is_ours():
            self._lose()
        old = self._file
        try:
            if old is None:
                file = CounterFile.open(self._path)
            else:
                file = CounterFile.anew(self._path, sample_of(0, self._unwritten()[COUNTED]))
        except (MmcacheError, OSError, ValueError) as error:
            text = f"only this process sees what it counts: {error}"
            log_once("metrics_private", self._path, text, INFO)
            return
        self._end_sharing()
        self._file = file
        _shared[file] = weakref.ref(self, partial(_shared.pop, file))  # no finalizer of Python ends it for sure
        _flush_at_exit_of_a_pool()
        self._write()

    def _lose(self) -> None:
        assert self._file is not None
        before, self._lost = self._lost, self._file.written[:]
        if before is not None:
            for word in range(FIRST_COUNTER, WORDS):
                self._lost[word] = self._lost[word] + before[word] & U64
        self._end_sharing()

    def _unwritten(self) -> array[int]:
        """All words, less what stands in files that this process lost."""
        words = self._words()
        if self._lost is not None:
            for word in range(FIRST_COUNTER, WORDS):
                words[word] = words[word] - self._lost[word] & U64
        return words

    # --- counting: takes no lock, and does no I/O

    def add(self, word: int, n: int = 1) -> None:
        self._tally.add((word, n))

    def set(self, word: int, value: int) -> None:
        """A value that no word can hold is kept as the nearest that it can."""
        self.words[word] = min(max(value, 0), U64)

    def hits(self, n: int) -> None:
        """The number of hits and looks so far: the highest that was given, but for threads that store in the wrong
        order, which the next call mends."""
        self.words[metrics.HITS] = max(self.words[metrics.HITS], n)

    def observe(self, histogram: int, seconds: float) -> None:
        ns = int(seconds * 1e9) if 0.0 < seconds < _LONGEST else 0
        first = FIRST_BUCKET + histogram * HISTOGRAM
        self._tally.add((first + min(ns.bit_length(), BUCKETS - 1), 1), (first + BUCKETS, ns))

    def note_event(self, kind: str, value: int = 0) -> None:
        """Remember what happened, for the next flush. kind: one of EVENTS."""
        self._events.append((time.time_ns(), EVENTS.index(kind), min(max(value, 0), U64)))

    def counted(self) -> dict[str, int]:
        """Of this object alone; hits without looks."""
        return _counters(self._words(FIRST_BUCKET)[FIRST_COUNTER:FIRST_BUCKET])

    # --- upkeep: a poll, an invalidation, a build, the end

    def flush(self) -> None:
        """Write what was counted to the file. What cannot be written now is written by the next flush."""
        if self.pid != os.getpid():
            self._leave_to_parent()
            return
        self._in_turn(self._write)

    def _in_turn(self, action: Callable[[], None]) -> None:
        """One caller at a time uses the file: as in `Tally.fold`, a second one leaves, and nothing waits."""
        try:
            del self._turn
        except AttributeError:
            return
        try:
            action()
        finally:
            self._turn = True
            if self._is_closed:
                self._leave()

    def _leave(self) -> None:
        try:
            del self._turn
        except AttributeError:
            return  # Case: a flush is under way, which this call interrupts or another thread does. It calls this.
        try:
            self._write()
        finally:
            self._turn = True
            self._end_sharing()

    def _write(self) -> None:
        file = self._file
        if file is None:
            return
        if not file.is_ours():  # another worker may have adopted it
            self._lose()
            return
        try:
            file.write(self._label, self._unwritten())
            self._write_events(file)
        except OSError as error:
            text = "%s: counters are written later: %s"
            log.debug(text, self._path, str(error), extra={"event": "counters_not_written", "path": self._path})

    def _write_events(self, file: CounterFile) -> None:
        while self._events:  # Case: others append meanwhile; this caller alone takes
            event = self._events.popleft()
            try:
                file.append(*event)
            except BaseException:
                self._events.appendleft(event)
                raise

    def close(self) -> None:
        """Write what was counted, and leave the file to the next worker. Later counts are seen by this process."""
        if self.pid != os.getpid():
            self._leave_to_parent()
            return
        self._is_closed = True
        self._leave()

    def __del__(self) -> None:
        # At interpreter exit these modules may be half gone, and the system closes what is left.
        if getattr(self, "_file", None) is not None and sys is not None and not sys.is_finalizing():
            self.flush()
            self._end_sharing()

    def _end_sharing(self) -> None:
        file = self._file
        if file is not None:
            file.close()  # first, so that a call that is interrupted is finished by the next
            _shared.pop(file, None)
            if self._file is file:
                self._file = None

    def _words(self, end: int = WORDS) -> array[int]:
        """All words: what was set, and up to an end what was added."""
        words, sums = self.words[:], self._tally.sums()
        try:
            words[:end] = array("Q", map(operator.add, words[:end], sums[:end]))
        except OverflowError:  # a sum wraps
            for word in range(FIRST_COUNTER, end):
                words[word] = words[word] + sums[word] & U64
        return words

    def _leave_to_parent(self) -> None:
        """In a forked child: begin at nothing. The file and its lock are the parent's, and a turn that another thread
        took never ends here. Where C code forked, no hook ran, and the descriptor is still open."""
        self._end_sharing()
        self._begin()


# The file is held here, too: so the garbage collector does not end it before the last flush.
_shared: Final[dict[CounterFile, weakref.ref[WorkerCounters]]] = {}


def _living() -> list[WorkerCounters]:
    return [counters for ref in list(_shared.values()) if (counters := ref()) is not None]


def _begin_process() -> None:
    for counters in _living():
        counters._leave_to_parent()
    _shared.clear()


def _flush_all() -> None:
    for counters in _living():
        counters.flush()


def _flush_at_exit_of_a_pool() -> None:
    """A child that `multiprocessing` forked ends by `os._exit`, after the finalizers of its own."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _pool_of != [os.getpid()]:
        _pool_of[:] = [os.getpid()]
        util.Finalize(None, _flush_all, exitpriority=-100)


_pool_of: list[int] = []
"""The process that has the finalizer."""

in_child(_begin_process)
atexit.register(_flush_all)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_fleet(path: str) -> Fleet:
    """What all workers of the cache file at a path count. Writes nothing but what this process has counted so far,
    takes no lock, and keeps no worker from counting."""
    path = os.path.abspath(path)
    for counters in _living():
        if counters._path == path:
            counters.flush()
    return _fleet({where: (found, shared.is_locked(where)) for where, found in _found(path)})


def _found(path: str) -> Iterator[tuple[str, Found]]:
    for nonce, where in counter_files.names(path):
        try:
            found = counter_files.read(nonce, where)
        except UnusableFileError as error:
            log_once("counters_unusable", path, f"a counter file is not counted: {error}")
        else:
            if found is not None:
                yield where, found


def _fleet(files: dict[str, tuple[Found, bool]]) -> Fleet:
    blocks = [found.block for found, _ in files.values()]
    nothing = [0] * (WORDS - FIRST_COUNTER)
    sums = [min(sum(column), U64) for column in zip(nothing, *(block.sums() for block in blocks), strict=True)]
    workers = [_worker(found.block.life, found.block.label) for found, lives in files.values() if lives]
    events = sorted(event[1:] for found, _ in files.values() for event in found.events)
    return Fleet(
        workers=tuple(sorted(workers, key=lambda worker: (worker.started, worker.pid))),
        totals=_counters(sums),
        histograms=_histograms(sums[FIRST_BUCKET - FIRST_COUNTER :]),
        lives=min(sum(max(0, found.block.lives - lives) for found, lives in files.values()), U64),
        events=tuple(Event(at / 1e9, EVENTS[kind], value) for at, kind, value in events if kind < len(EVENTS))[-RING:],
        since=min((block.first.time_ns for block in blocks), default=0) / 1e9,
        histories={where: found.history for where, (found, _) in files.items()},
    )


def _worker(words: Sequence[int], label: bytes) -> Worker:
    state = words[metrics.STATE]
    seen = words[metrics.SEEN_NS] / 1e9
    is_idle = time.time() - seen > _IDLE_AFTER
    return Worker(
        pid=words[metrics.PID],
        label=label.rstrip(b"\0").decode("utf-8", "ignore"),
        started=words[metrics.STARTED_NS] / 1e9,
        seen=seen,
        generation=words[metrics.GENERATION] or None,
        state=IDLE if is_idle else STATES[state] if state < len(STATES) else "unknown",
        pinned=words[metrics.PINNED],
        mapped_bytes=words[metrics.MAPPED_BYTES],
        private_bytes=words[metrics.PRIVATE_BYTES],
        load_seconds=words[metrics.LOAD_NS] / 1e9,
        counters=_counters(words[FIRST_COUNTER:FIRST_BUCKET]),
        histograms=_histograms(words[FIRST_BUCKET:WORDS]),
        gauges=dict(zip(metrics.GAUGES, words, strict=False)),
    )


def _counters(words: Sequence[int]) -> dict[str, int]:
    counters = dict(zip(COUNTERS, words, strict=False))
    counters["hits"] = max(0, counters["hits"] - counters["looks"])
    return counters


def _histograms(words: Sequence[int]) -> dict[str, Histogram]:
    histograms = {}
    for i, name in enumerate(HISTOGRAMS):
        *buckets, total_ns = words[i * HISTOGRAM : (i + 1) * HISTOGRAM]
        histograms[name] = Histogram(tuple(buckets), total_ns, sum(buckets))
    return histograms


# --- events, and the end ----------------------------------------------------------------------------------------------


def record_event(path: str, kind: str, value: int = 0) -> None:
    """Remember what happened, for all to see. kind: one of EVENTS. Where nothing can be written, nothing is."""
    event = time.time_ns(), EVENTS.index(kind), min(max(value, 0), U64)
    path = os.path.abspath(path)
    for counters in _living():
        if counters._path == path:
            counters._events.append(event)
            counters.flush()
            return
    try:
        with contextlib.closing(CounterFile.open(path)) as file:
            file.append(*event)
    except (MmcacheError, OSError, ValueError) as error:
        log.debug("%s: event not kept: %s", path, str(error), extra={"event": "event_lost", "path": path})


def remove(path: str, *, dry_run: bool = False) -> list[str]:
    """As `counter_files.remove`."""
    return counter_files.remove(path, dry_run=dry_run)
