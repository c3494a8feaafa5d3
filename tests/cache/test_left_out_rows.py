"""Rows that are left out are so in both tiers, in every state of a cache; and every process says how many they are."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from examples.demo.bank import write_bank
from mmcache import Cache, IterableSource, JSONLinesSource, Schema, SourceError, SQLiteSource
from mmcache.presets.patterns import AGENT_CONFIGS, PATTERNS, PatternsSource
from tests.support.waits import until

Row = dict[str, Any]
Make = Callable[[Path, list[Row], Schema], Any]
KINDS = ["x", "y", "z"]
ROWS: list[Row] = [{"id": i, "kind": KINDS[i % 3], "m": {"n": i}, "v": [float(i), 1.0]} for i in range(30)]
SCHEMA = Schema("t", key="id", index=("kind",), embedding="v", dim=2, json=("m",))


def database(at: Path, rows: list[Row]) -> None:
    """Values as they come: bytes, text of JSON, or floats for an embedding."""
    with contextlib.closing(sqlite3.connect(at / "t.db")) as db, db:
        db.execute("create table if not exists t(id, kind, m, v)")
        db.execute("delete from t")
        for row in rows:
            m, v = row.get("m"), row.get("v")
            m = m if m is None or isinstance(m, (str, bytes)) else json.dumps(m)
            v = np.array(v, "f4").tobytes() if isinstance(v, list) else v
            db.execute("insert into t values (?, ?, ?, ?)", (row.get("id"), row.get("kind"), m, v))


def sqlite_table(at: Path, rows: list[Row], schema: Schema) -> Any:
    database(at, rows)
    return SQLiteSource(at / "t.db", schema)


def sqlite_query(at: Path, rows: list[Row], schema: Schema) -> Any:
    database(at, rows)
    return SQLiteSource(at / "t.db", replace(schema, query="select * from t order by rowid"))


def in_memory(_: Path, rows: list[Row], schema: Schema) -> Any:
    return IterableSource(rows, replace(schema, json=()))


def json_lines(at: Path, rows: list[Row], schema: Schema) -> Any:
    (at / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return JSONLinesSource(at / "t.jsonl", replace(schema, json=()))


MAKERS = [sqlite_table, sqlite_query, in_memory, json_lines]
IN_SQLITE: list[Row] = [
    {"id": "json", "kind": "x", "m": "{"},
    {"id": "term", "kind": b"x", "m": {}},
    {"id": "size", "kind": "x", "v": b"12345"},
    {"id": "nan", "kind": "x", "v": [float("nan"), 1.0]},
    {"id": None, "kind": "x"},
    {"id": 1.5, "kind": "x"},
    {"id": "deep", "kind": "x", "m": "[" * 150 + "]" * 150},
]
IN_MAPPINGS: list[Row] = [
    {"id": "term", "kind": {"a": 1}},
    {"id": "dim", "kind": "x", "v": [1.0]},
    {"id": "nan", "kind": "x", "v": [float("nan"), 1.0]},
    {"id": None, "kind": "x"},
    {"id": 1.5, "kind": "x"},
    {"kind": "x"},
    {"id": "int", "kind": "x", "n": 2**70},
    {"id": "text", "kind": "x", "n": "\ud800"},
]


def bad_of(make: Make) -> list[Row]:
    return IN_SQLITE if make in (sqlite_table, sqlite_query) else IN_MAPPINGS


@contextlib.contextmanager
def states(path: Path, source: Any, ids: list[Any], **rules: Any) -> Iterator[dict[str, Cache]]:
    """Caches over one source that are answered by the file, by file and source, and by the source alone."""
    mmcache.build(path, source, **rules)
    with contextlib.ExitStack() as opened:
        quiet: dict[str, Any] = {"executor": "external", "ttl": float("inf"), **rules}
        file = opened.enter_context(mmcache.open(path, source, **quiet))
        other = path.with_name("other.mmc")
        mmcache.build(other, source, **rules)
        dirty = opened.enter_context(mmcache.open(other, source, **quiet))
        dirty.invalidate(ids)
        alone = opened.enter_context(mmcache.open(path.with_name("none.mmc"), source, build=False, **rules))
        yield {"file": file, "dirty": dirty, "source": alone}


def seen(cache: Cache) -> dict[str, Any]:
    """All that a cache says of its records as a whole."""
    return {
        "len": len(cache),
        "ids": list(cache),
        "records": [dict(record) for record in cache.values()],
        "terms": cache.terms("kind"),
        "where": {kind: sorted(map(repr, cache.where(kind=kind).ids)) for kind in KINDS},
        "excluding": len(cache.where(kind=mmcache.excluding("x"))),
        "null": len(cache.where(kind=None)),
    }


@pytest.mark.parametrize("make", MAKERS)
def test_bad_rows_are_in_no_tier_as_a_whole_and_raw_by_key(tmp_path: Path, make: Make) -> None:
    rows = list(ROWS)
    for i, row in enumerate(bad_of(make)):
        rows.insert(3 * i + 1, row)
    keyed = [row["id"] for row in bad_of(make) if isinstance(row.get("id"), str)]
    source = make(tmp_path, rows, SCHEMA)
    with states(tmp_path / "t.mmc", source, [*keyed, 3, 4, 29], on_invalid="skip") as caches:
        for state, cache in caches.items():
            found = seen(cache)
            assert found["len"] == 30, state
            assert found["ids"] == list(range(30)), state
            assert found == seen(caches["file"]), state
            for key in keyed:
                assert cache[key].id == key, (state, key)
                assert key in cache
                assert dict(cache[key]) == dict(caches["source"][key])
            assert cache.get("not there") is None
            assert cache.embedding(3) is not None


@pytest.mark.parametrize("make", MAKERS)
def test_bad_rows_raise_in_both_tiers_unless_they_may_be_left_out(tmp_path: Path, make: Make) -> None:
    source = make(tmp_path, [*ROWS, bad_of(make)[0]], SCHEMA)
    with pytest.raises(mmcache.BuildError):
        mmcache.build(tmp_path / "t.mmc", source)
    assert not (tmp_path / "t.mmc").exists()


@pytest.mark.parametrize("choice", ["first", "last"])
@pytest.mark.parametrize("make", MAKERS)
def test_of_several_rows_with_one_key_both_tiers_choose_the_same(tmp_path: Path, make: Make, choice: Any) -> None:
    rows = [*ROWS, {"id": 4, "kind": "x", "m": {"n": 400}}, {"id": 5, "kind": "z", "m": {"n": 5}}]
    rows += [{"id": 4, "kind": "y", "m": {"n": 401}}, ROWS[7]]
    source = make(tmp_path, rows, SCHEMA)
    with states(tmp_path / "t.mmc", source, [4, 5, 7, 29], on_duplicate=choice) as caches:
        for state, cache in caches.items():
            found = seen(cache)
            assert found["len"] == 30, state
            assert cache[4]["m"]["n"] == (4 if choice == "first" else 401), state
            assert cache[4]["kind"] == "y"
            assert cache.where(kind="x").ids.count(4) == 0, state
            assert cache.where(kind="y").ids.count(4) == 1, state
            for part in ("where", "terms", "excluding", "null"):
                assert found[part] == seen(caches["file"])[part], (state, part)
        assert seen(caches["file"])["ids"] == seen(caches["source"])["ids"]
        assert caches["file"].status().generation == 1


@pytest.mark.parametrize("choice", ["first", "last"])
@pytest.mark.parametrize("make", MAKERS)
def test_a_chosen_row_that_is_bad_leaves_its_key_out_in_both_tiers(tmp_path: Path, make: Make, choice: Any) -> None:
    bad = {"id": 4, "kind": "x", "v": [float("nan"), 0.0]}
    rows = [bad, *ROWS] if choice == "first" else [*ROWS, bad]
    source = make(tmp_path, rows, SCHEMA)
    with states(tmp_path / "t.mmc", source, [4], on_invalid="skip", on_duplicate=choice) as caches:
        for state, cache in caches.items():
            assert list(cache) == [i for i in range(30) if i != 4], state
            assert cache.where(kind="y").ids.count(4) == 0, state
            assert cache[4]["kind"] == "x", state


def test_text_that_is_no_utf8_is_left_out_in_both_tiers(tmp_path: Path) -> None:
    database(tmp_path, ROWS)
    with contextlib.closing(sqlite3.connect(tmp_path / "t.db")) as db, db:
        db.execute("insert into t select 'odd', cast(x'78ff' as text), '{}', null")
        db.execute("insert into t values ('after', 'x', '{}', null)")
    source = SQLiteSource(tmp_path / "t.db", SCHEMA)
    with states(tmp_path / "t.mmc", source, ["odd", "after"], on_invalid="skip") as caches:
        for state, cache in caches.items():
            assert list(cache) == [*range(30), "after"], state
            assert len(cache.where(kind=mmcache.startswith("x"))) == 11, state
            assert cache["odd"]["kind"] == "x\udcff", state


# --- processes


def spoil(bank: Path, key: str, coverage: float = 1.5) -> None:
    with contextlib.closing(sqlite3.connect(bank)) as db, db:
        sql = "update patterns set metadata = json_set(metadata, '$.coverage', ?) where id = ?"
        assert db.execute(sql, (coverage, key)).rowcount == 1


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    write_bank(tmp_path / "bank.db", 200, dim=32, agents=4)
    return tmp_path / "bank.db"


def patterns(bank: Path) -> PatternsSource:
    return PatternsSource(bank, replace(PATTERNS, dim=32), AGENT_CONFIGS)


@pytest.mark.parametrize("executor", ["subprocess", "thread", "inline"])
def test_a_row_that_turns_bad_later_costs_only_itself(
    tmp_path: Path, bank: Path, executor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "mmcache")
    options: dict[str, Any] = {"on_invalid": "skip", "check_interval": 0, "rebuild_after": 0, "executor": executor}
    with mmcache.open(tmp_path / "c.mmc", patterns(bank), **options) as cache:
        assert cache.stats().invalid == 0
        spoil(bank, "pattern-150")

        def is_rebuilt() -> bool:
            cache.get("pattern-1")
            return cache.generation == 2 and cache.stats().state == "fresh"

        until("it is rebuilt", is_rebuilt)
        before = cache.stats()
        for i in range(99):
            assert cache[f"pattern-{i}"].id == f"pattern-{i}"
        after = cache.stats()
        assert after.hits - before.hits == 99
        assert after.build_failures == 0
        assert after.invalid == 1
        assert cache["pattern-150"]["metadata"]["coverage"] == 1.5
        assert len(cache) == 199
        assert "pattern-150" not in list(cache)
        status = cache.status()
        assert status.left_out["patterns"].rows == (
            ("'pattern-150'", "metadata.coverage must be a number in 0..1, found 1.5"),
        )
        told = [record.getMessage() for record in caplog.records if getattr(record, "event", "") == "left_out"]
        assert len(told) == 1
        assert "generation 2 leaves out rows of collection 'patterns': 1 that could not be taken" in told[0]
        spoil(bank, "pattern-150", 0.5)
        until("it is rebuilt again", lambda: cache.get("pattern-1") is not None and cache.generation == 3)
        assert len(cache) == 200
        assert cache.stats().invalid == 0


def test_prometheus_and_the_fleet_report_rows_left_out(tmp_path: Path, bank: Path) -> None:
    prometheus = pytest.importorskip("mmcache.integrations.prometheus")
    spoil(bank, "pattern-7")
    with mmcache.open(tmp_path / "c.mmc", patterns(bank), on_invalid="skip") as cache:
        cache.refresh()
        assert cache.stats().invalid == 1
        assert 'mmcache_invalid_rows{cache="c.mmc"} 1.0' in prometheus.text_of(cache.path)


def test_a_file_that_leaves_rows_out_serves_no_cache_that_would_not(tmp_path: Path, bank: Path) -> None:
    path = tmp_path / "c.mmc"
    mmcache.build(path, patterns(bank), on_invalid="skip")
    quiet: dict[str, Any] = {"executor": "external", "build": False}
    with mmcache.open(path, patterns(bank), **quiet) as strict:
        assert strict.stats().state == "fresh", "nothing was left out"
    spoil(bank, "pattern-7")
    mmcache.build(path, patterns(bank), on_invalid="skip")
    with mmcache.open(path, patterns(bank), **quiet) as strict:
        assert strict["pattern-1"].id == "pattern-1"
        assert strict.stats().state == "incompatible"
    with mmcache.open(path, patterns(bank), on_invalid="skip", **quiet) as cache:
        assert cache["pattern-1"].id == "pattern-1"
        assert cache.stats().hits == 1
        again = pickle.loads(pickle.dumps(cache))
        assert len(again) == 199
        again.close()


def test_a_strict_cache_raises_for_what_only_its_source_has(tmp_path: Path) -> None:
    source = sqlite_table(tmp_path, [*ROWS, IN_SQLITE[0]], SCHEMA)
    with mmcache.open(tmp_path / "none.mmc", source, build=False) as cache:
        with pytest.raises(SourceError):
            cache.where(kind="x")
        with pytest.raises(mmcache.MmcacheError):
            list(cache)


def test_a_file_keeps_the_choice_for_its_rebuilds(tmp_path: Path, bank: Path) -> None:
    from mmcache.sharing.publishing import rebuild

    path = tmp_path / "c.mmc"
    spoil(bank, "pattern-7")
    mmcache.build(path, patterns(bank), on_invalid="skip", max_invalid=2)
    spoil(bank, "pattern-8")
    assert rebuild(path).left_out["patterns"].invalid == 2
    spoil(bank, "pattern-9")
    with pytest.raises(mmcache.BuildError, match="max_invalid=2"):
        rebuild(path)
    assert rebuild(path, max_invalid=10).left_out["patterns"].invalid == 3
    with pytest.raises(mmcache.BuildError, match="key 'pattern-7'"):
        rebuild(path, on_invalid="raise")
