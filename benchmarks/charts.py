"""Charts of what all questions have told as JSON: cost against n, and memory against workers.

SVG on white, readable on a dark page too, and the same bytes for the same figures. A contender has the same colour,
line and marker in all of them; the colours are those of Okabe and Ito, which most colour-blind readers tell apart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .common import Range, time_text

OWN = "mmcache"
_OWN_COLOUR = "#D55E00"
_COLOURS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F")
_LINES = ("-", "--", ":")
_MARKERS = "osD^vPX"
_DECADES = 300
"""High over low, above which an axis has no numbers but the powers of ten."""

GROWTH = {
    "growth-get": ("get", "One record, of stores that are open", "time of a get"),
    "growth-open": ("open, first get", "Open a store and get one record", "time"),
    "growth-build": ("build", "Build a store from SQLite", "time"),
}
"""File, operation, title and what the y axis tells."""

Series = Mapping[str, Sequence[tuple[int, Range]]]
"""Of each contender points of x and y."""


@dataclass(frozen=True)
class Style:
    colour: str
    line: str
    marker: str
    width: float


def draw(told: Mapping[str, Mapping[str, Any]], directory: str) -> list[str]:
    """Write the charts of those questions that have been asked; their names."""
    with mpl.rc_context({"svg.hashsalt": OWN, "svg.fonttype": "none", "font.sans-serif": ["DejaVu Sans", "Arial"]}):
        drawn = {name: figure for name, figure in _figures(told) if figure is not None}
        for name, figure in drawn.items():
            figure.savefig(os.path.join(directory, name), format="svg", metadata={"Date": None, "Creator": None})
    return list(drawn)


def _figures(told: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, Figure | None]]:
    growth, memory = (told.get(name, {}).get("results", ()) for name in ("growth", "memory"))
    styles = styles_of(line["contender"] for line in (*growth, *memory) if "contender" in line)
    for name, (operation, title, label) in GROWTH.items():
        lines = [line for line in growth if line["operation"] == operation and line["dim"]]
        yield f"{name}.svg", _chart(_by_n(lines), styles, title, ("records", label), time_text) if lines else None
    yield "memory.svg", _memory(memory, styles)


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """mmcache's are of one colour, and thick; the others in order of appearance."""
    found: dict[str, Style] = {}
    ours = others = 0
    for name in dict.fromkeys(names):
        if name.startswith(OWN):
            found[name] = Style(_OWN_COLOUR, _LINES[ours % len(_LINES)], _MARKERS[ours % len(_MARKERS)], 2.5)
            ours += 1
        else:
            turn, colour = divmod(others, len(_COLOURS))
            marker = _MARKERS[(colour + turn) % len(_MARKERS)]
            found[name] = Style(_COLOURS[colour], _LINES[turn % len(_LINES)], marker, 1.2)
            others += 1
    return found


def _by_n(lines: Iterable[Mapping[str, Any]]) -> Series:
    found: dict[str, list[tuple[int, Range]]] = {}
    for line in lines:
        found.setdefault(line["contender"], []).append((line["n"], Range(**line["seconds"])))
    return found


def _memory(lines: Sequence[Mapping[str, Any]], styles: Mapping[str, Style]) -> Figure | None:
    """Of the size with the most to show, of equals the largest."""
    counts: dict[int, int] = {}
    for line in lines:
        counts[line["n"]] = counts.get(line["n"], 0) + 1
    if not counts:
        return None
    n = max(counts, key=lambda size: (counts[size], size))
    series: dict[str, list[tuple[int, Range]]] = {}
    for line in lines:
        if line["n"] == n and (taken := float(line["total_pss_above_idle"])) > 0:
            series.setdefault(line["contender"], []).append((line["workers"], Range(taken, taken, taken)))
    dim = next(line["dim"] for line in lines if line["n"] == n)
    title = f"Memory of all workers, {n:,} records, embeddings of {dim}"
    return _chart(series, styles, title, ("workers", "total PSS above idle workers"), _bytes)


def _chart(
    series: Series,
    styles: Mapping[str, Style],
    title: str,
    labels: tuple[str, str],
    text: Callable[[float], str],
) -> Figure:
    """Both axes logarithmic; medians, a band from the least to the greatest; the legend in the order of the ends."""
    figure = Figure(figsize=(8.5, 4.8), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for name, points in series.items():
        style, xs = styles[name], [x for x, _ in points]
        axes.plot(
            xs,
            [y.median for _, y in points],
            label=name,
            color=style.colour,
            linestyle=style.line,
            linewidth=style.width,
            marker=style.marker,
            markersize=5,
            zorder=style.width + 2,  # ours above the others
        )
        low, high = [y.min for _, y in points], [y.max for _, y in points]
        if low != high:
            axes.fill_between(xs, low, high, color=style.colour, alpha=0.12, linewidth=0)
    axes.set_title(title, loc="left")
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    _scale(axes, sorted({x for points in series.values() for x, _ in points}), text)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    ends = sorted(zip(handles, names, strict=True), key=lambda one: -series[one[1]][-1][1].median)
    axes.legend(*zip(*ends, strict=True), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _scale(axes: Axes, xs: Sequence[int], text: Callable[[float], str]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(xs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > _DECADES else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: text(y)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _bytes(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:g} {unit}"
    return f"{size:g} B"
