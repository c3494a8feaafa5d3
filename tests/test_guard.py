"""The guard against slowness: its judgement, and that a slowdown is found. How fast anything is, is not asked here."""

from __future__ import annotations

import dataclasses
import json

import pytest

pytest.importorskip("psutil", reason="the bench group is not installed")

from benchmarks import guard
from benchmarks.common import Noise
from benchmarks.data import DataSet
from benchmarks.peers.mmcache_file import Mmcache

LIMITS = guard.limits_of({"ratios": {"get": 2.0, "build": 1.2}, "goals": {"get, 1 dirty": 1.15}})


def measuring(**ratios):
    """`measure` that gives these one after the other, and what it was asked for."""
    left, asked = {name: list(several) for name, several in ratios.items()}, []

    def measure(name):
        asked.append(name)
        return left[name].pop(0)

    return measure, asked


def slower(found):
    limits = {name: LIMITS[name] for name in found}
    return [name for name, *_, is_slower in guard.judged(limits, found) if is_slower]


def test_half_as_slow_again_fails_and_a_fifth_passes():
    assert slower({"get": [3.0], "build": [1.44]}) == ["get"]


def test_what_is_faster_passes():
    assert slower({"get": [0.5], "build": [1.2]}) == []


def test_a_goal_is_a_limit_as_it_stands():
    assert slower({"get, 1 dirty": [1.16]}) == ["get, 1 dirty"]
    assert slower({"get, 1 dirty": [1.15]}) == []


def test_what_is_slower_is_measured_twice_again_after_the_others():
    measure, asked = measuring(get=[3.0, 3.1, 2.9], build=[1.2])
    found = guard.measured({name: LIMITS[name] for name in ("get", "build")}, measure)
    assert asked == ["get", "build", "get", "get"]
    assert slower(found) == ["get"]


def test_a_noisy_measurement_is_forgiven_when_the_next_is_good():
    measure, asked = measuring(get=[9.0, 2.1], build=[1.3])
    found = guard.measured({name: LIMITS[name] for name in ("get", "build")}, measure)
    assert asked == ["get", "build", "get"]
    assert slower(found) == []


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    home = str(tmp_path_factory.mktemp("guard"))
    return DataSet(200, 16, home), DataSet(300, 16, home)


def test_a_slowdown_is_found(small, monkeypatch):
    get = Mmcache.get

    def slow(self, ids):
        for _ in ids:
            sum(range(2_000))
        return get(self, ids)

    with guard.pairs(small[0], small[1], records=700) as found:
        pair = dataclasses.replace(found["get"], repetitions=5)
        limits = guard.limits_of({"ratios": {"get": pair.ratio(Noise())}, "goals": {}})
        monkeypatch.setattr(Mmcache, "get", slow)
        several = guard.measured(limits, lambda _: pair.ratio(Noise()))
    assert [is_slower for *_, is_slower in guard.judged(limits, several)] == [True]


def test_everything_that_is_recorded_is_measured(small):
    with open(guard.RECORD) as file:
        told = json.load(file)
    with guard.pairs(small[0], small[1], records=700) as found:
        assert guard.limits_of(told).keys() == found.keys()
        assert told["goals"] == {name: pair.goal for name, pair in found.items() if pair.goal is not None}
        assert all(pair.works[0](0)[1] > 0 for pair in found.values())
