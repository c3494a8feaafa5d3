"""The table of metrics: what a worker counts. Pure values.

The layout of a counter file, `Stats`, JSON, text, Prometheus and the dashboard follow from it: a new metric is one
entry here and the call that counts it. An entry gives the word of its metric, which is its place among the words of a
worker, or for a histogram its number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from xxhash import xxh3_64_intdigest

from .fleet import CAUSES, STATES

__all__ = [
    "BUCKETS",
    "CAUSES",
    "COUNTED",
    "COUNTERS",
    "EVENTS",
    "FAMILIES",
    "FIRST_BUCKET",
    "FIRST_COUNTER",
    "GAUGES",
    "HISTOGRAM",
    "HISTOGRAMS",
    "METRICS",
    "SCHEMA",
    "STATES",
    "WORDS",
    "Family",
    "Kind",
    "Metric",
    "Panel",
    "panels",
    "stats_of",
]

Kind = Literal["gauge", "counter", "histogram"]


class Panel(NamedTuple):
    """A graph of the dashboard. how: "rate" or "hour", the increase within one, of counters; "now" of gauges;
    "quantiles" of histograms, over some minutes, or "day" over a day."""

    title: str
    unit: str
    how: Literal["rate", "hour", "now", "quantiles", "day"]


class Family(NamedTuple):
    """What is shown together: in Prometheus with the prefix "mmcache_", in JSON under its name.

    unit: "" for a number, "bytes", or "ns", which is shown in seconds. label: tells its metrics apart in Prometheus.
    as_sum: JSON shows one number. row: of `mmcache status`. merge: how the gauges of several workers become one.
    bounds: the powers of two of nanoseconds that bound a histogram's buckets in Prometheus.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    label: str = ""
    as_sum: bool = False
    row: str = ""
    merge: Literal["sum", "max"] = "sum"
    bounds: range = range(0)
    panel: Panel | None = None

    def add(self, name: str, value: str = "", *, stats: str = "") -> int:
        """A metric of this family: see `Metric`."""
        FAMILIES.setdefault(self.name, (self, []))[1].append(metric := Metric(name, self.kind, self, value, stats))
        return _add(metric)


class Metric(NamedTuple):
    """name: in `Fleet.totals`, `Worker.counters` and `Stats.counters`. family: None shows it nowhere. value: of the
    family's label. stats: the field of `Stats` that it is part of."""

    name: str
    kind: Kind
    family: Family | None = None
    value: str = ""
    stats: str = ""


METRICS: Final[list[Metric]] = []
"""In the order of their words."""
FAMILIES: Final[dict[str, tuple[Family, list[Metric]]]] = {}


def _add(metric: Metric) -> int:
    METRICS.append(metric)
    return sum(one.kind == "histogram" for one in METRICS) - 1 if metric.kind == "histogram" else len(METRICS) - 1


def _gauge(name: str, family: str, help: str, **more: Any) -> int:  # noqa: A002 (its name in Prometheus)
    stats = more.pop("stats", "")
    return Family(family, "gauge", help, **more).add(name, stats=stats)


def _counter(name: str, help: str, *, family: str = "", stats: str = "", **more: Any) -> int:  # noqa: A002 (as above)
    return Family(family or name, "counter", help, **more).add(name, stats=stats)


def _told_apart(name: str, label: str, help: str, panel: Panel) -> Family:  # noqa: A002 (as above)
    """Counters of one family, told apart by a label, and a row of `mmcache status`."""
    return Family(name, "counter", help, label=label, row=name, panel=panel)


def _histogram(name: str, help: str, bounds: range, panel: Panel) -> int:  # noqa: A002 (as above)
    return Family(f"{name}_seconds", "histogram", help, "ns", bounds=bounds, panel=panel).add(name)


_OPENINGS: Final = "Openings of the file"
_ANSWERS: Final = Panel("Answers", "ops", "rate")
_GENERATIONS: Final = Panel("Generations", "none", "now")
_MEMORY: Final = Panel("Memory", "bytes", "now")
_INVALIDATIONS: Final = Panel("Invalidations", "ops", "rate")
_FILES: Final = Panel("Files and damage", "none", "hour")

# --- gauges: what a worker states of itself. Times are those of the wall clock; `seen` is the last poll

PID: Final = _add(Metric("pid", "gauge"))
STARTED_NS: Final = _add(Metric("started_ns", "gauge"))
SEEN_NS: Final = _add(Metric("seen_ns", "gauge"))
STATE: Final = _add(Metric("state", "gauge"))  # an index into STATES
GENERATION: Final = _gauge(
    "generation",
    "generation",
    "Newest generation that a worker serves; 0 if none does.",
    merge="max",
    panel=_GENERATIONS,
)
PINNED: Final = _gauge(
    "pinned",
    "pinned_generations",
    "Generations that workers keep for a caller, of all workers together.",
    panel=_GENERATIONS,
)
MAPPED_BYTES: Final = _gauge(
    "mapped_bytes",
    "mapped_bytes",
    "Bytes of cache files mapped, of all workers together; they share the memory.",
    unit="bytes",
    panel=_MEMORY,
)
PRIVATE_BYTES: Final = _gauge(
    "private_bytes",
    "private_bytes",
    "Private memory of the workers' processes, of all together.",
    unit="bytes",
    panel=_MEMORY,
)
INVALID: Final = _gauge(
    "invalid",
    "invalid_rows",
    "Rows that the file left out, as they could not be taken; in the worker with the most.",
    merge="max",
    stats="invalid",
    panel=Panel("Rows left out", "none", "now"),
)
LOAD_NS: Final = _gauge(
    "load_ns",
    "last_load_seconds",
    "How long the last opening of a file took, in the worker where it took longest.",
    unit="ns",
    merge="max",
    stats="load_seconds",
    panel=Panel(_OPENINGS, "s", "now"),
)

# --- counters

_HITS: Final = Family("hits", "counter", "Answers from the file.", label="kind", as_sum=True, panel=_ANSWERS)
HITS: Final = _HITS.add("hits", "single", stats="hits")
LOOKS: Final = _add(Metric("looks", "counter"))  # what a look at the number of hits added to it
BATCH_HITS: Final = _HITS.add("batch_hits", "batch", stats="hits")
MISSES: Final = _counter("misses", "Ids that no tier had.", stats="misses", panel=_ANSWERS)
STALE_SERVED: Final = _counter(
    "stale_served", "Answers from a file that was stale or expired.", stats="stale_served", panel=_ANSWERS
)
_FALLBACKS: Final = _told_apart(
    "fallbacks",
    "cause",
    "Answers from the source, by why the file did not give them.",
    Panel("Answers from the source, by cause", "ops", "rate"),
)
FALLBACKS: Final = min([_FALLBACKS.add(f"fallback_{cause}", cause, stats="fallbacks") for cause in CAUSES])
FALLBACK_NS: Final = _counter(
    "fallback_ns", "Time spent in the source.", family="source_seconds", unit="ns", stats="fallback_seconds"
)
CORRUPTIONS: Final = _counter(
    "corruptions",
    "Damage met, in a file or a record: each place once for each worker and generation.",
    stats="corruptions",
    row="corruptions",
    panel=_FILES,
)
OPENS: Final = _counter("opens", "Files opened.", stats="opens", panel=_FILES)
ADOPTIONS: Final = _counter("adoptions", "Newer files taken over while running.", stats="adoptions", panel=_FILES)
REFUSALS: Final = _counter("refusals", "Newer files that were refused.", stats="refusals", panel=_FILES)
SLOW_LOOKUPS: Final = _counter("slow_lookups", "Lookups in the file that took too long.", stats="slow_lookups")
_REBUILDS: Final = _told_apart(
    "rebuilds",
    "result",
    "Rebuilds that a worker ran, by how they ended.",
    Panel("Rebuilds within an hour", "none", "hour"),
)
REBUILDS_OK: Final = _REBUILDS.add("rebuilds_ok", "ok", stats="rebuilds")
REBUILDS_UNCHANGED: Final = _REBUILDS.add("rebuilds_unchanged", "unchanged")
REBUILDS_FAILED: Final = _REBUILDS.add("rebuilds_failed", "failed", stats="build_failures")
REBUILDS_SUPERSEDED: Final = _REBUILDS.add("rebuilds_superseded", "superseded")
REBUILDS_LOST_RACE: Final = _REBUILDS.add("rebuilds_lost_race", "lost_race")
_CALLS: Final = _told_apart("invalidations", "kind", "Calls that invalidated something.", _INVALIDATIONS)
INVALIDATIONS_IDS: Final = _CALLS.add("invalidations_ids", "ids", stats="invalidations")
INVALIDATIONS_SOFT: Final = _CALLS.add("invalidations_soft", "soft", stats="invalidations")
INVALIDATIONS_HARD: Final = _CALLS.add("invalidations_hard", "hard", stats="invalidations")
INVALIDATED_IDS: Final = _counter("invalidated_ids", "Single ids invalidated.", panel=_INVALIDATIONS)

# --- histograms of durations

LOOKUP: Final = _histogram(
    "lookup", "Lookups in the file, sampled.", range(8, 25), Panel("Lookups in the file", "s", "quantiles")
)
FALLBACK: Final = _histogram(
    "fallback", "Answers of the source.", range(14, 35), Panel("Answers of the source", "s", "quantiles")
)
LOAD: Final = _histogram("load", "Openings of a file.", range(14, 35), Panel(_OPENINGS, "s", "quantiles"))
BUILD: Final = _histogram("build", "Rebuilds.", range(20, 43), Panel("How long rebuilds take", "s", "day"))

# --- what follows

EVENTS: Final = ("rebuild", "unchanged", "rebuild_failed", "corruption", "invalidation", "refusal")
"""Kinds of events."""


def _names(kind: Kind) -> tuple[str, ...]:
    return tuple(metric.name for metric in METRICS if metric.kind == kind)


GAUGES: Final = _names("gauge")
COUNTERS: Final = _names("counter")
HISTOGRAMS: Final = _names("histogram")
assert tuple(metric.name for metric in METRICS) == GAUGES + COUNTERS + HISTOGRAMS, "words are in this order"
FIRST_COUNTER: Final = len(GAUGES)
FIRST_BUCKET: Final = FIRST_COUNTER + len(COUNTERS)
BUCKETS: Final = 48
HISTOGRAM: Final = BUCKETS + 1
"""Words of a histogram: its buckets, and their sum in ns."""
WORDS: Final = FIRST_BUCKET + len(HISTOGRAMS) * HISTOGRAM
"""Words of a worker."""
COUNTED: Final = slice(FIRST_COUNTER, WORDS)
"""Those of them that are sums."""
SCHEMA: Final = xxh3_64_intdigest(repr((GAUGES, COUNTERS, HISTOGRAMS, STATES, EVENTS, BUCKETS)).encode())
"""Changes with the layout: a counter file with another number is of another version, and is not understood."""


def panels() -> Mapping[str, Mapping[Panel, Sequence[Family]]]:
    """By title: what each graph of the dashboard shows, in the order of the table."""
    found: dict[str, dict[Panel, list[Family]]] = {}
    for family, _ in FAMILIES.values():
        if family.panel is not None:
            found.setdefault(family.panel.title, {}).setdefault(family.panel, []).append(family)
    return found


def stats_of(counters: Mapping[str, int], gauges: Sequence[int]) -> dict[str, Any]:
    """The fields of `Stats` that are counted or measured; of fallbacks those that there were."""
    values = {**dict(zip(GAUGES, gauges, strict=False)), **counters}
    shown = [metric.name for metric in METRICS if metric.kind == "counter" and metric.family is not None]
    found: dict[str, Any] = {"counters": {name: counters[name] for name in shown}}
    for metric in METRICS:
        if metric.stats:
            value = values[metric.name]
            unit = metric.family.unit if metric.family else ""
            if metric.stats == _FALLBACKS.name:
                found.setdefault(metric.stats, {}).update({metric.value: value} if value else {})
            else:
                found[metric.stats] = found.get(metric.stats, 0) + (value / 1e9 if unit == "ns" else value)
    return found
