"""One ratio table, and one page, out of what all questions have told as JSON.

A ratio is mmcache / the peer, so that less than 1 is in mmcache's favour; where it is more, the cell is marked. Own
figures of mmcache stand above the ratios, in seconds or bytes.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .common import Goal, Range, goals_text, size_text, table_text, time_text

Told = Mapping[str, Any]
"""The JSON of one question."""

OWN = "mmcache"
LOSES, NO_WAY = "!", "\N{EN DASH}"
LEGEND = (
    f"The first row is mmcache's own time, or memory. Below it are ratios, mmcache / the peer: median (least-greatest) "
    f"over repetitions. {LOSES} mmcache loses. {NO_WAY} the peer has no way to do it, or was not asked to at this size."
)


FLOORS = frozenset(("copy bandwidth", "read the rows", "write the bytes, sync", "the slower of both"))
"""What all need is no peer: contenders of `lookup` and `build` that have no column."""

WORKERS = 8
WIDTH = 120


@dataclass(frozen=True)
class Column:
    """What a question told of one operation at one n: a line of each contender."""

    title: str
    lines: Mapping[str, Told]
    own: str = OWN

    @property
    def own_text(self) -> str:
        return figure_text(self.lines[self.own]) if self.own in self.lines else ""

    def cell(self, name: str) -> str:
        ratio = ratio_of(self.lines[name], self.lines.get(self.own)) if name in self.lines else None
        if ratio is None:
            return NO_WAY
        mark = LOSES if ratio.median > 1 and not name.startswith(OWN) else ""
        spread = f" ({_short(ratio.min)}-{_short(ratio.max)})" if ratio.min < ratio.max else ""
        return f"{_short(ratio.median)}{spread}{mark}"


def columns(told: Mapping[str, Told], n: int) -> list[Column]:
    """All operations of look-ups and scans, and what opening, building and eight workers cost."""
    found = []
    for name in ("lookup", "scan"):
        lines = _lines(told, name, n)
        found += [Column(one, _of(lines, operation=one)) for one in dict.fromkeys(line["operation"] for line in lines)]
    found.append(
        Column("lazy open, get", _of(_lines(told, "open", n), operation="open, first get"), own="mmcache, lazy")
    )
    found.append(Column("build", _of(_lines(told, "build", n), operation="build")))
    found.append(Column(f"memory, {WORKERS} workers", _of(_lines(told, "memory", n), workers=WORKERS)))
    return [column for column in found if set(column.lines) - {column.own}]


def _lines(told: Mapping[str, Told], question: str, n: int) -> list[Told]:
    lines = told.get(question, {}).get("results", ())
    return [line for line in lines if line.get("n") == n and "contender" in line and line["contender"] not in FLOORS]


def _of(lines: Iterable[Told], **values: object) -> dict[str, Told]:
    """By contender."""
    return {line["contender"]: line for line in lines if values.items() <= line.items()}


def sizes_of(told: Mapping[str, Told]) -> list[int]:
    """Every n of which there is a ratio to tell."""
    found = {line["n"] for one in told.values() for line in one["results"] if "n" in line}
    return sorted(n for n in found if columns(told, n))


def usual_size(told: Mapping[str, Told]) -> int | None:
    """The n with most ratios, of equals the largest."""
    return max(sizes_of(told), key=lambda n: (sum(len(column.lines) for column in columns(told, n)), n), default=None)


def ratio_table(told: Mapping[str, Told], n: int) -> tuple[list[str], list[list[str]]]:
    """Header and rows: operations beside one another, peers below one another."""
    found = columns(told, n)
    names = list(dict.fromkeys(name for column in found for name in column.lines if name != column.own))
    names.sort(key=lambda name: not name.startswith(OWN))  # other ways of using mmcache before all others
    rows = [[name, *(column.cell(name) for column in found)] for name in names]
    return [f"n = {n:,}", *(column.title for column in found)], [[OWN, *(column.own_text for column in found)], *rows]


def folded(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The same in tables that are not too wide, each without the peers that have no way to do anything of it."""
    widths = [max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)]
    begin = 1
    while begin < len(header):
        end = begin + 1
        while end < len(header) and widths[0] + sum(widths[begin : end + 1]) <= WIDTH:
            end += 1
        part = [[row[0], *row[begin:end]] for row in rows]
        yield [header[0], *header[begin:end]], [row for row in part if set(row[1:]) != {NO_WAY}]
        begin = end


def ratio_of(line: Told, own: Told | None) -> Range | None:
    """Pair by pair where the question tells that, else of the medians."""
    if line.get("ratio") is not None:
        return Range(**line["ratio"])
    if line.get("over_lazy") is not None:
        over = Range(**line["over_lazy"])
        return Range(1 / over.median, 1 / over.max, 1 / over.min)
    mine, other = figure(own) if own is not None else None, figure(line)
    if mine is None or other is None or min(mine, other) <= 0:
        return None
    return Range(mine / other, mine / other, mine / other)


def figure(line: Told) -> float | None:
    """What a line is about: seconds, or bytes above idle."""
    found = line["seconds"]["median"] if "seconds" in line else line.get("total_pss_above_idle")
    return None if found is None else float(found)


def figure_text(line: Told) -> str:
    found = figure(line)
    if found is None:
        return ""
    return time_text(found) if "seconds" in line else size_text(found)


def _short(ratio: float) -> str:
    return f"{ratio:.1g}" if ratio < 0.095 else f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:,.0f}"


def goals_of(told: Mapping[str, Told]) -> list[Goal]:
    return [Goal(**{**goal, "name": f"{name}: {goal['name']}"}) for name, one in told.items() for goal in one["goals"]]


def warning_text(told: Mapping[str, Told]) -> str:
    noisy = {name: one for name, one in told.items() if one["warnings"]}
    if not noisy:
        return ""
    most = max(noisy.values(), key=lambda one: one["noise"]["others"])
    return textwrap.fill(
        f"warning: the machine was noisy during {', '.join(noisy)}: other processes used up to "
        f"{most['noise']['others']:.2f} of {most['environment']['cores']} cores. Trust ratios more than times, and "
        "wide ranges not at all",
        WIDTH,
    )


def summary_text(told: Mapping[str, Told]) -> str:
    """What stands at the end of a run: the ratios of one size, goals and warnings."""
    parts = []
    n = usual_size(told)
    if n is not None:
        parts += [table_text(header, rows, left=1) for header, rows in folded(*ratio_table(told, n))]
        parts.append(textwrap.fill(LEGEND, WIDTH))
    parts += [goals_text(goals_of(told)), warning_text(told)]
    return "\n\n".join(part for part in parts if part)


# --- as files ---------------------------------------------------------------------------------------------------------


def page(told: Mapping[str, Told], command: str, charts: Sequence[str]) -> str:
    """All tables in markdown, the ratios first."""
    stamp = next(iter(told.values()))["environment"]
    libraries = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    lines = [
        "# Results",
        f"Written by `{command}`. How it is measured, and who the peers are: [README.md](README.md).",
        f"{stamp['cpu']}, {stamp['cores']} cores, {stamp['memory_gb']} GB, {stamp['system']}.",
        f"{stamp['python']}; {libraries}.",
        *(f"![{chart}]({chart})" for chart in charts),
    ]
    sizes = sizes_of(told)
    lines += ["## Ratios", LEGEND] if sizes else []
    for n in sizes:
        lines += [f"### {n:,} records", *(markdown(*part, left=1) for part in folded(*ratio_table(told, n)))]
    goals = goals_of(told)
    lines += ["## Goals", f"{sum(goal.met for goal in goals)} of {len(goals)} are met."]
    if goals:
        rows = [[goal.name, f"{goal.n:,}", f"{goal.measured:.3g}", goal.verdict] for goal in goals]
        lines.append(markdown(("goal", "n", "measured", "verdict"), rows, left=1))
    for name, one in told.items():
        lines += section(name, one)
    return "\n\n".join(lines) + "\n"


def section(name: str, told: Told) -> Iterator[str]:
    noise, stamp = told["noise"], told["environment"]
    quiet = (
        f"Other processes used {noise['others']:.2f} of {stamp['cores']} cores; a fixed loop took up to "
        f"{noise['unsteadiness']:.2f} times its best."
    )
    warnings = " ".join(f"Warning: {warning}." for warning in told["warnings"])
    yield f"## {name}"
    yield told["question"]
    yield f"`{told['command']}`, {stamp['time']}, commit {stamp['commit']}. {warnings or quiet}"
    for table in told["tables"]:
        yield f"**{table['title']}**"
        yield markdown(table["header"], [row for row in table["rows"] if any(row)])
    yield from told["notes"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 2) -> str:
    """A table; its first columns to the left, the others to the right."""
    lines = [header, ["---" if i < left else "---:" for i in range(len(header))], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def compact(told: Mapping[str, Told]) -> str:
    """Everything but the tables as JSON, a result a line, so that two runs can be compared line by line."""
    parts = []
    for name, one in told.items():
        results = ",\n  ".join(_line(result) for result in one["results"])
        rest = _line({key: value for key, value in one.items() if key not in ("results", "tables")})
        parts.append(f' "{name}": {{{rest[1:-1]},"results":[\n  {results}\n ]}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(_rounded(value), separators=(",", ":"), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """Floats to four digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return value
