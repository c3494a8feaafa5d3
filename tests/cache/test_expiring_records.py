"""Records that carry their own end: none is answered after it, whatever the state of the cache and whichever tier."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, strategies as st

import mmcache
from mmcache import Schema, SQLiteSource
from mmcache.errors import BuildError, SourceError
from mmcache.sources import IterableSource
from mmcache.storage.ends import end_of, has_ended
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")

ITEMS = Schema("items", index=("kind",), embedding="v", expires="ends")
NOW = 1_800_000_000


def text(at, form="%Y-%m-%d %H:%M:%S"):
    return datetime.fromtimestamp(at, UTC).strftime(form)


ENDS = {
    "past": NOW - 1,
    "n10": NOW + 10,
    "t20": text(NOW + 20),
    "T30": text(NOW + 30, "%Y-%m-%dT%H:%M:%SZ"),
    "f40": text(NOW + 40) + ".5",
    "f50": NOW + 50.25,
    "day": text(NOW + 200_000, "%Y-%m-%d"),
    "never": None,
}
AT = {name: end_of(value) - NOW for name, value in ENDS.items()}


def living(ahead):
    return [name for name in ENDS if AT[name] > ahead]


@pytest.fixture
def shop(tmp_path, clock):
    clock.stand(NOW)
    path = tmp_path / "shop.db"
    rows = [(name, "even" if i % 2 == 0 else "odd", f"[{i}, 1]", end) for i, (name, end) in enumerate(ENDS.items())]
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT, v TEXT, ends)")
        db.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", rows)
    return path


def write(path, sql, *values):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(sql, values)


def check(cache, ahead):
    """All answers are those of the records that live then."""
    names = living(ahead)
    kinds = {name: "even" if i % 2 == 0 else "odd" for i, name in enumerate(ENDS)}
    assert [name for name in ENDS if cache.get(name) is not None] == names
    assert [name for name in ENDS if name in cache] == names
    assert [record is not None for record in cache.get_many(list(ENDS))] == [name in names for name in ENDS]
    assert list(cache) == names
    assert len(cache) == len(names)
    assert [record.id for record in cache.values()] == names
    assert cache.where().ids == names
    for kind in ("even", "odd"):
        assert cache.where(kind=kind).ids == [name for name in names if kinds[name] == kind]
    assert sum(cache.terms("kind").values()) == len(names)
    assert cache.get_embeddings(names).shape == (len(names), 2)
    for name in set(ENDS) - set(names):
        for ask in (cache.__getitem__, cache.embedding, lambda key: cache.get_embeddings([key])):
            with pytest.raises(KeyError):
                ask(name)


MOMENTS = (0, 10, 20, 29.5, 30, 40.4, 40.5, 50.3, 200_001)


def test_no_record_is_answered_after_its_end(shop, path, clock):
    with mmcache.open(path, SQLiteSource(shop, ITEMS), ttl=math.inf, check_interval=0.0) as cache:
        for ahead in MOMENTS:
            clock.ahead = ahead
            check(cache, ahead)
        assert cache.stats().generation == 1


@pytest.mark.parametrize("state", ["invalidated", "disabled", "ids", "no source", "expired"])
def test_no_state_of_a_cache_answers_what_has_ended(shop, path, clock, monkeypatch, state):
    source = SQLiteSource(shop, ITEMS)
    mmcache.build(path, source)
    if state == "disabled":
        monkeypatch.setenv("MMCACHE_DISABLE", "1")
    options: dict[str, Any] = {
        "ttl": 5.0 if state == "expired" else math.inf,
        "executor": "external",
        "check_interval": 0.0,
    }
    with mmcache.open(path, None if state == "no source" else source, **options) as cache:
        if state == "invalidated":
            cache.invalidate(hard=True)
        if state == "ids":
            cache.invalidate(["n10", "never", "f40"])
        for ahead in MOMENTS:
            clock.ahead = ahead
            check(cache, ahead)
    source.close()


def test_the_file_that_stands_in_for_a_broken_source_has_no_ended_records(shop, path, clock):
    source = SQLiteSource(shop, ITEMS)
    mmcache.build(path, source)
    shop.rename(shop.with_suffix(".gone"))
    with mmcache.open(path, source, ttl=5.0, executor="external", check_interval=0.0) as cache:
        for ahead in (10, 30, 41):
            clock.ahead = ahead
            assert list(cache) == cache.where().ids == [record.id for record in cache.values()] == living(ahead)
            assert len(cache) == len(living(ahead))
            assert [name for name in living(ahead) if cache.get(name) is None] == []
            assert cache.terms("kind").keys() <= {"even", "odd"}
        assert cache.stats().stale_served > 0
    source.close()


def test_a_record_that_was_given_more_time_is_answered_by_the_source(shop, path, clock):
    source = SQLiteSource(shop, ITEMS)
    source.track()
    with mmcache.open(path, source, ttl=math.inf, executor="external", check_interval=0.0) as cache:
        clock.ahead = 15
        assert cache.get("n10") is None
        write(shop, "UPDATE items SET ends = ? WHERE id = 'n10'", NOW + 1000)
        until("the longer record", lambda: "n10" in cache.where(kind="odd").ids)
        assert cache["n10"]["ends"] == NOW + 1000
        assert list(cache) == [*living(15)[:0], "n10", *living(15)]
    source.close()


def test_what_is_read_as_a_whole_follows_within_one_check_interval(shop, path, clock):
    with mmcache.open(path, SQLiteSource(shop, ITEMS), ttl=math.inf, check_interval=60.0) as cache:
        assert len(cache) == len(living(0))
        clock.ahead = 12
        assert cache.get("n10") is None  # at once
        clock.later = 61
        until("the next poll", lambda: len(cache) == len(living(12)))


def test_a_build_leaves_out_what_has_ended_and_an_unchanged_one_stays(shop, path, clock):
    source = SQLiteSource(shop, ITEMS)
    assert mmcache.build(path, source).records == {"items": len(living(0))}
    clock.ahead = 5
    assert not mmcache.build(path, source).changed
    clock.ahead = 25
    assert mmcache.build(path, source).records == {"items": len(living(25))}
    with mmcache.Snapshot.open(path) as snapshot:
        assert list(snapshot) == living(25)
        assert "ends" in snapshot.default.schema.index
    source.close()


def test_records_in_memory_expire_too(path, clock):
    clock.stand(NOW)
    records: list[dict[str, Any]] = [
        {"id": 1, "ends": NOW + 5},
        {"id": 2, "ends": None},
        {"id": 3},
        {"id": 4, "ends": NOW},
    ]
    mmcache.build(path, IterableSource(records, Schema("items", expires="ends")))
    with mmcache.open(path, check_interval=0.0) as cache:
        assert list(cache) == [1, 2, 3]
        clock.ahead = 5
        assert list(cache) == [2, 3]
        assert cache.get(1) is None


def test_of_several_rows_with_one_key_the_chosen_one_decides(path, clock):
    clock.stand(NOW)
    records: list[dict[str, Any]] = [
        {"id": "a", "ends": NOW - 1},
        {"id": "a", "ends": None},
        {"id": "b"},
        {"id": "b", "ends": NOW - 1},
    ]
    choices: list[tuple[Literal["first", "last"], list[str]]] = [("first", ["b"]), ("last", ["a"])]
    for choice, keys in choices:
        schema = Schema("items", expires="ends", on_duplicate=choice)
        source = IterableSource(records, schema)
        mmcache.build(path, source)
        for asked in (None, source):
            with mmcache.open(path, asked, check_interval=0.0, executor="external") as cache:
                assert list(cache) == keys
                assert [key for key in "ab" if key in cache] == keys
                if cache.source is not None:
                    cache.invalidate(hard=True)
                    assert list(cache) == keys
                    assert [key for key in "ab" if cache.get(key)] == keys


@pytest.mark.parametrize("value", [1.8e12, "soon", "", "2027-02-30", "2027-01-01 12:00+01:00", True, b"x", math.nan])
def test_what_is_no_time_is_a_row_that_cannot_be_taken(path, clock, value):
    clock.stand(NOW)
    records = [{"id": "a", "ends": value}, {"id": "b", "ends": None}]
    with pytest.raises(BuildError, match=r"key 'a': ends: .* is no time at which a record expires"):
        mmcache.build(path, records, Schema("items", expires="ends"))
    skipping = Schema("items", expires="ends", on_invalid="skip")
    report = mmcache.build(path, records, skipping)
    assert report.records == {"items": 1}
    assert report.left_out["items"].invalid == 1
    with mmcache.open(path, IterableSource(records, skipping), executor="external") as cache:
        cache.invalidate(hard=True)
        assert list(cache) == ["b"]
    with (
        mmcache.open(
            path, IterableSource(records, Schema("items", expires="ends")), executor="external", build=False
        ) as cache,
        pytest.raises(SourceError, match="no time"),
    ):
        list(cache)


def test_a_field_that_cannot_be_an_end_is_refused():
    for options in ({"key": "ends"}, {"embedding": "ends"}):
        with pytest.raises(ValueError, match="the key or an embedding"):
            Schema.from_dict({"name": "items", "expires": "ends", **options})
    with pytest.raises(ValueError, match="is a path"):
        Schema("items", expires="meta.ends")
    assert Schema("items", expires="ends").index == ("ends",)
    assert Schema.from_dict(ITEMS.to_dict()) == ITEMS


def test_the_field_is_spelled_as_the_database_has_it(shop, path, clock):
    clock.ahead = 12
    mmcache.build(path, SQLiteSource(shop, Schema("items", expires="ENDS")))
    with mmcache.open(path) as cache:
        assert list(cache) == living(12)


@given(
    ends=st.lists(
        st.one_of(
            st.integers(-3, 3).map(lambda n: NOW + n),
            st.floats(-3, 3).map(lambda n: NOW + n),
            st.tuples(
                st.integers(-100_000, 100_000), st.sampled_from(("%F %T", "%FT%T", "%FT%TZ", "%F", "%F %H:%M"))
            ).map(lambda pair: text(NOW + pair[0], pair[1])),
            st.tuples(st.integers(-2, 2), st.sampled_from((".1", ".25Z", ".999999+00:00", "+00:00"))).map(
                lambda pair: text(NOW + pair[0]) + pair[1]
            ),
            st.none(),
        ),
        max_size=12,
    ),
    after=st.floats(0, 200_000) | st.floats(0, 3),
)
def test_whole_reads_leave_out_exactly_what_has_ended(tmp_path_factory, ends, after):
    path = tmp_path_factory.mktemp("ends") / "items.mmc"
    records = [{"id": i, "ends": end} for i, end in enumerate(ends)]
    from tests.support.clock import Clock

    with Clock().installed() as clock:
        clock.stand(NOW - 200_000)
        mmcache.build(path, records, Schema("items", expires="ends"))
        clock.stand(NOW + after)
        expected = [i for i, end in enumerate(ends) if end_of(end) > NOW - 200_000 and not has_ended(end, clock.time())]
        with mmcache.open(path) as cache:
            assert list(cache) == expected
            assert [i for i in range(len(ends)) if i in cache] == expected
            assert np.array_equal(cache.where().rows, np.flatnonzero(np.isin(list(snapshot_keys(path)), expected)))


def snapshot_keys(path):
    with mmcache.Snapshot.open(path) as snapshot:
        return list(snapshot)
