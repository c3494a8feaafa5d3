"""Promise 7 on a node that follows: what was invalidated here, a release covers only if it holds it.

The rule as a model over random days of one node: events, releases, pages that are lost. Each event has a time at which
its change was in the source. A release made later than that by more than the skew holds it.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import Cache, Schema
from mmcache.format.header import Header, Tokens
from mmcache.remote.covering import covered, marked
from mmcache.sharing.attach import attach
from mmcache.sharing.following import Mark
from tests.support.clock import Clock

pytestmark = pytest.mark.usefixtures("no_leaks", "no_disk_wait")

SCHEMA = Schema("items", index=("n",))
SKEW = 60.0


class Day:
    """A publisher and a node with a source, whose records carry the number of the last change."""

    def __init__(self, directory: Path, clock: Clock, *, telling: bool) -> None:
        self.url = f"file://{directory}/store"
        self.made, self.node = directory / "made.mmc", directory / "node" / "items.mmc"
        self.node.parent.mkdir()
        self.truth = {f"k{i}": 0 for i in range(8)}
        self.clock = clock
        self.telling = telling
        self.changes = 0

    def records(self) -> list[dict[str, object]]:
        return [{"id": key, "n": n} for key, n in self.truth.items()]

    def fetch(self, keys: Any) -> list[dict[str, object] | None]:
        return [{"id": key, "n": self.truth[key]} if key in self.truth else None for key in keys]

    def fingerprint(self) -> bytes:
        return self.changes.to_bytes(32, "little")

    def source(self) -> mmcache.CallableSource:
        return mmcache.CallableSource(
            self.records,
            SCHEMA,
            fetch=self.fetch,
            fingerprint=self.fingerprint if self.telling else None,
        )

    def open(self) -> Cache:
        return mmcache.open(self.node, self.source(), build=False, ttl=1e9)

    def change(self, cache: Cache, key: str) -> None:
        """In the source, then told on the node."""
        self.changes += 1
        self.truth[key] = self.changes
        cache.invalidate([key])

    def publish(self) -> mmcache.Release:
        mmcache.build(self.made, self.source())
        return mmcache.publish(self.made, self.url)

    def follow(self, **options: object) -> mmcache.Following:
        return mmcache.follow(self.url, self.node, source=self.source(), skew=SKEW, **options)  # type: ignore[arg-type]


@pytest.fixture
def day(tmp_path: Path, clock: Clock) -> Day:
    return Day(tmp_path, clock, telling=False)


def answers(cache: Cache) -> dict[Any, object]:
    return {key: cache[key]["n"] for key in cache}


def test_a_release_made_before_an_invalidation_does_not_cover_it(day):
    day.publish()
    day.follow()
    with day.open() as cache:
        mmcache.build(day.made, day.source())
        day.change(cache, "k1")  # after the publisher has read its source
        mmcache.publish(day.made, day.url)
        day.publish()  # and this one has the change, but is not later by the skew
        day.follow()
        assert answers(cache) == day.truth
        assert cache.status().dirty == 1
        day.clock.ahead += SKEW + 1
        day.changes += 1
        day.truth["k2"] = day.changes  # so that the content is another
        day.publish()
        day.follow()
        assert cache.status().dirty == 0
        assert answers(cache) == day.truth


def test_a_release_with_the_sources_own_fingerprint_covers_everything(tmp_path, clock):
    day = Day(tmp_path, clock, telling=True)
    day.changes = 1
    day.publish()
    day.follow()
    with day.open() as cache:
        day.change(cache, "k1")
        day.publish()
        day.follow()
        assert cache.status().dirty == 0
        assert answers(cache) == day.truth


def test_without_a_source_events_are_void(day):
    day.publish()
    mmcache.follow(day.url, day.node, has_source=False)
    with mmcache.open(day.node) as cache:
        cache.invalidate(hard=True)
        assert cache.status().state == "invalidated"
        day.truth["k1"] = 5
        day.publish()
        mmcache.follow(day.url, day.node, has_source=False)
        assert cache["k1"]["n"] == 5
        assert cache.status().state == "fresh"


def test_a_pin_to_an_older_release_brings_its_invalidations_back(day):
    """It lacks what a newer one covered."""
    first = day.publish().number
    day.follow()
    with day.open() as cache:
        day.change(cache, "k1")
        day.clock.ahead += SKEW + 1
        day.publish()
        day.follow()
        assert cache.status().dirty == 0
        day.follow(pin=first)
        assert cache.status().dirty == 1
        assert answers(cache) == day.truth


@pytest.mark.parametrize("how", ["hard", "collection"])
def test_everything_invalidated_stays_so_until_a_later_release(day, how):
    day.publish()
    day.follow()
    with day.open() as cache:
        day.truth["k1"] = 7
        cache.invalidate(hard=True) if how == "hard" else cache.collection("items").invalidate(hard=True)
        day.publish()
        day.follow()
        assert answers(cache) == day.truth
        assert cache["k1"]["n"] == 7
        day.clock.ahead += SKEW + 1
        day.truth["k2"] = 8
        day.publish()
        day.follow()
        assert cache.status().state == "fresh"
        assert answers(cache) == day.truth


def test_a_page_that_was_lost_is_covered_only_by_a_release_made_after_it(day):
    day.publish()
    day.follow()
    with day.open() as cache:
        day.change(cache, "k1")
    os.unlink(f"{day.node}.ctl")
    mmcache.build(day.made, day.source())
    day.truth["k1"] = 0  # as a release has it whose publisher read before the change
    day.truth["k3"] = 9
    day.publish()
    day.truth["k1"] = day.changes
    day.follow()
    with day.open() as cache:
        assert answers(cache) == day.truth
        day.clock.ahead += SKEW + 1
        day.truth["k2"] = 8
        day.publish()
        day.follow()
        assert cache.status().state == "fresh"
        assert answers(cache) == day.truth


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(4, 100))]
)
@pytest.mark.parametrize("telling", [False, True])
def test_no_day_hides_what_was_invalidated(tmp_path, clock, seed, telling):
    """After every step each record is as the source has it; in the end, once a release is late enough, by the file."""
    day, draw = Day(tmp_path, clock, telling=telling), random.Random(seed)
    releases = [day.publish().number]
    day.follow()
    built_since = False
    cache = day.open()
    for _ in range(40):
        match draw.choice(("change", "change", "build", "publish", "follow", "wait", "pin", "hard", "reopen", "page")):
            case "change":
                day.change(cache, draw.choice(sorted(day.truth)))
            case "build":
                mmcache.build(day.made, day.source())
                built_since = True
            case "publish" if built_since:
                releases.append(mmcache.publish(day.made, day.url).number)
            case "follow":
                day.follow()
            case "wait":
                clock.ahead += draw.choice((1.0, SKEW / 2, SKEW + 1))
            case "pin":
                day.follow(pin=draw.choice(releases))
            case "hard":
                cache.invalidate(hard=True)
            case "reopen":
                cache.close()
                cache = day.open()
            case "page" if draw.random() < 0.3:
                os.unlink(f"{day.node}.ctl")
            case _:
                continue
        cache.refresh()
        assert answers(cache) == day.truth
    clock.ahead += SKEW + 1
    day.changes += 1
    day.truth["k0"] = day.changes
    day.publish()
    day.follow()
    assert answers(cache) == day.truth
    cache.refresh()
    assert (cache.status().state, cache.status().dirty) == ("fresh", 0), "no accident is permanent"
    cache.close()


# --- what no cache can bring on ---------------------------------------------------------------------------------------


def header_at(ns: int) -> Header:
    return Header(10_000, 7, 3, ns, 5, bytes(16), bytes(32))


def test_everything_invalidated_without_the_page_lock_is_covered_by_a_mark(path, clock):
    clock.stand(1_700_000_000.0)
    page = attach(str(path))
    page.panic()
    now_ns, skew_ns = clock.time_ns(), int(SKEW * 1e9)
    mark = marked(str(path), None)
    assert mark is not None
    assert mark.tokens.hard != 0
    for later_ns, hard in ((skew_ns, 0), (skew_ns + 1, mark.tokens.hard)):
        tokens = covered(page, header_at(now_ns + later_ns), None, mark=mark, skew_ns=skew_ns, source=None)
        assert tokens.hard == hard
    assert marked(str(path), mark) == mark
    page.panic()
    assert marked(str(path), mark) != mark
    page.close()


def test_events_that_the_page_lost_are_covered_by_a_mark_only(path, clock, monkeypatch):
    from mmcache.sharing import page as pages
    from mmcache.sharing.events import Event, Kind

    clock.stand(1_700_000_000.0)
    page = attach(str(path))
    page.say([Event(Kind.IDS, "manual", ("items", ("a",), ()))])
    monkeypatch.setattr(pages, "WINDOW", 8)
    monkeypatch.setattr("mmcache.sharing.covering.WINDOW", 8)
    skew_ns = int(SKEW * 1e9)
    late = header_at(clock.time_ns() + 10 * skew_ns)
    mark = Mark(clock.time_ns(), page.tokens())
    assert covered(page, late, None, mark=mark, skew_ns=skew_ns, source=None) == page.tokens()
    early = header_at(page.identity.created_ns)
    lost = covered(page, early, None, mark=mark, skew_ns=skew_ns, source=None)
    assert lost.page not in (0, page.nonce)
    assert page.distrusts(lost.page)
    assert lost != Tokens()
    page.close()
