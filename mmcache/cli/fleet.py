"""The workers of one cache file and what they count, as a table, as totals, and as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..sharing.alerts import DAY, TARGET
from ..sharing.fleet import Event, Fleet, Histogram, Worker, answers_of
from ..sharing.metrics import FAMILIES, Family, Metric
from ..text import ago, bytes_of, number, plural, printable, short, span
from .output import Output

__all__ = ["render", "render_workers", "to_json"]

_EVENTS_SHOWN: Final = 5
_EVENTS_TOLD: Final = 20
_COLUMNS: Final = (
    *("pid", "label", "state", "generation", "started", "seen", "hits", "fallbacks", "hit rate"),
    *("pinned", "load", "private"),
)


def to_json(fleet: Fleet, window: float) -> dict[str, Any]:
    """What JSON shows of it: every counter and histogram of the table, and what follows from them."""
    now = time.time()
    recent = fleet.recent(window, now)
    found: dict[str, Any] = {
        "workers": [_worker_to_json(worker, now) for worker in fleet.workers],
        "hit_rate": fleet.hit_rate,
        "hit_rate_target": TARGET,
        "recent": {
            "window_seconds": window,
            "hit_rate": recent.hit_rate,
            "hits": recent.hits,
            "misses": recent.misses,
            "fallbacks": recent.fallbacks,
        },
    }
    for name, (family, members) in FAMILIES.items():
        if family.kind == "histogram":
            found[name] = _histogram_to_json(fleet.histograms[members[0].name])
        elif family.kind == "counter":
            found[name] = _counters_to_json(family, members, fleet.totals)
    return found | {
        "damaged_places": fleet.damaged_places(DAY, now),
        "lives": fleet.lives,
        "since": fleet.since or None,
        "events": [_event_to_json(event) for event in fleet.events[-_EVENTS_TOLD:]],
    }


def _counters_to_json(family: Family, members: Sequence[Metric], counters: Mapping[str, int]) -> Any:
    if family.unit == "ns":
        return sum(counters[metric.name] for metric in members) / 1e9
    if family.as_sum or not family.label:
        return sum(counters[metric.name] for metric in members)
    found = {metric.value: counters[metric.name] for metric in members}
    # Causes are many, and most fleets meet few of them.
    return {value: n for value, n in found.items() if n} if family.name == "fallbacks" else found


def _histogram_to_json(histogram: Histogram) -> dict[str, Any]:
    return {"p50": histogram.quantile(0.5), "p99": histogram.quantile(0.99), "samples": histogram.count}


def _event_to_json(event: Event) -> dict[str, Any]:
    return {"time": event.time, "kind": event.kind, "value": event.value}


def _worker_to_json(worker: Worker, now: float) -> dict[str, Any]:
    return {
        "pid": worker.pid,
        "label": worker.label,
        "state": worker.state,
        "generation": worker.generation,
        "age_seconds": round(now - worker.started, 3),
        "seen_seconds": round(now - worker.seen, 3),
        "hits": answers_of(worker.counters)[0],
        "misses": worker.counters["misses"],
        "fallbacks": _counters_to_json(*FAMILIES["fallbacks"], worker.counters),
        "hit_rate": _hit_rate(worker.counters),
        "corruptions": worker.counters["corruptions"],
        "pinned": worker.pinned,
        "load_seconds": worker.load_seconds,
        "mapped_bytes": worker.mapped_bytes,
        "private_bytes": worker.private_bytes,
    }


def _hit_rate(counters: Mapping[str, int]) -> float:
    """As `Fleet.hit_rate`, of one worker."""
    hits, misses, fallbacks = answers_of(counters)
    answers = hits + misses + fallbacks
    return hits / answers if answers else 1.0


# --- for people -------------------------------------------------------------------------------------------------------


def render(fleet: Fleet, window: float, output: Output) -> None:
    """All of it: workers, totals, the last events. window: seconds over which the recent hit rate is taken."""
    output.heading(plural(len(fleet.workers), "worker") if fleet.workers else "no worker has it open")
    render_workers(fleet, output)
    if not (fleet.workers or fleet.lives or fleet.events):
        return
    since = f", since {ago(time.time() - fleet.since)}" if fleet.since else ""
    output.heading(f"all workers, those that ended too{since}")
    output.pairs(_totals(fleet, window))
    for event in fleet.events[-_EVENTS_SHOWN:]:
        output.say(f"  {ago(max(0.0, time.time() - event.time))}: {_sentence(event)}")


def render_workers(fleet: Fleet, output: Output) -> None:
    if fleet.workers:
        now = time.time()
        rows = [_row(worker, now) for worker in fleet.workers]
        output.table(_COLUMNS, rows, right=(0, 3, 4, 5, 6, 7, 8, 9, 10, 11))


def _row(worker: Worker, now: float) -> list[str]:
    counters = worker.counters
    return [
        str(worker.pid),
        short(printable(worker.label), 20),
        worker.state,
        "" if worker.generation is None else number(worker.generation),
        _brief(now - worker.started),
        _brief(now - worker.seen),
        number(answers_of(counters)[0]),
        number(answers_of(counters)[2]),
        f"{_hit_rate(counters):.1%}",
        number(worker.pinned),
        span(worker.load_seconds) if worker.load_seconds else "",
        bytes_of(worker.private_bytes) if worker.private_bytes else "",
    ]


def _brief(seconds: float) -> str:
    """A time ago, in a narrow column: "0.4 s", "35 m", "3 d"."""
    for unit, length in (("d", 86_400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.1f} s"


def _totals(fleet: Fleet, window: float) -> list[tuple[str, str]]:
    hits, misses, _ = answers_of(fleet.totals)
    recent = fleet.recent(window, time.time())
    answers = recent.hits + recent.misses + recent.fallbacks
    rate = f"{recent.hit_rate:.2%} of {plural(answers, 'answer')}" if answers else "no answer"
    rows = [
        ("hit rate", f"{fleet.hit_rate:.2%} ({number(hits)} from the file, {number(misses)} missed)"),
        ("recently", f"{rate} in the last {window:g} s; target {TARGET:.0%}"),
    ]
    shown: dict[str, dict[str, int]] = {}
    for family, members in FAMILIES.values():
        if family.row:
            counts = {metric.value.replace("_", " "): fleet.totals[metric.name] for metric in members}
            shown.setdefault(family.row, {}).update(counts)
    rows += [(row, _counts(counts) if "" not in counts else number(counts[""])) for row, counts in shown.items()]
    lookup = fleet.histograms["lookup"]
    if lookup.count:
        p50, p99 = span(lookup.quantile(0.5)), span(lookup.quantile(0.99))
        rows.append(("look-ups", f"half below {p50}, 99% below {p99} ({plural(lookup.count, 'sample')})"))
    return rows


def _counts(counts: Mapping[str, int]) -> str:
    """ "3: 2 soft, 1 hard"; "none"."""
    total = sum(counts.values())
    named = ", ".join(f"{number(n)} {name}" for name, n in counts.items() if n)
    return f"{number(total)}: {named}" if total else "none"


def _sentence(event: Event) -> str:
    match event.kind:
        case "rebuild":
            return f"generation {number(event.value)} was published"
        case "unchanged":
            return f"a rebuild found generation {number(event.value)} still right"
        case "rebuild_failed":
            return "a rebuild failed"
        case "corruption":
            return "damage was met"
        case "invalidation":
            return f"{plural(event.value, 'id')} invalidated" if event.value else "everything was invalidated"
        case "refusal":
            return "a file was refused"
    return printable(event.kind)
