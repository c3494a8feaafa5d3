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
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..sharing.metrics import CAUSES, IDLE, STATES, Fleet, Histogram, read_fleet

__all__ = ["MmcacheCollector", "text_of"]

_COUNTERS: Final[tuple[tuple[str, str, str | None, Mapping[str, str]], ...]] = (
    ("mmcache_hits", "Answers from the file.", "kind", {"single": "hits", "batch": "batch_hits"}),
    ("mmcache_misses", "Ids that no tier had.", None, {"": "misses"}),
    (
        "mmcache_fallbacks",
        "Answers from the source, by why the file did not give them.",
        "cause",
        {cause: f"fallback_{cause}" for cause in CAUSES},
    ),
    ("mmcache_stale_served", "Answers from a file that was stale or expired.", None, {"": "stale_served"}),
    ("mmcache_corruptions", "Damage met, in a file or a record.", None, {"": "corruptions"}),
    ("mmcache_opens", "Files opened.", None, {"": "opens"}),
    ("mmcache_adoptions", "Newer files taken over while running.", None, {"": "adoptions"}),
    ("mmcache_refusals", "Newer files that were refused.", None, {"": "refusals"}),
    ("mmcache_slow_lookups", "Lookups in the file that took too long.", None, {"": "slow_lookups"}),
    (
        "mmcache_rebuilds",
        "Rebuilds that a worker ran, by how they ended.",
        "result",
        {name: f"rebuilds_{name}" for name in ("ok", "unchanged", "failed", "superseded", "lost_race")},
    ),
    (
        "mmcache_invalidations",
        "Calls that invalidated something.",
        "kind",
        {kind: f"invalidations_{kind}" for kind in ("ids", "soft", "hard")},
    ),
    ("mmcache_invalidated_ids", "Single ids invalidated.", None, {"": "invalidated_ids"}),
)
"""Name, help, label, and its values with the counters that they are."""

_HISTOGRAMS: Final = (
    ("lookup", "Lookups in the file, sampled.", range(8, 25)),
    ("fallback", "Answers of the source.", range(14, 35)),
    ("load", "Openings of a file.", range(14, 35)),
    ("build", "Rebuilds.", range(20, 43)),
)
"""Name, help, and the powers of two of nanoseconds that bound its buckets."""

_GAUGES: Final[tuple[tuple[str, str, Callable[[Fleet], float]], ...]] = (
    (
        "mmcache_generation",
        "Newest generation that a worker serves; 0 if none does.",
        lambda fleet: _generations(fleet)[1],
    ),
    (
        "mmcache_generation_oldest",
        "Oldest generation that a worker serves, idle ones apart; 0 if none does.",
        lambda fleet: _generations(fleet)[0],
    ),
    (
        "mmcache_pinned_generations",
        "Generations that workers keep for a caller, of all workers together.",
        lambda fleet: sum(worker.pinned for worker in fleet.workers),
    ),
    (
        "mmcache_mapped_bytes",
        "Bytes of cache files mapped, of all workers together; they share the memory.",
        lambda fleet: sum(worker.mapped_bytes for worker in fleet.workers),
    ),
    (
        "mmcache_private_bytes",
        "Private memory of the workers' processes, of all together.",
        lambda fleet: sum(worker.private_bytes for worker in fleet.workers),
    ),
    (
        "mmcache_last_load_seconds",
        "How long the last opening of a file took, in the worker where it took longest.",
        lambda fleet: max((worker.load_seconds for worker in fleet.workers), default=0.0),
    ),
)


class _Opened(Protocol):
    @property
    def path(self) -> str: ...


class MmcacheCollector(Collector):
    """caches: open ones, or paths of cache files, labelled with the file's name. named: the same, label=cache."""

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
        """The names, which need no file."""
        return _families({})

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            fleets = {name: read_fleet(path) for name, path in self._paths.items()}
            for name, fleet in fleets.items():
                self._reported[name].see(fleet)
            return _families({name: (fleet, self._reported[name]) for name, fleet in fleets.items()})


class _Reported:
    """What was reported of one cache: a counter must not go back.

    It would by a little, as threads of one worker may store two counts in the wrong order. Begun anew with the archive.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._values: dict[tuple[str, str], float] = {}

    def see(self, fleet: Fleet) -> None:
        if fleet.since:
            if self._since not in (0.0, fleet.since):
                self._values.clear()
            self._since = fleet.since

    def at_least(self, name: str, label: str, value: float) -> float:
        key = name, label
        self._values[key] = value = max(value, self._values.get(key, 0))
        return value


def _path_of(cache: str | os.PathLike[str] | _Opened) -> str:
    return os.path.abspath(cache if isinstance(cache, (str, os.PathLike)) else cache.path)


def text_of(path: str) -> str:
    """One scrape of a cache file, as text."""
    registry = CollectorRegistry()
    registry.register(MmcacheCollector(path))
    return generate_latest(registry).decode()


def _families(caches: Mapping[str, tuple[Fleet, _Reported]]) -> list[Metric]:
    return [*_counters(caches), *_histograms(caches), *_gauges(caches)]


def _counters(caches: Mapping[str, tuple[Fleet, _Reported]]) -> Iterable[Metric]:
    for name, text, label, counters in _COUNTERS:
        family = CounterMetricFamily(name, text, labels=["cache", *([label] if label else [])])
        for cache, (fleet, reported) in caches.items():
            for value, counter in counters.items():
                total = reported.at_least(name, value, fleet.totals[counter])
                family.add_metric([cache, *([value] if label else [])], total)
        yield family
    ended = CounterMetricFamily("mmcache_workers_ended", "Workers that are no more.", labels=["cache"])
    source = CounterMetricFamily("mmcache_source_seconds", "Time spent in the source.", labels=["cache"])
    for cache, (fleet, reported) in caches.items():
        ended.add_metric([cache], reported.at_least("ended", "", fleet.lives))
        source.add_metric([cache], reported.at_least("source", "", fleet.totals["fallback_ns"] / 1e9))
    yield from (ended, source)


def _histograms(caches: Mapping[str, tuple[Fleet, _Reported]]) -> Iterable[Metric]:
    for name, text, bounds in _HISTOGRAMS:
        family = HistogramMetricFamily(f"mmcache_{name}_seconds", text, labels=["cache"])
        for cache, (fleet, reported) in caches.items():
            histogram = fleet.histograms[name]
            buckets = [(le, reported.at_least(name, le, n)) for le, n in _cumulative(histogram, bounds)]
            family.add_metric([cache], buckets, reported.at_least(name, "sum", histogram.total_ns / 1e9))
        yield family


def _cumulative(histogram: Histogram, bounds: range) -> Iterable[tuple[str, int]]:
    for bound in bounds:
        yield repr(2**bound / 1e9), sum(histogram.buckets[: bound + 1])
    yield "+Inf", histogram.count


def _gauges(caches: Mapping[str, tuple[Fleet, _Reported]]) -> Iterable[Metric]:
    workers = GaugeMetricFamily("mmcache_workers", "Workers that live, by state.", labels=["cache", "state"])
    for cache, (fleet, _) in caches.items():
        for state in (*STATES, IDLE, "unknown"):
            workers.add_metric([cache, state], sum(worker.state == state for worker in fleet.workers))
    yield workers
    for name, text, value in _GAUGES:
        family = GaugeMetricFamily(name, text, labels=["cache"])
        for cache, (fleet, _) in caches.items():
            family.add_metric([cache], value(fleet))
        yield family


def _generations(fleet: Fleet) -> tuple[int, int]:
    """The oldest and the newest."""
    served = [(worker.generation, worker.state) for worker in fleet.workers if worker.generation is not None]
    newest = max((generation for generation, _ in served), default=0)
    return min((generation for generation, state in served if state != IDLE), default=newest), newest
