"""Alerts look at a recent window, which any process computes at once from the samples of all counter files."""

from __future__ import annotations

import math
import os
import random
import signal
from pathlib import Path

import pytest

from mmcache.sharing import metrics
from mmcache.sharing.alerts import DAY, HOUR, TARGET, Alert, Rules, broken
from mmcache.sharing.counters import WorkerCounters, read_fleet
from mmcache.sharing.fleet import CAUSES_WITHOUT_FILE, Fleet, History, Sample
from tests.support.clock import Clock
from tests.support.processes import in_child

pytestmark = pytest.mark.usefixtures("no_leaks")

BEGIN = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "items.mmc")


@pytest.fixture
def stopped(clock: Clock) -> Clock:
    clock.stand(BEGIN)
    return clock


def count(counters: WorkerCounters, hits: int, fallbacks: int = 0, misses: int = 0) -> None:
    counters.add(metrics.BATCH_HITS, hits)
    counters.add(metrics.FALLBACKS, fallbacks)
    counters.add(metrics.MISSES, misses)
    counters.flush()


def recent(path: str, clock: Clock, window: float) -> tuple[int, int, int]:
    found = read_fleet(path).recent(window, clock.time())
    return found.hits, found.misses, found.fallbacks


def rules_of(path: str, clock: Clock, **limits: float) -> list[str]:
    rules = Rules(**limits)  # type: ignore[arg-type]
    return [alert.rule for alert in broken("fresh", "", read_fleet(path), rules, clock.time())]


# --- the window -------------------------------------------------------------------------------------------------------


def test_what_was_counted_before_the_window_does_not_count(path, stopped):
    counters = WorkerCounters.open(path)
    count(counters, 60_000)
    assert recent(path, stopped, 600) == (60_000, 0, 0)
    for _ in range(120):
        stopped.ahead += 10
        count(counters, 0, 100, 1)
    hits, misses, fallbacks = recent(path, stopped, 600)
    assert hits == 0
    assert 6_000 <= fallbacks == 100 * misses <= 6_700, "to a minute"
    hits, misses, fallbacks = recent(path, stopped, 30)
    assert (hits, fallbacks) == (0, 300), "to a second"
    assert recent(path, stopped, 3_600)[0] == 60_000
    assert rules_of(path, stopped) == ["hit_rate"]
    assert rules_of(path, stopped, window=3_600.0) == ["hit_rate"] * (60_000 / 72_120 < 0.9)
    counters.close()


@pytest.mark.parametrize("pause", [1, 7, 59, 61, 600, 3_600, 40_000])
def test_a_window_of_any_length_is_right_to_its_resolution(path, stopped, pause):
    """Against a list of all that was counted, and when."""
    rng = random.Random(pause)
    counters = WorkerCounters.open(path)
    done: list[tuple[float, int]] = []
    for _ in range(150):
        stopped.ahead += rng.uniform(0.2, 1.8) * pause
        n = rng.randrange(1, 100)
        done.append((stopped.time(), n))
        count(counters, n)
        for window, resolution in ((5, 1), (50, 1), (600, 60), (3_000, 60), (50_000, 3_600), (DAY, 3_600)):
            now = stopped.time()
            least = sum(n for at, n in done if at > now - window)
            most = sum(n for at, n in done if at > now - window - resolution)
            assert least <= recent(path, stopped, window)[0] <= most, window
    counters.close()


def test_an_idle_fleet_has_counted_nothing_of_late(path, stopped):
    counters = WorkerCounters.open(path)
    count(counters, 0, 500)
    stopped.ahead += 700
    assert recent(path, stopped, 600) == (0, 0, 0)
    assert rules_of(path, stopped) == []
    counters.close()


def test_a_life_that_ended_long_ago_is_not_recent_for_the_next_one(path, stopped):
    """Case: it was killed in the middle of a second of which only an earlier sample is kept."""

    def work() -> None:
        counters = WorkerCounters.open(path)
        count(counters, 0, 5)
        stopped.ahead += 0.5
        count(counters, 0, 5_000)
        os.kill(os.getpid(), signal.SIGKILL)

    in_child(work)
    stopped.ahead += 3 * DAY
    counters = WorkerCounters.open(path)
    count(counters, 7)
    assert recent(path, stopped, 600) == (7, 0, 0)
    assert recent(path, stopped, 60) == (7, 0, 0)
    counters.close()


def test_the_window_is_that_of_all_workers_also_of_ended_ones(path, stopped):
    several = [WorkerCounters.open(path) for _ in range(3)]
    for i, counters in enumerate(several):
        count(counters, 10**i)
    stopped.ahead += 700
    for i, counters in enumerate(several):
        count(counters, 2 * 10**i)
    several.pop().close()
    assert recent(path, stopped, 600) == (222, 0, 0)
    for counters in several:
        counters.close()
    assert recent(path, stopped, 600) == (222, 0, 0)


def test_a_clock_that_jumps_gives_a_window_and_no_error(path, stopped):
    counters = WorkerCounters.open(path)
    for jump in (0, 10**7, -2 * 10**7, 5, 10**9, -(10**9)):
        stopped.ahead += jump
        count(counters, 10)
        assert 0 <= recent(path, stopped, 600)[0] <= 60
    counters.close()


@pytest.mark.parametrize("value", [0, 2**63, 2**64 - 1])
def test_samples_of_any_numbers_give_a_rate(value):
    strange, usual = Sample(value, value, 0, value), Sample(10**18, 5, 5, 5)
    for first, last in ((strange, usual), (usual, strange), (strange, strange)):
        history = History(first, last, (strange, usual))
        fleet = Fleet((), {}, {}, 0, (), histories={"": history})
        for now in (0.0, 1e9, 1e30, -1e30):
            assert 0.0 <= fleet.recent(600, now).hit_rate <= 1.0


# --- the rules --------------------------------------------------------------------------------------------------------


def test_every_rule_is_broken_by_what_breaks_it_and_says_by_how_much(path, stopped):
    counters = WorkerCounters.open(path)
    assert rules_of(path, stopped) == []
    count(counters, 89, 11)
    counters.set(metrics.LOAD_NS, 20_000_000)
    for i in range(11):
        counters.note_event("rebuild", i)
    for place in (1, 2, 2):
        counters.note_event("corruption", place)
    counters.flush()
    assert rules_of(path, stopped) == ["hit_rate", "load", "corruptions", "rebuilds"]
    found = broken("fresh", "", read_fleet(path), Rules(), stopped.time())
    assert [(alert.value, alert.limit) for alert in found] == [(0.89, 0.9), (0.02, 0.01), (2, 1), (11, 10)]
    assert found[0].text == "hit rate 89.0% in the last 600 s, expected at least 90.0%"
    relaxed = {"hit_rate": 0.89, "load": 0.02, "corruptions": 2, "rebuilds": 11}
    assert rules_of(path, stopped, **relaxed) == []
    stopped.ahead += HOUR + 1
    assert rules_of(path, stopped) == ["load", "corruptions"]
    stopped.ahead += DAY
    assert rules_of(path, stopped) == ["load"]
    counters.close()
    assert rules_of(path, stopped) == []


def test_damage_that_all_workers_met_is_one_place(path, stopped):
    several = [WorkerCounters.open(path) for _ in range(8)]
    for counters in several:
        counters.note_event("corruption", 4711)
        counters.close()
    assert read_fleet(path).damaged_places(DAY, stopped.time()) == 1
    assert rules_of(path, stopped) == []


@pytest.mark.parametrize("state", [*CAUSES_WITHOUT_FILE, "expired", "invalidated"])
def test_a_file_that_may_not_answer_is_an_alert(path, state):
    (alert,) = broken(state, "because", read_fleet(path), Rules(), 0.0)
    rule = "file" if state in CAUSES_WITHOUT_FILE else "state"
    assert alert == Alert(rule, f"the file is {state}: because")


def test_the_target_is_above_the_limit():
    assert Rules().hit_rate < TARGET == 0.95


@pytest.mark.parametrize("window", [0, -600, 0.5, 86_401, math.nan, math.inf])
def test_a_window_in_which_nothing_can_be_found_is_refused(window):
    with pytest.raises(ValueError, match=r"^window must be seconds from 1 to 86400, a day, not "):
        Rules(window=window)


@pytest.mark.parametrize("limit", [{"hit_rate": 90}, {"load": math.nan}, {"lag": -1.0}, {"corruptions": -1}])
def test_a_limit_that_means_nothing_is_refused(limit):
    (name,) = limit
    with pytest.raises(ValueError, match=rf"^{name} must be a "):
        Rules(**limit)
