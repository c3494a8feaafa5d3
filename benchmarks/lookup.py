"""How long do look-ups take, beside everything that a user would take instead?

Every peer answers the same operations on the same records and the same random ids, in one process, in turns; how each
is used stands in its module of `benchmarks/peers`. Before the clock starts, the answers of all are compared. A turn is
some milliseconds: of what takes longer, fewer ids are looked up. Times are of one id, or of one query.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from mmcache import Snapshot

from . import peers
from .common import (
    QUICK,
    Report,
    Samples,
    Settings,
    Work,
    dim_of,
    interleave,
    parser,
    ratio_text,
    settings_of,
    time_text,
)
from .data import DataSet
from .peers import AbsentError, Peer
from .peers.base import Facets
from .processes import BEARABLE

QUESTION = "How long do look-ups take, beside everything that a user would take instead?"

OURS = "mmcache"
COPY = "copy bandwidth"
ROWS = "mmcache, rows only"
"""Without keys: the rows of a selection, or the embeddings of rows that are known."""

IDS = 400
BATCH = 100
LARGE = 10_000
FACETS = 10

TURN = 5e-3
"""Seconds: shorter than a turn that another process has on this CPU."""
LARGE_TURN = 0.1
"""Seconds that a large batch may take; above, it is a tenth as large."""

GOALS_FROM = 100_000
"""Records from which the goals hold, with embeddings of 768 numbers; --quick has them at its size."""


@dataclass(frozen=True)
class Operation:
    """key: in the JSON. method: of every peer. arguments: which `Sequences` it is given. per: what the times are of.

    goals: largest ratio of mmcache to a peer. of_rows: the same, of `ROWS`.
    """

    key: str

    method: str
    title: str
    arguments: str
    per: str = "id"
    goals: Mapping[str, float] = field(default_factory=dict)
    of_rows: Mapping[str, float] = field(default_factory=dict)


def operations(n: int) -> tuple[Operation, ...]:
    batch, large = min(n, BATCH), min(n, LARGE)
    many, copy, facets = {"LMDB": 0.3}, {COPY: 1 / 0.6}, {"SQLite, tuned": 0.8}
    return (
        Operation("get", "get", "get", "ids", goals={"LMDB": 0.35, "SQLite, tuned": 0.2, "dict floor": 1.5}),
        Operation("miss", "miss", "get, absent", "absent", goals={"LMDB": 0.6}),
        Operation(f"get_many({batch:,})", "get_many", f"get_many({batch:,})", "batches", goals=many),
        Operation(f"get_many({large:,})", "get_many", f"get_many({large:,})", "large", goals=many),
        Operation(
            f"everything({batch:,})",
            "everything",
            f"{batch:,} records, all of each",
            "batches",
            goals={"SQLite, BLOB": 0.3},
        ),
        Operation("embedding", "embedding", "embedding, a view", "ids", goals={"LMDB": 0.5, "SQLite, BLOB": 0.1}),
        Operation(f"gather({large:,})", "gather", f"{large:,} embeddings, a matrix", "large", "id", copy, copy),
        Operation("domain", "domain", "all ids of a domain", "domains", "id found", {"LMDB": 0.8}),
        Operation("facets", "facets", "ids by three facets", "facets", "query", facets, facets),
    )


# --- what is looked up ------------------------------------------------------------------------------------------------


class Sequences:
    """What is looked up in each repetition, the same for all peers."""

    def __init__(self, data: DataSet) -> None:
        with contextlib.closing(sqlite3.connect(data.bank)) as db:
            self._facts = db.execute("SELECT id, domain, type, framework FROM patterns ORDER BY rowid").fetchall()
        self._per_domain = Counter(fact[1] for fact in self._facts)
        self._drawn: dict[tuple[str, int], Sequence[Any]] = {}

    def of(self, arguments: str, repetition: int) -> Sequence[Any]:
        if (arguments, repetition) not in self._drawn:
            chosen = random.Random(f"look-ups {repetition}")
            self._drawn[arguments, repetition] = getattr(self, f"_{arguments}")(chosen)
        return self._drawn[arguments, repetition]

    def size(self, arguments: str, drawn: Sequence[Any]) -> int:
        """How many ids that looks up, or finds, or how many queries it is."""
        if arguments in ("batches", "large"):
            return sum(map(len, drawn))
        return sum(self._per_domain[domain] for domain in drawn) if arguments == "domains" else len(drawn)

    def _ids(self, chosen: random.Random) -> list[str]:
        return [fact[0] for fact in chosen.choices(self._facts, k=IDS)]

    def _absent(self, chosen: random.Random) -> list[str]:
        return [f"{id_}-absent" for id_ in self._ids(chosen)]

    def _batches(self, chosen: random.Random) -> list[list[str]]:
        batch = min(len(self._facts), BATCH)
        return [[fact[0] for fact in chosen.sample(self._facts, batch)] for _ in range(IDS // BATCH)]

    def _large(self, chosen: random.Random) -> list[list[str]]:
        return [[fact[0] for fact in chosen.sample(self._facts, min(len(self._facts), LARGE))]]

    def _domains(self, chosen: random.Random) -> list[str]:
        return chosen.sample(sorted(self._per_domain), k=min(5, len(self._per_domain)))

    def _facets(self, chosen: random.Random) -> list[tuple[str, str, str]]:
        return [fact[1:] for fact in chosen.choices(self._facts, k=FACETS)]


Method = Callable[[Sequence[Any]], object]


def share(method: Method, operation: Operation, sequences: Sequences) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What part of a turn's arguments this method can do in time. Domains and facets are done whole: they differ."""
    drawn = sequences.of(operation.arguments, 0)
    if operation.arguments == "large":
        few = [drawn[0][:BATCH]]
        if _seconds(method, few) / BATCH * len(drawn[0]) <= LARGE_TURN:
            return lambda arguments: arguments
        return lambda arguments: [ids[: max(BATCH, len(ids) // 10)] for ids in arguments]
    if operation.per != "id":
        return lambda arguments: arguments
    some = drawn[: max(1, len(drawn) // 50)]
    count = max(len(some), math.floor(TURN / _seconds(method, some) * len(some)))
    return lambda arguments: arguments[:count]


def _seconds(method: Method, arguments: Sequence[Any]) -> float:
    """The best of a few."""
    best = math.inf
    for _ in range(4):
        begin = time.perf_counter()
        method(arguments)
        best = min(best, time.perf_counter() - begin)
    return best


def looking_up(method: Method, operation: Operation, sequences: Sequences) -> tuple[Work, int]:
    """Turns of this method; how many ids, or queries, one of them has."""
    part = share(method, operation, sequences)

    def work(repetition: int) -> tuple[Callable[[], object], int]:
        arguments = part(sequences.of(operation.arguments, repetition))
        return partial(method, arguments), sequences.size(operation.arguments, arguments)

    return work, work(0)[1]


def copying(data: DataSet) -> Work:
    """As many bytes as a large batch's embeddings have, one row after the other, into memory that was used before."""
    k = min(data.n, LARGE)
    source, into = np.ones((data.n, data.dim), np.float32), np.ones((k, data.dim), np.float32)

    def work(repetition: int) -> tuple[Callable[[], object], int]:
        begin = random.Random(repetition).randint(0, data.n - k)
        return partial(np.copyto, into, source[begin : begin + k]), k

    return work


def by_rows(operation: Operation, reader: Any, sequences: Sequences) -> Work:
    """What mmcache does without keys: a selection that is only made, and embeddings of rows that are known."""
    snapshot: Snapshot = reader.snapshot
    embeddings = snapshot.embeddings

    def select(facets: Sequence[Facets]) -> int:
        return sum(len(snapshot.where(domain=d, type=t, framework=f)) for d, t, f in facets)

    def work(repetition: int) -> tuple[Callable[[], object], int]:
        arguments = sequences.of(operation.arguments, repetition)
        if operation.method == "facets":
            return partial(select, arguments), len(arguments)
        rows = np.array([snapshot.default.row(id_) for id_ in arguments[0]])
        return partial(embeddings.__getitem__, rows), len(rows)

    return work


# --- the peers --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(data: DataSet, named: Collection[str], report: Report) -> Iterator[dict[str, Peer]]:
    """All peers that take part in one of these operations, warm, in the order of the tables; a note on who is not."""
    absent: list[str] = []
    with contextlib.ExitStack() as stack:
        found: dict[str, Peer] = {}
        for peer in peers.load(absent.append):
            if peer.operations.isdisjoint(named):
                continue
            if peer.slow and data.n > BEARABLE:
                absent.append(f"{peer.name} left out: slow, and asked for {BEARABLE:,} records at most")
                continue
            try:
                reader = peer(stack.enter_context(peer.serving(data.store(peer))))
            except AbsentError as error:
                absent.append(f"{peer.name} left out: {error}")
                continue
            stack.callback(reader.close)
            reader.warm()
            found[peer.name] = reader
        if absent:
            report.note(f"{data.n:,} records: {'; '.join(absent)}")
        gc.freeze()
        yield found
    gc.unfreeze()


def compare(what: str, answers: Mapping[str, Any]) -> None:
    """All peers must give the same answer, ids in any order."""
    plain = {name: _plain(answer) for name, answer in answers.items()}
    first = next(iter(plain))
    for name, answer in plain.items():
        assert answer == plain[first], f"{what}: {first} and {name} answer differently"


def _plain(answer: Any) -> Any:
    if isinstance(answer, np.ndarray):
        return answer.shape, answer.dtype, answer.tobytes()
    return sorted(answer) if isinstance(answer, list) else answer


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(data: DataSet, settings: Settings, report: Report) -> None:
    asked = operations(data.n)
    goals = settings.sizes == QUICK or (data.n >= GOALS_FROM and data.dim == 768)
    sequences = Sequences(data)
    rows: list[list[str]] = []
    shortened: list[str] = []
    with opened(data, {operation.method for operation in asked}, report) as readers:
        for operation in asked:
            methods: dict[str, Method] = {
                name: getattr(reader, operation.method)
                for name, reader in readers.items()
                if operation.method in reader.operations
            }
            for argument in sequences.of(operation.arguments, 0)[:20]:
                compare(operation.title, {name: method([argument]) for name, method in methods.items()})
            work: dict[str, Work] = {}
            for name, method in methods.items():
                work[name], size = looking_up(method, operation, sequences)
                if operation.arguments == "large" and size < min(data.n, LARGE):
                    shortened.append(f"{name}, {operation.title}: {size:,} at a time")
            if operation.of_rows:
                work[ROWS] = by_rows(operation, readers[OURS], sequences)
            if COPY in operation.goals:
                work[COPY] = copying(data)
            repetitions = settings.repeat(9 if operation.arguments == "large" else 31)
            samples = interleave(work, repetitions, report.noise, primed=True)
            rows += _told(operation, samples, list(work), data, report=report, goals=goals)
    report.table(
        f"{data.n:,} records, embeddings of {data.dim}",
        ("operation", "", "median", "mmcache / it", "goal"),
        rows[:-1],
    )
    if shortened:
        report.note(f"{data.n:,} records, too slow for large batches: {'; '.join(shortened)}")


def _told(
    operation: Operation, samples: Samples, names: Sequence[str], data: DataSet, *, report: Report, goals: bool
) -> Iterator[list[str]]:
    """Rows of the table, and an empty one."""
    for i, name in enumerate(names):
        seconds = samples.range(name)
        ratio = None if name == OURS or OURS not in names else samples.ratio(OURS, name)
        verdict = ""
        if ratio is not None and goals and name in operation.goals:
            goal = f"{operation.title}: mmcache / {name}"
            verdict = report.goal(goal, data.n, ratio.median, operation.goals[name])
        if goals and name in operation.of_rows:
            goal = f"{operation.title}: {ROWS} / {name}"
            report.goal(goal, data.n, samples.ratio(ROWS, name).median, operation.of_rows[name])
        report.result(
            n=data.n,
            dim=data.dim,
            operation=operation.key,
            contender=name,
            per=operation.per,
            seconds=seconds,
            ratio=ratio,
        )
        title = "" if i else f"{operation.title} (per {operation.per})"
        yield [title, name, time_text(seconds.median), ratio_text(ratio) if ratio else "", verdict]
    yield [""] * 5


def main() -> int:
    settings = settings_of(parser(QUESTION).parse_args())
    report = Report("lookup", QUESTION, settings)
    for n in settings.sizes:
        measure(DataSet(n, dim_of(n), settings.data), settings, report)
    report.note(
        "mmcache checks a record's checksum at every get; LMDB and SQLite check none. LMDB and SQLite, tuned, answer "
        "three facets from an index made for just that combination; mmcache intersects the lists of each. Copy "
        "bandwidth: as many bytes, in sequence. The range is that of the ratios of single repetitions."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
