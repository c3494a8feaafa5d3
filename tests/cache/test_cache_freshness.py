"""A cache grows old, its source changes behind its back, and it says so: by its answers, its log and its statistics."""

from __future__ import annotations

import logging
import math
import os
import pickle
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, SourceError, SQLiteSource
from mmcache.freshness import PROFILES
from tests.support import inside
from tests.support.bank import source_of, write
from tests.support.observe import logged
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")

Open = Callable[..., Cache]
KEY = "item-1-ä"


@pytest.fixture
def caches(path: Path, bank: Path) -> Iterator[Open]:
    """Opens caches that look around at every get, and leave building to others."""
    opened: list[Any] = []

    def open_one(**options: Any) -> Cache:
        source = source_of(bank)
        usual: dict[str, Any] = {"check_interval": 0, "executor": "external"}
        cache = mmcache.open(path, source, **usual | options)
        opened.extend([cache, source])
        return cache

    yield open_one
    for one in opened:
        one.close()


class Told(logging.Handler):
    """What was logged, without what it was logged with: the frames of an error keep a file open."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str | None, str | None, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((getattr(record, "event", None), getattr(record, "path", None), record.getMessage()))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    log, handler = logging.getLogger("mmcache"), Told()
    monkeypatch.setattr(log, "propagate", False)
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


# --- age --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_says_when_the_source_answers(caches, bank, clock, profile):
    cache = caches(profile=profile)
    write(bank)
    ttl = PROFILES[profile].ttl
    for age, state, kind in ((0.5, "stale", "a"), (0.99, "stale", "a"), (1.01, "expired", "z")):
        clock.ahead = age * ttl
        assert cache[KEY]["kind"] == kind
        assert cache.stats().state == state
    assert cache.stats().fallbacks == {"expired": 1}


def test_a_ttl_of_ones_own(caches, clock):
    cache = caches(ttl=100, refresh_at=0.5)
    for ahead, state in ((0, "fresh"), (40, "fresh"), (60, "stale"), (101, "expired"), (99, "stale"), (0, "fresh")):
        clock.ahead = ahead
        cache[KEY]
        assert cache.stats().state == state, ahead


def test_forever(caches, clock):
    cache = caches(ttl=math.inf)
    clock.ahead = 1e10
    cache[KEY]
    assert (cache.stats().state, cache.stats().fallbacks) == ("fresh", {})


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_clock_that_steps_an_hour_takes_no_answer_away(caches, clock, ahead):
    cache = caches(profile="production")
    clock.ahead = ahead
    assert cache[KEY]["kind"] == "a"
    assert cache.stats().fallbacks == {}
    assert cache.stats().state == ("stale" if ahead < 0 else "fresh")


def test_answers_while_stale_are_counted(caches, clock):
    cache = caches(ttl=100, refresh_at=0.5)
    clock.ahead = 60
    for _ in range(7):
        cache[KEY]
    cache.refresh()
    assert cache.stats().stale_served == 7
    assert cache.stats().hits == 7


def test_an_expired_file_answers_for_a_failing_source_and_not_for_ever(caches, bank, clock):
    cache = caches(ttl=100, max_stale=50)
    clock.ahead = 120
    cache[KEY]
    assert cache.stats().fallbacks == {"expired": 1}
    terms = cache.terms("kind")
    cache.source.close()
    os.rename(bank, f"{bank}.gone")
    assert cache[KEY]["kind"] == "a"
    assert cache.get_many([KEY, "nope"])[1] is None
    assert cache.where(kind="a").ids[0] == KEY
    assert list(cache.terms("kind").items()) == list(terms.items()) != []
    assert cache.stats().stale_served == 4
    clock.ahead = 151
    for ask in (lambda: cache[KEY], lambda: cache.terms("kind")):
        with pytest.raises(SourceError):
            ask()
    os.rename(f"{bank}.gone", bank)
    assert cache[KEY]["kind"] == "a"


@pytest.mark.parametrize("why", ["expired", "slow"])
def test_no_file_answers_for_a_failing_source_what_was_invalidated(caches, bank, clock, why):
    cache = caches(ttl=100, max_stale=50, **({"slow_after": 1e-9, "fallback_on_slow": True} if why == "slow" else {}))
    while cache.stats().state != "slow" and why == "slow":
        cache[KEY]
    clock.ahead = 120 if why == "expired" else 0
    cache.invalidate([KEY])
    cache.source.close()
    os.rename(bank, f"{bank}.gone")
    other = "item-2-ä"
    assert cache[other]["kind"] == "b"
    assert cache.stats().state == why
    asks = [lambda: cache[KEY], lambda: cache.get_many([other, KEY]), lambda: cache.embedding(KEY)]
    asks += [lambda: cache.where(kind="a"), lambda: len(cache), lambda: list(cache), lambda: cache.embeddings]
    asks += [lambda: cache.terms("kind")]
    for ask in asks:
        with pytest.raises(SourceError):
            ask()
    assert len(cache.collection("notes")) == 5, "nothing was said of these"


def test_max_stale_zero_is_not_at_all(caches, bank, clock):
    cache = caches(ttl=100, max_stale=0)
    clock.ahead = 101
    cache.source.close()
    os.rename(bank, f"{bank}.gone")
    with pytest.raises(SourceError):
        cache[KEY]


def test_an_expired_file_is_built_again_where_it_is_found(caches, bank, clock):
    cache = caches(ttl=100, executor="inline")
    write(bank)
    clock.ahead = 101
    cache[KEY]
    assert cache[KEY]["kind"] == "z"
    assert (cache.stats().state, cache.stats().rebuilds, cache.generation) == ("fresh", 2, 2)


def test_without_a_source_no_age_matters(path, bank, clock):
    source = source_of(bank)
    mmcache.build(path, source)
    source.close()
    with mmcache.open(path, ttl=10, check_interval=0) as cache:
        clock.ahead = 1e9
        assert cache[KEY]["kind"] == "a"
        assert cache.where(kind="a").ids[0] == KEY


# --- a source that was written to -------------------------------------------------------------------------------------


def test_a_write_that_was_not_announced_is_noticed_at_the_next_poll(caches, bank):
    cache = caches()
    assert cache.stats().state == "fresh"
    write(bank)
    assert cache[KEY]["kind"] == "a", "which record it was, the database does not say"
    assert cache.stats().state == "stale"
    status = cache.status()
    assert (status.state, status.why) == ("stale", "the source was written to since it was built")
    cache.rebuild()
    assert cache[KEY]["kind"] == "z"
    assert cache.stats().state == "fresh"


def test_it_is_looked_for_once_in_an_interval(caches, bank):
    cache = caches(check_interval=0.2)
    cache[KEY]
    asked = []
    fingerprint = cache.source.fingerprint

    def counted() -> bytes:
        asked.append(time.monotonic())
        return fingerprint()

    cache.source.fingerprint = counted
    write(bank)
    begun = time.monotonic()
    while cache.stats().state != "stale" and time.monotonic() < begun + 20:
        cache[KEY]
    elapsed = time.monotonic() - begun
    assert cache.stats().state == "stale"
    assert 1 <= len(asked) <= elapsed / 0.2 + 1


def test_a_changed_source_is_built_in_after_a_while(caches, bank):
    cache = caches(executor="inline", rebuild_after=3600)
    write(bank)
    for _ in range(3):
        cache[KEY]
    assert cache.stats().rebuilds == 1
    late = caches(executor="inline", rebuild_after=0)
    late[KEY]
    assert late[KEY]["kind"] == "z"
    assert cache[KEY]["kind"] == "z"


def test_a_tracked_source_says_which_ids_changed(caches, bank):
    source_of(bank).track()
    cache = caches()
    cache[KEY]
    write(bank, 1, "z")
    with sqlite3.connect(bank) as db:
        db.execute("DELETE FROM items WHERE name = 'item-2-ä'")
        db.execute("UPDATE notes SET body = 'new' WHERE note_id = 'note-1'")
    db.close()
    until("it is told", lambda: cache[KEY]["kind"] == "z")
    assert cache.get("item-2-ä") is None
    assert cache.collection("notes")["note-1"]["body"] == "new"
    assert cache.stats().fallbacks == {"invalidated": 2}
    assert cache.stats().misses == 1
    assert cache["item-3-ä"]["kind"] == "c"
    assert cache.stats().fallbacks == {"invalidated": 2}
    assert cache.status().dirty == 3
    cache.rebuild()
    assert cache[KEY]["kind"] == "z"
    assert cache.stats().state == "fresh"
    assert cache.stats().fallbacks == {"invalidated": 2}


def test_a_tracked_source_whose_log_was_lost_is_one_that_has_changed(caches, bank):
    source = source_of(bank)
    source.track()
    cache = caches()
    write(bank)
    source.untrack()
    source.close()
    assert cache[KEY]["kind"] == "a"
    assert cache.stats().state == "stale"


def test_a_source_that_cannot_be_asked_takes_nothing_away(caches, bank, caplog):
    caplog.set_level(logging.DEBUG, "mmcache")
    cache = caches()
    cache.source.close()
    os.rename(bank, f"{bank}.gone")
    assert cache[KEY]["kind"] == "a"
    assert cache.stats().state == "fresh"
    assert "source_unreadable" in logged(caplog)


class Grumbling(SQLiteSource):
    def fingerprint(self) -> bytes:
        raise ZeroDivisionError("of the user's own making")


def test_a_source_whose_fingerprint_fails_in_its_own_way_takes_nothing_away(path, bank):
    source = source_of(bank)
    mmcache.build(path, source)
    source.close()
    grumbling = Grumbling(bank, *source.schemas)
    with mmcache.open(path, grumbling, check_interval=0, executor="external") as cache:
        assert cache[KEY]["kind"] == "a"
        assert cache.stats().state == "fresh"
    grumbling.close()


# --- what is logged ---------------------------------------------------------------------------------------------------


def test_a_life_is_logged_line_by_line_and_no_get_is(caches, bank, path, caplog, clock):
    caplog.set_level(logging.INFO, "mmcache")
    one = caches(ttl=100)
    other = caches(ttl=100)
    assert logged(caplog) == ["published"]
    caplog.clear()
    for _ in range(200):
        other[KEY]
        other.get("nope")
    assert logged(caplog) == []
    write(bank)
    one.rebuild()
    other[KEY]
    one.rebuild()
    one.invalidate([KEY])
    assert logged(caplog) == ["published", "adopted", "adopted", "revalidated", "invalidated"]
    caplog.clear()
    os.unlink(f"{path}.ctl")
    other[KEY]
    assert logged(caplog) == ["page_replaced"]
    caplog.clear()
    clock.ahead = 200
    for _ in range(20):
        other[KEY]
    assert logged(caplog) == []


def test_every_event_names_its_file(caches, bank, path, told):
    cache = caches()
    write(bank)
    cache.rebuild()
    cache.invalidate()
    (path.parent / "new").write_bytes(b"no cache file")
    os.replace(path.parent / "new", path)
    cache[KEY]
    assert {"published", "adopted", "invalidated", "file_refused"} <= {event for event, _, _ in told.lines}
    for event, where, text in told.lines:
        assert event, text
        assert where == str(path), text
        assert "\n" not in text


def test_a_bad_new_file_is_refused_once_and_the_old_one_kept(caches, path, told):
    cache = caches()
    cache[KEY]
    (path.parent / "new").write_bytes(path.read_bytes()[:-1])
    os.replace(path.parent / "new", path)
    for _ in range(5):
        assert cache[KEY]["kind"] == "a"
    assert [event for event, _, _ in told.lines if event == "file_refused"] == ["file_refused"]
    stats = cache.stats()
    assert (stats.refusals, stats.corruptions, stats.generation, stats.adoptions) == (1, 1, 1, 0)


def test_a_degraded_cache_says_so_once(path, bank, caplog):
    caplog.set_level(logging.INFO, "mmcache")
    source = source_of(bank)
    with (
        inside.on_file_system("nfs4"),
        mmcache.open(path, source, check_interval=0, executor="external") as cache,
    ):
        for _ in range(5):
            cache[KEY]
    source.close()
    assert logged(caplog).count("degraded") == 1


# --- what is counted --------------------------------------------------------------------------------------------------


def test_stats_say_what_was_seen(caches, bank):
    one, two = caches(), caches()
    for _ in range(10):
        two[KEY]
    two.get("nope")
    two.get_many([KEY, "item-2-ä", "nope"])
    two.where(kind="a")
    two.embedding(KEY)
    assert KEY in two
    stats = two.stats()
    assert (stats.hits, stats.misses, stats.fallbacks) == (15, 2, {})
    assert stats.hit_rate == 15 / 17
    assert (stats.opens, stats.adoptions, stats.rebuilds, stats.state) == (1, 0, 0, "fresh")
    assert one.stats().rebuilds == 1
    write(bank)
    one.rebuild()
    two[KEY]
    two.invalidate([KEY])
    two[KEY]
    stats = two.stats()
    assert (stats.hits, stats.fallbacks, stats.invalidations) == (16, {"invalidated": 1}, 1)
    assert (stats.opens, stats.adoptions, stats.generation) == (2, 1, 2)
    assert 0 < stats.fallback_seconds < 60
    assert 0 < stats.load_seconds < 60


def test_looking_at_the_statistics_changes_none(caches):
    cache = caches()
    cache[KEY]
    assert [cache.stats().hits for _ in range(5)] == [1] * 5


def test_slow_look_ups_open_the_circuit_for_a_while(caches, caplog, clock):
    caplog.set_level(logging.WARNING, "mmcache")
    counted = caches(slow_after=0)
    for _ in range(5):
        counted[KEY]
    assert (counted.stats().slow_lookups, counted.stats().fallbacks) == (5, {})
    cache = caches(slow_after=0, fallback_on_slow=True)
    for _ in range(5):
        cache[KEY]
    stats = cache.stats()
    assert (stats.slow_lookups, stats.fallbacks, stats.state) == (3, {"slow": 2}, "slow")
    assert logged(caplog) == ["circuit_opened"]
    clock.later = 31
    cache.refresh()
    assert cache.stats().state == "fresh"


# --- options ----------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "ttl": 77.0,
    "profile": "production",
    "refresh_at": 0.5,
    "max_stale": 5.0,
    "build": False,
    "follow": "memory://none/items",
    "follow_every": 9.0,
    "executor": "thread",
    "rebuild_after": 1.0,
    "build_timeout": 2.0,
    "wait": 3.0,
    "check_interval": 4.0,
    "slow_after": 0.5,
    "fallback_on_slow": True,
    "verify": "full",
    "access": "copy",
    "cluster_by": "kind",
    "metadata": {"who": "me"},
    "label": "web",
    "rollout": 0.999999,
    "trust": [0, "root"],
    "on_event": print,
    "on_invalid": "skip",
    "max_invalid": 3,
    "on_duplicate": "first",
    "progress": "lines",
}


def test_a_pickled_cache_keeps_every_option(path, bank):
    source = source_of(bank)
    mmcache.build(path, source)
    with Cache(path, source, **OPTIONS) as cache, pickle.loads(pickle.dumps(cache)) as again:
        assert {name: inside.options_of(again)[name] for name in OPTIONS} == OPTIONS
        assert inside.policy_of(again) == inside.policy_of(cache)
        assert inside.policy_of(again).ttl == 77
        assert again[KEY]["kind"] == "a"
        again.source.close()
    source.close()


def test_every_option_of_open_is_one_of_the_cache():
    import inspect
    from dataclasses import fields

    from mmcache.options import GivenOptions, OpenOptions, Options

    opened = inspect.signature(mmcache.open).parameters
    kept = {field.name: field.default for field in fields(Options) if field.init}
    of_the_source = {"path", "source", "model", "schema", *GivenOptions.__annotations__} - {
        *OpenOptions.__annotations__
    }
    assert {name: opened[name].default for name in opened if name not in of_the_source} == kept
    assert sorted(kept) == sorted(OpenOptions.__annotations__) == sorted(OPTIONS)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("ttl", 0, "ttl must be a number of seconds above 0"),
        ("ttl", math.nan, "ttl must be"),
        ("ttl", "1h", "ttl must be"),
        ("profile", "prod", "profile must be one of development, staging, production"),
        ("refresh_at", 0, "refresh_at must be a share"),
        ("refresh_at", 1.5, "refresh_at must be a share"),
        ("max_stale", -1, "max_stale must be"),
        ("executor", "process", "executor must be one of subprocess, thread, inline, external"),
        *[
            (name, value, f"{name} must be a number of seconds, 0 or more")
            for name in ("rebuild_after", "build_timeout", "wait", "check_interval", "slow_after")
            for value in (-1, math.nan, "1", True)
        ],
    ],
)
def test_an_option_out_of_range_is_refused_by_name(path, option, value, text):
    with pytest.raises(ValueError, match=text):
        Cache(path, **{option: value})
    assert not path.exists()
