"""The checker finds what it is for, and nothing else: a small history for each rule, kept and broken.

A history here is told as a story, in which time is a number that the teller gives. All stories have registers 1 and 2.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes.checker import check
from tests.processes.history import (
    EVENT,
    HEAD,
    RULES,
    WRITE,
    History,
    How,
    Kind,
    Log,
    Verdict,
    explain,
    read_log,
    totals,
)

WRITER, READER, REBUILDER, OTHER = 1, 2, 3, 4
THREAD = 1_000_002
"""Of the reader's process, with a log of its own."""


class Story:
    """Events in the order of telling, which is the order of each process's log."""

    def __init__(self) -> None:
        self.events: dict[int, list[tuple[int, ...]]] = {}
        self.writes: list[tuple[int, int, int, bool, int]] = []

    def note(self, process: int, *event: int) -> Story:
        self.events.setdefault(process, []).append(event)
        return self

    def meant(self, number: int, begin: int, by: int = WRITER) -> Story:
        """A commit that was begun by a process that was killed before it returned; the journal may have it or not."""
        return self.note(by, Kind.COMMIT, 0, 0, number, begin, 0)

    def journal(self, number: int, *registers: int, by: int = WRITER, kind: int = 0) -> Story:
        """Negative: was deleted."""
        self.writes += [(number, by, HEAD, True, 0), *((number, by, abs(r), r > 0, kind) for r in registers)]
        return self

    def commit(self, number: int, *registers: int, at: tuple[int, int], by: int = WRITER, kind: int = 0) -> Story:
        return self.journal(number, *registers, by=by, kind=kind).note(by, Kind.COMMIT, 0, 0, number, *at)

    def invalidated(self, register: int, at: tuple[int, int]) -> Story:
        return self.note(WRITER, Kind.INVALIDATED, 0, register, 0, *at)

    def hard(self, at: tuple[int, int]) -> Story:
        return self.note(WRITER, Kind.HARD, 0, 0, 0, *at)

    def soft(self, at: tuple[int, int]) -> Story:
        return self.note(WRITER, Kind.SOFT, 0, 0, 0, *at)

    def rebuilt(self, generation: int, at: tuple[int, int], by: int = REBUILDER) -> Story:
        return self.note(by, Kind.REBUILT, 0, 0, generation, *at)

    def serves(self, generation: int, at: int, by: int = READER) -> Story:
        return self.note(by, Kind.GENERATION, 0, 0, generation, at, at)

    def holds(self, generation: int, versions: dict[int, int], at: int, by: int = OTHER) -> Story:
        self.note(by, Kind.PIN, How.OPEN, 0, generation, at, at)
        for register, version in versions.items():
            self.note(by, Kind.PINNED, How.OPEN, register, version, at, at)
        return self

    def read(self, register: int, value: int, at: tuple[int, int], by: int = READER) -> Story:
        return self.note(by, Kind.READ, How.GET, register, value, *at)

    def scan(self, register: int, value: int, at: tuple[int, int], how: How = How.VALUES) -> Story:
        """What an answer with all records has of one of them."""
        return self.note(READER, Kind.READ, how, register, value, *at)

    def present(self, register: int, at: tuple[int, int], how: How = How.IN) -> Story:
        return self.note(READER, Kind.PRESENT, how, register, 0, *at)

    def lacked(self, register: int, kinds: int, at: tuple[int, int]) -> Story:
        """A `where` for the kinds whose bits are set did not give it."""
        return self.note(READER, Kind.LACKED, How.WHERE, register, kinds, *at)

    def counted(self, count: int, at: tuple[int, int]) -> Story:
        return self.note(READER, Kind.COUNTED, How.LEN, 0, count, *at)

    def only(self, generation: int) -> Story:
        """The reader serves this one to the end: none that was never read may have answered."""
        return self.serves(generation, at=5000)

    def torn(self, register: int, at: tuple[int, int]) -> Story:
        return self.note(READER, Kind.TORN, How.GET, register, 1, *at)

    def history(self) -> History:
        logs = {process: np.array(events, EVENT) for process, events in self.events.items()}
        return History(logs, np.array(self.writes, WRITE), {READER: "reader 2"}, {THREAD: READER})

    def verdict(self) -> Verdict:
        return check(self.history())


def bank() -> Story:
    """Commit 1 wrote both registers, at 10; generation 1 holds it, and the reader serves it from 20 on."""
    return Story().commit(1, 1, 2, at=(8, 10)).holds(1, {HEAD: 1, 1: 1, 2: 1}, at=15).serves(1, at=20)


def swapped() -> Story:
    """After that commit 2 wrote register 1, at 100, and generation 2 has it; its rebuild returned at 130."""
    story = bank().commit(2, 1, at=(90, 100)).rebuilt(2, at=(110, 130))
    return story.holds(2, {HEAD: 2, 1: 2, 2: 1}, at=135)


def told() -> Story:
    """After that commit 2 wrote register 1, at 100; its invalidation began at 110 and returned at 120."""
    return bank().commit(2, 1, at=(90, 100)).invalidated(1, at=(110, 120))


def all_invalidated() -> Story:
    return bank().commit(2, 1, at=(90, 100)).hard(at=(110, 120))


def deleted() -> Story:
    return bank().commit(2, -1, at=(90, 100)).invalidated(1, at=(110, 120))


def inserted() -> Story:
    """Register 3, which generation 1 has not."""
    return bank().commit(2, 3, at=(90, 100)).invalidated(3, at=(110, 120))


def moved() -> Story:
    """Register 1 from kind 0 to kind 5."""
    return bank().commit(2, 1, at=(90, 100), kind=5).invalidated(1, at=(110, 120))


def remembered() -> Story:
    """A call at 121 asks the source for register 1, whose commit 3, at 140, is not invalidated yet."""
    return told().scan(1, 2, at=(121, 130)).commit(3, 1, at=(131, 140))


def gone() -> Story:
    """Generation 2 lacks register 1, which comes back with commit 3 and is gone again with commit 4."""
    story = deleted().rebuilt(2, at=(130, 140)).holds(2, {HEAD: 2, 1: 0, 2: 1}, at=145).serves(2, at=150)
    return story.commit(3, 1, at=(160, 170)).commit(4, -1, at=(180, 190))


KEPT = {
    "the file answers": bank().read(1, 1, at=(30, 31)),
    "the source answers with what no generation has": bank().commit(2, 1, at=(90, 100)).read(1, 2, at=(95, 96)),
    "the file answers while an invalidation has not returned": told().read(1, 1, at=(119, 130)),
    "the file answers at the very instant at which it returns": told().read(1, 1, at=(120, 130)),
    "the invalidated id is answered anew": told().read(1, 2, at=(121, 130)),
    "another id is not concerned": told().read(2, 1, at=(121, 130)),
    "anything newer is fine": told().commit(3, 1, at=(140, 150)).read(1, 3, at=(145, 160)),
    "a commit after the call of invalidate() is not what it is about": (
        bank().invalidated(1, at=(80, 120)).commit(2, 1, at=(90, 100), by=OTHER).read(1, 1, at=(121, 122))
    ),
    "all are answered anew after a hard one": all_invalidated().read(1, 2, at=(121, 122)).read(2, 1, at=(121, 122)),
    "soft promises nothing about reads": (
        bank().commit(2, 1, at=(90, 100)).soft(at=(110, 120)).read(1, 1, at=(121, 122))
    ),
    "a deleted id is gone": deleted().read(1, 0, at=(121, 122)),
    "a deleted id comes back": deleted().commit(3, 1, at=(130, 140)).read(1, 3, at=(150, 151)),
    "an id that is deleted again": (
        deleted().commit(3, 1, at=(130, 140)).commit(4, -1, at=(150, 160)).invalidated(1, at=(161, 162))
    ).read(1, 0, at=(170, 171)),
    "an id that never was": bank().read(9, 0, at=(30, 31)),
    "a commit whose writer was killed did happen": bank().meant(2, 90).journal(2, 1).read(1, 2, at=(95, 96)),
    "it is seen late, or not yet": bank().meant(2, 90).journal(2, 1).read(1, 1, at=(5000, 5001)),
    "a commit whose writer was killed did not happen, and its number is used again": (
        bank().meant(2, 90).commit(2, 2, at=(95, 100), by=OTHER).read(1, 1, at=(121, 122)).read(2, 2, at=(121, 122))
    ),
    "a process moves to the next generation": swapped().serves(2, at=131).read(1, 2, at=(140, 141)),
    "a generation of the file is served between two looks": (swapped().read(1, 1, at=(105, 106)).serves(2, at=150)),
    "none is not an older generation": swapped().serves(2, at=131).serves(0, at=140).serves(2, at=150),
    "the old generation, before the rebuild has returned": swapped().serves(1, at=129).read(1, 1, at=(129, 160)),
    "a pinned generation stays": swapped().holds(2, {HEAD: 2, 1: 2, 2: 1}, at=150, by=READER),
    "a rebuild that returned the file of another": swapped().rebuilt(2, at=(105, 140), by=OTHER),
    "a rebuild holds more than it must": swapped().rebuilt(2, at=(50, 140), by=OTHER),
    "iteration has the row of the file": bank().scan(1, 1, at=(30, 31)),
    "iteration has what was invalidated": told().scan(1, 2, at=(121, 122)),
    "iteration had begun before it was": told().scan(1, 1, at=(120, 900)),
    "iteration has what was inserted": inserted().scan(3, 2, at=(121, 122)).present(3, (121, 122), How.KEYS),
    "iteration lacks what was inserted and not invalidated": (
        bank().commit(2, 3, at=(90, 100)).scan(3, 0, at=(121, 122)).only(1)
    ),
    "iteration lacks what was deleted": deleted().scan(1, 0, at=(121, 122)),
    "where remembers what the source answered before": remembered().scan(1, 2, (150, 151), How.WHERE).only(1),
    "where asks the source again": remembered().scan(1, 3, (150, 151), How.WHERE),
    "where may remember until an invalidation has returned": (
        remembered().invalidated(2, at=(141, 160)).scan(1, 2, (160, 170), How.WHERE).only(1)
    ),
    "where may remember when another collection is invalidated": (
        remembered().invalidated(HEAD, at=(141, 142)).scan(1, 2, (160, 170), How.WHERE).only(1)
    ),
    "where gives a record of its new kind": moved().scan(1, 2, (121, 122), How.WHERE),
    "where lacks it among those of the old kind": moved().lacked(1, 1 << 0, at=(121, 122)),
    "where lacks it among those of other kinds": moved().lacked(1, 1 << 3 | 1 << 4, at=(30, 200)),
    "where lacks the new kind until that has returned": moved().lacked(1, 1 << 5, at=(119, 122)).only(1),
    "where lacks what was deleted": deleted().lacked(1, 0xFF, at=(121, 122)),
    "where of the file lacks what is new": bank().commit(2, 3, at=(90, 100)).lacked(3, 0xFF, at=(121, 122)).only(1),
    "an id is there": told().present(1, at=(121, 122)).present(2, at=(30, 31)),
    "an id is there until its deletion is invalidated": deleted().present(1, at=(119, 122)).only(1),
    "an embedding is as any field": told().note(READER, Kind.READ, How.EMBEDDING, 1, 2, 121, 122),
    "as many as there are": bank().counted(2, at=(30, 31)),
    "as many as there were, or are": deleted().counted(2, at=(119, 122)).counted(1, at=(119, 122)).only(1),
    "one less after a deletion": deleted().counted(1, at=(121, 122)),
    "one more after an insertion": inserted().counted(3, at=(121, 122)),
    "one more, or not, until its invalidation has returned": (
        inserted().counted(2, at=(119, 122)).counted(3, at=(119, 122)).only(1)
    ),
    "an update counts once": told().counted(2, at=(121, 122)),
    "threads of one process move on together": swapped().serves(2, at=131).serves(2, at=132, by=THREAD),
    "a thread that looked at the same time may be behind": (
        swapped().note(READER, Kind.GENERATION, 0, 0, 2, 112, 125).note(THREAD, Kind.GENERATION, 0, 0, 1, 124, 126)
    ),
    "another process may be behind": swapped().serves(2, at=125).serves(1, at=126, by=5),
}

BROKEN: dict[str, tuple[Story, str]] = {
    "stale: the file answers for an id that was invalidated": (told().read(1, 1, at=(121, 122)), "stale"),
    "stale: by another process": (told().serves(1, at=20, by=OTHER).read(1, 1, at=(121, 122), by=OTHER), "stale"),
    "stale: after a hard one": (all_invalidated().read(1, 1, at=(121, 122)), "stale"),
    "stale: the head of the source after a hard one": (all_invalidated().read(HEAD, 1, at=(121, 122)), "stale"),
    "stale: a deleted id is still there": (deleted().read(1, 1, at=(121, 122)), "stale"),
    "stale: an id that came back is not there": (
        deleted().commit(3, 1, at=(130, 140)).invalidated(1, at=(150, 160)).read(1, 0, at=(161, 162)),
        "stale",
    ),
    "stale: an invalidation tells of what others committed": (
        bank().commit(2, 1, at=(90, 100), by=OTHER).invalidated(1, at=(110, 120)).read(1, 1, at=(121, 122)),
        "stale",
    ),
    "stale: a killed writer's commit is done when the next begins": (
        bank()
        .meant(2, 90, by=OTHER)
        .journal(2, 1, by=OTHER)
        .commit(3, 2, at=(95, 100))
        .invalidated(1, at=(110, 120))
        .read(1, 1, at=(121, 122)),
        "stale",
    ),
    "stale: an earlier promise outlives a later and smaller one": (
        bank()
        .commit(2, 1, at=(90, 100))
        .note(OTHER, Kind.INVALIDATED, 0, 1, 0, 85, 130)
        .invalidated(1, at=(110, 120))
        .read(1, 1, at=(131, 132)),
        "stale",
    ),
    "unknown: a commit that never was": (bank().read(1, 7, at=(30, 31)), "unknown value"),
    "unknown: a commit of another register": (told().read(2, 2, at=(121, 122)), "unknown value"),
    "unknown: a commit that deleted it": (deleted().read(1, 2, at=(121, 122)), "unknown value"),
    "unknown: what was begun and rolled back": (
        bank().meant(2, 90).commit(2, 2, at=(95, 100), by=OTHER).read(1, 2, at=(121, 122)),
        "unknown value",
    ),
    "future: before its commit began": (told().read(1, 2, at=(30, 89)), "from the future"),
    "no tier: gone before it was deleted": (deleted().read(1, 0, at=(30, 89)), "of no tier"),
    "no tier: neither the file that is served nor the source": (
        swapped().serves(2, at=131).read(1, 1, at=(140, 141)).serves(2, at=150),
        "of no tier",
    ),
    "no tier: a file that another process serves": (
        swapped().commit(3, 1, at=(160, 170)).serves(1, at=20, by=5).serves(2, at=140).read(1, 1, at=(180, 181)),
        "of no tier",
    ),
    "no tier: the file lacks what it has": (bank().read(1, 0, at=(30, 31)), "of no tier"),
    "torn: fields of two commits": (bank().torn(1, at=(30, 31)), "torn"),
    "back: an older generation": (swapped().serves(2, at=127).serves(1, at=128), "generation went back"),
    "back: with none between": (
        swapped().serves(2, at=126).serves(0, at=127).serves(1, at=128),
        "generation went back",
    ),
    "back: a pinned one": (
        swapped().serves(2, at=126).holds(1, {HEAD: 1, 1: 1, 2: 1}, at=128, by=READER),
        "generation went back",
    ),
    "late: the old generation after the rebuild returned": (swapped().serves(1, at=131), "late"),
    "late: an answer of the old generation": (swapped().read(1, 1, at=(131, 132)).serves(2, at=133), "late"),
    "back: in another thread of the process": (
        swapped().serves(2, at=126).serves(1, at=128, by=THREAD),
        "generation went back",
    ),
    "no tier: an older file than another thread has": (
        swapped().commit(3, 1, at=(160, 170)).serves(2, at=140).read(1, 1, at=(180, 181), by=THREAD).only(2),
        "of no tier",
    ),
    "stale: iteration has the old row": (told().scan(1, 1, at=(121, 122)), "stale"),
    "stale: iteration lacks a new key": (inserted().scan(3, 0, (121, 122), How.KEYS), "stale"),
    "stale: iteration has a key that was deleted": (deleted().present(1, (121, 122), How.KEYS), "stale"),
    "stale: iteration has a record that was deleted": (deleted().scan(1, 1, at=(121, 122)), "stale"),
    "stale: where remembers it after an invalidation": (
        remembered().invalidated(1, at=(141, 150)).scan(1, 2, (151, 152), How.WHERE),
        "stale",
    ),
    "stale: where gives a record that was deleted": (deleted().scan(1, 1, (121, 122), How.WHERE), "stale"),
    "stale: where gives a record of its old kind": (moved().scan(1, 1, (121, 122), How.WHERE), "stale"),
    "stale: where lacks a record of its new kind": (moved().lacked(1, 1 << 5, at=(121, 122)), "stale"),
    "stale: where of several kinds lacks it": (moved().lacked(1, 1 << 2 | 1 << 5, at=(121, 122)), "stale"),
    "stale: where lacks a new key": (inserted().lacked(3, 0xFF, at=(121, 122)), "stale"),
    "stale: a key that was deleted is there": (deleted().present(1, at=(121, 122)), "stale"),
    "stale: a new key is not there": (inserted().note(READER, Kind.READ, How.IN, 3, 0, 121, 122), "stale"),
    "late: iteration has a row of the old file": (swapped().scan(1, 1, at=(131, 132)).serves(2, at=133), "late"),
    "late: where lacks what the new file has of that kind": (
        bank()
        .commit(2, 1, at=(90, 100), kind=5)
        .rebuilt(2, at=(110, 130))
        .holds(2, {HEAD: 2, 1: 2, 2: 1}, at=135)
        .lacked(1, 1 << 5, at=(131, 132)),
        "late",
    ),
    "unknown: a key that never was": (bank().present(9, at=(30, 31)), "unknown value"),
    "future: a key before its commit began": (inserted().present(3, at=(30, 89)), "from the future"),
    "no tier: a key that is in neither": (gone().present(1, at=(200, 201)).only(2), "of no tier"),
    "no tier: where lacks what both have of that kind": (bank().lacked(1, 1 << 0, at=(30, 31)), "of no tier"),
    "no tier: a get remembers nothing": (remembered().read(1, 2, at=(150, 151)).only(1), "of no tier"),
    "no tier: where remembers it after an invalidation of another id": (
        remembered().invalidated(2, at=(141, 160)).scan(1, 2, (161, 170), How.WHERE).only(1),
        "of no tier",
    ),
    "count: what was deleted counts": (deleted().counted(2, at=(121, 122)), "wrong count"),
    "count: what was inserted does not": (inserted().counted(2, at=(121, 122)), "wrong count"),
    "count: an update counts twice": (told().counted(3, at=(121, 122)), "wrong count"),
    "count: none is left": (all_invalidated().counted(0, at=(121, 122)), "wrong count"),
    "twice: the row of the file and the source's": (
        told().note(READER, Kind.TWICE, How.VALUES, 1, 0, 121, 122),
        "twice",
    ),
    "not asked for: a record of another kind": (
        moved().note(READER, Kind.UNASKED, How.WHERE, 1, 1 << 0, 121, 122),
        "not asked for",
    ),
    "contents: two states in one generation": (
        swapped().holds(2, {HEAD: 1, 1: 1, 2: 1}, at=150, by=READER),
        "two contents",
    ),
    "contents: a record that is not of its generation's state": (
        swapped().holds(2, {HEAD: 2, 1: 1}, at=150, by=READER),
        "not as built",
    ),
    "contents: a record is missing": (swapped().holds(2, {HEAD: 2, 1: 0}, at=150, by=READER), "not as built"),
    "contents: a newer generation holds an older state": (
        swapped().holds(3, {HEAD: 1, 1: 1, 2: 1}, at=150),
        "content went back",
    ),
    "contents: a state that never was": (swapped().holds(3, {HEAD: 9}, at=150), "unknown value"),
    "missed: a rebuild lacks what was committed before": (
        swapped().commit(3, 2, at=(140, 150)).rebuilt(2, at=(160, 170), by=OTHER),
        "missed a commit",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_history_that_may_be(name):
    verdict = KEPT[name].verdict()
    assert verdict.violations == []
    assert verdict.broken == {}
    assert verdict.undecided == 0


@pytest.mark.parametrize("name", BROKEN)
def test_a_history_that_may_not_be(name):
    story, rule = BROKEN[name]
    verdict = story.verdict()
    assert rule in verdict.broken, verdict
    assert [violation.rule for violation in verdict.violations if violation.rule == rule]


def test_every_rule_has_a_history_that_breaks_it():
    assert {rule for _, rule in BROKEN.values()} == set(RULES)


def test_a_generation_that_was_not_looked_at_is_left_undecided():
    verdict = bank().commit(2, 1, at=(90, 100)).commit(3, 1, at=(110, 120)).serves(2, at=130).read(1, 2, at=(140, 141))
    assert verdict.serves(2, at=150).verdict().undecided == 1
    assert not verdict.verdict().broken


def test_an_undecided_read_is_still_held_against_the_invalidations():
    story = bank().commit(2, 1, at=(90, 100)).invalidated(1, at=(110, 120)).serves(2, at=130).read(1, 1, at=(140, 141))
    assert set(story.verdict().broken) == {"stale"}


def test_a_violation_names_what_was_asked_and_what_was_given():
    (violation,) = moved().lacked(1, 1 << 5, at=(121, 122)).verdict().violations
    assert "reader 2 where of register 1 gave nothing of kinds [5], older than" in str(violation)
    (violation,) = told().counted(3, at=(121, 122)).verdict().violations
    assert "reader 2 counted 3 records, of which there were 2 to 2" in str(violation)


def test_many_violations_are_counted_and_a_few_are_told():
    story = told()
    for i in range(1000):
        story.read(1, 1, at=(200 + i, 200 + i))
    verdict = story.verdict()
    assert verdict.broken["stale"] == 1000
    assert len(verdict.violations) < 20
    assert "reader 2 get of register 1 gave commit 1" in str(verdict.violations[0])


def test_a_violation_is_explained_by_what_happened_around_it():
    history = told().read(1, 1, at=(121, 122)).history()
    text = "\n".join(explain(history, check(history).violations[0]))
    for part in ("COMMIT 2", "INVALIDATED 0", "READ 1", "PINNED 1 of generation 1", "GENERATION 1"):
        assert part in text


def test_a_journal_that_does_not_go_with_the_logs_is_refused():
    with pytest.raises(ValueError, match="gaps"):
        bank().journal(3, 1).verdict()
    with pytest.raises(ValueError, match="commit 2 is in no log"):
        bank().journal(2, 1).verdict()
    with pytest.raises(ValueError, match="order"):
        bank().commit(2, 1, at=(5, 6)).verdict()


def test_the_checker_is_quick_enough_for_a_million_reads():
    """A quarter of them here; it is the shape that counts, no loop over reads in Python."""
    story = swapped().serves(2, at=131)
    history = story.history()
    reads = np.zeros(250_000, EVENT)
    reads["kind"], reads["how"], reads["id"], reads["value"] = Kind.READ, How.GET, 1, 2
    reads["begin"] = reads["end"] = np.arange(len(reads)) + 200
    logs = {**history.logs, 9: reads}
    verdict = check(History(logs, history.writes))
    assert verdict.reads == 250_000
    assert not verdict.broken


# --- the log ----------------------------------------------------------------------------------------------------------


def test_a_log_survives_the_kill_of_its_process(tmp_path: Path):
    path = tmp_path / "writer-1.log"
    pid = os.fork()
    if not pid:
        log = Log(path, 100)
        log.note(Kind.READ, How.GET, 7, 70, 1000, 1001)
        log.note(Kind.COMMIT, 0, 0, 3, 1002, 0)
        log.keep(calls=1)
        log.note(Kind.READ, How.GET, 8, 80, 1003, 1004)  # never kept
        while True:
            time.sleep(1)
    while not path.exists() or len(read_log(path)) < 2:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert read_log(path).tolist() == [(Kind.READ, How.GET, 7, 70, 1000, 1001), (Kind.COMMIT, 0, 0, 3, 1002, 0)]
    assert totals(path) == (1, 0)


def test_a_call_that_returned_is_noted_in_place(tmp_path: Path):
    log = Log(tmp_path / "writer-1.log", 2)
    log.note(Kind.COMMIT, 0, 0, 3, time.monotonic_ns(), 0)
    log.keep()
    log.returned()
    assert log.has_room(1)
    assert not log.has_room(2)
    (event,) = read_log(tmp_path / "writer-1.log")
    assert 0 < event["begin"] <= event["end"] <= time.monotonic_ns()
    log.note_all(np.zeros(1, EVENT))
    log.keep(calls=4, published=2)
    assert len(read_log(tmp_path / "writer-1.log")) == 2
    assert totals(tmp_path / "writer-1.log") == (4, 2)
