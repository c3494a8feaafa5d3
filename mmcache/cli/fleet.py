"""The workers of one cache file and what they count, as a table, as totals, and as JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from ..sharing.fleet import CAUSES, Event, Fleet, Worker
from ..words import ago, bytes_of, number, plural, printable, short, span
from .output import Output

__all__ = ["draw", "draw_workers", "plain"]

_EVENTS_SHOWN: Final = 5
_EVENTS_TOLD: Final = 20
_KINDS: Final = ("ids", "soft", "hard")
_OUTCOMES: Final = ("ok", "unchanged", "failed", "superseded", "lost_race")
_COLUMNS: Final = (
    *("pid", "label", "state", "generation", "started", "seen", "hits", "fallbacks", "hit rate"),
    *("pinned", "load", "private"),
)


def plain(fleet: Fleet) -> dict[str, Any]:
    """What JSON shows of it."""
    now = time.time()
    lookup = fleet.histograms["lookup"]
    return {
        "workers": [_plain_worker(worker, now) for worker in fleet.workers],
        "hit_rate": fleet.hit_rate,
        "hits": _hits(fleet.totals),
        "misses": fleet.totals["misses"],
        "fallbacks": _fallbacks(fleet.totals),
        "stale_served": fleet.totals["stale_served"],
        "invalidations": {kind: fleet.totals[f"invalidations_{kind}"] for kind in _KINDS},
        "invalidated_ids": fleet.totals["invalidated_ids"],
        "rebuilds": {outcome: fleet.totals[f"rebuilds_{outcome}"] for outcome in _OUTCOMES},
        "corruptions": fleet.totals["corruptions"],
        "refusals": fleet.totals["refusals"],
        "adoptions": fleet.totals["adoptions"],
        "slow_lookups": fleet.totals["slow_lookups"],
        "lookup_seconds": {"p50": lookup.quantile(0.5), "p99": lookup.quantile(0.99), "samples": lookup.count},
        "lives": fleet.lives,
        "since": fleet.since or None,
        "events": [_plain_event(event) for event in fleet.events[-_EVENTS_TOLD:]],
    }


def _plain_event(event: Event) -> dict[str, Any]:
    return {"time": event.time, "kind": event.kind, "value": event.value}


def _plain_worker(worker: Worker, now: float) -> dict[str, Any]:
    return {
        "pid": worker.pid,
        "label": worker.label,
        "state": worker.state,
        "generation": worker.generation,
        "age_seconds": round(now - worker.started, 3),
        "seen_seconds": round(now - worker.seen, 3),
        "hits": _hits(worker.counters),
        "misses": worker.counters["misses"],
        "fallbacks": _fallbacks(worker.counters),
        "hit_rate": _hit_rate(worker.counters),
        "corruptions": worker.counters["corruptions"],
        "pinned": worker.pinned,
        "load_seconds": worker.load_seconds,
        "mapped_bytes": worker.mapped_bytes,
        "private_bytes": worker.private_bytes,
    }


def _hits(counters: Mapping[str, int]) -> int:
    return counters["hits"] + counters["batch_hits"]


def _fallbacks(counters: Mapping[str, int]) -> dict[str, int]:
    """By cause, those that there were."""
    return {cause: n for cause in CAUSES if (n := counters[f"fallback_{cause}"])}


def _hit_rate(counters: Mapping[str, int]) -> float:
    """As `Fleet.hit_rate`, of one worker."""
    hits = _hits(counters)
    answers = hits + counters["misses"] + sum(_fallbacks(counters).values())
    return hits / answers if answers else 1.0


# --- for people -------------------------------------------------------------------------------------------------------


def draw(fleet: Fleet, output: Output) -> None:
    """All of it: workers, totals, the last events."""
    output.heading(plural(len(fleet.workers), "worker") if fleet.workers else "no worker has it open")
    draw_workers(fleet, output)
    if not (fleet.workers or fleet.lives or fleet.events):
        return
    since = f", since {ago(time.time() - fleet.since)}" if fleet.since else ""
    output.heading(f"all workers, those that ended too{since}")
    output.pairs(_totals(fleet))
    for event in fleet.events[-_EVENTS_SHOWN:]:
        output.say(f"  {ago(max(0.0, time.time() - event.time))}: {_sentence(event)}")


def draw_workers(fleet: Fleet, output: Output) -> None:
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
        number(_hits(counters)),
        number(sum(_fallbacks(counters).values())),
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


def _totals(fleet: Fleet) -> list[tuple[str, str]]:
    totals, lookup = fleet.totals, fleet.histograms["lookup"]
    fallbacks = _fallbacks(totals)
    rows = [
        (
            "hit rate",
            f"{fleet.hit_rate:.2%} ({number(_hits(totals))} from the file, {number(totals['misses'])} missed)",
        ),
        ("fallbacks", _counts(fallbacks)),
        ("invalidations", _counts({kind: totals[f"invalidations_{kind}"] for kind in _KINDS})),
        ("rebuilds", _counts({outcome.replace("_", " "): totals[f"rebuilds_{outcome}"] for outcome in _OUTCOMES})),
        ("corruptions", number(totals["corruptions"])),
    ]
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
