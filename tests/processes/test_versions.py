"""Rolling deploys: an old and a new version of a program, with other schemas, share a path while both are alive."""

from __future__ import annotations

import contextlib
import sqlite3
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import xxhash

import mmcache
from mmcache import Cache, IncompatibleFormatError, Schema, Snapshot, SQLiteSource
from tests.support import inside
from tests.support.crew import Crew, look_around
from tests.support.observe import failure_of, totals
from tests.support.processes import seconds_of_a_builder
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")

TTL = 2.0
KEYS = [f"k{i}" for i in range(200)]
ONE = Schema("items", key="id", index=("kind",))


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """Items k0 to k199, and the same in a table `others`."""
    path = tmp_path / "items.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        for table in ("items", "others"):
            db.execute(f"CREATE TABLE {table} (id TEXT PRIMARY KEY, kind TEXT, note TEXT, tags TEXT, vector BLOB)")
            rows = [(key, "abc"[i % 3], table, '["x"]', bytes(8)) for i, key in enumerate(KEYS)]
            db.execute("BEGIN")
            db.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?)", rows)
            db.execute("COMMIT")
    return path


class Own(SQLiteSource):
    """A source of the program's own."""

    def spec(self) -> None:
        """No other process can make it again."""


class Pair(NamedTuple):
    """Two versions. migration: what the deploy does to the database, once the old version runs."""

    old: Schema
    new: Schema
    is_additive: bool = True
    migration: str = ""
    source: type[SQLiteSource] = SQLiteSource


PLAIN = replace(ONE, columns=("kind", "note"))
PAIRS = {
    "index added on both sides": Pair(replace(PLAIN, index=("kind",)), replace(PLAIN, index=("note",))),
    "index removed": Pair(Schema("items", index=("kind", "note")), ONE),
    "column dropped": Pair(
        Schema("items", index=("kind", "note")), ONE, migration="ALTER TABLE items DROP COLUMN note"
    ),
    "embedding added": Pair(PLAIN, replace(PLAIN, embedding="vector", dim=2), is_additive=False),
    "json added": Pair(ONE, replace(ONE, json=("tags",)), is_additive=False),
    "other query": Pair(ONE, replace(ONE, query="SELECT id, kind, note || '!' AS note FROM items"), is_additive=False),
    "other table": Pair(ONE, replace(ONE, table="others"), is_additive=False),
    "custom source": Pair(ONE, Schema("items", index=("kind", "note")), source=Own),
}


class Found(NamedTuple):
    hits: int
    reads: int
    wrong: list[Any]


def serve(cache: Cache, seconds: float, expected: dict[str, Any], gone: str) -> Found:
    """Reads for a while, and compares. gone: a field that an answer may lack."""
    before = cache.stats()
    wrong: list[Any] = []
    deadline, i = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        i += 1
        record = dict(cache[KEYS[i % len(KEYS)]])
        right = {**expected, "id": KEYS[i % len(KEYS)], "kind": "abc"[i % len(KEYS) % 3]}
        if record != right and (not gone or record != {k: v for k, v in right.items() if k != gone}):
            wrong.append(record)
        if i % 20 == 0 and "kind" in cache.schema.index and len(cache.where(kind="a")) != 67:
            wrong.append("where")
        time.sleep(0.005)
    after = cache.stats()
    hits = after.hits - before.hits
    asked = sum(after.fallbacks.values()) - sum(before.fallbacks.values()) + after.misses - before.misses
    return Found(hits, hits + asked, wrong[:3])


def expected_of(source: SQLiteSource) -> dict[str, Any]:
    record = source.fetch("items", ["k0"])[0]
    source.close()
    assert record is not None
    return dict(zip(record.names, record.values, strict=True))


AT_ONCE = ("index added on both sides",)
"""What `make test` tries; `make integration` does the others, and all with processes. Each waits for its times."""


def rolls() -> Iterator[Any]:
    for name in PAIRS:
        for executor in ("thread", "subprocess"):
            is_quick = executor == "thread" and name in AT_ONCE
            yield pytest.param(name, executor, marks=() if is_quick else pytest.mark.integration)


@pytest.mark.parametrize(("name", "executor"), list(rolls()))
def test_versions_share_a_path_while_a_deploy_rolls(path: Path, db: Path, name: str, executor: str, crew: Crew) -> None:
    pair = PAIRS[name]
    ttl, builder = TTL, 0.0
    if pair.is_additive and executor == "subprocess":  # a builder's start fits between falling due and expiring
        builder = seconds_of_a_builder()
        ttl = min(max(TTL, 8 * builder), 5 * TTL)
    options: dict[str, Any] = {"ttl": ttl, "check_interval": 0.1, "executor": executor}
    sources = [pair.source(db, schema) for schema in (pair.old, pair.new)]
    expected = [expected_of(source) for source in sources]  # opened anew in each worker, after the fork
    old = crew.hire(lambda: mmcache.open(path, sources[0], **options), 2)
    for worker in old:
        worker.opened()
    if pair.migration:
        with contextlib.closing(sqlite3.connect(db, isolation_level=None)) as connection:
            connection.execute(pair.migration)
        expected[1].pop("note")
    new = crew.hire(lambda: mmcache.open(path, sources[1], **options), 2)
    for worker in new:
        worker.opened()
    old[0]("rebuild")
    new[0]("rebuild")
    for worker in (*old, *new):
        worker(look_around)
    before, begun = totals(path), time.monotonic()
    gone = "note" if pair.migration else ""
    for worker in old:
        worker.begin(serve, 3 * ttl, expected[0], gone)
    for worker in new:
        worker.begin(serve, 3 * ttl, expected[1], gone)
    found = [worker.result() for worker in (*old, *new)]
    took, after = time.monotonic() - begun, totals(path)
    builds = sum(after[what] - before[what] for what in ("rebuilds_ok", "rebuilds_unchanged", "rebuilds_failed"))
    rates = [one.hits / max(one.reads, 1) for one in found]
    shown = ", ".join(f"{rate:.2f}" for rate in rates)
    print(f"{name}, {executor}: {builds} builds in {took / ttl:.1f} ttls, hit rates {shown}")
    assert not [one.wrong for one in found if one.wrong]
    assert builds <= 2 * took / ttl
    assert failure_of(path) is None
    if pair.is_additive:
        slowest = max(builder, seconds_of_a_builder()) if builder else 0.0
        late = builds * max(0.0, slowest - 0.2 * ttl)  # none on a quiet machine
        assert min(rates) >= 0.9 - late / took


# --- what a worker is shown -------------------------------------------------------------------------------------------


def test_a_worker_is_shown_what_it_asked_for_and_no_more(path: Path, db: Path) -> None:
    wide = (Schema("others", index=("note",)), Schema("items", index=("kind", "note")))
    narrow = Schema("items", index=("kind",), columns=("kind",))
    options: dict[str, Any] = {"executor": "external"}
    with (
        mmcache.open(path, SQLiteSource(db, *wide), **options) as new,
        mmcache.open(path, SQLiteSource(db, narrow), **options) as old,
    ):
        assert new["k0"]["note"] == "others"
        assert dict(old["k0"]) == {"id": "k0", "kind": "a"} == old["k0"].asdict()
        assert dict(old.get_many(["k0"] * 30)[29] or {}) == {"id": "k0", "kind": "a"}
        assert next(dict(record) for record in old.where(kind="a")) == {"id": "k0", "kind": "a"}
        with pytest.raises(ValueError, match="no index on 'note'"):
            old.where(note="items")
        with pytest.raises(KeyError, match="there are: items"):
            old.collection("others")
        with old.pinned() as snapshot:
            assert list(snapshot.collections) == ["items"]
            assert snapshot.schema == narrow.resolved()
            with pytest.raises(ValueError, match="no index on 'note'"):
                snapshot.where(note="items")
        assert (old.generation, old.stats().fallbacks) == (1, {})
        old.rebuild()
        assert len(new.collection("items").where(note="items")) == len(KEYS)
        assert new.stats().fallbacks == {}


def test_an_exact_rebuild_drops_what_others_asked_for(path: Path, db: Path) -> None:
    with mmcache.open(path, SQLiteSource(db, Schema("items", index=("kind", "note"))), executor="external"):
        pass
    with mmcache.open(path, SQLiteSource(db, ONE), executor="external") as cache:
        cache.rebuild()
        with Snapshot.open(path) as snapshot:
            assert snapshot.schema.index == ("kind", "note")
        inside.rebuild(path)
        with Snapshot.open(path) as snapshot:
            assert snapshot.schema.index == ("kind", "note")
        inside.rebuild(path, exact=True)
        with Snapshot.open(path) as snapshot:
            assert snapshot.schema == ONE, "what the last builder asked for"
        cache.rebuild(exact=True)
        with Snapshot.open(path) as snapshot:
            assert snapshot.schema == ONE


def test_a_missing_index_is_looked_up_in_the_source_until_it_is_there(path: Path, db: Path) -> None:
    mmcache.build(path, SQLiteSource(db, ONE))
    with mmcache.open(path, SQLiteSource(db, Schema("items", index=("kind", "note"))), check_interval=0.05) as cache:
        assert cache["k1"]["note"] == "items"
        assert len(cache.where(note="items")) == len(KEYS)
        until("the index is there", lambda: cache.get("k1") and cache.generation == 2)
        before = cache.stats().fallbacks
        assert len(cache.where(note="items")) == len(KEYS)
        assert cache.stats().fallbacks == before


def test_a_file_of_other_schemas_is_not_called_fresh(path: Path, db: Path) -> None:
    with mmcache.open(path, SQLiteSource(db, ONE), check_interval=0.05, ttl=60) as cache:
        assert cache["k1"]["note"] == "items"
        mmcache.build(path, SQLiteSource(db, replace(ONE, table="others")))
        until("it is noticed", lambda: cache.get("k1") and cache.status().state != "fresh")
        assert cache.status().state == "stale"
        assert "other schemas" in cache.status().why
        assert cache["k1"]["note"] == "items"


def test_a_file_of_a_newer_format_is_left_alone_by_all_but_a_person(path: Path, db: Path) -> None:
    def stamp(major: int) -> bytes:
        data = bytearray(path.read_bytes())
        struct.pack_into("<H", data, 8, major)
        struct.pack_into("<Q", data, 248, xxhash.xxh3_64_intdigest(bytes(data[:248])))
        path.unlink()
        path.write_bytes(data)
        path.chmod(0o444)
        return bytes(data)

    source = SQLiteSource(db, ONE)
    mmcache.build(path, source)
    with mmcache.open(path, source, check_interval=0.02, ttl=0.5) as cache:
        assert cache["k1"]["note"] == "items"
        newer = stamp(60_000)
        with mmcache.open(path, source, check_interval=0.02, ttl=0.5) as other:
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                assert other["k1"]["note"] == cache["k1"]["note"] == "items"
                time.sleep(0.02)
        assert path.read_bytes() == newer
        with pytest.raises(IncompatibleFormatError):
            inside.rebuild(path)
        assert mmcache.build(path, source).generation > 1
        until("it is used", lambda: cache.get("k1") and cache.stats().state == "fresh")
