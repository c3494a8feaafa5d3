"""What was counted, as values: one worker of a cache file, all of them, how long things took, what happened last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

__all__ = [
    "CAUSES",
    "CAUSES_WITHOUT_FILE",
    "STATES",
    "Event",
    "Fleet",
    "Histogram",
    "History",
    "Recent",
    "Sample",
    "State",
    "Worker",
    "answers_of",
]

CAUSES_WITHOUT_FILE: Final = ("missing", "corrupt", "incompatible", "unreadable", "untrusted")
"""Why there is no file that can be used."""

State = Literal[
    "starting",
    "fresh",
    "stale",
    "expired",
    "invalidated",
    "slow",
    "missing",
    "corrupt",
    "incompatible",
    "unreadable",
    "untrusted",
    "disabled",
    "held",
]
STATES: Final[tuple[State, ...]] = get_args(State)
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
    "idle" if it has not been asked anything for a minute, as the master of a server that forks its workers. gauges: by
    their names in the table of metrics."""

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
    gauges: Mapping[str, int] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Event:
    """value: of a rebuild its generation, of an invalidation the number of ids, of damage a number of its place."""

    time: float
    kind: str
    value: int


class Sample(NamedTuple):
    """What one counter file had counted at a time: answers from the file, of no tier, and from the source."""

    time_ns: int
    hits: int
    misses: int
    fallbacks: int


class History(NamedTuple):
    """The samples of one counter file. first: when it was made. last: its last flush."""

    first: Sample
    last: Sample
    samples: tuple[Sample, ...]

    def since(self, start_ns: int) -> tuple[int, int, int]:
        """Hits, misses and fallbacks counted after a time, as far as samples reach back."""
        if self.last.time_ns <= start_ns:
            return 0, 0, 0
        base = max((one for one in (self.first, *self.samples) if one.time_ns <= start_ns), default=self.first)
        hits, misses, fallbacks = (max(0, now - then) for now, then in zip(self.last[1:], base[1:], strict=True))
        return hits, misses, fallbacks


@dataclass(frozen=True, slots=True)
class Recent:
    """The answers of the last `window` seconds, of all workers."""

    window: float
    hits: int
    misses: int
    fallbacks: int

    @property
    def hit_rate(self) -> float:
        """Answers from the file over all answers; 1.0 where there were none."""
        answers = self.hits + self.misses + self.fallbacks
        return self.hits / answers if answers else 1.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers of one cache file.

    workers: those that live. totals, histograms: of all that live and all that ended, each once. lives: workers that
    ended. events: the last 256, oldest first. since: wall clock; when counting began, 0.0 without a counter file.
    histories: by counter file.
    """

    workers: tuple[Worker, ...]
    totals: Mapping[str, int]
    histograms: Mapping[str, Histogram]
    lives: int
    events: tuple[Event, ...]
    since: float = 0.0
    histories: Mapping[str, History] = field(default_factory=dict, repr=False)

    @property
    def hit_rate(self) -> float:
        """Answers from the file over all answers since counting began; 1.0 before the first."""
        hits, misses, fallbacks = answers_of(self.totals)
        answers = hits + misses + fallbacks
        return hits / answers if answers else 1.0

    def recent(self, window: float, now: float) -> Recent:
        """The answers of the seconds before `now`, the wall clock, to the resolution of the samples: a second in the
        last minute, a minute in the last hour, an hour in the last two and a half days."""
        start_ns = int((now - window) * 1e9)
        counted = [history.since(start_ns) for history in self.histories.values()]
        hits, misses, fallbacks = (sum(column) for column in zip((0, 0, 0), *counted, strict=True))
        return Recent(window, hits, misses, fallbacks)

    def events_of(self, kind: str, window: float, now: float) -> list[Event]:
        """Those of a kind in the seconds before `now`."""
        return [event for event in self.events if event.kind == kind and now - window < event.time <= now]

    def damaged_places(self, window: float, now: float) -> int:
        """Places that were found damaged, each once, however many workers met it."""
        return len({event.value for event in self.events_of("corruption", window, now)})


def answers_of(counters: Mapping[str, int]) -> tuple[int, int, int]:
    """Hits, misses and fallbacks of a worker's counters, or of all."""
    fallbacks = sum(counters[f"fallback_{cause}"] for cause in CAUSES)
    return counters["hits"] + counters["batch_hits"], counters["misses"], fallbacks
