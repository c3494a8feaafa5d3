"""How long do look-ups take, beside SQLite, LMDB and a dict of one's own?

Every contender answers the same operations on the same records and the same random ids, in one process. Each
operation is a loop of its own, written as its library's documentation recommends, so that nothing but the library and
the loop is timed; before the clock starts, the answers of all contenders are compared.

    mmcache   a Snapshot with the default verification; every byte of a record is checksummed at every get
    LMDB      py-lmdb, one msgpack map per record; a read transaction and cursors made once; no checksums
    SQLite    one warm read-only connection, statements prepared (sqlite3 keeps them), memory-mapped; covering indexes
    dict      id -> msgpack bytes, in a process's own memory: what no shared store can be much faster than
"""

from __future__ import annotations

import contextlib
import gc
import json
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import lmdb
import msgpack
import numpy as np
from numpy.typing import NDArray

import mmcache

from .common import Report, Settings, Turn, dim_of, interleave, parser, ratio_text, settings_of, time_text
from .data import FIELDS, DataSet, facet_key, read_bank, record_of

QUESTION = "How long do look-ups take, beside SQLite, LMDB and a dict?"

IDS = 400
"""Ids looked up in one turn, which is then shorter than a turn that another process has on this CPU."""
BATCH = 100
FACETS = 10

Facets = tuple[str, str, str]
"""domain, type, framework"""


class Contender(Protocol):
    """Every method works through all that it is given and returns the last answer."""

    def get(self, ids: Sequence[str]) -> Any: ...
    def miss(self, ids: Sequence[str]) -> Any: ...
    def get_many(self, batches: Sequence[list[str]]) -> Any: ...
    def embedding(self, ids: Sequence[str]) -> Any: ...
    def domain(self, domains: Sequence[str]) -> list[str]: ...
    def facets(self, facets: Sequence[Facets]) -> list[str]: ...


class Mmcache:
    def __init__(self, data: DataSet) -> None:
        self.snapshot = mmcache.Snapshot.open(data.file)
        self.cache = mmcache.open(data.file)
        for record in self.snapshot.values():
            assert record.id
        self.snapshot.embeddings.sum()

    def get(self, ids: Sequence[str]) -> Any:
        value, snapshot = None, self.snapshot
        for id_ in ids:
            value = snapshot[id_]["domain"]
        return value

    def get_through_cache(self, ids: Sequence[str]) -> Any:
        value, cache = None, self.cache
        for id_ in ids:
            value = cache[id_]["domain"]
        return value

    def get_as_dict(self, ids: Sequence[str]) -> Any:
        record, snapshot = None, self.snapshot
        for id_ in ids:
            record = snapshot[id_].asdict()
        return record

    def miss(self, ids: Sequence[str]) -> Any:
        found, snapshot = None, self.snapshot
        for id_ in ids:
            found = snapshot.get(id_)
        return found

    def get_many(self, batches: Sequence[list[str]]) -> Any:
        records, snapshot = [], self.snapshot
        for ids in batches:
            records = snapshot.get_many(ids)
        return [record["domain"] for record in records if record is not None]

    def embedding(self, ids: Sequence[str]) -> Any:
        vector, snapshot = None, self.snapshot
        for id_ in ids:
            vector = snapshot.embedding(id_)
        return vector

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = self.snapshot.where(domain=domain).ids
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        for domain, type_, framework in facets:
            found = self.snapshot.where(domain=domain, type=type_, framework=framework).ids
        return found


class Lmdb:
    """Records are read as bytes and embeddings as buffers: each is the faster way for its size."""

    def __init__(self, data: DataSet) -> None:
        self.env = lmdb.open(data.lmdb, readonly=True, max_dbs=4, max_spare_txns=2)
        self.records, self.embeddings = self.env.open_db(b"records"), self.env.open_db(b"embeddings")
        domains, facets = self.env.open_db(b"domains", dupsort=True), self.env.open_db(b"facets", dupsort=True)
        self.txn = self.env.begin(db=self.records)
        self.vectors = self.env.begin(db=self.embeddings, buffers=True)
        self.cursor = self.txn.cursor()
        self.domains, self.facet_ids = self.txn.cursor(domains), self.txn.cursor(facets)
        for _, value in self.txn.cursor():
            assert value
        for _, vector in self.vectors.cursor():
            assert np.frombuffer(vector, "<f4").any()

    def get(self, ids: Sequence[str]) -> Any:
        value, get, unpackb = None, self.txn.get, msgpack.unpackb
        for id_ in ids:
            value = unpackb(get(id_.encode()))["domain"]
        return value

    def get_as_dict(self, ids: Sequence[str]) -> Any:
        record, get, unpackb = None, self.txn.get, msgpack.unpackb
        for id_ in ids:
            record = unpackb(get(id_.encode()))
        return record

    def get_in_new_transaction(self, ids: Sequence[str]) -> Any:
        value, begin, records, unpackb = None, self.env.begin, self.records, msgpack.unpackb
        for id_ in ids:
            with begin(records) as txn:
                value = unpackb(txn.get(id_.encode()))["domain"]
        return value

    def miss(self, ids: Sequence[str]) -> Any:
        found, get = None, self.txn.get
        for id_ in ids:
            found = get(id_.encode())
        return found

    def get_many(self, batches: Sequence[list[str]]) -> Any:
        records, getmulti, unpackb = [], self.cursor.getmulti, msgpack.unpackb
        for ids in batches:
            records = [unpackb(value) for _, value in getmulti([id_.encode() for id_ in ids])]
        return [record["domain"] for record in records]

    def embedding(self, ids: Sequence[str]) -> Any:
        vector, get, frombuffer = None, self.vectors.get, np.frombuffer
        for id_ in ids:
            vector = frombuffer(get(id_.encode()), "<f4")  # type: ignore[arg-type]
        return vector

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            self.domains.set_key(domain.encode())
            found = [id_.decode() for id_ in self.domains.iternext_dup()]
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        for names in facets:
            self.facet_ids.set_key(facet_key(*names))
            found = [id_.decode() for id_ in self.facet_ids.iternext_dup()]
        return found


class Sqlite:
    RECORD = f"SELECT {', '.join(FIELDS)} FROM patterns WHERE id = ?"
    RECORDS = f"SELECT {', '.join(FIELDS)} FROM patterns WHERE id IN ({', '.join('?' * BATCH)})"
    EMBEDDING = "SELECT embedding FROM patterns WHERE id = ?"
    DOMAIN = "SELECT id FROM patterns WHERE domain = ?"
    FACETS = "SELECT id FROM patterns WHERE domain = ? AND type = ? AND framework = ?"

    def __init__(self, data: DataSet) -> None:
        self.db = sqlite3.connect(f"file:{data.bank}?mode=ro", uri=True, isolation_level=None)
        self.db.execute(f"PRAGMA mmap_size = {2**31 - 65536}")  # faster here than any cache_size
        for sql, parameters in (self.DOMAIN, ("",)), (self.FACETS, ("", "", "")):
            plan = self.db.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchone()[-1]
            assert "COVERING INDEX" in plan, plan
        for row in self.db.execute("SELECT * FROM patterns"):
            assert row
        for row in self.db.execute("SELECT id FROM patterns ORDER BY id"):
            assert row

    def get(self, ids: Sequence[str]) -> Any:
        """The record with its metadata decoded, as the other contenders give it."""
        value, execute, loads = None, self.db.execute, json.loads
        for id_ in ids:
            row = execute(self.RECORD, (id_,)).fetchone()
            loads(row[5])
            value = row[2]
        return value

    def get_row(self, ids: Sequence[str]) -> Any:
        value, execute = None, self.db.execute
        for id_ in ids:
            value = execute(self.RECORD, (id_,)).fetchone()[2]
        return value

    def get_row_in_transaction(self, ids: Sequence[str]) -> Any:
        """All in one read transaction, which keeps writers of a database in rollback mode waiting."""
        self.db.execute("BEGIN")
        value = self.get_row(ids)
        self.db.execute("COMMIT")
        return value

    def get_as_dict(self, ids: Sequence[str]) -> Any:
        record, execute, loads = None, self.db.execute, json.loads
        for id_ in ids:
            record = dict(zip(FIELDS, execute(self.RECORD, (id_,)).fetchone(), strict=True))
            record["metadata"] = loads(record["metadata"])
        return record

    def miss(self, ids: Sequence[str]) -> Any:
        found, execute = None, self.db.execute
        for id_ in ids:
            found = execute(self.RECORD, (id_,)).fetchone()
        return found

    def get_many(self, batches: Sequence[list[str]]) -> Any:
        rows: list[Any] = []
        execute, loads = self.db.execute, json.loads
        for ids in batches:
            found = {}
            for row in execute(self.RECORDS, ids):
                loads(row[5])
                found[row[0]] = row
            rows = [found[id_] for id_ in ids]
        return [row[2] for row in rows]

    def embedding(self, ids: Sequence[str]) -> Any:
        vector, execute, frombuffer = None, self.db.execute, np.frombuffer
        for id_ in ids:
            vector = frombuffer(execute(self.EMBEDDING, (id_,)).fetchone()[0], "<f4")
        return vector

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = [row[0] for row in self.db.execute(self.DOMAIN, (domain,))]
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        for names in facets:
            found = [row[0] for row in self.db.execute(self.FACETS, names)]
        return found


class Dict:
    """What a process can keep to itself: encoded records, one matrix, and lists and sets of ids."""

    def __init__(self, data: DataSet) -> None:
        self.records: dict[str, bytes] = {}
        self.rows: dict[str, int] = {}
        self.lists: dict[str, list[str]] = {}
        self.sets: tuple[dict[str, set[str]], ...] = ({}, {}, {})
        self.matrix: NDArray[np.float32] = np.empty((data.n, data.dim), np.float32)
        for i, row in enumerate(read_bank(data.bank)):
            id_, type_, domain, framework = row[:4]
            self.records[id_] = msgpack.packb(record_of(row))
            self.rows[id_] = i
            self.matrix[i] = np.frombuffer(row[-1], "<f4")
            self.lists.setdefault(domain, []).append(id_)
            for ids, term in zip(self.sets, (domain, type_, framework), strict=True):
                ids.setdefault(term, set()).add(id_)

    def get(self, ids: Sequence[str]) -> Any:
        value, records, unpackb = None, self.records, msgpack.unpackb
        for id_ in ids:
            value = unpackb(records[id_])["domain"]
        return value

    def get_as_dict(self, ids: Sequence[str]) -> Any:
        record, records, unpackb = None, self.records, msgpack.unpackb
        for id_ in ids:
            record = unpackb(records[id_])
        return record

    def miss(self, ids: Sequence[str]) -> Any:
        found, get = None, self.records.get
        for id_ in ids:
            found = get(id_)
        return found

    def get_many(self, batches: Sequence[list[str]]) -> Any:
        found: list[Any] = []
        records, unpackb = self.records, msgpack.unpackb
        for ids in batches:
            found = [unpackb(records[id_]) for id_ in ids]
        return [record["domain"] for record in found]

    def embedding(self, ids: Sequence[str]) -> Any:
        vector, matrix, rows = None, self.matrix, self.rows
        for id_ in ids:
            vector = matrix[rows[id_]]
        return vector

    def domain(self, domains: Sequence[str]) -> list[str]:
        found: list[str] = []
        for domain in domains:
            found = list(self.lists[domain])
        return found

    def facets(self, facets: Sequence[Facets]) -> list[str]:
        found: list[str] = []
        for names in facets:
            one, two, three = (ids[name] for ids, name in zip(self.sets, names, strict=True))
            found = list(one & two & three)
        return found


class Sequences:
    """What is looked up in each repetition, the same for all contenders."""

    def __init__(self, data: DataSet) -> None:
        with contextlib.closing(sqlite3.connect(data.bank)) as db:
            self._facts = db.execute("SELECT id, domain, type, framework FROM patterns ORDER BY rowid").fetchall()
        self._per_domain = Counter(fact[1] for fact in self._facts)
        self._per_facets = Counter(fact[1:] for fact in self._facts)
        self._drawn: dict[int, dict[str, tuple[Sequence[Any], int]]] = {}

    def of(self, argument: str, repetition: int) -> tuple[Sequence[Any], int]:
        """What to look up, and how many ids that is, or will find."""
        if repetition not in self._drawn:
            self._drawn[repetition] = self._draw(random.Random(f"look-ups {repetition}"))
        return self._drawn[repetition][argument]

    def _draw(self, chosen: random.Random) -> dict[str, tuple[Sequence[Any], int]]:
        ids = [fact[0] for fact in chosen.choices(self._facts, k=IDS)]
        batches = [[fact[0] for fact in chosen.sample(self._facts, BATCH)] for _ in range(IDS // BATCH)]
        domains = chosen.choices(sorted(self._per_domain), k=1)
        facets = [fact[1:] for fact in chosen.choices(self._facts, k=FACETS)]
        return {
            "ids": (ids, IDS),
            "absent": ([f"{id_}-absent" for id_ in ids], IDS),
            "batches": (batches, len(batches)),
            "domains": (domains, sum(self._per_domain[domain] for domain in domains)),
            "facets": (facets, FACETS),
        }


@dataclass(frozen=True)
class Operation:
    """method: of every contender. unit: what the times are of. goals: largest ratio of mmcache to a contender.
    extra: more lines, of a contender's other method."""

    method: str
    title: str
    unit: str
    argument: str
    goals: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, tuple[str, str]] = field(default_factory=dict)


OPERATIONS = (
    Operation(
        "get",
        "get, a field read",
        "record",
        "ids",
        {"LMDB": 0.8, "SQLite": 0.2},
        {
            "mmcache, through a Cache": ("mmcache", "get_through_cache"),
            "LMDB, new transaction": ("LMDB", "get_in_new_transaction"),
            "SQLite, JSON not decoded": ("SQLite", "get_row"),
            "SQLite, nor a lock per get": ("SQLite", "get_row_in_transaction"),
        },
    ),
    Operation("get_as_dict", "get, as a dict", "record", "ids"),
    Operation("miss", "get, absent", "id", "absent"),
    Operation("get_many", f"get_many({BATCH})", "batch", "batches", {"LMDB": 0.5}),
    Operation("embedding", "embedding, a view", "embedding", "ids", {"SQLite": 0.15}),
    Operation("domain", "all ids of a domain", "id found", "domains"),
    Operation("facets", "ids by three facets", "query", "facets"),
)

CONTENDERS: dict[str, Callable[[DataSet], Contender]] = {
    "mmcache": Mmcache,
    "LMDB": Lmdb,
    "SQLite": Sqlite,
    "dict": Dict,
}


def compare(operation: Operation, contenders: Mapping[str, Contender], drawn: Sequence[Any]) -> None:
    """All contenders must give the same answers."""
    lines = [(name, operation.method) for name in contenders] + list(operation.extra.values())
    for one in drawn[:20]:
        answers = [_plain(getattr(contenders[name], method)([one])) for name, method in lines]
        assert all(answer == answers[0] for answer in answers), (operation.title, one, answers)


def _plain(answer: Any) -> Any:
    if isinstance(answer, np.ndarray):
        return answer.tobytes()
    return sorted(answer) if isinstance(answer, list) else answer


def timed(method: Callable[[Sequence[Any]], Any], argument: str, sequences: Sequences) -> Callable[[int], Turn]:
    def turn(repetition: int) -> Turn:
        drawn, count = sequences.of(argument, repetition)
        return partial(method, drawn), count

    return turn


def measure(data: DataSet, settings: Settings, report: Report) -> None:
    contenders = {name: make(data) for name, make in CONTENDERS.items()}
    sequences = Sequences(data)
    gc.freeze()
    repetitions = settings.repeat(61)
    rows = []
    for operation in OPERATIONS:
        compare(operation, contenders, sequences.of(operation.argument, 0)[0])
        lines = {name: (name, operation.method) for name in contenders} | dict(operation.extra)
        lines = dict(sorted(lines.items(), key=lambda line: list(contenders).index(line[1][0])))
        work = {
            line: timed(getattr(contenders[name], method), operation.argument, sequences)
            for line, (name, method) in lines.items()
        }
        samples = interleave(work, repetitions, report.noise, primed=True)
        for line in lines:
            ratio = None if line == "mmcache" else samples.ratio("mmcache", line)
            verdict = ""
            if ratio is not None and line in operation.goals:
                name = f"{operation.title}: mmcache / {line}"
                verdict = report.goal(name, data.n, ratio.median, operation.goals[line])
            seconds = samples.range(line)
            report.result(
                n=data.n,
                dim=data.dim,
                operation=operation.method,
                contender=line,
                per=operation.unit,
                seconds=seconds,
                ratio=ratio,
            )
            title = f"{operation.title} (per {operation.unit})" if ratio is None else ""
            rows.append([title, line, time_text(seconds.median), ratio_text(ratio) if ratio else "", verdict])
        rows.append([""] * 5)
    report.table(
        f"{data.n:,} records, embeddings of {data.dim}, {repetitions} repetitions",
        ("operation", "", "median", "mmcache / it", "goal"),
        rows[:-1],
    )


def main() -> int:
    settings = settings_of(parser(QUESTION).parse_args())
    report = Report("lookup", QUESTION, settings)
    for n in settings.sizes:
        measure(DataSet(n, dim_of(n), settings.data), settings, report)
        gc.unfreeze()
    report.note(
        "mmcache checks a record's checksum at every get, LMDB and SQLite check none. SQLite and LMDB answer three "
        "facets from an index made for just that combination; mmcache intersects the lists of each. The range is that "
        "of the ratios of single repetitions."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
