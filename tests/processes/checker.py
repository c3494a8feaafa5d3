"""Holds a history against `RULES`: what each read may have shown, by the times of commits, invalidations, rebuilds.

Works register by register on columns of all the reads of it, so that a million of them take seconds.

Each answer is a claim about one register: it is at this version, it exists, it does not, or it is of none of these
kinds. `_judge` looks for the latest version of which the claim holds and that was begun before the call ended, and
holds that one against the rules. A count is held against what `_judge` says of both claims, for every register.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tests.processes.history import EVENT, HEAD, SCANS, SHOWN, WRITE, History, How, Kind, Verdict, Violation, pins_of

__all__ = ["check"]

NEVER = np.uint64(2**62)
ANSWERS = (Kind.READ, Kind.PRESENT, Kind.LACKED)


def check(history: History) -> Verdict:
    """Hold a history against RULES. Raises ValueError for one that is itself not right."""
    verdict = Verdict()
    commits = _commits(history)
    contents = _contents(history, commits, verdict)
    promises = _promises(history, commits, contents)
    _check_rebuilds(history, commits, contents, verdict)
    _check_generations(history, verdict)
    _check_seen(history, verdict)
    _check_answers(history, commits, promises, verdict)
    _check_counts(history, commits, promises, verdict)
    _check_pinned(history, commits, promises, verdict)
    verdict.generations = len(contents)
    return verdict


# --- commits, generations and promises --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Register:
    """number: its. versions: the commits that wrote it, beginning with 0; exists, kinds: whether it existed after each,
    and of which kind. began, until: when each was visible at the earliest, and when it was visible at the latest."""

    number: int
    versions: np.ndarray
    exists: np.ndarray
    kinds: np.ndarray
    began: np.ndarray
    until: np.ndarray

    def at(self, states: np.ndarray) -> np.ndarray:
        """State of the source -> the version that it had, by its index."""
        return np.searchsorted(self.versions, states, "right") - 1

    def shows(self, versions: np.ndarray) -> np.ndarray:
        """Index of a version -> what is read of it."""
        return np.where(self.exists[versions], self.versions[versions], 0)

    def fits(self, kind: int, value: int) -> np.ndarray:
        """For each version, whether an answer that tells none may be of it."""
        if kind == Kind.PRESENT:
            return self.exists
        if kind == Kind.LACKED:
            return ~self.exists | (value >> self.kinds.astype("i8") & 1 == 0)
        return ~self.exists


@dataclass(frozen=True)
class _Commits:
    """By number, 0 being before all: when it was visible at the earliest and at the latest. Both ascend.

    registers: those that were ever written.
    """

    began: np.ndarray
    done: np.ndarray
    registers: Mapping[int, _Register]

    def before(self, instant: np.ndarray | int) -> np.ndarray:
        """The last commit that was surely done by then."""
        return np.searchsorted(self.done, instant, "right") - 1

    def register(self, number: int) -> _Register:
        """One that was never written does not exist."""
        found = self.registers.get(number)
        return found or _register(number, np.zeros(0, WRITE), self.began, self.done)


def _register(number: int, writes: np.ndarray, began: np.ndarray, done: np.ndarray) -> _Register:
    versions = np.r_[0, writes["commit"].astype("i8")]
    until = np.append(done[versions[1:]], NEVER)
    exists, kinds = np.r_[False, writes["exists"]], np.r_[np.uint8(0), writes["kind"]]
    return _Register(number, versions, exists, kinds, began[versions], until)


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
    found = {
        int(number): _register(int(number), writes[part], began, done)
        for number, part in zip(registers, np.split(order, starts[1:]), strict=True)
    }
    return _Commits(began, done, found)


def _contents(history: History, commits: _Commits, verdict: Verdict) -> dict[int, int]:
    """Generation -> the state of the source that it holds, as far as any process has read it."""
    contents: dict[int, int] = {}
    last = len(commits.began) - 1
    for process, log in history.logs.items():
        if not len(log):
            continue
        heads = np.flatnonzero((log["kind"] == Kind.PINNED) & (log["id"] == HEAD))
        pairs = np.stack([pins_of(log)[heads].astype("i8"), log["value"][heads].astype("i8")])
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


@dataclass(frozen=True)
class _Promises:
    """What reads may rely on.

    contents: generation, up to the newest -> the state that it holds; -1 where none has read it.
    said: the invalidations of registers and of everything. rebuilt: when rebuilds returned, and the state that the
    newest of them by then holds.
    """

    contents: np.ndarray
    said: np.ndarray
    rebuilt: tuple[np.ndarray, np.ndarray]
    commits: _Commits

    def floors(self, register: _Register) -> list[tuple[str, np.ndarray, np.ndarray, str]]:
        """Rule, times, and the oldest version (by its index) that may be read after each; why."""
        said = self.said[(self.said["kind"] == Kind.HARD) | (self.said["id"] == register.number)]
        # Whatever was committed before an invalidation was called is what it is about, whichever process committed it.
        invalidated = said["end"], self.commits.before(said["begin"])
        return [
            (rule, times, np.maximum.accumulate(register.at(states)), why)
            for rule, (times, states), why in (
                ("stale", invalidated, "older than what had been invalidated before"),
                ("late", self.rebuilt, "older than a generation whose rebuild had returned before"),
            )
        ]

    def shown(self, register: _Register) -> np.ndarray:
        """Generation -> the version that it shows, by its index; -1 where that is not known."""
        return np.where(self.contents < 0, -1, register.at(self.contents))

    def heard_since(self, begin: np.ndarray) -> np.ndarray:
        """When the last invalidation was called that had returned before each of these times; 0 where none had."""
        about_items = self.said[(self.said["kind"] == Kind.HARD) | (self.said["id"] != HEAD)]
        return _latest(about_items["end"], np.maximum.accumulate(about_items["begin"].astype("i8")), begin, 0)


def _promises(history: History, commits: _Commits, contents: Mapping[int, int]) -> _Promises:
    newest = int(_all(history, Kind.GENERATION, Kind.PIN, Kind.REBUILT)["value"].max(initial=1))
    held = np.full(newest + 1, -1, "i8")
    held[list(contents)] = list(contents.values())
    said = _all(history, Kind.HARD, Kind.INVALIDATED)
    returned, generations = _rebuilt(history)
    known = held[generations] >= 0
    rebuilt = returned[known], held[generations[known]]
    return _Promises(held, said[np.argsort(said["end"], kind="stable")], rebuilt, commits)


def _rebuilt(history: History) -> tuple[np.ndarray, np.ndarray]:
    """When rebuilds returned, ascending, and the newest generation that any of them had reported by then."""
    events = _all(history, Kind.REBUILT)
    events = events[np.argsort(events["end"], kind="stable")]
    return events["end"], np.maximum.accumulate(events["value"].astype("i8"))


# --- columns ----------------------------------------------------------------------------------------------------------


def _all(history: History, *kinds: Kind) -> np.ndarray:
    empty = np.empty(0, EVENT)
    return np.concatenate([empty, *(log[np.isin(log["kind"], kinds)] for log in history.logs.values())])


def _latest(times: np.ndarray, values: np.ndarray, begin: np.ndarray, otherwise: int) -> np.ndarray:
    """The value that goes with the last of the ascending times before each `begin`."""
    at = np.searchsorted(times, begin, "left") - 1
    return np.where(at >= 0, values[at], otherwise) if len(times) else np.full(len(begin), otherwise, "i8")


@dataclass(frozen=True)
class _Answers:
    """Columns: the log and the event; the generations that may have answered; since when the source may have."""

    log: np.ndarray
    event: np.ndarray
    oldest: np.ndarray
    newest: np.ndarray
    since: np.ndarray

    def of(self, chosen: np.ndarray) -> _Answers:
        return _Answers(*(column[chosen] for column in (self.log, self.event, self.oldest, self.newest, self.since)))

    def claiming(self, kind: Kind) -> _Answers:
        """As many answers that say this, at the same times."""
        events = self.event.copy()
        events["kind"], events["value"] = kind, 0
        return replace(self, event=events)


def _answers(history: History, promises: _Promises, *kinds: Kind) -> _Answers:
    """Of all threads. A process moves to newer generations only, so the last that any of its threads was told before
    the call, and the first after it, are the bounds for the generation that answered."""
    columns = [(np.empty(0, "i8"), np.empty(0, EVENT), *[np.empty(0, "i8")] * 3)]
    for logs in _by_process(history).values():
        told = np.concatenate([history.logs[log] for log in logs])
        born = int(told["begin"].min(initial=NEVER))
        told = told[(told["kind"] == Kind.GENERATION) & (told["value"] > 0)]
        by_end, by_begin = (told[np.argsort(told[time], kind="stable")] for time in ("end", "begin"))
        highest = np.maximum.accumulate(by_end["value"].astype("i8"))
        lowest = np.append(np.minimum.accumulate(by_begin["value"][::-1].astype("i8"))[::-1], np.iinfo("i8").max)
        for log in logs:
            events = history.logs[log][np.isin(history.logs[log]["kind"], kinds)]
            newest = lowest[np.searchsorted(by_begin["begin"], events["end"], "right")]
            oldest = _latest(by_end["end"], highest, events["begin"], 0)
            # `where`, `len` and iteration may show what the source answered to an earlier call of the process about a
            # dirty id: a cache remembers that until the next event or poll (DESIGN.md, section 7). Polls are in no log.
            # An invalidation of records of this collection is an event, and each call that begins after it returned
            # has heard of it, so that the answer came after it was called. That is the weakest bound which holds.
            heard = np.minimum(np.maximum(promises.heard_since(events["begin"]), born), events["begin"].astype("i8"))
            since = np.where(np.isin(events["how"], SCANS), heard, events["begin"].astype("i8"))
            columns.append((np.full(len(events), log), events, oldest, newest, since))
    return _Answers(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def _by_process(history: History) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for log in history.logs:
        found.setdefault(history.process(log), []).append(log)
    return found


# --- answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judgement:
    """For each answer: rule -> whether it is broken. undecided: whether a generation may have given it that no process
    has read."""

    wrong: Mapping[str, tuple[np.ndarray, str]]
    undecided: np.ndarray

    @property
    def may_be(self) -> np.ndarray:
        return ~np.logical_or.reduce([wrong for wrong, _ in self.wrong.values()])


def _judge(register: _Register, answers: _Answers, promises: _Promises) -> _Judgement:
    event = answers.event
    claims = _Claims(register, event)
    position = claims.latest(event["end"])
    unknown = position == claims.NONE
    future = ~unknown & (register.began[position] > event["end"])
    sound = ~unknown & ~future
    wrong = {
        "unknown value": (unknown, "which was never committed"),
        "from the future": (future, "whose commit began after the read had ended"),
    }
    for rule, times, versions, why in promises.floors(register):
        wrong[rule] = sound & (position < _latest(times, versions, event["begin"], 0)), why
    undecided = np.zeros(len(event), bool)
    foreign = np.flatnonzero(
        sound & (register.until[position].astype("i8") < answers.since)
    )  # the source did not have it then
    served, unread = claims.served(position[foreign], foreign, answers, promises.shown(register))
    undecided[foreign] = ~served & unread
    of_no_tier = np.zeros(len(event), bool)
    of_no_tier[foreign] = ~served & ~unread
    wrong["of no tier"] = of_no_tier, "which no generation served then had, nor the source"
    return _Judgement(wrong, undecided)


class _Claims:
    """What answers say of one register, by the versions of which it is true."""

    NONE = -1

    def __init__(self, register: _Register, event: np.ndarray) -> None:
        self.register = register
        self.value = event["value"]
        code = event["kind"].astype("i8") << 32 | event["value"]
        tells = (event["kind"] == Kind.READ) & (event["value"] > 0)
        codes, which = np.unique(np.where(tells, -1, code), return_inverse=True)
        self.which = which
        nothing = np.zeros(len(register.versions), bool)  # of an answer that tells its version, `value` is the claim
        fits = [register.fits(int(code) >> 32, int(code) & 0xFFFFFFFF) if code >= 0 else nothing for code in codes]
        self.tells, self.fits = tells, np.array([*fits, nothing])

    def latest(self, end: np.ndarray) -> np.ndarray:
        """For each answer the version, by its index, or of several the last that was begun before the end of the call;
        the first where none was."""
        versions, exists = self.register.versions, self.register.exists
        position = np.searchsorted(versions, self.value, "left")
        committed = (np.append(versions, -1)[position] == self.value) & np.append(exists, False)[position]
        position = np.where(committed, position, self.NONE)
        for claim in np.unique(self.which[~self.tells]):
            chosen = np.flatnonzero(~self.tells & (self.which == claim))
            options = np.flatnonzero(self.fits[claim])
            at = np.searchsorted(self.register.began[options], end[chosen], "right") - 1
            position[chosen] = options[np.maximum(at, 0)] if len(options) else self.NONE
        return position

    def served(
        self, position: np.ndarray, chosen: np.ndarray, answers: _Answers, shown: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whether a generation within the bounds of an answer fits; and whether one of them was never read."""
        newest = np.minimum(answers.newest[chosen], len(shown) - 1)
        oldest = np.minimum(np.maximum(answers.oldest[chosen], 1), newest)
        tells, which = self.tells[chosen], self.which[chosen]
        served, unread = np.zeros(len(chosen), bool), np.zeros(len(chosen), bool)
        left = np.arange(len(chosen))
        step = 0
        while len(left):
            found = shown[oldest[left] + step]
            fits = np.where(tells[left], found == position[left], self.fits[which[left], found])
            served[left] |= (found >= 0) & fits
            unread[left] |= found < 0
            step += 1
            left = left[~served[left] & (oldest[left] + step <= newest[left])]
        return served, unread


def _check_answers(history: History, commits: _Commits, promises: _Promises, verdict: Verdict) -> None:
    everything = _answers(history, promises, *ANSWERS)
    verdict.reads += len(everything.event)
    order = np.argsort(everything.event["id"], kind="stable")
    registers, starts = np.unique(everything.event["id"][order], return_index=True)
    for number, chosen in zip(registers, np.split(order, starts[1:]), strict=False):
        answers = everything.of(chosen)
        judgement = _judge(commits.register(int(number)), answers, promises)
        verdict.undecided += int(judgement.undecided.sum())
        for rule, (wrong, why) in judgement.wrong.items():
            found = np.flatnonzero(wrong)
            for i in found[:SHOWN]:
                event, log = answers.event[i], int(answers.log[i])
                text = f"{history.name(log)} {How(int(event['how'])).name.lower()} of register {number} gave "
                text += f"{_said(event)}, {why}"
                verdict.add(Violation(rule, text, log, int(number), int(event["begin"]), int(event["end"])))
            verdict.broken[rule] += len(found[SHOWN:])
    verdict.broken = +verdict.broken


def _said(event: np.ndarray) -> str:
    kind, value = int(event["kind"]), int(event["value"])
    if kind == Kind.PRESENT:
        return "something"
    if kind == Kind.LACKED:
        return f"nothing of kinds {[bit for bit in range(value.bit_length()) if value >> bit & 1]}"
    return f"commit {value}" if value else "nothing"


def _check_counts(history: History, commits: _Commits, promises: _Promises, verdict: Verdict) -> None:
    """Each register counts if it must be there, and may count if it may be; whatever the others do."""
    counts = _answers(history, promises, Kind.COUNTED)
    verdict.reads += len(counts.event)
    least, most = np.zeros(len(counts.event), "i8"), np.zeros(len(counts.event), "i8")
    present, absent = counts.claiming(Kind.PRESENT), counts.claiming(Kind.READ)
    for number, register in commits.registers.items():
        if number != HEAD and len(counts.event):
            most += _judge(register, present, promises).may_be
            least += ~_judge(register, absent, promises).may_be
    for i in np.flatnonzero((counts.event["value"] < least) | (counts.event["value"] > most)):
        event, log = counts.event[i], int(counts.log[i])
        text = f"{history.name(log)} counted {event['value']} records, of which there were {least[i]} to {most[i]}"
        verdict.add(Violation("wrong count", text, log, -1, int(event["begin"]), int(event["end"])))


# --- generations, and what was read from one --------------------------------------------------------------------------


def _check_rebuilds(history: History, commits: _Commits, contents: Mapping[int, int], verdict: Verdict) -> None:
    for process, log in history.logs.items():
        for event in log[log["kind"] == Kind.REBUILT]:
            held, due = contents.get(int(event["value"])), int(commits.before(event["begin"]))
            if held is not None and held < due:
                text = f"generation {event['value']} of {history.name(process)} holds commit {held}"
                text += f", and commit {due} was done before the rebuild began"
                at = process, HEAD, int(event["begin"]), int(event["end"])
                verdict.add(Violation("missed a commit", text, *at))


def _check_generations(history: History, verdict: Verdict) -> None:
    returned, newest = _rebuilt(history)
    for logs in _by_process(history).values():
        number = np.concatenate([np.full(len(history.logs[log]), log) for log in logs])
        seen = np.concatenate([history.logs[log] for log in logs])
        # A snapshot that was opened is not one that a cache served, but files do not go back either.
        shown = ((seen["kind"] == Kind.GENERATION) | (seen["kind"] == Kind.PIN)) & (seen["value"] > 0)
        seen, number = seen[shown], number[shown]
        by_end = seen[np.argsort(seen["end"], kind="stable")]
        highest = np.maximum.accumulate(by_end["value"].astype("i8"))
        values = seen["value"].astype("i8")
        # Of two threads, one may still be told of the older generation while the other is told of the newer one.
        before = _latest(by_end["end"], highest, seen["begin"], 0)
        due = _latest(returned, newest, seen["begin"], 0)
        for i in np.flatnonzero(values < before):
            text = f"{history.name(int(number[i]))} saw generation {values[i]} after {before[i]}"
            at = int(number[i]), -1, int(seen["begin"][i]), int(seen["end"][i])
            verdict.add(Violation("generation went back", text, *at))
        for i in np.flatnonzero(values < due):
            text = f"{history.name(int(number[i]))} saw generation {values[i]} after the rebuild of {due[i]} had "
            text += f"returned, {(int(seen['begin'][i]) - int(seen['begin'].min())) / 1e6:.1f} ms after its first look"
            at = int(number[i]), -1, int(seen["begin"][i]), int(seen["end"][i])
            verdict.add(Violation("late", text, *at))


def _check_seen(history: History, verdict: Verdict) -> None:
    """Rules that the process itself found broken."""
    for process, log in history.logs.items():
        for event in log[np.isin(log["kind"], [Kind.TORN, Kind.TWICE, Kind.UNASKED])]:
            rule, what = {
                Kind.TORN: ("torn", f"read register {event['id']} with version {event['value']} and other fields"),
                Kind.TWICE: ("twice", f"was given register {event['id']} more than once"),
                Kind.UNASKED: ("not asked for", f"was given register {event['id']}, which is of another kind"),
            }[Kind(int(event["kind"]))]
            text = f"{history.name(process)} {what}, by {How(int(event['how'])).name.lower()}"
            at = process, int(event["id"]), int(event["begin"]), int(event["end"])
            verdict.add(Violation(rule, text, *at))


def _check_pinned(history: History, commits: _Commits, promises: _Promises, verdict: Verdict) -> None:
    empty = np.empty(0, "i8"), np.empty(0, "i8"), np.empty(0, EVENT)
    columns = [empty]
    for process, log in history.logs.items():
        pinned = log["kind"] == Kind.PINNED
        if pinned.any():
            columns.append((np.full(int(pinned.sum()), process), pins_of(log)[pinned].astype("i8"), log[pinned]))
    processes, generations, events = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    verdict.pinned_reads = len(events)
    order = np.argsort(events["id"], kind="stable")
    registers, starts = np.unique(events["id"][order], return_index=True)
    for number, chosen in zip(registers, np.split(order, starts[1:]), strict=False):
        register = commits.register(int(number))
        shown = promises.shown(register)[generations[chosen]]
        due = register.shows(np.maximum(shown, 0))
        verdict.undecided += int((shown < 0).sum())
        for i in np.flatnonzero((shown >= 0) & (due != events["value"][chosen])):
            event, process = events[chosen[i]], int(processes[chosen[i]])
            text = f"{history.name(process)} found commit {event['value']} for register {number} in generation "
            text += f"{generations[chosen[i]]}, which should have {due[i]}"
            at = process, int(number), int(event["begin"]), int(event["end"])
            verdict.add(Violation("not as built", text, *at))
