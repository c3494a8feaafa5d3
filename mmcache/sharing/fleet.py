"""What was counted, as values: one worker of a cache file, all of them, how long things took, what happened last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["CAUSES", "CAUSES_WITHOUT_FILE", "STATES", "Event", "Fleet", "Histogram", "Worker"]

CAUSES_WITHOUT_FILE: Final = ("missing", "corrupt", "incompatible", "unreadable", "untrusted")
"""Why there is no file that can be used."""

STATES: Final = (
    *("starting", "fresh", "stale", "expired", "invalidated", "slow", *CAUSES_WITHOUT_FILE),
    *("disabled", "held"),
)
"""What a decision may find a cache in, and "starting", which it is in before its first decision."""

CAUSES: Final = (
    *("absent", "record", "building", "disabled", *CAUSES_WITHOUT_FILE),
    *("invalidated", "expired", "slow"),
)
"""Why the source answered and not the file."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations by their order of magnitude: bucket i counts those of less than 2**i ns that no bucket before it does.

    The last one also counts what is longer.
    """

    buckets: tuple[int, ...]
    total_ns: int
    count: int

    def quantile(self, q: float) -> float:
        """Seconds that a share q of all took at most: the upper bound of a bucket. 0.0 if there were none."""
        seen = 0
        for i, n in enumerate(self.buckets):
            seen += n
            if seen and seen >= q * self.count:
                return float(2**i) / 1e9
        return 0.0

    @property
    def mean(self) -> float:
        """In seconds; 0.0 if there were none."""
        return self.total_ns / self.count / 1e9 if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Worker:
    """One cache object of a process that lives. pid, in the process's own namespace, and label are what it says of
    itself. started, seen: wall clock; seen: its last slow check. generation: None without a file. state: as in `Stats`;
    "idle" if it has not been asked anything for a minute, as the master of a server that forks its workers."""

    pid: int
    label: str
    started: float
    seen: float
    generation: int | None
    state: str
    pinned: int
    mapped_bytes: int
    private_bytes: int
    load_seconds: float
    counters: Mapping[str, int]
    histograms: Mapping[str, Histogram]


@dataclass(frozen=True, slots=True)
class Event:
    time: float
    kind: str
    value: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers of one cache file.

    workers: those that live. totals, histograms: of all that live and all that ever lived, each once. lives: slots
    folded so far. events: the last 256, oldest first. since: wall clock; when the archive was made, 0.0 without one.
    """

    workers: tuple[Worker, ...]
    totals: Mapping[str, int]
    histograms: Mapping[str, Histogram]
    lives: int
    events: tuple[Event, ...]
    since: float = 0.0

    @property
    def hit_rate(self) -> float:
        """Answers from the file over all answers; 1.0 before the first."""
        hits = self.totals["hits"] + self.totals["batch_hits"]
        answers = hits + self.totals["misses"] + sum(self.totals[f"fallback_{cause}"] for cause in CAUSES)
        return hits / answers if answers else 1.0
