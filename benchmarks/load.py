"""How much do readers notice while everything is written anew?

Processes that do nothing but read, as many as leave one core free, time every get: first while nothing else happens,
then while all records are written again. mmcache builds its file again on behalf of one of the readers, in a process
of its own or in a thread of that reader. (An inline rebuild is one get that takes as long as the build.) Beside it,
from the same rows, one transaction of a process that writes: LMDB puts every record and embedding, SQLite in WAL mode
updates every row.

Every get sees what was last committed: mmcache's `Cache` looks, LMDB's read transaction is renewed, SQLite begins one
with every statement. Each decodes a record and reads its domain. "lasted" begins when the writer is told, and
includes the start of the process that builds, for mmcache; LMDB's and SQLite's has started before.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

import lmdb
import msgpack
import numpy as np

import mmcache

from .common import Range, Report, Settings, dim_of, parser, ratio_text, settings_of, time_text, turns
from .data import COLUMNS, FIELDS, DataSet, read_bank, record_of

QUESTION = "How much do readers notice while everything is written anew?"
THREAD = "mmcache, thread"
"""Measured once: it shares the interpreter's lock with a reader that never pauses, and takes long."""
TIMES_IDLE = 3.0
"""Goal: p99 of a get while a subprocess rebuilds and has a core for it, over that before."""

Get = Callable[[str], Any]
"""The domain of the decoded record of an id."""

Figures = dict[str, float]
"""rate: gets per second. p50, p99, max: seconds. failed: gets without an answer."""

_SPAWN = multiprocessing.get_context("spawn")
_WAIT, _IDLE, _BUSY, _END = range(4)
_BATCH = 512
_FINE = 2**17


# --- in a reader's process --------------------------------------------------------------------------------------------


class Latencies(NamedTuple):
    """What a reader timed. counts: how many gets took so many nanoseconds; slow: of the others, each one's."""

    seconds: float
    counts: array[int]
    slow: list[int]
    failed: int


def timed_gets(get: Get, ids: Sequence[str], phase: Any, now: int) -> Latencies:
    """Get without a pause until this phase is over: at least once, for it may be so by the time that we begin."""
    clock = time.perf_counter_ns
    counts, slow, failed = array("L", [0]) * _FINE, [], 0
    batches = itertools.cycle([ids[i : i + _BATCH] for i in range(0, len(ids), _BATCH)])
    parent, begun = os.getppid(), clock()
    while True:
        for id_ in next(batches):
            before = clock()
            try:
                get(id_)
            except Exception:  # noqa: BLE001 (whatever it is, there is no answer)
                failed += 1
            took = clock() - before
            if took < _FINE:
                counts[took] += 1
            else:
                slow.append(took)
        if phase.value != now or os.getppid() != parent:
            break
    return Latencies((clock() - begun) / 1e9, counts, slow, failed)


def read(contender: Contender, ids: list[str], phase: Any, pipe: Connection) -> None:
    """Tell that everything was read once; then the latencies of either phase."""
    with contender.reading() as get:
        for id_ in ids:
            assert get(id_)
        gc.freeze()
        pipe.send(None)
        for now in _IDLE, _BUSY:
            while phase.value < now:
                time.sleep(0.001)
            pipe.send(timed_gets(get, ids, phase, now))


def figures(of: Sequence[Latencies]) -> Figures:
    """Of all readers together."""
    below = np.cumsum(np.sum([one.counts for one in of], axis=0))
    slow = sorted(took for one in of for took in one.slow)
    fine = int(below[-1])
    last = fine + len(slow) - 1

    def quantile(share: float) -> float:
        """The lower of the two values about it."""
        rank = int(share * last)
        return (slow[rank - fine] if rank >= fine else int(np.searchsorted(below, rank, "right"))) / 1e9

    return {
        "rate": sum((sum(one.counts) + len(one.slow)) / one.seconds for one in of),
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "max": quantile(1.0),
        "failed": sum(one.failed for one in of),
    }


# --- who is read and written ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A store in a directory of its own. Given to other processes, which use `reading` and `writing`."""

    data: DataSet
    directory: str

    def make(self) -> None:
        raise NotImplementedError

    def reading(self) -> contextlib.AbstractContextManager[Get]:
        raise NotImplementedError

    def writing(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """What is given writes everything again, and returns when readers get it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Mmcache(Contender):
    executor: Literal["subprocess", "thread"] = "subprocess"

    @property
    def bank(self) -> str:
        return os.path.join(self.directory, "bank.db")

    def make(self) -> None:
        shutil.copyfile(self.data.bank, self.bank)
        with contextlib.closing(self._source()) as source:
            mmcache.build(os.path.join(self.directory, "patterns.mmc"), source)

    def _source(self) -> mmcache.SQLiteSource:
        return mmcache.SQLiteSource(self.bank, self.data.schema)

    @contextlib.contextmanager
    def _open(self, executor: Literal["subprocess", "thread", "external"]) -> Iterator[mmcache.Cache]:
        path = os.path.join(self.directory, "patterns.mmc")
        with contextlib.closing(self._source()) as source, mmcache.open(path, source, executor=executor) as cache:
            yield cache

    @contextlib.contextmanager
    def reading(self) -> Iterator[Get]:
        with self._open(self.executor) as cache:
            yield lambda id_: cache[id_]["domain"]

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[], None]]:
        with self._open("external") as cache:

            def rewrite() -> None:
                before, limit = cache.generation, time.monotonic() + 600
                with contextlib.closing(sqlite3.connect(self.bank)) as db, db:
                    db.execute("UPDATE patterns SET content = content || '.' WHERE rowid = 1")
                cache.invalidate(hard=False)
                while cache.generation == before:
                    assert time.monotonic() < limit, "the rebuild does not end"
                    time.sleep(0.002)

            yield rewrite


class Lmdb(Contender):
    """Records and embeddings, each in a database of its own, in the order of their keys."""

    def make(self) -> None:
        with self.writing() as write:
            write()

    def _open(self, **options: Any) -> lmdb.Environment:
        size = 6 * os.path.getsize(self.data.bank) + 2**24
        return lmdb.open(os.path.join(self.directory, "lmdb"), map_size=size, max_dbs=2, **options)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Get]:
        unpackb = msgpack.unpackb
        with self._open(readonly=True) as env:
            records, begin = env.open_db(b"records"), env.begin

            def get(id_: str) -> Any:
                with begin(records) as txn:  # one of the spare ones, renewed
                    return unpackb(txn.get(id_.encode()))["domain"]

            yield get

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[], None]]:
        with self._open() as env:
            records, embeddings = env.open_db(b"records"), env.open_db(b"embeddings")

            def rewrite() -> None:
                pack = msgpack.Packer().pack
                rows = read_bank(self.data.bank, "id")
                with env.begin(write=True) as txn:
                    one, other = txn.cursor(records), txn.cursor(embeddings)
                    while batch := list(itertools.islice(rows, 1_000)):
                        one.putmulti([(row[0].encode(), pack(record_of(row))) for row in batch])
                        other.putmulti([(row[0].encode(), row[-1]) for row in batch])

            yield rewrite


class SqliteWal(Contender):
    """`synchronous = NORMAL`, as SQLite recommends with WAL."""

    @property
    def path(self) -> str:
        return os.path.join(self.directory, "wal.db")

    def make(self) -> None:
        shutil.copyfile(self.data.bank, self.path)
        with self._open() as db:
            db.execute("PRAGMA journal_mode = WAL")

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(f"PRAGMA mmap_size = {2**31 - 65536}")
            yield db

    @contextlib.contextmanager
    def reading(self) -> Iterator[Get]:
        loads, record = json.loads, f"SELECT {', '.join(FIELDS)} FROM patterns WHERE id = ?"
        with self._open() as db:
            execute = db.execute

            def get(id_: str) -> Any:
                row = execute(record, (id_,)).fetchone()
                loads(row[5])
                return row[2]

            yield get

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[], None]]:
        key, *others = COLUMNS.split(", ")
        values = ", ".join(f"{column} = ?" for column in others)
        with self._open() as db:

            def rewrite() -> None:
                db.execute("BEGIN IMMEDIATE")
                rows = ((*row[1:], row[0]) for row in read_bank(self.data.bank))
                db.executemany(f"UPDATE patterns SET {values} WHERE {key} = ?", rows)
                db.execute("COMMIT")

            yield rewrite


# --- the comparison ---------------------------------------------------------------------------------------------------


def write(contender: Contender, pipe: Connection) -> None:
    """Tell when ready; when told, write everything again, and tell how many seconds that took."""
    with contender.writing() as rewrite:
        pipe.send(None)
        pipe.recv()
        begun = time.perf_counter()
        rewrite()
        pipe.send(time.perf_counter() - begun)


def one_run(contender: Contender, ids: list[str], readers: int, quiet: float) -> dict[str, Figures]:
    """What readers had before, and while everything was written again."""
    phase = _SPAWN.RawValue("i", _WAIT)
    started: list[tuple[Any, Connection]] = []

    def start(target: Callable[..., None], *arguments: object) -> None:
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=target, args=(*arguments, theirs), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))

    try:
        for reader in range(readers):
            start(read, contender, random.Random(reader).sample(ids, min(len(ids), 2**14)), phase)
        start(write, contender)
        pipes = [pipe for _, pipe in started]
        for pipe in pipes:
            pipe.recv()
        phase.value = _IDLE
        time.sleep(quiet)
        phase.value = _BUSY
        idle = [pipe.recv() for pipe in pipes[:-1]]
        pipes[-1].send(None)
        seconds = pipes[-1].recv()
        phase.value = _END
        busy = [pipe.recv() for pipe in pipes[:-1]]
        for process, _ in started:
            process.join()
    finally:
        for process, _ in started:
            process.kill()
    return {"idle": figures(idle) | {"seconds": quiet}, "busy": figures(busy) | {"seconds": seconds}}


def measure(data: DataSet, readers: int, settings: Settings, report: Report, *, quick: bool) -> None:
    ids, rows = data.ids(), []
    repetitions = settings.repeat(2 if quick else 3)
    with tempfile.TemporaryDirectory(dir=data.home) as directory:
        contenders: dict[str, Contender] = {
            "mmcache, subprocess": Mmcache(data, os.path.join(directory, "subprocess")),
            THREAD: Mmcache(data, os.path.join(directory, "thread"), "thread"),
            "LMDB": Lmdb(data, os.path.join(directory, "lmdb")),
            "SQLite, WAL": SqliteWal(data, os.path.join(directory, "sqlite")),
        }
        if quick:
            del contenders[THREAD]
        runs: dict[str, list[dict[str, Figures]]] = {name: [] for name in contenders}
        for contender in contenders.values():
            os.mkdir(contender.directory)
            contender.make()
        for repetition, name in turns(list(contenders), repetitions, report.noise):
            if name != THREAD or repetition == 0:  # it takes long
                runs[name].append(one_run(contenders[name], ids, readers, 1.0 if quick else 3.0))
    for name, found in runs.items():
        failed = sum(run[kind]["failed"] for run in found for kind in run)
        assert not failed, f"{name}: {failed:.0f} reads failed"
        ratios = {of: Range.of(run["busy"][of] / run["idle"][of] for run in found) for of in ("rate", "p50", "p99")}
        verdict = ""
        if name == "mmcache, subprocess" and readers < (os.cpu_count() or 1):
            verdict = report.goal("p99 while a subprocess rebuilds / before", data.n, ratios["p99"].median, TIMES_IDLE)
        measured: dict[str, Any] = {f"{of}_ratio": ratio for of, ratio in ratios.items()}
        for kind, title in ("idle", "before"), ("busy", "meanwhile"):
            middle = {of: statistics.median(run[kind][of] for run in found) for of in found[0][kind]}
            measured |= {f"{kind}_{of}": value for of, value in middle.items()}
            told = (ratio_text(ratios["rate"]), ratio_text(ratios["p99"]), verdict) if kind == "busy" else ("", "", "")
            row = [name if kind == "idle" else "", title, f"{middle['rate']:,.0f}", told[0]]
            row += [*(time_text(middle[of]) for of in ("p50", "p99")), *told[1:], time_text(middle["max"])]
            rows.append([*row, time_text(middle["seconds"]) if kind == "busy" else ""])
        report.result(n=data.n, dim=data.dim, contender=name, readers=readers, **measured)
    report.table(
        f"{data.n:,} records, embeddings of {data.dim}, readers: {readers}, {repetitions} repetitions",
        ("written by", "", "gets/s", "of before", "p50", "p99", "of before", "goal", "max", "lasted"),
        rows,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser(QUESTION)
    cores = os.cpu_count() or 1
    asked.add_argument("--readers", type=int, default=max(1, cores - 1), metavar="N", help="processes that read")
    given = asked.parse_args(arguments)
    settings = settings_of(given)
    report = Report("load", QUESTION, settings)
    n = settings.sizes[0] if given.sizes else 10_000 if given.quick else 100_000
    measure(DataSet(n, dim_of(n), settings.data), given.readers, settings, report, quick=given.quick)
    if given.readers >= cores:
        report.note(f"{given.readers} readers leave none of {cores} cores free: no goal is judged.")
    report.note(
        "No read failed: a get that raises would have ended this benchmark. A rebuild in a thread shares the "
        "interpreter's lock with a reader that never pauses, takes long, and is measured once, in a full run."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
