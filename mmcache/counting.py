"""Counting: what one cache object counts in this process. A read takes no lock here and waits for nothing."""

from __future__ import annotations

import time
from typing import Final

from xxhash import xxh3_64_intdigest

from . import wallclock
from .forks import Lock, on_fork
from .hits import Hits
from .sharing import metrics
from .sharing.counters import WorkerCounters
from .sharing.decide import STATES, State
from .sharing.metrics import CAUSES, FALLBACK, FALLBACKS, LOAD, LOOKUP
from .storage import shared
from .storage.snapshot import Snapshot

__all__ = ["HITS_PER_FLUSH", "HITS_PER_SAMPLE", "PLACES", "PLACES_SHOWN", "Counting"]

HITS_PER_SAMPLE: Final = 256
"""One lookup in so many is timed."""

HITS_PER_FLUSH: Final = 4096
"""The hit counter is flushed every HITS_PER_FLUSH hits, so a killed worker loses at most that many."""

_SLOW_RUN: Final = 3
"""Slow lookups one after the other that open the circuit."""

_COOL_DOWN: Final = 30.0
"""Seconds for which an open circuit sends reads to the source."""

_FLUSH_AFTER: Final = 0.1
"""Seconds between flushes by answers of the source: each of them would cost as much as some of these answers."""

PLACES: Final = 4096
"""Damaged places that are told apart, of one file; any more are not counted."""

PLACES_SHOWN: Final = 64
"""Of them, those that become an event: more would leave no room for others."""

_FALLBACKS: Final = {cause: FALLBACKS + i for i, cause in enumerate(CAUSES)}


class _Damaged:
    """Damaged places of the file that was found damaged last, each once."""

    def __init__(self) -> None:
        self._file: object = None
        self._places: set[int] = set()

    @property
    def count(self) -> int:
        return len(self._places)

    def add(self, file: object, place: str) -> int | None:
        """The number of a new place; None for one that was there, or one too many."""
        if self.count >= PLACES and file != self._file:
            self._places.clear()
        number = xxh3_64_intdigest(f"{file} {place}".encode("utf-8", "surrogateescape"))
        if number in self._places or self.count >= PLACES:
            return None
        self._file = file
        self._places.add(number)
        return number


class Counting(Hits):
    """bump, mask: see `Hits`; `sample` is due when a hit's number has none of the mask's bits.

    slow_after: seconds; with it every lookup is timed. slow_until: `time.monotonic()` until which the circuit is open.
    """

    def __init__(self, *, slow_after: float | None, opens_circuit: bool) -> None:
        self.mask = HITS_PER_SAMPLE - 1 if slow_after is None else 0
        self.slow_until = 0.0
        self._slow_after = slow_after
        self._opens_circuit = opens_circuit
        self._slow_run = 0
        self._lock = Lock()
        self.begin_process()
        on_fork(self)

    def begin_process(self) -> None:
        """A forked child begins at zero: the counters are its parent's."""
        self.counters = WorkerCounters()
        self.restart()
        self._looks = 0
        self._told = 0
        self._flush_at = 0.0
        self._damaged = _Damaged()

    # --- by reads

    def sample(self, begun: float, hits: int) -> bool:
        """Time a lookup, and flush now and then; whether so many were slow that the source should answer."""
        seconds = time.monotonic() - begun
        counters = self.counters
        counters.hits(hits)
        counters.observe(LOOKUP, seconds)
        if not hits % HITS_PER_FLUSH:
            counters.flush()
        if self._slow_after is None:
            return False
        if seconds <= self._slow_after:
            self._slow_run = 0
            return False
        counters.add(metrics.SLOW_LOOKUPS)
        self._slow_run += 1
        if self._slow_run < _SLOW_RUN or not self._opens_circuit:
            return False
        self._slow_run = 0
        self.slow_until = time.monotonic() + _COOL_DOWN
        return True

    def add(self, word: int, n: int = 1) -> None:
        self.counters.add(word, n)

    def add_fallback(self, cause: str, n: int, seconds: float) -> None:
        counters = self.counters
        counters.add(metrics.FALLBACK_NS, int(seconds * 1e9))
        counters.observe(FALLBACK, seconds)
        if n:
            counters.add(_FALLBACKS[cause], n)
        now = time.monotonic()
        if now >= self._flush_at:
            self._flush_at = now + _FLUSH_AFTER
            counters.flush()

    def add_damage(self, file: object, place: str) -> bool:
        """Count damage once for each place of a file; whether it is new. file: its generation, or its identity."""
        with self._lock:
            number = self._damaged.add(file, place)
            is_shown = self._damaged.count <= PLACES_SHOWN
        if number is None:
            return False
        self.counters.add(metrics.CORRUPTIONS)
        if is_shown:
            self.counters.note_event("corruption", number)
        self.counters.flush()
        return True

    # --- by upkeep

    def add_opening(self, seconds: float, invalid: int) -> None:
        """invalid: rows that the file left out."""
        self.counters.set(metrics.INVALID, invalid)
        self.counters.set(metrics.LOAD_NS, int(seconds * 1e9))
        self.counters.observe(LOAD, seconds)
        self.counters.add(metrics.OPENS)

    def settle(self) -> None:
        """Make the count of hits exact. `next` of a C iterator cannot be interrupted, so each number is given once. A
        look takes a number, too, and is taken off."""
        with self._lock:
            self._looks += 1
            self.counters.set(metrics.LOOKS, self._looks)
            self.counters.hits(self.bump())

    def note_state(self, state: State) -> None:
        """Set the state, and count what was answered since the last decision by a file that was stale then."""
        self.settle()
        counters = self.counters
        counted = counters.counted()
        hits = counted["hits"] + counted["batch_hits"]
        if counters.words[metrics.STATE] == STATES.index("stale") and hits > self._told:
            counters.add(metrics.STALE_SERVED, hits - self._told)
        self._told = hits
        counters.set(metrics.STATE, STATES.index(state))

    def note_gauges(self, path: str, label: str, generation: int, pinned: list[Snapshot]) -> None:
        """Tell what others can see of this worker, and write all of it."""
        counters = self.counters
        counters.share(path, label=label)
        counters.set(metrics.SEEN_NS, wallclock.now_ns())
        counters.set(metrics.GENERATION, generation)
        counters.set(metrics.PINNED, len(pinned))
        counters.set(metrics.MAPPED_BYTES, sum(snapshot.header.file_size for snapshot in pinned))
        counters.set(metrics.PRIVATE_BYTES, shared.private_bytes())
        self.settle()
        counters.flush()

    def close(self) -> None:
        self.settle()
        self.counters.close()
