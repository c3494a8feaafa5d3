"""Alert rules for Prometheus and a dashboard for Grafana, made from the table of metrics and the limits of the alerts.
Needs no extra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any, Final

from ..sharing.alerts import TARGET, Rules
from ..sharing.metrics import Family, Panel, panels

__all__ = ["dashboard", "rules"]

_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_CHOSEN: Final = '{cache=~"$cache", instance=~"$instance"}'
_ORIGIN: Final = "{{cache}} {{instance}}"
_WIDTH, _HEIGHT, _TOP = 12, 8, 5


def rules() -> str:
    """mmcache-rules.yml, with the default limits."""
    limits = Rules()
    text = files("mmcache.integrations").joinpath("mmcache-rules.yml").read_text("utf-8")
    for name, value in {
        "@hit_rate@": f"{limits.hit_rate:.2f}",
        "@hit_percent@": f"{limits.hit_rate:.0%}",
        "@target@": f"{TARGET:.0%}",
        "@window@": f"{limits.window / 60:.0f}m",
        "@load@": f"{limits.load:.3f}",
        "@load_ms@": f"{limits.load * 1e3:g}ms",
        "@corruptions@": str(limits.corruptions),
        "@rebuilds@": str(limits.rebuilds),
        "@lag@": f"{limits.lag:g}",
    }.items():
        text = text.replace(name, value)
    return text


# --- the dashboard ----------------------------------------------------------------------------------------------------


def dashboard() -> dict[str, Any]:
    """What Grafana imports: four figures, a graph for each panel of the table, and one of the workers by state."""
    graphs = [
        _graph(title, [target for panel, families in shown.items() for target in _targets(panel, families)], shown)
        for title, shown in panels().items()
    ]
    workers = [(f"mmcache_workers{_CHOSEN} > 0", "{{state}}")]
    graphs.append(_graph("Workers by state", workers, [Panel("", "none", "now")]))
    for i, graph in enumerate(graphs):
        graph["gridPos"] = {"h": _HEIGHT, "w": _WIDTH, "x": i % 2 * _WIDTH, "y": _TOP + i // 2 * _HEIGHT}
    shown = [*_figures(), *graphs]
    for i, panel_ in enumerate(shown, 1):
        panel_["id"] = i
    return {
        "title": "mmcache",
        "uid": "mmcache",
        "description": "The workers of cache files. Each target that is scraped reports the whole fleet of its files.",
        "tags": ["mmcache"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": list(_variables())},
        "panels": shown,
    }


def _rate(name: str, *, without: str = "") -> str:
    rate = f"rate({name}_total{_CHOSEN}[$__rate_interval])"
    return f"sum without ({without}) ({rate})" if without else rate


def _figures() -> Iterator[dict[str, Any]]:
    limits = Rules()
    hits, fallbacks = _rate("mmcache_hits", without="kind"), _rate("mmcache_fallbacks", without="cause")
    answers = f"({hits} + {fallbacks} + {_rate('mmcache_misses')})"
    workers = f"sum without (state) (mmcache_workers{_CHOSEN})"
    damaged, generation = f"mmcache_damaged_places{_CHOSEN}", f"mmcache_generation{_CHOSEN}"
    rate_steps = [("red", None), ("orange", limits.hit_rate), ("green", TARGET)]
    damage_steps = [("green", None), ("orange", 1.0), ("red", limits.corruptions + 1.0)]
    figures: list[tuple[str, str, str, list[tuple[str, float | None]]]] = [
        (f"Hit rate, target {TARGET:.0%}", "percentunit", f"{hits} / ({answers} > 0)", rate_steps),
        ("Workers", "none", workers, [("red", None), ("green", 1.0)]),
        ("Generation", "none", generation, [("green", None)]),
        ("Damaged places within a day", "none", damaged, damage_steps),
    ]
    for i, (title, unit, expression, steps) in enumerate(figures):
        thresholds = {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}
        yield {
            "type": "stat",
            "title": title,
            "datasource": _SOURCE,
            "gridPos": {"h": _TOP, "w": 6, "x": 6 * i, "y": 0},
            "fieldConfig": {"defaults": {"unit": unit, "thresholds": thresholds}, "overrides": []},
            "options": {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}},
            "targets": [_target(0, expression, _ORIGIN)],
        }


def _graph(title: str, targets: Sequence[tuple[str, str]], shown: Any) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": next(iter(shown)).unit}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [_target(i, text, f"{legend}, {_ORIGIN}") for i, (text, legend) in enumerate(targets)],
    }


def _targets(panel: Panel, families: Sequence[Family]) -> Iterator[tuple[str, str]]:
    """(expression, legend)."""
    for family in families:
        name, words = f"mmcache_{family.name}", family.name.replace("_", " ")
        labelled = f"{{{{{family.label}}}}}" if family.label else words
        match panel.how:
            case "now":
                yield f"{name}{_CHOSEN}", words
            case "rate":
                total = family.as_sum and family.label
                yield _rate(name, without=family.label if total else ""), words if total else labelled
            case "hour":
                yield f"increase({name}_total{_CHOSEN}[1h])", labelled
            case "quantiles" | "day":
                change = "increase" if panel.how == "day" else "rate"
                span = "1d" if panel.how == "day" else "$__rate_interval"
                for quantile, legend in ((0.5, "half"), (0.99, "99 %")):
                    yield f"histogram_quantile({quantile}, {change}({name}_bucket{_CHOSEN}[{span}]))", legend


def _target(number: int, expression: str, legend: str) -> dict[str, Any]:
    letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number]
    return {"refId": letter, "datasource": _SOURCE, "expr": expression, "legendFormat": legend, "range": True}


def _variables() -> Iterator[dict[str, Any]]:
    source = {"name": "datasource", "label": "datasource", "type": "datasource", "query": "prometheus"}
    yield {**source, "refresh": 1, "current": {}}
    for name, series in (("cache", "mmcache_workers"), ("instance", 'mmcache_workers{cache=~"$cache"}')):
        query = f"label_values({series}, {name})"
        yield {
            "name": name,
            "label": name,
            "type": "query",
            "datasource": _SOURCE,
            "definition": query,
            "query": {"query": query, "refId": "variables"},
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "sort": 1,
        }
