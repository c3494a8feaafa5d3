"""Machines with boot ids of their own share a directory on a file system that is taken for a local one.

Each keeps a page of its own, the file answers on both, and one line says so. A machine that starts again finds what
was invalidated before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmcache.storage.shared
from mmcache import Cache
from tests.accidents.stage import Crew, heard, invalidate_changed, note_of, notes_of, opens, truth


def boots(name: bytes, path: Path, db: Path, **options: Any) -> Callable[[], Cache]:
    """How a worker on another machine opens its cache."""
    open_cache = opens(path, db, ttl=86_400, rebuild_after=3600, check_interval=1.0, **options)

    def on_another_machine() -> Cache:
        mmcache.storage.shared.boot_id = lambda: name  # type: ignore[assignment]
        return open_cache()

    return on_another_machine


def read_often(cache: Cache) -> int:
    """Reads for half a second; the hits among them."""
    import time

    before, end = cache.stats().hits, time.monotonic() + 0.5
    while time.monotonic() < end:
        assert note_of(cache, "k40") == "old"
    return cache.stats().hits - before


@pytest.fixture
def machines(path, db, crew: Crew):
    """Two workers here, one on each of two other machines."""
    here = crew.hire(opens(path, db, ttl=86_400, rebuild_after=3600, check_interval=1.0), 2)
    return [*here, *(crew.hire(boots(name, path, db)) for name in (b"second machine", b"third machine"))]


def test_pages_of_two_machines_do_not_replace_each_other(machines, db):
    hits: list[int] = []
    replaced: list[list[int]] = []
    for i in range(1, 9):
        for worker in machines:
            worker.begin(read_often)
        hits = [worker.result() for worker in machines]
        speaker = machines[i % 2]
        if speaker(invalidate_changed, db, f"k{i}"):
            assert machines[1 - i % 2](note_of, f"k{i}") == "new"
        replaced.append([worker(heard).count("page_replaced") for worker in machines])
    states = [worker("stats").state for worker in machines]
    assert max(replaced[-1]) <= 1
    assert replaced[3] == replaced[-1], "once all have begun, it has ended"
    assert "invalidated" not in states
    assert min(hits) > 0


def test_each_machine_hears_its_own_invalidations(path, db, crew: Crew):
    pairs = [crew.hire(boots(name, path, db), 2) for name in (b"second machine", b"third machine")]
    for pair in pairs:
        for worker in pair:
            worker(note_of)
    for i in range(1, 11):
        one, other = pairs[i % 2]
        if one(invalidate_changed, db, f"k{i}"):
            assert other(note_of, f"k{i}") == "new"


def test_a_second_machine_is_said_once(machines):
    for _ in range(4):
        for worker in machines:
            worker(read_often)
    for worker in machines:
        events = worker(heard)
        assert events.count("degraded") + events.count("page_replaced") <= 1, events


def test_a_reboot_loses_no_invalidation(path, db, crew: Crew):
    before = crew.hire(opens(path, db))
    before(note_of)
    for i in range(5):
        assert before(invalidate_changed, db, f"k{i}")
    before.end()
    after = crew.hire(boots(b"the same machine, later", path, db), 2)
    keys = [f"k{i}" for i in range(8)]
    assert [worker(notes_of, keys) for worker in after] == [truth(db, keys)] * 2
    assert after[0](invalidate_changed, db, "k7")
    assert after[1](note_of, "k7") == "new"


def test_a_reboot_loses_no_hard_invalidation(path, db, crew: Crew):
    before = crew.hire(opens(path, db))
    before(note_of)
    before("invalidate")
    before(invalidate_changed, db, "k3")
    before.end()
    after = crew.hire(boots(b"the same machine, later", path, db))
    assert after("stats").state == "invalidated" or after(note_of, "k3") == "new"


def test_a_file_built_on_one_machine_answers_on_both(machines, db):
    for worker in machines:
        worker(note_of)
    assert machines[0](invalidate_changed, db, "k1")
    machines[0]("rebuild")
    machines[2](invalidate_changed, db, "k2")
    machines[2]("rebuild")
    for worker in machines:
        worker("refresh")
        assert worker(notes_of, ["k1", "k2", "k3"]) == ["new", "new", "old"]
        assert worker(read_often) > 0
