"""Real processes on one cache, killed and stopped at random, and every read of theirs held against `history.RULES`.

    python -m tests.processes.campaign --seconds 120 --swaps 5000 --reads 1000000

8 processes read, 2 commit to SQLite and invalidate, 2 rebuild; the parent kills and stops them, and starts others in
their place. Ends when there were as many swaps and reads as asked for, or after `--seconds`; without either number,
then. A long campaign is a row of rounds, each with a seed, a bank and a file of its own; it ends with a bad one.

Prints one line; exit code 1 after a violation, whose round is then kept with all its logs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import mmap
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic_ns as now

import numpy as np

import mmcache
from mmcache import Cache, Record, Schema, Snapshot, SQLiteSource, UnusableFileError
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
    check,
    explain,
    read_log,
    totals,
)

ITEMS = 120
KINDS = 8
READERS, WRITERS, REBUILDERS = 8, 2, 2
ROUND_SECONDS = 100.0
KILL_EVERY, STOP_EVERY = 0.5, 0.15
LONGEST_STOP = 0.06
LOG_EVENTS = 600_000
PATIENCE = 20.0
"""Seconds that the processes have to end, once they are told to."""

KEYS = [f"item-{register}" for register in range(ITEMS + 1)]
REGISTERS = {key: register for register, key in enumerate(KEYS)}
BY_KIND = [[register for register in range(1, ITEMS + 1) if register % KINDS == kind] for kind in range(KINDS)]
SCHEMAS = (
    Schema("items", index=("kind",), columns=("id", "kind", "version", "mark")),
    Schema("head", columns=("id", "version")),
)


class SilentSource(SQLiteSource):
    """Cannot be asked whether it has changed: what was invalidated is known from the control page alone, and nothing
    else makes up for it where that fails. Nor does a build wait for the times of the database to settle."""

    def fingerprint(self) -> bytes:
        return bytes(32)


SOURCES: dict[str, type[SQLiteSource]] = {"silent": SilentSource, "plain": SQLiteSource, "tracked": SQLiteSource}


@dataclass(frozen=True)
class World:
    """What the processes of one round know. stop: a byte that all of them share, 1 when they shall end. They do
    so, too, when their parent is gone."""

    directory: Path
    seed: int
    stop: mmap.mmap
    parent: int
    kind: str = "silent"
    mutant: str | None = None

    @property
    def running(self) -> bool:
        return self.stop[0] == 0 and os.getppid() == self.parent

    def random(self, number: int) -> random.Random:
        return random.Random(self.seed << 20 | number)

    def source(self) -> SQLiteSource:
        return SOURCES[self.kind](self.directory / "bank.db", *SCHEMAS, timeout=30.0)

    def open(self) -> Cache:
        return mmcache.open(self.directory / "bank.mmc", self.source(), executor="external")

    def log(self, role: str, number: int) -> Log:
        return Log(self.directory / f"{role}-{number}.log", LOG_EVENTS)

    def database(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.directory / "bank.db", timeout=30.0, isolation_level=None)
        db.execute("PRAGMA synchronous=OFF")  # what a SIGKILL leaves does not depend on it
        return db


# --- the roles --------------------------------------------------------------------------------------------------------


def read(world: World, number: int) -> None:
    """Reads in every way there is, and notes each answer."""
    draw, log = world.random(number), world.log("reader", number)
    os.nice(5)  # or twelve processes on two processors would read most of the time, and swap hardly ever
    with world.open() as cache:
        ways = (*[one_by_one] * 5, pinned, pinned, together, by_kind)
        while world.running and log.has_room(8 * ITEMS):
            if draw.random() < 0.8:  # else the reads themselves have to notice a new generation
                note_generation(log, cache)
            log.keep(calls=draw.choice(ways)(log, cache, draw))
            note_generation(log, cache)
            log.keep()
            time.sleep(draw.expovariate(1 / 0.004))


def some_registers(draw: random.Random, count: int) -> list[int]:
    """Half of them among the few that are written most."""
    hot = draw.random() < 0.5
    return [draw.randint(1, 10 if hot else ITEMS) for _ in range(count)]


def note_generation(log: Log, cache: Cache) -> None:
    begin = now()
    generation = cache.generation
    log.note(Kind.GENERATION, 0, 0, generation or 0, begin, now())


def one_by_one(log: Log, cache: Cache, draw: random.Random) -> int:
    registers = some_registers(draw, draw.choice((1, 8, 64, 64)))
    note = log.note
    for register in registers:
        key = KEYS[register]
        begin = now()
        record = cache.get(key)
        end = now()
        if record is None:
            note(Kind.READ, How.GET, register, 0, begin, end)
        else:
            version = record["version"]
            note(Kind.READ, How.GET, register, version, begin, end)
            if record["mark"] != f"{key}@{version}":
                note(Kind.TORN, How.GET, register, version, begin, end)
    head = cache.collection("head")
    begin = now()
    version = head["head"]["version"]
    note(Kind.READ, How.GET, HEAD, version, begin, now())
    return len(registers) + 1


def together(log: Log, cache: Cache, draw: random.Random) -> int:
    registers = list(dict.fromkeys(some_registers(draw, draw.choice((3, 20, 60)))))
    begin = now()
    records = cache.get_many([KEYS[register] for register in registers])
    end = now()
    note_records(log, How.GET_MANY, zip(registers, records, strict=True), begin, end)
    return 1


def by_kind(log: Log, cache: Cache, draw: random.Random) -> int:
    """A record's kind never changes, so this answers for all that have it: what is not in the answer is not there."""
    kind = draw.randrange(KINDS)
    begin = now()
    records = list(cache.where(kind=kind))
    end = now()
    found = {REGISTERS[record.id]: record for record in records}
    if len(found) != len(records) or not found.keys() <= set(BY_KIND[kind]):
        raise AssertionError(f"where(kind={kind}) gave {[record.id for record in records]}")
    note_records(log, How.WHERE, [(register, found.get(register)) for register in BY_KIND[kind]], begin, end)
    return 1


def note_records(log: Log, how: How, answers: Iterable[tuple[int, Record | None]], begin: int, end: int) -> None:
    for register, record in answers:
        version = record["version"] if record is not None else 0
        log.note(Kind.READ, how, register, version, begin, end)
        if record is not None and record["mark"] != f"{KEYS[register]}@{version}":
            log.note(Kind.TORN, how, register, version, begin, end)


def pinned(log: Log, cache: Cache, draw: random.Random) -> int:
    registers = some_registers(draw, 20)
    begin = now()
    try:
        with cache.pinned() as snapshot:
            log.note(Kind.PIN, How.PINNED, 0, snapshot.generation, begin, now())
            begin = now()
            head = snapshot.collection("head")["head"]["version"]
            log.note(Kind.PINNED, How.PINNED, HEAD, head, begin, now())
            for register in registers:
                begin = now()
                record = snapshot.get(KEYS[register])
                version = record["version"] if record is not None else 0
                log.note(Kind.PINNED, How.PINNED, register, version, begin, now())
    except UnusableFileError:  # everything is invalidated: there is no file to pin
        return 0
    return len(registers) + 1


def write(world: World, number: int) -> None:
    """Commits, and says so: at once, for several commits together, or about everything."""
    draw, log, db = world.random(number), world.log("writer", number), world.database()
    with contextlib.closing(db), world.open() as cache:
        untold: set[int] = set()
        while world.running and log.has_room(8 * ITEMS):
            untold.update(commit(log, db, number, draw))
            chance = draw.random()
            if chance < 0.75:
                tell(log, cache, sorted(untold), draw)
                untold = set()
            elif chance < 0.78:
                begin = now()
                cache.invalidate(hard=True)
                log.note(Kind.HARD, 0, 0, 0, begin, now())
                untold = set()
            elif chance < 0.82:
                begin = now()
                cache.invalidate(hard=False)
                log.note(Kind.SOFT, 0, 0, 0, begin, now())
            log.keep()
            time.sleep(draw.expovariate(1 / 0.008))


def tell(log: Log, cache: Cache, registers: list[int], draw: random.Random) -> None:
    begin = now()
    cache.invalidate([KEYS[register] for register in registers], reason="record_stored")
    end = now()
    for register in registers:
        log.note(Kind.INVALIDATED, 0, register, 0, begin, end)
    if draw.random() < 0.5:
        begin = now()
        cache.invalidate(["head"], collection="head", reason="record_stored")
        log.note(Kind.INVALIDATED, 0, HEAD, 0, begin, now())


def commit(log: Log, db: sqlite3.Connection, number: int, draw: random.Random) -> list[int]:
    """One transaction: a few records are written, or deleted, or come back. The registers that it wrote."""
    registers = sorted(set(some_registers(draw, draw.randint(1, 4))))
    db.execute("BEGIN IMMEDIATE")
    (version,) = db.execute("SELECT version + 1 FROM head").fetchone()
    journal = [(version, number, HEAD, True)]
    db.execute("UPDATE head SET version = ?", (version,))
    for register in registers:
        key = KEYS[register]
        exists = draw.random() < 0.85
        if exists:
            row = key, register % KINDS, version, f"{key}@{version}"
            db.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", row)
        else:
            db.execute("DELETE FROM items WHERE id = ?", (key,))
        journal.append((version, number, register, exists))
    db.executemany("INSERT INTO journal VALUES (?, ?, ?, ?)", journal)
    if draw.random() < 0.05:
        db.execute("ROLLBACK")
        return []
    log.note(Kind.COMMIT, 0, 0, version, now(), 0)
    log.keep()  # that we are about to, whatever becomes of us
    db.execute("COMMIT")
    log.returned()
    return registers


def rebuild(world: World, number: int) -> None:
    """Publishes, and looks at what is published."""
    draw, log = world.random(number), world.log("rebuilder", number)
    with world.open() as cache:
        while world.running and log.has_room(8 * ITEMS):
            begin = now()
            report = cache.rebuild()
            log.note(Kind.REBUILT, 0, 0, report.generation, begin, now())
            log.keep(published=report.changed)
            look(log, world.directory / "bank.mmc")
            log.keep()
            time.sleep(draw.expovariate(1 / 0.0015))


def look(log: Log, path: Path) -> None:
    """Note all that the published file holds."""
    begin = now()
    with Snapshot.open(path) as snapshot:
        versions = {record.id: record["version"] for record in snapshot.values()}
        held = [snapshot.collection("head")["head"]["version"], *(versions.get(key, 0) for key in KEYS[1:])]
        log.note(Kind.PIN, How.OPEN, 0, snapshot.generation, begin, now())
    events = np.zeros(len(held), EVENT)
    events["kind"], events["how"] = Kind.PINNED, How.OPEN
    events["id"], events["value"] = np.arange(len(held)), held
    events["begin"], events["end"] = begin, now()
    log.note_all(events)


ROLES: dict[str, tuple[Callable[[World, int], None], int]] = {
    "reader": (read, READERS),
    "writer": (write, WRITERS),
    "rebuilder": (rebuild, REBUILDERS),
}


# --- a round ----------------------------------------------------------------------------------------------------------


def set_up(world: World) -> None:
    """A bank, commit 1 of which is most of the records; by process 0."""
    log, db = world.log("parent", 0), world.database()
    with contextlib.closing(db):
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind INTEGER, version INTEGER, mark TEXT)")
        db.execute("CREATE TABLE head (id TEXT PRIMARY KEY, version INTEGER)")
        db.execute("CREATE TABLE journal (version INTEGER, process INTEGER, register INTEGER, present INTEGER)")
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO head VALUES ('head', 1)")
        registers = [register for register in range(1, ITEMS + 1) if register % 10]
        rows = [(KEYS[register], register % KINDS, 1, f"{KEYS[register]}@1") for register in registers]
        db.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
        db.executemany("INSERT INTO journal VALUES (1, 0, ?, 1)", [(register,) for register in (HEAD, *registers)])
        log.note(Kind.COMMIT, 0, 0, 1, now(), 0)
        log.keep()
        db.execute("COMMIT")
        log.returned()
    if world.kind == "tracked":
        world.source().track()
    mmcache.build(world.directory / "bank.mmc", world.source())


def start(world: World, role: str, number: int) -> int:
    """A child that plays a role; its process id. It exits with 1, and a traceback, after any error."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if world.mutant is not None:
            module, _, function = world.mutant.partition(":")
            getattr(importlib.import_module(module), function)()
        ROLES[role][0](world, number)
        code = 0
    except BaseException:  # noqa: BLE001  the parent has to hear of it, whatever it was
        text = f"{role} {number} failed:\n{traceback.format_exc()}"
        (world.directory / f"{role}-{number}.error").write_text(text)
    finally:
        os._exit(code)


@dataclass
class Round:
    """What came of it. calls: reads that returned, one for each call. failures: of processes, as text."""

    world: World
    history: History
    verdict: Verdict
    calls: int
    swaps: int
    kills: int
    stops: int
    failures: list[str]

    @property
    def good(self) -> bool:
        return not self.failures and not self.verdict.broken


def run_round(world: World, seconds: float, swaps: int | None, calls: int | None) -> Round:
    set_up(world)
    draw = world.random(0)
    alive: dict[int, tuple[str, int]] = {}
    number, kills, stops = 0, 0, 0
    failures: list[str] = []

    def start_next(role: str) -> None:
        nonlocal number
        number += 1
        alive[start(world, role, number)] = role, number

    def collect(*, replacing: bool) -> None:
        while alive:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            role, which = alive.pop(pid)
            how = os.waitstatus_to_exitcode(status)
            if how not in (0, -signal.SIGKILL):
                error = world.directory / f"{role}-{which}.error"
                failures.append(error.read_text() if error.exists() else f"{role} {which} ended with {how}")
            if replacing:
                start_next(role)

    for role, (_, count) in ROLES.items():
        for _ in range(count):
            start_next(role)
    begun = time.monotonic()
    next_kill, next_stop, next_look = begun + 1.0, begun + 0.5, begun + 1.0
    try:
        while time.monotonic() < begun + seconds and not failures:
            time.sleep(0.01)
            collect(replacing=True)
            instant = time.monotonic()
            if instant >= next_kill:
                os.kill(draw.choice(list(alive)), signal.SIGKILL)
                kills += 1
                next_kill = instant + draw.expovariate(1 / KILL_EVERY)
            if instant >= next_stop:
                victim = draw.choice(list(alive))
                os.kill(victim, signal.SIGSTOP)
                time.sleep(draw.uniform(0.001, LONGEST_STOP))
                os.kill(victim, signal.SIGCONT)
                stops += 1
                next_stop = instant + draw.expovariate(1 / STOP_EVERY)
            if instant >= next_look and swaps is not None and calls is not None:
                next_look = instant + 0.5
                done = sums(world.directory)
                if done[0] >= calls and done[1] >= swaps:
                    break
    finally:
        world.stop[0] = 1
        patience = time.monotonic() + PATIENCE
        while alive and time.monotonic() < patience:
            collect(replacing=False)
            time.sleep(0.01)
        for pid, (role, which) in alive.items():
            failures.append(f"{role} {which} hangs")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    last = Log(world.directory / f"parent-{number + 1}.log", 2 * ITEMS)
    look(last, world.directory / "bank.mmc")  # the last builder may have been killed before it could
    last.keep()
    history = load(world.directory)
    total = sums(world.directory)
    return Round(world, history, check(history), *total, kills, stops, failures)


def sums(directory: Path) -> tuple[int, int]:
    """Calls to read and files published, of all processes."""
    found = [totals(path) for path in directory.glob("*.log")]
    return sum(calls for calls, _ in found), sum(published for _, published in found)


def load(directory: Path) -> History:
    """The logs of a round, and the journal of its database."""
    logs, names = {}, {}
    for path in directory.glob("*.log"):
        role, _, number = path.stem.rpartition("-")
        logs[int(number)] = read_log(path)
        names[int(number)] = f"{role} {number}"
    with contextlib.closing(sqlite3.connect(directory / "bank.db")) as db:
        rows = db.execute("SELECT version, process, register, present FROM journal").fetchall()
    return History(logs, np.array(rows, WRITE), names)


# --- the campaign -----------------------------------------------------------------------------------------------------


def report(rounds: Sequence[Round], seconds: float) -> str:
    verdicts = [one.verdict for one in rounds]
    calls, swaps = sum(one.calls for one in rounds), sum(one.swaps for one in rounds)
    broken = sum(sum(verdict.broken.values()) for verdict in verdicts)
    return (
        f"reads={calls} answers={sum(v.reads + v.pinned_reads for v in verdicts)} swaps={swaps} "
        f"commits={sum(len(np.unique(one.history.writes['commit'])) for one in rounds)} "
        f"kills={sum(one.kills for one in rounds)} stops={sum(one.stops for one in rounds)} "
        f"undecided={sum(v.undecided for v in verdicts)} rounds={len(rounds)} seconds={seconds:.1f} "
        f"seed={rounds[0].world.seed} failures={sum(len(one.failures) for one in rounds)} violations={broken}"
        + "".join(f" [{rule}: {count}]" for one in verdicts for rule, count in one.broken.items())
    )


def tell_of(bad: Round) -> None:
    """On stderr: what went wrong, and the story of the first violation of each rule."""
    for failure in bad.failures:
        print(failure, file=sys.stderr)
    told = set()
    for violation in bad.verdict.violations:
        print(violation, file=sys.stderr)
        if violation.rule not in told:
            told.add(violation.rule)
            print(f"  rule: {RULES[violation.rule]}", file=sys.stderr)
            for line in explain(bad.history, violation):
                print(f"  {line}", file=sys.stderr)
    if bad.world.directory.exists():
        print(f"kept in {bad.world.directory}", file=sys.stderr)


def scratch() -> str | None:
    """Memory, where there is some to be had as files: fsync is not what is tested here, and would take most of the
    time."""
    shm = "/dev/shm"
    with contextlib.suppress(OSError):
        if os.access(shm, os.W_OK | os.X_OK) and shutil.disk_usage(shm).free > 2 * 2**30:
            return shm
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--round", type=float, default=ROUND_SECONDS, help="seconds of each")
    parser.add_argument("--swaps", type=int, help="end when there were so many, and so many reads")
    parser.add_argument("--reads", type=int, help="end when there were so many, and so many swaps")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; printed at the end")
    parser.add_argument(
        "--source", choices=[*SOURCES], default="silent", help="plain: says that it has changed; tracked: what"
    )
    parser.add_argument("--mutant", help="module:function, called in each child before it opens the cache")
    parser.add_argument("--discard", action="store_true", help="do not keep what a bad round leaves")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little")
    swaps, calls = options.swaps, options.reads
    if swaps is not None or calls is not None:
        swaps, calls = swaps or 0, calls or 0
    begun = time.monotonic()
    rounds: list[Round] = []
    while not rounds or (time.monotonic() - begun < options.seconds - 1.0 and swaps is None):
        left = options.seconds - (time.monotonic() - begun)
        directory = Path(tempfile.mkdtemp(prefix="mmcache-history-", dir=scratch()))
        world = World(
            directory, seed + len(rounds), mmap.mmap(-1, mmap.PAGESIZE), os.getpid(), options.source, options.mutant
        )
        whole = left if swaps is not None else min(left, options.round)
        try:
            last = run_round(world, whole, swaps, calls)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        rounds.append(last)
        if last.good or options.discard:
            shutil.rmtree(directory)
        if not last.good:
            break
        last.history = replace(last.history, logs={})  # a long campaign has many rounds
    if not rounds[-1].good:
        tell_of(rounds[-1])
    print(report(rounds, time.monotonic() - begun))
    return 0 if rounds[-1].good else 1


if __name__ == "__main__":
    sys.exit(main())
