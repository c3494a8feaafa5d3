"""Wall clocks that show a time which no file can hold: frozen by a program, or of a machine that is set wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import mmcache
from mmcache import Cache
from mmcache.cli import main
from tests.accidents.stage import change, note_of, source
from tests.support.clock import Clock
from tests.support.observe import await_polls

YEAR = 365.25 * 86_400


@pytest.fixture(params=[1900, 1969, 2600, 9999])
def clock(request: pytest.FixtureRequest) -> Iterator[Clock]:
    """In such a year, and going on."""
    with Clock().installed() as clock:
        clock.ahead = (request.param - 1970) * YEAR - time.time()
        yield clock
        await_polls()


def steps(cache: Cache, db) -> None:
    """Everything that stores a time."""
    changed = change(db, "k1", note=f"new-{cache.generation}")
    assert cache.invalidate(["k1"]) == "ids"
    assert note_of(cache, "k1") == changed
    assert cache.rebuild().changed
    assert (note_of(cache, "k1"), cache.stats().state) == (changed, "fresh")
    assert cache.rollback().changed
    assert (cache.status().state, cache.resume()) == ("held", True)
    assert cache.rebuild().changed
    assert [alert.rule for alert in cache.alerts(max_load=60.0, min_hit_rate=0.0)] == []


def test_a_clock_that_no_file_can_hold_stops_nothing(path, db, clock):
    with mmcache.open(path, source(db), executor="external") as cache:
        steps(cache, db)
        assert main(["status", str(path), "--check", "--min-hit-rate", "0", "--max-load-ms", "60000"]) == 0
        clock.ahead = 0.0
        steps(cache, db)


def test_a_worker_that_was_there_before_goes_on(path, db, clock):
    far, clock.ahead = clock.ahead, 0.0
    with mmcache.open(path, source(db), executor="external") as cache:
        assert note_of(cache, "k1") == "old"
        clock.ahead = far
        steps(cache, db)
