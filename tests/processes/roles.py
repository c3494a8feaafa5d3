"""What the processes of a round do: read in every way there is, commit and invalidate, rebuild. Each notes what it saw.

Every record tells the commit that wrote it three times, so that fields of two commits are found: `version`, `mark`, and
its embedding. What cannot be told by a record is noted of registers: that a key is there, that `where` did not give it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import sqlite3
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns as now
from typing import Any

import numpy as np

import mmcache
from mmcache import Cache, Record, Schema, Snapshot, SQLiteSource, UnusableFileError
from mmcache.format.keys import Key
from tests.processes.history import EVENT, HEAD, How, Kind, Log

READERS, THREADED, WRITERS, REBUILDERS = 6, 2, 2, 2
KINDS = 8
LOG_EVENTS = 600_000
LOG_ROOM = 4_000
"""Events that any one turn of a loop may note."""
THREAD = 1_000_000
"""Of two logs of one process, what their numbers differ by."""

HOT, OLD, FRESH, NEVER = range(1, 11), range(1, 121), range(121, 161), range(161, 169)
"""Registers: those that are written most; those of the first build, but for some; those that it has not seen; those
that are only asked for."""
KEYS = ["", *(f"item-{register}" for register in range(1, NEVER.stop))]
REGISTERS: dict[Key, int] = {key: register for register, key in enumerate(KEYS)}
AT_FIRST = {register: register % KINDS for register in OLD if register % 10}
"""Register -> the kind of its record in commit 1."""
SCHEMAS = (
    Schema("items", index=("kind",), embedding="vector", dim=2, columns=("id", "kind", "version", "mark", "vector")),
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
    follows: bool = False

    @property
    def running(self) -> bool:
        return self.stop[0] == 0 and os.getppid() == self.parent

    def random(self, number: int) -> random.Random:
        return random.Random(self.seed << 32 | number)

    def source(self) -> SQLiteSource:
        return SOURCES[self.kind](self.directory / "bank.db", *SCHEMAS, timeout=30.0)

    def open(self) -> Cache:
        return mmcache.open(self.directory / "bank.mmc", self.source(), executor="external", build=not self.follows)

    @property
    def store(self) -> str:
        return f"file://{self.directory}/store"

    def log(self, role: str, number: int, capacity: int = LOG_EVENTS) -> Log:
        process, thread = number % THREAD, number // THREAD
        name = f"{role}-{process}.{thread}.log" if thread else f"{role}-{process}.log"
        return Log(self.directory / name, capacity)

    def database(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.directory / "bank.db", timeout=30.0, isolation_level=None)
        db.execute("PRAGMA synchronous=OFF")  # what a SIGKILL leaves does not depend on it
        return db


def row_of(register: int, version: int, kind: int) -> tuple[Any, ...]:
    key = KEYS[register]
    return key, kind, version, mark_of(key, version, kind), struct.pack("<2f", register, version)


def mark_of(key: Key, version: int, kind: int) -> str:
    return f"{key!s}@{version}#{kind}"


# --- readers ----------------------------------------------------------------------------------------------------------


def read(world: World, number: int) -> None:
    os.nice(5)  # or twelve processes on two processors would read most of the time, and swap hardly ever
    with world.open() as cache:
        read_on(world, "reader", number, cache)


def read_in_threads(world: World, number: int) -> None:
    """Several threads, each with a log of its own, over one cache."""
    os.nice(5)
    count = world.random(number).randint(2, 4)
    with world.open() as cache:
        pool = ThreadPoolExecutor(count)
        threads = [pool.submit(read_on, world, "threads", number + THREAD * i, cache) for i in range(count)]
        done, _ = wait(threads, return_when=FIRST_EXCEPTION)
        for thread in done:
            thread.result()


def read_on(world: World, role: str, number: int, cache: Cache) -> None:
    draw, log = world.random(number), world.log(role, number)
    ways = (*[one_by_one] * 5, pinned, pinned, together, by_kind, by_kind, all_of_it, counted)
    while world.running and log.has_room(LOG_ROOM):
        if draw.random() < 0.8:  # else the reads themselves have to notice a new generation
            note_generation(log, cache)
        log.keep(calls=draw.choice(ways)(log, cache, draw))
        note_generation(log, cache)
        log.keep()
        time.sleep(draw.expovariate(1 / 0.004))


def some_registers(draw: random.Random, count: int, *, asked_only: bool = False) -> list[int]:
    """Half of them among the few that are written most."""
    among = draw.choice((HOT, HOT, OLD, FRESH))
    found = [draw.choice(among) for _ in range(count)]
    if asked_only and draw.random() < 0.2:
        found.append(draw.choice(NEVER))
    return found


def note_generation(log: Log, cache: Cache) -> None:
    begin = now()
    generation = cache.generation
    log.note(Kind.GENERATION, 0, 0, generation or 0, begin, now())


def one_by_one(log: Log, cache: Cache, draw: random.Random) -> int:
    registers = some_registers(draw, draw.choice((1, 8, 64, 64)), asked_only=True)
    draw.choice((get_each, get_each, get_each, find_each, embed_each))(log, cache, registers)
    head = cache.collection("head")
    begin = now()
    version = head["head"]["version"]
    log.note(Kind.READ, How.GET, HEAD, version, begin, now())
    return len(registers) + 1


def get_each(log: Log, cache: Cache, registers: Sequence[int]) -> None:
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
            if record["mark"] != mark_of(key, version, record["kind"]):
                note(Kind.TORN, How.GET, register, version, begin, end)


def find_each(log: Log, cache: Cache, registers: Sequence[int]) -> None:
    for register in registers:
        begin = now()
        found = KEYS[register] in cache
        log.note(Kind.PRESENT if found else Kind.READ, How.IN, register, 0, begin, now())


def embed_each(log: Log, cache: Cache, registers: Sequence[int]) -> None:
    for register in registers:
        begin = now()
        try:
            embedding = cache.embedding(KEYS[register])
        except KeyError:
            embedding = None
        end = now()
        whose, version = (register, 0) if embedding is None else (int(embedding[0]), int(embedding[1]))
        log.note(Kind.READ, How.EMBEDDING, register, version, begin, end)
        if whose != register:
            log.note(Kind.TORN, How.EMBEDDING, register, version, begin, end)


def together(log: Log, cache: Cache, draw: random.Random) -> int:
    registers = list(dict.fromkeys(some_registers(draw, draw.choice((3, 20, 60)), asked_only=True)))
    begin = now()
    records = cache.get_many([KEYS[register] for register in registers])
    end = now()
    for register, record in zip(registers, records, strict=True):
        log.note(Kind.READ, How.GET_MANY, register, 0 if record is None else record["version"], begin, end)
    note_faults(log, How.GET_MANY, [record for record in records if record is not None], begin, end)
    return 1


def by_kind(log: Log, cache: Cache, draw: random.Random) -> int:
    """Several times the same, with nothing between, so that what was remembered of dirty ids is used."""
    times = draw.choice((1, 1, 4))
    kinds = draw.sample(range(KINDS), draw.choice((1, 1, 2, 3)))
    for _ in range(times):
        begin = now()
        found = cache.where(kind=kinds[0] if len(kinds) == 1 else kinds)
        records = list(found)
        end = now()
        note_scan(log, How.WHERE, records, begin, end, kinds=kinds)
        if draw.random() < 0.3:
            ids, embeddings = found.ids, found.embeddings
            note_embeddings(log, ids, embeddings, begin, now())
    return times


def all_of_it(log: Log, cache: Cache, draw: random.Random) -> int:
    times = draw.choice((1, 1, 3))
    for _ in range(times):
        if draw.random() < 0.4:
            begin = now()
            keys = list(cache)
            note_keys(log, keys, begin, now())
        else:
            begin = now()
            records = [record for _, record in cache.items()] if draw.random() < 0.3 else list(cache.values())
            note_scan(log, How.VALUES, records, begin, now())
    return times


def counted(log: Log, cache: Cache, draw: random.Random) -> int:
    times = draw.choice((1, 5))
    for _ in range(times):
        begin = now()
        count = len(cache)
        log.note(Kind.COUNTED, How.LEN, 0, count, begin, now())
    return times


def pinned(log: Log, cache: Cache, draw: random.Random) -> int:
    registers = some_registers(draw, 20, asked_only=True)
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


# --- notes of answers with many records -------------------------------------------------------------------------------


def note_scan(
    log: Log, how: How, records: Sequence[Record], begin: int, end: int, *, kinds: Sequence[int] | None = None
) -> None:
    """What the answer says of each register that there is: its version, or that it is not in it."""
    asked = sum(1 << kind for kind in kinds or ())
    events = about_all(how, begin, end)
    events["kind"], events["value"] = Kind.READ if kinds is None else Kind.LACKED, asked
    rows = [REGISTERS[record.id] - 1 for record in records]
    events["kind"][rows] = Kind.READ
    events["value"][rows] = [record["version"] for record in records]
    log.note_all(events)
    note_faults(log, how, records, begin, end)
    for register in repeated(rows):
        log.note(Kind.TWICE, how, register + 1, 0, begin, end)
    for record in records:
        if kinds is not None and record["kind"] not in kinds:
            log.note(Kind.UNASKED, how, REGISTERS[record.id], asked, begin, end)


def note_keys(log: Log, keys: Sequence[Key], begin: int, end: int) -> None:
    events = about_all(How.KEYS, begin, end)
    rows = [REGISTERS[key] - 1 for key in keys]
    events["kind"] = Kind.READ
    events["kind"][rows] = Kind.PRESENT
    log.note_all(events)
    for register in repeated(rows):
        log.note(Kind.TWICE, How.KEYS, register + 1, 0, begin, end)


def note_embeddings(log: Log, ids: Sequence[Key], embeddings: np.ndarray, begin: int, end: int) -> None:
    """Of a selection: row i of the one belongs to row i of the other."""
    if len(ids) != len(embeddings):
        raise AssertionError(f"{len(ids)} ids, and {len(embeddings)} embeddings")
    for key, (whose, version) in zip(ids, embeddings.tolist(), strict=True):
        register = REGISTERS[key]
        log.note(Kind.READ, How.WHERE, register, int(version), begin, end)
        if whose != register:
            log.note(Kind.TORN, How.WHERE, register, int(version), begin, end)


def about_all(how: How, begin: int, end: int) -> np.ndarray:
    events = np.zeros(len(KEYS) - 1, EVENT)
    events["how"], events["id"] = how, np.arange(1, len(KEYS))
    events["begin"], events["end"] = begin, end
    return events


def repeated(rows: Sequence[int]) -> set[int]:
    return {row for row in rows if rows.count(row) > 1} if len(set(rows)) < len(rows) else set()


def note_faults(log: Log, how: How, records: Iterable[Record], begin: int, end: int) -> None:
    for record in records:
        version = record["version"]
        if record["mark"] != mark_of(record.id, version, record["kind"]):
            log.note(Kind.TORN, how, REGISTERS[record.id], version, begin, end)


# --- writers ----------------------------------------------------------------------------------------------------------


def write(world: World, number: int) -> None:
    """Commits, and says so: at once, for several commits together, or about everything."""
    draw, log, db = world.random(number), world.log("writer", number), world.database()
    with contextlib.closing(db), world.open() as cache:
        untold: set[int] = set()
        while world.running and log.has_room(LOG_ROOM):
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
    """One transaction: a few records are written, also with another kind, or deleted, or come back. The registers that
    it wrote. A register that is new to the file is deleted as often as it is written: few last until a rebuild."""
    registers = sorted(set(some_registers(draw, draw.randint(1, 4))))
    db.execute("BEGIN IMMEDIATE")
    (version,) = db.execute("SELECT version + 1 FROM head").fetchone()
    journal = [(version, number, HEAD, True, 0)]
    db.execute("UPDATE head SET version = ?", (version,))
    for register in registers:
        exists = draw.random() < (0.5 if register in FRESH else 0.85)
        kind = draw.randrange(KINDS) if draw.random() < 0.3 else register % KINDS
        if exists:
            db.execute("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?)", row_of(register, version, kind))
        else:
            db.execute("DELETE FROM items WHERE id = ?", (KEYS[register],))
        journal.append((version, number, register, exists, kind))
    db.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?)", journal)
    if draw.random() < 0.05:
        db.execute("ROLLBACK")
        return []
    log.note(Kind.COMMIT, 0, 0, version, now(), 0)
    log.keep()  # that we are about to, whatever becomes of us
    db.execute("COMMIT")
    log.returned()
    return registers


# --- rebuilders -------------------------------------------------------------------------------------------------------


def rebuild(world: World, number: int) -> None:
    """Publishes, and looks at what is published."""
    draw, log = world.random(number), world.log("rebuilder", number)
    with world.open() as cache:
        while world.running and log.has_room(LOG_ROOM):
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


# --- a publisher on another machine, and the followers of this one ----------------------------------------------------


def release(world: World, number: int) -> None:
    """Publishes releases of what the source holds, now and then twice the same, and withdraws one."""
    draw, made = world.random(number), world.directory / "publisher" / "bank.mmc"
    with contextlib.closing(world.source()) as source:
        while world.running:
            mmcache.build(made, source)
            time.sleep(draw.expovariate(1 / 0.01))  # what is committed and invalidated meanwhile it lacks
            published = mmcache.publish(made, world.store, deltas=draw.random() < 0.5)
            if draw.random() < 0.05 and published.number > 1:
                mmcache.withdraw(world.store, published.number)
            time.sleep(draw.expovariate(1 / 0.004))


def follow(world: World, number: int) -> None:
    """As a side-car does, on a machine whose clock is the publisher's: so no skew makes up for a mistake."""
    draw, log = world.random(number), world.log("follower", number)
    source = world.source() if draw.random() < 0.5 else None
    generation = 0
    while world.running and log.has_room(LOG_ROOM):
        said = mmcache.follow(world.store, world.directory / "bank.mmc", skew=0.0, source=source)
        log.keep(published=said.generation != generation)
        generation = said.generation
        look(log, world.directory / "bank.mmc")
        log.keep()
        time.sleep(draw.expovariate(1 / 0.0015))


def first(world: World, number: int) -> None:
    """Before the others begin."""
    made = world.directory / "publisher" / "bank.mmc"
    with contextlib.closing(world.source()) as source:
        mmcache.build(made, source)
    mmcache.publish(made, world.store)
    mmcache.follow(world.store, world.directory / "bank.mmc", skew=0.0)
    assert number == 0


def roles_of(world: World) -> dict[str, int]:
    """Role -> how many processes play it."""
    others = ("releaser", "follower") if world.follows else ("rebuilder",)
    return {role: count for role, (_, count) in ROLES.items() if role in ("reader", "threads", "writer", *others)}


ROLES: dict[str, tuple[Callable[[World, int], None], int]] = {
    "reader": (read, READERS),
    "threads": (read_in_threads, THREADED),
    "writer": (write, WRITERS),
    "rebuilder": (rebuild, REBUILDERS),
    "releaser": (release, 1),
    "follower": (follow, 2),
    "first": (first, 0),
}
