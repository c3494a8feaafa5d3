"""What many processes saw of one cache, and whether they may have: a log for each process, and the checker.

Every record is a register. Its value is the number of the last commit that wrote it, 0 while it does not exist;
commits are numbered in the order in which the database took them, and register 0, `HEAD`, is written by every one of
them. So the state of the database, and the content of a file, is told by one number: its `HEAD`.

The database keeps a journal of what was committed, in the same transactions. The logs say when: `time.monotonic_ns`,
which is one clock for all processes of a machine. A commit is visible at some instant between its two times; one whose
process was killed has no second time, and is visible at the latest when the next one begins, because SQLite lets
one writer in at a time.

Pure but for `Log` and `read_log`, which know the file of a log.
"""

from __future__ import annotations

import itertools
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
WRITE = np.dtype([("commit", "<u4"), ("process", "<u4"), ("id", "<u2"), ("exists", "?")])

NEVER = np.uint64(2**63)
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


class How(IntEnum):
    """Which call it was."""

    GET = 1
    GET_MANY = 2
    WHERE = 3
    OPEN = 4
    PINNED = 5


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
        """Counts for whoever reads the log only from the next `keep` on."""
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
    """logs: number of a process -> its events, dtype EVENT. writes: the journal, dtype WRITE. names: for messages."""

    logs: Mapping[int, np.ndarray]
    writes: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)

    def name(self, process: int) -> str:
        return self.names.get(process, f"process {process}")


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
    "torn": "the fields of a record are those of one commit",
    "generation went back": "a process never sees an older generation after a newer one",
    "late": "whatever begins after a rebuild returned sees its generation, or a newer one",
    "two contents": "a generation holds one state of the source, whoever looks",
    "not as built": "every record of a generation is as that state of the source had it",
    "content went back": "a newer generation holds no older state",
    "missed a commit": "a rebuild holds what was committed before it was called",
}


def check(history: History) -> Verdict:
    """Hold a history against RULES. Raises ValueError for one that is itself not right."""
    verdict = Verdict()
    commits = _commits(history)
    contents = _contents(history, commits, verdict)
    _check_rebuilds(history, commits, contents, verdict)
    _check_generations(history, verdict)
    _check_torn(history, verdict)
    _check_reads(history, commits, contents, verdict)
    _check_pinned(history, commits, contents, verdict)
    verdict.generations = len(contents)
    return verdict


@dataclass(frozen=True)
class _Commits:
    """By number, 0 being before all: when it was visible at the earliest and at the latest. Both ascend.

    versions, exists: register -> the commits that wrote it, beginning with 0, and whether it existed after each.
    """

    began: np.ndarray
    done: np.ndarray
    versions: Mapping[int, np.ndarray]
    exists: Mapping[int, np.ndarray]

    def before(self, instant: np.ndarray | int) -> np.ndarray:
        """The last commit that was surely done by then."""
        return np.searchsorted(self.done, instant, "right") - 1


def _commits(history: History) -> _Commits:
    writes = history.writes[np.argsort(history.writes["commit"], kind="stable")]
    numbers, first = np.unique(writes["commit"], return_index=True)
    if not np.array_equal(numbers, np.arange(1, len(numbers) + 1)):
        raise ValueError("the journal has gaps")
    began = np.zeros(len(numbers) + 1, "u8")
    done = np.zeros(len(numbers) + 1, "u8")
    authors = writes["process"][first]
    seen = np.zeros(len(numbers) + 1, bool)
    for process, log in history.logs.items():
        events = log[log["kind"] == Kind.COMMIT]
        # A process that failed to commit uses the number again: the journal knows the one that it committed.
        mine = events[(events["value"] >= 1) & (events["value"] <= len(numbers))]
        mine = mine[authors[mine["value"] - 1] == process]
        began[mine["value"]] = mine["begin"]
        done[mine["value"]] = np.where(mine["end"] == 0, NEVER, mine["end"])
        seen[mine["value"]] = True
    if not seen[1:].all():
        raise ValueError(f"commit {int(np.flatnonzero(~seen[1:])[0]) + 1} is in no log")
    if (np.diff(began.astype("i8")) < 0).any():
        raise ValueError("commits did not begin in the order of their numbers")
    done[:-1] = np.minimum(done[:-1], began[1:])
    order = np.argsort(writes["id"], kind="stable")
    registers, starts = np.unique(writes["id"][order], return_index=True)
    parts = np.split(order, starts[1:])
    return _Commits(
        began,
        done,
        {int(r): np.r_[0, writes["commit"][part]].astype("i8") for r, part in zip(registers, parts, strict=True)},
        {int(r): np.r_[False, writes["exists"][part]] for r, part in zip(registers, parts, strict=True)},
    )


def _register(commits: _Commits, register: int) -> tuple[np.ndarray, np.ndarray]:
    """One that was never written does not exist."""
    nothing = np.zeros(1, "i8"), np.zeros(1, bool)
    return commits.versions.get(register, nothing[0]), commits.exists.get(register, nothing[1])


def _shown(commits: _Commits, register: int, states: np.ndarray) -> np.ndarray:
    """What a register shows in states of the source."""
    versions, exists = _register(commits, register)
    at = np.searchsorted(versions, states, "right") - 1
    return np.where(exists[at], versions[at], 0)


def _pins(log: np.ndarray) -> np.ndarray:
    """For each event, the generation of the last PIN at or before it; 0 for none."""
    at = np.maximum.accumulate(np.where(log["kind"] == Kind.PIN, np.arange(len(log)), -1))
    return np.where(at >= 0, log["value"][at], 0)


def _contents(history: History, commits: _Commits, verdict: Verdict) -> dict[int, int]:
    """Generation -> the state of the source that it holds, as far as anybody looked."""
    contents: dict[int, int] = {}
    last = len(commits.began) - 1
    for process, log in history.logs.items():
        if not len(log):
            continue
        heads = np.flatnonzero((log["kind"] == Kind.PINNED) & (log["id"] == HEAD))
        pairs = np.stack([_pins(log)[heads].astype("i8"), log["value"][heads].astype("i8")])
        for generation, head in sorted({(int(g), int(h)) for g, h in pairs.T}):
            where = int(heads[np.flatnonzero((pairs[0] == generation) & (pairs[1] == head))[0]])
            at = process, HEAD, int(log["begin"][where]), int(log["end"][where])
            if contents.setdefault(generation, head) != head:
                text = f"generation {generation} holds commit {contents[generation]}, and commit {head} too"
                verdict.add(Violation("two contents", f"{text} ({history.name(process)})", *at))
            if not 0 < head <= last:
                verdict.add(Violation("unknown value", f"generation {generation} holds commit {head}", *at))
    contents = {generation: head for generation, head in sorted(contents.items()) if 0 < head <= last}
    for (g, head), (h, later) in itertools.pairwise(contents.items()):
        if later < head:
            text = f"generation {g} holds commit {head}, and generation {h} only {later}"
            verdict.add(Violation("content went back", text, -1, HEAD, 0, 0))
    return contents


def _check_rebuilds(history: History, commits: _Commits, contents: Mapping[int, int], verdict: Verdict) -> None:
    for process, log in history.logs.items():
        for event in log[log["kind"] == Kind.REBUILT]:
            held, due = contents.get(int(event["value"])), int(commits.before(event["begin"]))
            if held is not None and held < due:
                text = f"generation {event['value']} of {history.name(process)} holds commit {held}"
                text += f", and commit {due} was done before the rebuild began"
                at = process, HEAD, int(event["begin"]), int(event["end"])
                verdict.add(Violation("missed a commit", text, *at))


def _rebuilt(history: History) -> tuple[np.ndarray, np.ndarray]:
    """When rebuilds returned, ascending, and the newest generation that any of them had reported by then."""
    events = _all(history, Kind.REBUILT)
    events = events[np.argsort(events["end"], kind="stable")]
    return events["end"], np.maximum.accumulate(events["value"].astype("i8"))


def _all(history: History, *kinds: Kind) -> np.ndarray:
    empty = np.empty(0, EVENT)
    return np.concatenate([empty, *(log[np.isin(log["kind"], kinds)] for log in history.logs.values())])


def _latest(times: np.ndarray, values: np.ndarray, begin: np.ndarray, otherwise: int) -> np.ndarray:
    """The value that goes with the last of the ascending times before each `begin`."""
    at = np.searchsorted(times, begin, "left") - 1
    return np.where(at >= 0, values[at], otherwise) if len(times) else np.full(len(begin), otherwise, "i8")


def _check_generations(history: History, verdict: Verdict) -> None:
    returned, newest = _rebuilt(history)
    for process, log in history.logs.items():
        # A snapshot that was opened is not one that a cache served, but files do not go back either.
        seen = log[((log["kind"] == Kind.GENERATION) | (log["kind"] == Kind.PIN)) & (log["value"] > 0)]
        values = seen["value"].astype("i8")
        if not len(values):
            continue
        highest = np.maximum.accumulate(values)
        for i in np.flatnonzero(values < highest):
            text = f"{history.name(process)} saw generation {values[i]} after {highest[i]}"
            at = process, -1, int(seen["begin"][i]), int(seen["end"][i])
            verdict.add(Violation("generation went back", text, *at))
        due = _latest(returned, newest, seen["begin"], 0)
        for i in np.flatnonzero(values < due):
            text = f"{history.name(process)} saw generation {values[i]} after the rebuild of {due[i]} had returned, "
            text += f"{(seen['begin'][i] - seen['begin'][0]) / 1e6:.1f} ms after it had first looked"
            verdict.add(Violation("late", text, process, -1, int(seen["begin"][i]), int(seen["end"][i])))


def _check_torn(history: History, verdict: Verdict) -> None:
    for process, log in history.logs.items():
        for event in log[log["kind"] == Kind.TORN]:
            text = f"{history.name(process)} read register {event['id']} with version {event['value']} and other fields"
            at = process, int(event["id"]), int(event["begin"]), int(event["end"])
            verdict.add(Violation("torn", text, *at))


@dataclass(frozen=True)
class _Reads:
    """Columns: where it is in the logs, what was read when, and the generations that may have answered."""

    process: np.ndarray
    event: np.ndarray
    oldest: np.ndarray
    newest: np.ndarray

    def of(self, chosen: np.ndarray) -> _Reads:
        return _Reads(self.process[chosen], self.event[chosen], self.oldest[chosen], self.newest[chosen])


def _reads(history: History) -> _Reads:
    """Of all processes. A cache moves to newer generations only, so the last that it said it serves before a read,
    and the first after it, are the bounds for the generation that answered."""
    columns: list[tuple[np.ndarray, ...]] = []
    for process, log in history.logs.items():
        said = np.where(log["kind"] == Kind.GENERATION, log["value"], 0).astype("i8")
        oldest = np.maximum.accumulate(said) if len(said) else said
        after = np.where(said > 0, said, np.iinfo("i8").max)
        newest = np.minimum.accumulate(after[::-1])[::-1] if len(said) else after
        reads = log["kind"] == Kind.READ
        events = log[reads]
        columns.append((np.full(len(events), process), events, oldest[reads], newest[reads]))
    if not columns:
        columns.append((np.empty(0, "i8"), np.empty(0, EVENT), np.empty(0, "i8"), np.empty(0, "i8")))
    return _Reads(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def _check_reads(history: History, commits: _Commits, contents: Mapping[int, int], verdict: Verdict) -> None:
    everything = _reads(history)
    verdict.reads, last = len(everything.event), _newest(history)
    hard, single = _all(history, Kind.HARD), _all(history, Kind.INVALIDATED)
    returned, newest = _rebuilt(history)
    known = np.isin(newest, list(contents))
    rebuilt = returned[known], np.array([contents[int(g)] for g in newest[known]], "i8")
    order = np.argsort(everything.event["id"], kind="stable")
    registers, starts = np.unique(everything.event["id"][order], return_index=True)
    for register, chosen in zip(registers, np.split(order, starts[1:]), strict=False):
        reads = everything.of(chosen)
        promises = np.concatenate([hard, single[single["id"] == register]])
        promises = promises[np.argsort(promises["end"], kind="stable")]
        # Whatever was committed before an invalidation was called is what it is about, whoever committed it.
        said = promises["end"], commits.before(promises["begin"])
        _check_register(
            history,
            int(register),
            reads,
            commits,
            verdict,
            contents=contents,
            newest=last,
            invalidated=said,
            rebuilt=rebuilt,
        )


def _check_register(
    history: History,
    register: int,
    reads: _Reads,
    commits: _Commits,
    verdict: Verdict,
    *,
    contents: Mapping[int, int],
    newest: int,
    invalidated: tuple[np.ndarray, np.ndarray],
    rebuilt: tuple[np.ndarray, np.ndarray],
) -> None:
    versions, exists = _register(commits, register)
    value, begin, end = (reads.event[name] for name in ("value", "begin", "end"))
    absent = value == 0
    position = np.searchsorted(versions, value, "left")
    committed = np.append(versions, -1)[position] == value
    committed &= np.append(exists, False)[position]
    position = np.minimum(position, len(versions) - 1)
    since = commits.began[versions]
    until = np.append(commits.done[versions[1:]], NEVER)
    gone = np.flatnonzero(~exists)
    # The last version before the end of the read that says that there is nothing: absence is of this one, if any.
    latest_gone = gone[np.maximum(np.searchsorted(since[gone], end, "right") - 1, 0)]
    position = np.where(absent, latest_gone, position)

    def tell(rule: str, wrong: np.ndarray, why: str) -> None:
        for count, i in enumerate(np.flatnonzero(wrong)):
            if count == SHOWN:
                verdict.broken[rule] += int(wrong.sum()) - SHOWN
                break
            process = int(reads.process[i])
            text = (
                f"{history.name(process)} {How(int(reads.event['how'][i])).name.lower()} of register {register} gave "
            )
            text += f"{f'commit {value[i]}' if value[i] else 'nothing'}, {why}"
            verdict.add(Violation(rule, text, process, register, int(begin[i]), int(end[i])))

    unknown = ~absent & ~committed
    tell("unknown value", unknown, "which was never committed")
    future = ~unknown & (since[position] > end)
    tell("from the future", future, "whose commit began after the read had ended")
    sound = ~unknown & ~future
    for rule, (times, states), why in (
        ("stale", invalidated, "older than what had been invalidated before"),
        ("late", rebuilt, "older than a generation whose rebuild had returned before"),
    ):
        floor = _latest(times, np.maximum.accumulate(np.searchsorted(versions, states, "right") - 1), begin, 0)
        tell(rule, sound & (position < floor), why)
    live = sound & (until[position] >= begin)
    served, undecided = _served(_shown_by(commits, contents, register, newest), reads)
    verdict.undecided += int((sound & ~live & ~served & undecided).sum())
    tell("of no tier", sound & ~live & ~served & ~undecided, "which no generation served then had, nor the source")


def _shown_by(commits: _Commits, contents: Mapping[int, int], register: int, newest: int) -> np.ndarray:
    """Generation, up to the newest that anybody knows of -> what it shows for a register; -1 where nobody knows."""
    shown = np.full(newest + 1, -1, "i8")
    if contents:
        shown[list(contents)] = _shown(commits, register, np.array(list(contents.values())))
    return shown


def _newest(history: History) -> int:
    events = _all(history, Kind.GENERATION, Kind.PIN, Kind.REBUILT)
    return int(events["value"].max(initial=1))


def _served(shown: np.ndarray, reads: _Reads) -> tuple[np.ndarray, np.ndarray]:
    """Whether a generation within a read's bounds shows its value; and whether one of them is not known."""
    newest = np.minimum(reads.newest, len(shown) - 1)
    oldest = np.minimum(np.maximum(reads.oldest, 1), newest)
    served, undecided = np.zeros(len(newest), bool), np.zeros(len(newest), bool)
    left = np.arange(len(newest))
    step = 0
    while len(left):
        found = shown[oldest[left] + step]
        served[left] |= found == reads.event["value"][left]
        undecided[left] |= found == -1
        step += 1
        left = left[~served[left] & (oldest[left] + step <= newest[left])]
    return served, undecided


def _check_pinned(history: History, commits: _Commits, contents: Mapping[int, int], verdict: Verdict) -> None:
    empty = np.empty(0, "i8"), np.empty(0, "i8"), np.empty(0, EVENT)
    columns = [empty]
    for process, log in history.logs.items():
        pinned = log["kind"] == Kind.PINNED
        if pinned.any():
            columns.append((np.full(int(pinned.sum()), process), _pins(log)[pinned].astype("i8"), log[pinned]))
    processes, generations, events = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    verdict.pinned_reads, newest = len(events), _newest(history)
    order = np.argsort(events["id"], kind="stable")
    registers, starts = np.unique(events["id"][order], return_index=True)
    for register, chosen in zip(registers, np.split(order, starts[1:]), strict=False):
        due = _shown_by(commits, contents, int(register), newest)[generations[chosen]]
        verdict.undecided += int((due < 0).sum())
        for i in np.flatnonzero((due >= 0) & (due != events["value"][chosen])):
            event, process = events[chosen[i]], int(processes[chosen[i]])
            text = f"{history.name(process)} found commit {event['value']} for register {register} in generation "
            text += f"{generations[chosen[i]]}, which should have {due[i]}"
            at = process, int(register), int(event["begin"]), int(event["end"])
            verdict.add(Violation("not as built", text, *at))


def explain(history: History, violation: Violation, window_ms: float = 60.0, lines: int = 80) -> Iterable[str]:
    """What happened to the register around a violation, in the order of time; in microseconds before its begin."""
    least, most = violation.begin - int(window_ms * 1e6), violation.end + 1_000_000
    about = {int(c) for c in history.writes["commit"][history.writes["id"] == max(violation.register, 0)]}
    found = []
    for process, log in history.logs.items():
        pins = _pins(log) if len(log) else log["value"]
        ended = np.where(log["end"] == 0, log["begin"], log["end"])
        for i in np.flatnonzero((log["begin"] <= most) & (ended.astype("i8") >= least)):
            event = log[i]
            kind, value = Kind(int(event["kind"])), int(event["value"])
            own = int(event["id"]) == violation.register
            told = {
                Kind.READ: own and (process == violation.process or value in about),
                Kind.PINNED: own,
                Kind.INVALIDATED: own,
                Kind.COMMIT: value in about,
                Kind.GENERATION: process == violation.process,
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
