"""`check_source` passes what answers rightly, and names the rule that any other source breaks."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import BaseSource, Changes, IterableSource, JSONLinesSource, Schema, SourceRecord, Sources, SQLiteSource
from mmcache.query import Query, terms_of
from mmcache.testing import check_source

SCHEMA = Schema("items", index=("kind", "n"), embedding="v")
ROWS: list[dict[str, Any]] = [
    {"id": "a", "kind": "x", "n": 1, "v": [1, 2]},
    {"id": "b", "kind": ["y", "x"], "n": True, "v": [2, 3]},
    {"id": "1", "kind": None, "n": 2.5, "v": None},
    {"id": "ü", "n": "1", "v": [4, 5]},
    {"id": "B", "kind": "X", "n": 7, "v": [5, 6]},
    {"id": "c", "kind": [], "n": 0, "v": [6, 7]},
]


class Held(BaseSource):
    """Records in memory that change; right in all."""

    def __init__(self, *schemas: Schema) -> None:
        super().__init__(*(schemas or (SCHEMA,)))
        self.rows = [dict(row) for row in ROWS]
        self.version = 1

    @contextmanager
    def read(self) -> Iterator[mmcache.Reading]:
        yield self.reading(self.rows)

    def change(self) -> None:
        self.version += 1
        self.rows[0] = {**self.rows[0], "n": self.version}

    def fingerprint(self) -> bytes:
        return self.version.to_bytes(32, "big")


def faults_of(source: Any, change: Callable[[], object] | None = None, *, pickles: bool = False) -> str:
    with pytest.raises(AssertionError) as caught:
        check_source(source, change=change, pickles=pickles)
    return str(caught.value)


# ---- right ones ------------------------------------------------------------------------------------------------------


def test_a_source_of_ones_own_with_read_alone_passes():
    source = Held()
    check_source(source, change=source.change, pickles=False)


def test_the_sources_of_this_package_pass(tmp_path: Path):
    items = [row for row in ROWS if row["id"] != "ü"]

    def write() -> None:
        items[0] = {**items[0], "n": items[0]["n"] % 9 + 1}
        (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))

    write()
    db = sqlite3.connect(tmp_path / "items.db", isolation_level=None)
    db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind, n, v TEXT)")
    db.executemany(
        "INSERT INTO items VALUES (?, ?, ?, ?)",
        [(row["id"], json.dumps(row.get("kind")), row["n"], row["v"] and json.dumps(row["v"])) for row in ROWS],
    )
    schema = Schema("items", index=("kind", "n"), embedding="v", json=("kind",))
    update = "UPDATE items SET n = n + 1 WHERE id = 'a'"
    check_source(JSONLinesSource(tmp_path / "items.jsonl", SCHEMA), change=write)
    check_source(IterableSource(ROWS, SCHEMA))
    check_source(SQLiteSource(tmp_path / "items.db", schema), change=lambda: db.execute(update))
    several = Sources(
        SQLiteSource(tmp_path / "items.db", schema),
        JSONLinesSource(tmp_path / "items.jsonl", Schema("others", index=("kind",))),
        IterableSource(ROWS, Schema("third", index=("n",))),
    )
    check_source(several, change=write)
    SQLiteSource(tmp_path / "items.db", schema).track()
    check_source(SQLiteSource(tmp_path / "items.db", schema), change=lambda: db.execute(update))
    db.close()


@pytest.mark.parametrize("key", [1, b"a", ("a", 1)], ids=repr)
def test_keys_of_every_type_pass(key):
    schema = Schema("items", key=("a", "b"), index=("n",)) if isinstance(key, tuple) else Schema("items", index=("n",))
    parts = dict(zip(("a", "b"), key, strict=True)) if isinstance(key, tuple) else {"id": key}
    check_source(IterableSource([{**parts, "n": 1}], schema))


def test_rows_that_are_left_out_pass():
    schema = Schema("items", index=("n",), on_invalid="skip", on_duplicate="last")
    rows: list[dict[str, Any]] = [
        {"id": "a", "n": 1},
        {"id": 1.5, "n": 1},
        {"id": "b", "n": object()},
        {"id": "a", "n": 2},
    ]
    check_source(IterableSource(rows, schema), pickles=False)


# ---- wrong ones ------------------------------------------------------------------------------------------------------


class Compares(Held):
    """Finds by `==` with the value itself, as a first version would."""

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        with self.read() as reading:
            for row in reading.records(collection):
                fields = dict(zip(row.names, row.values, strict=True))
                if all(any(self.equal(fields.get(name), one) for one in wanted) for name, wanted in query.items()):
                    yield row

    def equal(self, value: Any, wanted: Any) -> bool:
        return bool(value == wanted)


class NoNone(Compares):
    def equal(self, value: Any, wanted: Any) -> bool:
        try:
            return value is not None and wanted in terms_of(value)
        except TypeError:
            return False


class OneOfTwo(Compares):
    def equal(self, value: Any, wanted: Any) -> bool:
        return type(value) is type(wanted) and value == wanted


class AsText(Compares):
    def equal(self, value: Any, wanted: Any) -> bool:
        return any(str(one) == str(wanted) for one in terms_of(value))


class AnyCase(Compares):
    def equal(self, value: Any, wanted: Any) -> bool:
        return any(str(one).lower() == str(wanted).lower() for one in terms_of(value))


class Backwards(Held):
    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        yield from reversed(list(super().find(collection, query)))


class Twice(Held):
    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        for row in super().find(collection, query):
            yield row
            yield row


class Sparse(Held):
    """Gives only those that are there."""

    def fetch(self, collection: str, ids: Sequence[Any]) -> list[Any]:
        return [row for row in super().fetch(collection, ids) if row is not None]


class Sorted(Held):
    def fetch(self, collection: str, ids: Sequence[Any]) -> list[Any]:
        return list(super().fetch(collection, sorted(ids, key=repr)))


class AnyCaseKeys(Held):
    def fetch(self, collection: str, ids: Sequence[Any]) -> list[Any]:
        with self.read() as reading:
            found = {str(row.values[0]).lower(): row for row in reading.records(collection)}
        return [found.get(key.lower() if isinstance(key, str) else key) for key in ids]


class Forgetful(Held):
    def fetch(self, collection: str, ids: Sequence[Any]) -> list[Any]:
        return [None if key == "a" else row for key, row in zip(ids, super().fetch(collection, ids), strict=True)]


class Other(Held):
    """Types are lost on the way of a lookup."""

    def fetch(self, collection: str, ids: Sequence[Any]) -> list[Any]:
        return [
            row and row._replace(values=tuple(int(v) if v is True else v for v in row.values))
            for row in super().fetch(collection, ids)
        ]


class Few(Held):
    def fetch(self, collection: str, ids: Sequence[Any]) -> Sequence[Any]:
        if len(ids) > 1000:
            raise ValueError("too many SQL variables")
        return super().fetch(collection, ids)


class GivenOrder(Held):
    def in_order(self, collection: str, ids: Sequence[Any]) -> list[Any]:
        return list(ids)


class Shuffled(Held):
    reads = 0

    @contextmanager
    def read(self) -> Iterator[mmcache.Reading]:
        self.reads += 1
        yield self.reading(self.rows[self.reads % 3 :] + self.rows[: self.reads % 3])


class Miscounted(Held):
    @contextmanager
    def read(self) -> Iterator[mmcache.Reading]:
        with super().read() as reading:
            reading.count = lambda _: 99  # type: ignore[method-assign, assignment]
            yield reading


class Short(Held):
    def fingerprint(self) -> bytes:
        return b"1"


class Texts(Held):
    def fingerprint(self) -> bytes:
        return "v1"  # type: ignore[return-value]


class Restless(Held):
    def fingerprint(self) -> bytes:
        return os.urandom(32)


class Unkind(Held):
    def spec(self) -> dict[str, Any]:
        return {"path": "x"}


class OneThread(Held):
    made = threading.get_ident()

    def fetch(self, collection: str, ids: Sequence[Any]) -> Sequence[Any]:
        if threading.get_ident() != self.made:
            raise RuntimeError("used in another thread")
        return super().fetch(collection, ids)


class OneProcess(Held):
    made = os.getpid()

    def fetch(self, collection: str, ids: Sequence[Any]) -> Sequence[Any]:
        return super().fetch(collection, ids if os.getpid() == self.made else ids[:1])


class TwoRows(Held):
    @contextmanager
    def read(self) -> Iterator[mmcache.Reading]:
        yield self.reading([*self.rows, self.rows[0]])


class Ragged(Held):
    @contextmanager
    def read(self) -> Iterator[mmcache.Reading]:
        yield self.reading([{"id": "a", "v": [1]}, {"id": "b", "v": [1, 2]}, {"id": "c", "kind": 1, "n": 1}])


WRONG: dict[type[Held], str] = {
    Compares: r"lacks 'b', which 'kind' is \['y', 'x'\]; a list is found by each of its values",
    NoNone: "lacks '1', which 'kind' is None; .*found by None alone",
    OneOfTwo: "lacks 'b', which 'n' is True; True == 1 == 1.0 are one value",
    AsText: r"find\('items', n=\[1\]\) gave 'ü', which 'n' is '1'; text is never equal to a number",
    AnyCase: "gave 'B', which 'kind' is 'X'; texts are equal if all their characters are",
    Backwards: "gave .*, and read.. has them as .*: the order is that of records",
    Twice: "gave a record twice",
    Sparse: "gave .* answers for .* ids; None stands where there is no record",
    Sorted: "the answers are in the order of the ids",
    AnyCaseKeys: "gave the record '.' for '.', which no record has: None is right",
    Forgetful: "gave None for 'a', which read.. has",
    Other: "gave 1 as 'n' of 'b', and read.. True; types count",
    Few: r"fetch.*in all.* raised ValueError: too many SQL variables",
    GivenOrder: r"in_order.* expected .*the keys that are there, each once, in the order of records",
    Shuffled: "a second read of 'items' gave another order",
    Miscounted: "count.'items'. is 99, and records.. gave 6",
    Short: "fingerprint.. gave b'1'; expected 32 bytes",
    Texts: "fingerprint.. gave 'v1'; expected 32 bytes",
    Restless: "fingerprint.. gave another answer each time",
    Unkind: "expected a dict with a text as 'kind'",
    OneThread: "in four threads at once: .*RuntimeError: used in another thread",
    OneProcess: "in a forked child it answers otherwise: make connections and locks anew",
    TwoRows: "gave the key 'a' twice; each record comes once",
    Ragged: r"the embedding has 2 numbers, expected dim=1",
}


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_a_source_that_breaks_a_rule_is_told_which(kind: type[Held]):

    assert re.search(WRONG[kind], faults_of(kind()))


class Remembers(Held):
    """Looks up in what it read first."""

    first: Any = None

    def fetch(self, collection: str, ids: Sequence[Any]) -> Sequence[Any]:
        self.first = self.first or IterableSource(list(self.rows), *self.schemas)
        found: Sequence[Any] = self.first.fetch(collection, ids)
        return found


class RemembersBriefly(Remembers):
    """By a clock of whole seconds."""

    def fetch(self, collection: str, ids: Sequence[Any]) -> Sequence[Any]:
        if self.version > 2:
            self.first = self.first or None
        elif self.version == 2:
            self.first = None
        return super().fetch(collection, ids)


class RemembersQueries(Held):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[SourceRecord]] = {}

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        if repr(query) not in self.found:
            self.found[repr(query)] = list(super().find(collection, query))
        return iter(self.found[repr(query)])


class RemembersAll(Held):
    first: Any = None

    @contextmanager
    def read(self) -> Iterator[mmcache.Reading]:
        self.first = self.first or list(self.rows)
        yield self.reading(self.first)


class Silent(Held):
    def fingerprint(self) -> bytes:
        return b"x" * 32


class TellsLess(Held):
    def changes(self, since: bytes) -> Changes:
        return Changes(self.fingerprint(), {"items": frozenset({"b"})})


STALE: dict[type[Held], str] = {
    Remembers: "after change..: fetch.*gave 1 as 'n' of 'a', and read.. 2: it is stale",
    RemembersBriefly: "after change..: fetch.* of 'a', and read.. 3: it is stale",
    RemembersQueries: "after change..: find.* 'a'.*",
    RemembersAll: "after change.., read.. gives what it gave before: it is stale, or nothing was changed",
    Silent: "fingerprint.. is the same after change",
    TellsLess: r"changes.. of 'items' lacks \['a'\], which change.. wrote",
}


@pytest.mark.parametrize("kind", STALE, ids=lambda kind: kind.__name__)
def test_a_stale_answer_is_found_where_something_changes(kind: type[Held]):

    source = kind()
    check_source(kind(), pickles=False)
    assert re.search(STALE[kind], faults_of(source, source.change))


def test_a_source_that_does_not_pickle_is_told_how_to_do_without():
    class Local(Held):
        pass

    assert "pickles=False" in faults_of(Local(), pickles=True)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (object(), "it has no method read, fetch, find, fingerprint, spec; .*mmcache.BaseSource"),
        (type("Bare", (Held,), {"schemas": ()})(), "expected a tuple of one Schema or more"),
        (type("Keyless", (Held,), {"schemas": (Schema("items"),)})(), "the schema of 'items' has no key"),
    ],
    ids=["nothing", "no schemas", "no key"],
)
def test_what_is_no_source_is_told_what_it_lacks(source, fault):

    assert re.search(fault, faults_of(source))


# ---- several versions of a program -----------------------------------------------------------------------------------


class Pooled(Held):
    """Holds something open, which a copy shares."""

    is_open = True

    def close(self) -> None:
        self.is_open = False

    @contextmanager
    def read(self) -> Iterator[mmcache.Reading]:
        assert self.is_open
        with super().read() as reading:
            yield reading


@pytest.mark.parametrize("within", [lambda source: source, Sources], ids=["alone", "one of several"])
def test_versions_with_other_indexes_share_a_file_of_an_own_source(tmp_path, within):
    old, new = Pooled(Schema("items", index=("kind",))), Pooled(Schema("items", index=("n", "no such")))
    mmcache.build(tmp_path / "c.mmc", within(old))
    with mmcache.open(tmp_path / "c.mmc", within(new), executor="inline", rebuild_after=0.0) as cache:
        new.rows[1]["no such"] = "there"
        assert cache.where(n=7).ids == ["B"]
        cache.rebuild()
        with mmcache.Snapshot.open(tmp_path / "c.mmc") as snapshot:
            assert snapshot.schema.index == ("kind", "n", "no such")
        assert cache.where({"no such": "there"}).ids == ["b"]
        del new.rows[1]["no such"]
    assert new.is_open
    assert old.is_open


def test_a_copy_for_other_rules_closes_nothing_of_the_source(tmp_path):
    source = Pooled(Schema("items"))
    source.rows.append({"id": 1.5})
    with mmcache.open(tmp_path / "c.mmc", source, on_invalid="skip") as cache:
        assert len(cache) == len(ROWS)
    assert source.is_open
