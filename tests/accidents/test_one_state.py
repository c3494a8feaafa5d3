"""`stats`, `status`, the command and the worker's state in the fleet say one word of a cache, in every situation."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mmcache
from mmcache import Cache, MmcacheError, Schema
from mmcache.cli import main
from tests.accidents.stage import ITEMS, change, note_of, source

NOT_ASKED = ("not asked",)
"""Instead of flags: the shell cannot know what the worker knows."""


class Situation(NamedTuple):
    """A cache that was brought into it, the words that may describe it, and how the shell is asked."""

    cache: Cache
    words: tuple[str, ...]
    flags: tuple[str, ...] = ()


def opened(path: Path, db: Path, **options: Any) -> Cache:
    settings: dict[str, Any] = {"executor": "external", "check_interval": 0.0, "build": False} | options
    return mmcache.open(path, source(db), **settings)


def built(path: Path, db: Path, **options: Any) -> Cache:
    mmcache.build(path, source(db))
    cache = opened(path, db, **options)
    note_of(cache)
    return cache


def sourceless(path: Path) -> Cache:
    mmcache.build(path, [{"id": "k1", "kind": "a", "note": "old"}], ITEMS)
    return mmcache.open(path, check_interval=0.0)


def fresh(path: Path, db: Path) -> Situation:
    return Situation(built(path, db), ("fresh",))


def one_id_dirty(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    cache.invalidate(["k3"])
    return Situation(cache, ("stale",))


def many_ids_dirty(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    for i in range(100):
        cache.invalidate([f"k{i}"])
    return Situation(cache, ("stale",))


def collection_hard(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    cache.invalidate(collection="items", hard=True)
    return Situation(cache, ("stale", "invalidated"))


def hard(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    cache.invalidate()
    return Situation(cache, ("invalidated",))


def soft(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    cache.invalidate(hard=False)
    return Situation(cache, ("stale",))


def dirty_and_hard(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    cache.invalidate(["k1"])
    cache.invalidate(hard=False)
    cache.invalidate()
    return Situation(cache, ("invalidated",))


def covered_by_a_rebuild(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    cache.invalidate(["k1"])
    cache.invalidate()
    cache.rebuild()
    return Situation(cache, ("fresh",))


def expired(path: Path, db: Path) -> Situation:
    return Situation(built(path, db, ttl=0.001), ("expired",), ("--ttl", "0.001"))


def expired_and_hard(path: Path, db: Path) -> Situation:
    cache = built(path, db, ttl=0.001)
    cache.invalidate()
    return Situation(cache, ("expired", "invalidated"), ("--ttl", "0.001"))


def expired_and_dirty(path: Path, db: Path) -> Situation:
    cache = built(path, db, ttl=0.001)
    cache.invalidate(["k1"])
    return Situation(cache, ("expired",), ("--ttl", "0.001"))


def missing(path: Path, db: Path) -> Situation:
    return Situation(opened(path, db), ("missing",))


def gone_under_a_worker(path: Path, db: Path) -> Situation:
    """The worker still has the file mapped; the shell finds none."""
    cache = built(path, db)
    path.unlink()
    path.with_name(f"{path.name}.bak").unlink(missing_ok=True)
    return Situation(cache, ("fresh", "stale", "missing"), NOT_ASKED)


def corrupt(path: Path, db: Path) -> Situation:
    mmcache.build(path, source(db))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.unlink()
    path.write_bytes(data)
    return Situation(opened(path, db), ("corrupt",))


def truncated(path: Path, db: Path) -> Situation:
    mmcache.build(path, source(db))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    return Situation(opened(path, db), ("corrupt",))


def untrusted(path: Path, db: Path) -> Situation:
    mmcache.build(path.with_name("real.mmc"), source(db))
    path.symlink_to(path.with_name("real.mmc"))
    return Situation(opened(path, db), ("untrusted",))


def incompatible(path: Path, db: Path) -> Situation:
    """Only a process that has the other schema can tell."""
    mmcache.build(path, source(db))
    other = mmcache.SQLiteSource(db, Schema("items", query="SELECT * FROM items", index=("note",)))
    cache = mmcache.open(path, other, executor="external", check_interval=0.0, build=False)
    return Situation(cache, ("incompatible",), NOT_ASKED)


def sourceless_fresh(path: Path, db: Path) -> Situation:
    return Situation(sourceless(path), ("fresh",))


def sourceless_hard(path: Path, db: Path) -> Situation:
    cache = sourceless(path)
    cache.invalidate()
    return Situation(cache, ("invalidated",))


def sourceless_soft(path: Path, db: Path) -> Situation:
    cache = sourceless(path)
    cache.invalidate(hard=False)
    return Situation(cache, ("stale",))


def sourceless_dirty(path: Path, db: Path) -> Situation:
    cache = sourceless(path)
    cache.invalidate(["k1"])
    return Situation(cache, ("stale",))


def changed_untold(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    change(db, "k1")
    return Situation(cache, ("stale",))


def changed_untold_and_tracked(path: Path, db: Path) -> Situation:
    source(db).track()
    cache = built(path, db)
    change(db, "k1")
    return Situation(cache, ("stale",))


def source_gone(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    for file in db.parent.iterdir():
        file.unlink()
    return Situation(cache, ("fresh",))


def disabled(path: Path, db: Path) -> Situation:
    mmcache.build(path, source(db))
    os.environ["MMCACHE_DISABLE"] = "1"
    return Situation(opened(path, db), ("disabled",))


def page_gone(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    path.with_name(f"{path.name}.ctl").unlink()
    return Situation(cache, ("fresh", "stale", "invalidated"))


def page_gone_and_dirty(path: Path, db: Path) -> Situation:
    cache = built(path, db)
    change(db, "k1")
    cache.invalidate(["k1"])
    path.with_name(f"{path.name}.ctl").unlink()
    return Situation(cache, ("stale", "invalidated"))


SITUATIONS: list[Callable[[Path, Path], Situation]] = [
    fresh,
    one_id_dirty,
    many_ids_dirty,
    collection_hard,
    hard,
    soft,
    dirty_and_hard,
    covered_by_a_rebuild,
    expired,
    expired_and_hard,
    expired_and_dirty,
    missing,
    gone_under_a_worker,
    corrupt,
    truncated,
    untrusted,
    incompatible,
    sourceless_fresh,
    sourceless_hard,
    sourceless_soft,
    sourceless_dirty,
    changed_untold,
    changed_untold_and_tracked,
    source_gone,
    disabled,
    page_gone,
    page_gone_and_dirty,
]


@pytest.fixture(params=SITUATIONS, ids=lambda situation: situation.__name__)
def situation(request: pytest.FixtureRequest, path: Path, db: Path) -> Iterator[Situation]:
    try:
        made: Situation = request.param(path, db)
        with made.cache:
            yield made
    finally:
        os.environ.pop("MMCACHE_DISABLE", None)


def look_around(cache: Cache) -> None:
    """What a worker does within its `check_interval` anyway."""
    for look in (cache.refresh, lambda: cache.get("k1"), cache.refresh, lambda: cache.get("k2")):
        with contextlib.suppress(MmcacheError):
            look()


def state_of_the_worker(path: Path) -> str:
    """By Prometheus: the one worker that lives."""
    prometheus = pytest.importorskip("mmcache.integrations.prometheus")
    lines = [line for line in prometheus.text_of(str(path)).splitlines() if line.startswith("mmcache_workers{")]
    states = [line.split('state="')[1].split('"')[0] for line in lines if line.endswith(" 1.0")]
    assert len(states) == 1, lines
    return str(states[0])


def by_the_shell(path: Path, situation: Situation) -> tuple[str, int]:
    """The word of `mmcache status --check --json`, and its exit code."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(io.StringIO()):
        code = main(["status", str(path), "--json", "--check", *situation.flags])
    return str(json.loads(told.getvalue())["state"]), code


EXITS = {"missing": 3, "corrupt": 5, "untrusted": 1, "expired": 4, "invalidated": 4}


def test_one_word_describes_a_cache_wherever_it_is_asked(path, situation):
    cache = situation.cache
    look_around(cache)
    words = {
        "stats": cache.stats().state,
        "status": cache.status().state,
        "worker": state_of_the_worker(path),
    }
    if situation.flags != NOT_ASKED:
        words["shell"], code = by_the_shell(path, situation)
        assert code == EXITS.get(words["shell"], code)
    assert len(set(words.values())) == 1, words
    assert words["stats"] in situation.words


def test_a_fleet_of_two_is_described_by_one_word(path, db):
    """A worker that knows of an event and one that polls later agree once both have looked."""
    with built(path, db) as one, opened(path, db) as other:
        other.get("k1")
        for step in (lambda: one.invalidate(["k1"]), lambda: other.invalidate(hard=False), one.invalidate):
            step()
            for cache in (one, other):
                look_around(cache)
            assert len({one.stats().state, other.stats().state, one.status().state, other.status().state}) == 1
