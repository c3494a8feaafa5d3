"""What many processes saw of one cache: a log for each thread of each process, and the rules that hold for all of them.

Every record is a register. Its value is the number of the last commit that wrote it, 0 while it does not exist;
commits are numbered in the order in which the database took them, and register 0, `HEAD`, is written by every one of
them. So one number, its `HEAD`, names the state of the database and the content of a file.

The database keeps a journal of what was committed, in the same transactions. The logs say when: `time.monotonic_ns`,
which is one clock for all processes of a machine. A commit is visible at some instant between its two times; one whose
process was killed has no second time, and is visible at the latest when the next one begins, because SQLite lets
one writer in at a time.

A call over many records (`where`, iteration) is one event for each register, with the times of the whole call.

`checker` holds a history against `RULES`, and `explain` tells the story of what it found. Pure but for `Log` and
`read_log`, which know the file of a log.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

import numpy as np

HEAD = 0

EVENT = np.dtype([("kind", "u1"), ("how", "u1"), ("id", "<u2"), ("value", "<u4"), ("begin", "<u8"), ("end", "<u8")])
WRITE = np.dtype([("commit", "<u4"), ("process", "<u4"), ("id", "<u2"), ("exists", "?"), ("kind", "u1")])

SHOWN = 5
"""Violations of one rule that are told in full."""


class Kind(IntEnum):
    """What an event tells. begin, end: just before and just after the call that it is about."""

    READ = 1
    """A cache answered for register `id` with `value`."""
    GENERATION = 2
    """A cache said that it serves generation `value`, 0 for None."""
    PIN = 3
    """A snapshot of generation `value` was pinned or opened; what follows up to the next PIN was read from it."""
    PINNED = 4
    """The pinned snapshot has `value` for register `id`."""
    TORN = 5
    """A record of register `id` did not fit together: its version was `value`."""
    COMMIT = 6
    """Commit `value`, if the journal has it for this process; end is 0 if it was killed before COMMIT returned."""
    INVALIDATED = 7
    """invalidate() of register `id` and perhaps others returned."""
    HARD = 8
    """invalidate(hard=True) returned."""
    SOFT = 9
    """invalidate(hard=False) returned. Promises a rebuild, and nothing about reads."""
    REBUILT = 10
    """rebuild() returned; its report says generation `value`."""
    PRESENT = 11
    """A cache has register `id`, in a version that the answer does not tell."""
    LACKED = 12
    """A `where` for the kinds whose bits are set in `value` did not give register `id`."""
    COUNTED = 13
    """len(cache) was `value`."""
    TWICE = 14
    """One answer had register `id` more than once."""
    UNASKED = 15
    """A `where` for the kinds whose bits are set in `value` gave register `id` with another kind."""


class How(IntEnum):
    """Which call it was."""

    GET = 1
    GET_MANY = 2
    WHERE = 3
    OPEN = 4
    PINNED = 5
    IN = 6
    EMBEDDING = 7
    KEYS = 8
    VALUES = 9
    LEN = 10


SCANS = (How.WHERE, How.KEYS, How.VALUES, How.LEN)
"""Calls over many records. They may use what the source answered to an earlier call about a dirty id: see `checker`."""


# --- the log of one process -------------------------------------------------------------------------------------------

_HEADER = 64
_pack_into = struct.Struct("<BBHIQQ").pack_into


class Log:
    """A file of events, mapped shared, so that what was noted survives a SIGKILL without a write or a flush.

    Its header counts: events, calls that were made to read, files that were published.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        with path.open("xb+") as file:
            file.truncate(_HEADER + capacity * EVENT.itemsize)
            self._map = mmap.mmap(file.fileno(), 0)
        self._words = memoryview(self._map).cast("Q")
        self._at = 0
        self._capacity = capacity

    def has_room(self, events: int) -> bool:
        return self._at + events <= self._capacity

    def note(self, kind: int, how: int, register: int, value: int, begin: int, end: int) -> None:  # noqa: PLR0917  called a million times, and by position quicker
        """Counts for a reader of the log only from the next `keep` on."""
        _pack_into(self._map, _HEADER + self._at * EVENT.itemsize, kind, how, register, value, begin, end)
        self._at += 1

    def note_all(self, events: np.ndarray) -> None:
        """Many at once."""
        begin = _HEADER + self._at * EVENT.itemsize
        self._map[begin : begin + events.nbytes] = events.tobytes()
        self._at += len(events)

    def keep(self, calls: int = 0, published: int = 0) -> None:
        """Whatever becomes of this process, what it noted so far is in the log."""
        words = self._words
        words[1] += calls
        words[2] += published
        words[0] = self._at

    def returned(self) -> None:
        """The call that was noted last, with no end, has returned now."""
        self._words[(_HEADER + self._at * EVENT.itemsize) // 8 - 1] = time.monotonic_ns()


def read_log(path: Path) -> np.ndarray:
    """Its events: all that were kept."""
    with path.open("rb") as file:
        count = int.from_bytes(file.read(_HEADER)[:8], "little")
        return np.frombuffer(file.read(count * EVENT.itemsize), EVENT)


def totals(path: Path) -> tuple[int, int]:
    """Calls that were made to read, and files that were published, so far."""
    with path.open("rb") as file:
        head = file.read(24)
    return int.from_bytes(head[8:16], "little"), int.from_bytes(head[16:24], "little")


# --- the checker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class History:
    """logs: number of a log -> its events, dtype EVENT; the number is that of its process, but for further threads.
    writes: the journal, dtype WRITE. names: for messages. processes: number of a thread's log -> its process."""

    logs: Mapping[int, np.ndarray]
    writes: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)
    processes: Mapping[int, int] = field(default_factory=dict)

    def name(self, log: int) -> str:
        return self.names.get(log, f"process {log}")

    def process(self, log: int) -> int:
        return self.processes.get(log, log)


@dataclass(frozen=True)
class Violation:
    """rule: a key of RULES. register, begin, end: what was read, and when; register is -1 where it is about none."""

    rule: str
    message: str
    process: int
    register: int
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


@dataclass
class Verdict:
    """broken: rule -> how often. violations: the first few of each. undecided: reads that may have come from a
    generation of whose content nothing is known, because its builder was killed and no reader pinned it."""

    broken: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    reads: int = 0
    pinned_reads: int = 0
    generations: int = 0
    undecided: int = 0

    def add(self, violation: Violation, times: int = 1) -> None:
        if self.broken[violation.rule] < SHOWN:
            self.violations.append(violation)
        self.broken[violation.rule] += times


RULES = {
    "stale": "a read shows nothing older than what was committed before an invalidation that returned before it began",
    "unknown value": "a read shows what was committed",
    "from the future": "a read shows nothing that was committed after it ended",
    "of no tier": "a read shows what a generation held that was served meanwhile, or what the source held meanwhile",
    "torn": "the fields of a record, and its embedding, are those of one commit",
    "generation went back": "a process never sees an older generation after a newer one",
    "late": "whatever begins after a rebuild returned sees its generation, or a newer one",
    "two contents": "a generation holds one state of the source, whichever process reads it",
    "not as built": "every record of a generation is as that state of the source had it",
    "content went back": "a newer generation holds no older state",
    "missed a commit": "a rebuild holds what was committed before it was called",
    "wrong count": "len is a number of records each of which a get could have found by the rules above",
    "twice": "an answer has no record twice",
    "not asked for": "a where gives records of the kinds that it was asked for",
}


def pins_of(log: np.ndarray) -> np.ndarray:
    """For each event, the generation of the last PIN at or before it; 0 for none."""
    at = np.maximum.accumulate(np.where(log["kind"] == Kind.PIN, np.arange(len(log)), -1))
    return np.where(at >= 0, log["value"][at], 0)


# --- the story of a violation -----------------------------------------------------------------------------------------


def explain(history: History, violation: Violation, window_ms: float = 60.0, lines: int = 80) -> Iterable[str]:
    """What happened to the register around a violation, in the order of time; in microseconds before its begin."""
    least, most = violation.begin - int(window_ms * 1e6), violation.end + 1_000_000
    about = {int(c) for c in history.writes["commit"][history.writes["id"] == max(violation.register, 0)]}
    found = []
    for process, log in history.logs.items():
        pins = pins_of(log) if len(log) else log["value"]
        ended = np.where(log["end"] == 0, log["begin"], log["end"])
        for i in np.flatnonzero((log["begin"] <= most) & (ended.astype("i8") >= least)):
            event = log[i]
            kind, value = Kind(int(event["kind"])), int(event["value"])
            own = int(event["id"]) == violation.register
            itself = process == violation.process
            told = {
                Kind.READ: own and (itself or value in about),
                Kind.PRESENT: own and itself,
                Kind.LACKED: own and itself,
                Kind.COUNTED: itself and violation.register < 0,
                Kind.PINNED: own,
                Kind.INVALIDATED: own or violation.register < 0,
                Kind.COMMIT: value in about,
                Kind.GENERATION: history.process(process) == history.process(violation.process),
                Kind.PIN: False,
            }.get(kind, True)
            if told:
                of = f" of generation {pins[i]}" if kind is Kind.PINNED else ""
                found.append((int(event["begin"]), int(event["end"]), f"{kind.name} {value}{of}", process))
    for begin, end, text, process in sorted(found)[-lines:]:
        span = f"{(begin - violation.begin) / 1e3:>10.1f} .. " + (
            f"{(end - violation.begin) / 1e3:>10.1f}" if end else "          "
        )
        yield f"{span}  {history.name(process):<14} {text}"
