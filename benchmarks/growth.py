"""What grows with the number of records?

The same embeddings of 64 numbers at every size, so that nothing but n differs; and, up to ten times as many, small
records without embeddings. All sizes of all peers take turns, look-ups in readers that are open and have touched
everything, opens before those.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import lmdb
import msgpack
import psutil

import mmcache

from .common import (
    Range,
    Report,
    Settings,
    Turn,
    interleave,
    parser,
    ratio_text,
    settings_of,
    size_text,
    time_text,
)
from .data import DataSet
from .open import FIRST_GET, FLAT, OPEN, Action, MmcacheLazy, Opens, first_get, key, opening
from .peers import Peer, load
from .peers.mmcache_file import Mmcache
from .processes import Child, memory_of, named, peer_of, say, size_of, steps, stored

QUESTION = "What grows with the number of records?"
DIM = 64
QUICK, FULL = "1_000,10_000", "1_000,10_000,100_000,1_000_000"
SMALL_QUICK, SMALL_FULL = "10_000,100_000", "10_000,100_000,1_000_000,10_000_000"

PEERS = ("Mmcache", "Lmdb", "SqliteTuned", "NpyPickle", "MsgpackBlob", "DictFloor")
COPIES = ("NpyPickle", "MsgpackBlob", "DictFloor")
"""Of those, who holds everything in the memory of this process."""
_COPY_OVER_STORE = 4
"""At most, while it is decoded."""

GET, GET_MANY = "get", "get_many(100)"
BUILD, SIZE, PRIVATE = "build", "file size", "private memory of a worker, opened"
IDS, BATCH = 400, 100

IdOf = Callable[[int], str]


# --- small records without embeddings ---------------------------------------------------------------------------------


def small_id(i: int) -> str:
    return f"{i:08d}"


def small_records(n: int) -> Iterator[dict[str, Any]]:
    for i in range(n):
        yield {"id": small_id(i), "domain": f"domain {i % 97}", "number": i}


class SmallMmcache(Mmcache):
    operations = frozenset({"get"})

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        mmcache.build(path, small_records(data.n), mmcache.Schema("small"))


class SmallLmdb(Peer):
    """`lmdb_msgpack` has more databases than there is something for here."""

    name = "LMDB"
    how = "one msgpack map per record; one transaction"
    operations = frozenset({"get"})

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        records = ((record["id"].encode(), msgpack.packb(record)) for record in small_records(data.n))
        with lmdb.open(path, map_size=2**24 + 400 * data.n) as env, env.begin(write=True) as txn:
            txn.cursor().putmulti(records, append=True)

    def __init__(self, address: str) -> None:
        self.env = lmdb.open(address, readonly=True)
        self.txn = self.env.begin()

    def warm(self) -> None:
        for _, value in self.txn.cursor():
            assert value

    def close(self) -> None:
        self.txn.abort()
        self.env.close()

    def get(self, ids: Sequence[str]) -> Any:
        value, get, unpackb = None, self.txn.get, msgpack.unpackb
        for id_ in ids:
            value = unpackb(get(id_.encode()))["domain"]
        return value


class SmallSqlite(Peer):
    name = "SQLite"
    how = "WITHOUT ROWID, memory-mapped; one connection"
    operations = frozenset({"get"})
    suffix = ".db"

    @classmethod
    def write(cls, data: DataSet, path: str) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("CREATE TABLE small (id TEXT PRIMARY KEY, domain TEXT, number INTEGER) WITHOUT ROWID")
            rows = (tuple(record.values()) for record in small_records(data.n))
            db.executemany("INSERT INTO small VALUES (?, ?, ?)", rows)

    def __init__(self, address: str) -> None:
        self.db = sqlite3.connect(f"file:{address}?mode=ro&immutable=1", uri=True)
        self.db.execute(f"PRAGMA mmap_size = {2**40}")

    def warm(self) -> None:
        self.db.execute("SELECT count(domain) FROM small").fetchone()

    def close(self) -> None:
        self.db.close()

    def get(self, ids: Sequence[str]) -> Any:
        value, execute = None, self.db.execute
        for id_ in ids:
            _, value, _ = execute("SELECT id, domain, number FROM small WHERE id = ?", (id_,)).fetchone()
        return value


# --- in a process of its own ------------------------------------------------------------------------------------------


def work(peer: type[Peer]) -> None:
    """Told a store and an id: open, get, and wait to be looked at."""
    modules = mmcache.Snapshot, mmcache.open  # which are loaded when first asked for
    for path, id_ in steps():
        reader = peer(path)
        reader.get([id_])
        say("done")
    del modules


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Store:
    peer: type[Peer]
    n: int
    path: str
    id_of: IdOf

    def ids(self, count: int, seed: object) -> list[str]:
        """The same for all peers."""
        chosen = random.Random(f"{self.n} {seed}").sample(range(self.n), min(count, self.n))
        return [self.id_of(i) for i in chosen]


class Timed(Protocol):
    def range(self, name: str) -> Range: ...
    def ratio(self, name: str, other: str) -> Range: ...


class Figures:
    """Tables, and lines for a chart, of operations against n, for one kind of records. dim 0: without embeddings."""

    def __init__(self, dim: int, report: Report) -> None:
        self._dim = dim
        self._report = report

    def times(self, operation: str, timed: Timed, stores: Iterable[Store]) -> None:
        names = {(store.peer.name, store.n): key(operation, store.peer.name, store.n) for store in stores}
        measured = {place: timed.range(name) for place, name in names.items()}

        def growth(name: str, n: int, other: int) -> str:
            return ratio_text(timed.ratio(names[name, n], names[name, other]))

        self._tell(operation, measured, "seconds", growth)

    def values(self, operation: str, measured: Mapping[tuple[str, int], Range], unit: str) -> None:
        def growth(name: str, n: int, other: int) -> str:
            return f"{measured[name, n].median / max(measured[name, other].median, 1e-9):.3g}"

        self._tell(operation, measured, unit, growth)

    def goal(self, opens: Timed, sizes: Sequence[int]) -> None:
        """Of a lazy open: it does not depend on n."""
        if min(sizes) == max(sizes):
            return
        name = f"lazy open over that of {min(sizes):,} records, {self._kind}"
        grown = opens.ratio(key(OPEN, MmcacheLazy.name, max(sizes)), key(OPEN, MmcacheLazy.name, min(sizes)))
        verdict = self._report.goal(name, max(sizes), grown.median, FLAT)
        row = [name, f"{max(sizes):,}", ratio_text(grown), verdict]
        self._report.table("Goal", ("", "records", "ratio", "goal"), [row])

    @property
    def _kind(self) -> str:
        return f"embeddings of {self._dim}" if self._dim else "small records without embeddings"

    def _tell(
        self,
        operation: str,
        measured: Mapping[tuple[str, int], Range],
        unit: str,
        growth: Callable[[str, int, int], str],
    ) -> None:
        """measured: by contender and n. growth: of a contender from one n to another."""
        text = time_text if unit == "seconds" else size_text
        sizes = sorted({n for _, n in measured})
        rows = []
        for name in dict.fromkeys(name for name, _ in measured):
            own = [n for n in sizes if (name, n) in measured]
            for n in own:
                values = {unit: measured[name, n]}
                self._report.result(n=n, dim=self._dim, operation=operation, contender=name, **values)
            texts = [text(measured[name, n].median) if n in own else "" for n in sizes]
            rows.append([name, f"{own[-1] / own[0]:g}", *texts, growth(name, own[-1], own[0])])
        header = ("", "records grow by", *(f"{n:,}" for n in sizes), "grows by")
        self._report.table(f"{operation}: {self._kind}", header, rows)


def look(stores: Sequence[Store], settings: Settings, figures: Figures, report: Report) -> None:
    """Everything that is asked of stores that are there."""
    opens = measured_opens(stores, settings, report)
    for operation in (OPEN, FIRST_GET):
        figures.times(operation, opens, stores)
    figures.goal(opens, [store.n for store in stores if store.peer is MmcacheLazy])
    figures.values(PRIVATE, {(s.peer.name, s.n): Range.of([private_memory(s)]) for s in stores}, "bytes")
    figures.values(SIZE, {(s.peer.name, s.n): Range.of([size_of(s.path)]) for s in stores if written(s.peer)}, "bytes")
    lookups([store for store in stores if store.peer is not MmcacheLazy], settings, figures, report)


def measured_opens(stores: Sequence[Store], settings: Settings, report: Report) -> Opens:
    actions: dict[str, Action] = {}
    for store in stores:
        ids = itertools.cycle(store.ids(2_000, "open"))
        actions[key(OPEN, store.peer.name, store.n)] = partial(opening, store.peer, store.path)
        actions[key(FIRST_GET, store.peer.name, store.n)] = partial(first_get, store.peer, store.path, ids)
    return Opens(actions, settings.repeat(11), report.noise)


def private_memory(store: Store) -> float:
    """Bytes of a worker that has opened the store and looked up one record, above itself before."""
    with Child("growth", "--child", named(store.peer)) as child:
        child.answer()
        before = memory_of(child.pid, store.path)
        child.tell((store.path, store.ids(1, "private")[0]))
        child.answer()
        return memory_of(child.pid, store.path).private - before.private


def lookups(stores: Sequence[Store], settings: Settings, figures: Figures, report: Report) -> None:
    with contextlib.ExitStack() as stack:
        readers: dict[Store, Peer] = {}
        for store in affordable(stores, report):
            readers[store] = store.peer(store.path)
            stack.callback(readers[store].close)
            readers[store].warm()
        gc.collect()
        gc.freeze()
        for operation, method, prepare in ((GET, "get", gets), (GET_MANY, "get_many", batches)):
            taking_part = {store: reader for store, reader in readers.items() if method in store.peer.operations}
            if taking_part:
                works = {key(operation, s.peer.name, s.n): partial(prepare, s, r) for s, r in taking_part.items()}
                timed = interleave(works, settings.repeat(21), report.noise, primed=True)
                figures.times(operation, timed, taking_part)
    gc.unfreeze()


def gets(store: Store, reader: Peer, repetition: int) -> Turn:
    ids = store.ids(IDS, repetition)
    return partial(reader.get, ids), len(ids)


def batches(store: Store, reader: Peer, repetition: int) -> Turn:
    """Random ids of all records, so that no two batches of a turn have one in common."""
    ids = store.ids(IDS, repetition)
    found = [ids[begin : begin + BATCH] for begin in range(0, len(ids), BATCH)]
    return partial(reader.get_many, found), len(found)


def affordable(stores: Iterable[Store], report: Report) -> Iterator[Store]:
    """Those that go into the memory of this process together."""
    free, needed = psutil.virtual_memory().available, 0
    for store in stores:
        copy = _COPY_OVER_STORE * size_of(store.path) if store.peer.__name__ in COPIES else 0
        if needed + copy > 0.8 * free:
            report.note(f"look-ups in {store.peer.name} left out at {store.n:,} records: no memory for one more copy")
            continue
        needed += copy
        yield store


def written(peer: type[Peer]) -> bool:
    """The floor has another name of the bank."""
    return peer.store is None and peer.__name__ != "DictFloor"


def build(peer: type[Peer], data: DataSet, path: str) -> float:
    """Seconds."""
    begin = time.perf_counter()
    peer.write(data, path)
    return time.perf_counter() - begin


# --- the two kinds of records -----------------------------------------------------------------------------------------


def with_embeddings(settings: Settings, report: Report) -> None:
    peers = [peer for peer in load(report.note) if peer.__name__ in PEERS]
    peers.insert(1 + peers.index(Mmcache), MmcacheLazy)
    stores: list[Store] = []
    built: dict[tuple[str, int], Range] = {}
    for n in settings.sizes:
        data = DataSet(n, DIM, settings.data)
        stores += [Store(peer, n, path, "pattern-{}".format) for peer, path in stored(peers, data, report.note).items()]
        for peer in filter(written, peers):
            report.noise.probe()
            with tempfile.TemporaryDirectory(dir=settings.data) as there:
                times = [
                    build(peer, data, os.path.join(there, f"{i}{peer.suffix}")) for i in range(3 if n <= 10_000 else 1)
                ]
            built[peer.name, n] = Range.of(times)
    figures = Figures(DIM, report)
    figures.values(BUILD, built, "seconds")
    look(stores, settings, figures, report)


def without_embeddings(sizes: Sequence[int], settings: Settings, report: Report) -> None:
    peers: tuple[type[Peer], ...] = (SmallMmcache, SmallLmdb, SmallSqlite)
    stores: list[Store] = []
    built: dict[tuple[str, int], Range] = {}
    with tempfile.TemporaryDirectory(dir=settings.data) as there:
        for n in sizes:
            for peer in peers:
                report.noise.probe()
                path = os.path.join(there, f"{n}-{peer.name}{peer.suffix}")
                built[peer.name, n] = Range.of([build(peer, DataSet(n, 0, there), path)])
                stores.append(Store(peer, n, path, small_id))
                if peer is SmallMmcache:
                    stores.append(Store(MmcacheLazy, n, path, small_id))
        figures = Figures(0, report)
        figures.values(BUILD, built, "seconds")
        look(stores, settings, figures, report)


def sizes_of(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser(QUESTION)
    asked.add_argument("--child", help=argparse.SUPPRESS)
    asked.add_argument("--ids-only", metavar="N,...", help="numbers of small records without embeddings")
    given = asked.parse_args(arguments)
    if given.child is not None:
        work(peer_of(given.child))
        return 0
    small = given.ids_only or given.sizes or (SMALL_QUICK if given.quick else SMALL_FULL)
    given.sizes = given.sizes or (QUICK if given.quick else FULL)
    settings = settings_of(given)
    report = Report("growth", QUESTION, settings)
    with_embeddings(settings, report)
    without_embeddings(sizes_of(small), settings, report)
    report.note(
        "A lazy open reads header, table and meta, and auto, the default, what the note of benchmarks.open says, which "
        "grows with n. A get takes a few steps whatever n is, but the more records, the fewer of them are in the CPU's "
        "caches and page tables; trees (LMDB, SQLite) also get deeper. Builds and files grow with n, and so does the "
        "private memory, and the open, of who decodes everything. Builds of up to 10,000 records were done three "
        "times, larger ones once; they are timed from the bank, in SQLite, or from a generator of small records."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
