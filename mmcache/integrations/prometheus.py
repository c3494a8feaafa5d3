"""The whole fleet of a cache file for Prometheus, from whichever worker is asked. Needs the extra `prometheus`.

    registry.register(MmcacheCollector(cache))

Workers count in files beside the cache file, and a scrape reads them all: no matter who answers it, in which of
prometheus_client's modes, every operation of every worker is reported once, those of dead workers included. In its
multiprocess mode, register the collector with the registry that the scrape makes, beside `MultiProcessCollector`.

One collector reports as many caches as it is given, each with its file's name as the label `cache`. Alert rules and a
Grafana dashboard for these metrics come with the package: `mmcache metrics --rules`, `mmcache metrics --dashboard`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..sharing.alerts import DAY
from ..sharing.counters import IDLE, read_fleet
from ..sharing.fleet import STATES, Fleet, Histogram
from ..sharing.following import RELEASES, following_now
from ..sharing.metrics import FAMILIES, Family, Kind, Metric as Counted

__all__ = ["MmcacheCollector", "text_of"]


class _Opened(Protocol):
    @property
    def path(self) -> str: ...


class MmcacheCollector(Collector):
    """What the workers of caches count, for a registry of prometheus_client.

    caches: open ones, or paths of cache files, labelled with the file's name. named: the same, label=cache. A scrape
    reads the counter files of all workers: some milliseconds. Raises ValueError for two caches with one label.

    >>> from prometheus_client import CollectorRegistry
    >>> from mmcache.integrations.prometheus import MmcacheCollector
    >>> registry = CollectorRegistry()
    >>> registry.register(MmcacheCollector(cache, items="cache.mmc"))
    >>> registry.get_sample_value("mmcache_generation", {"cache": "items"}) == cache.generation
    True
    """

    def __init__(self, *caches: str | os.PathLike[str] | _Opened, **named: str | os.PathLike[str] | _Opened) -> None:
        self._paths = {name: _path_of(cache) for name, cache in named.items()}
        for path in map(_path_of, caches):
            if self._paths.setdefault(os.path.basename(path), path) != path:
                raise ValueError(
                    f"two cache files named {os.path.basename(path)!r}: give one another label, label=cache"
                )
        self._reported = {name: _Reported() for name in self._paths}
        self._lock = threading.Lock()

    def describe(self) -> Iterable[Metric]:
        """The names, which need no file.

        >>> from mmcache.integrations.prometheus import MmcacheCollector
        >>> sorted(metric.name for metric in MmcacheCollector("cache.mmc").describe())[0]
        'mmcache_adoptions'
        """
        return [*_families({}), *_releases({})]

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            fleets = {name: read_fleet(path) for name, path in self._paths.items()}
            for name, fleet in fleets.items():
                self._reported[name].see(fleet)
            found = _families({name: (fleet, self._reported[name]) for name, fleet in fleets.items()})
            return [*found, *_releases(self._paths)]


class _Reported:
    """What was reported of one cache: a counter must not go back.

    It would by a little, as threads of one worker may store two counts in the wrong order. Begun anew where a counter
    file was removed.
    """

    def __init__(self) -> None:
        self._files: frozenset[str] = frozenset()
        self._values: dict[tuple[str, str], float] = {}

    def see(self, fleet: Fleet) -> None:
        files = frozenset(fleet.histories)
        if not self._files <= files:
            self._values.clear()
        self._files = files

    def at_least(self, name: str, label: str, value: float) -> float:
        key = name, label
        self._values[key] = value = max(value, self._values.get(key, 0))
        return value


def _path_of(cache: str | os.PathLike[str] | _Opened) -> str:
    return os.path.abspath(cache if isinstance(cache, (str, os.PathLike)) else cache.path)


def text_of(path: str) -> str:
    """One scrape of a cache file, as text.

    >>> from mmcache.integrations.prometheus import text_of
    >>> [line for line in text_of("cache.mmc").splitlines() if line.startswith("mmcache_generation{")]
    ['mmcache_generation{cache="cache.mmc"} 1.0']
    """
    registry = CollectorRegistry()
    registry.register(MmcacheCollector(path))
    return generate_latest(registry).decode()


def _families(caches: Mapping[str, tuple[Fleet, _Reported]]) -> list[Metric]:
    return [*_counters(caches), *_histograms(caches), *_gauges(caches)]


def _shown(kind: Kind) -> Iterator[tuple[str, Family, Sequence[Counted]]]:
    for name, (family, members) in FAMILIES.items():
        if family.kind == kind:
            yield f"mmcache_{name}", family, members


def _counters(caches: Mapping[str, tuple[Fleet, _Reported]]) -> Iterable[Metric]:
    for name, family, members in _shown("counter"):
        found = CounterMetricFamily(name, family.help, labels=["cache", *([family.label] if family.label else [])])
        for cache, (fleet, reported) in caches.items():
            for metric in members:
                value = fleet.totals[metric.name] / (1e9 if family.unit == "ns" else 1)
                labels = [cache, *([metric.value] if family.label else [])]
                found.add_metric(labels, reported.at_least(name, metric.value, value))
        yield found
    ended = CounterMetricFamily("mmcache_workers_ended", "Workers that are no more.", labels=["cache"])
    for cache, (fleet, reported) in caches.items():
        ended.add_metric([cache], reported.at_least("ended", "", fleet.lives))
    yield ended


def _histograms(caches: Mapping[str, tuple[Fleet, _Reported]]) -> Iterable[Metric]:
    for name, family, members in _shown("histogram"):
        found = HistogramMetricFamily(name, family.help, labels=["cache"])
        for cache, (fleet, reported) in caches.items():
            histogram = fleet.histograms[members[0].name]
            buckets = [(le, reported.at_least(name, le, n)) for le, n in _cumulative(histogram, family.bounds)]
            found.add_metric([cache], buckets, reported.at_least(name, "sum", histogram.total_ns / 1e9))
        yield found


def _cumulative(histogram: Histogram, bounds: range) -> Iterable[tuple[str, int]]:
    for bound in bounds:
        yield repr(2**bound / 1e9), sum(histogram.buckets[: bound + 1])
    yield "+Inf", histogram.count


def _gauges(caches: Mapping[str, tuple[Fleet, _Reported]]) -> Iterable[Metric]:
    workers = GaugeMetricFamily("mmcache_workers", "Workers that live, by state.", labels=["cache", "state"])
    oldest = GaugeMetricFamily(
        "mmcache_generation_oldest",
        "Oldest generation that a worker serves, idle ones apart; 0 if none does.",
        labels=["cache"],
    )
    damaged = GaugeMetricFamily(
        "mmcache_damaged_places", "Places found damaged within a day, each once.", labels=["cache"]
    )
    for cache, (fleet, _) in caches.items():
        for state in (*STATES, IDLE, "unknown"):
            workers.add_metric([cache, state], sum(worker.state == state for worker in fleet.workers))
        oldest.add_metric([cache], _oldest(fleet))
        damaged.add_metric([cache], fleet.damaged_places(DAY, time.time()))
    yield from (workers, oldest, damaged)
    for name, family, members in _shown("gauge"):
        found = GaugeMetricFamily(name, family.help, labels=["cache"])
        for cache, (fleet, _) in caches.items():
            values = [worker.gauges[members[0].name] for worker in fleet.workers]
            merged = max(values, default=0) if family.merge == "max" else sum(values)
            found.add_metric([cache], merged / 1e9 if family.unit == "ns" else merged)
        yield found


def _releases(caches: Mapping[str, str]) -> Iterator[Metric]:
    """What nodes follow; nothing of a cache that follows no releases. caches: their paths."""
    now = time.time()
    told = {cache: said for cache, path in caches.items() if (said := following_now(path)) is not None}
    for name, (text, value) in RELEASES.items():
        found = GaugeMetricFamily(f"mmcache_{name}", text, labels=["cache"])
        for cache, said in told.items():
            found.add_metric([cache], value(said, now))
        yield found


def _oldest(fleet: Fleet) -> int:
    served = [(worker.generation, worker.state) for worker in fleet.workers if worker.generation is not None]
    newest = max((generation for generation, _ in served), default=0)
    return min((generation for generation, state in served if state != IDLE), default=newest)
