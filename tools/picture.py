"""Draws docs/images/memory.svg, the picture of the README, from the results of a benchmark.

    python -m tools.picture                                   # of docs/benchmarks/results.json
    python -m benchmarks.memory --quick --json out.json && python -m tools.picture out.json -o memory.svg

Bars are what eight workers take together above eight idle ones. Plain SVG: it has no script, no font of its own and no
link, and follows the light or dark preference of the viewer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "benchmarks" / "results.json"
PICTURE = ROOT / "docs" / "images" / "memory.svg"
WORKERS = 8
LABELS = {
    "mmcache": "mmcache",
    "SQLite, tuned": "SQLite, mapped",
    "LMDB": "LMDB",
    "Redis": "Redis",
    "npy + pickle": ".npy mapped, a pickle in each worker",
    "msgpack blob": "a msgpack blob, decoded by each",
}
"""Contenders of the benchmark, in the order of the picture, and what a reader calls them."""

WIDTH, TOP, ROW, BAR, LEFT, RIGHT = 760, 64, 34, 18, 330, 90
STYLE = """
    .panel { fill: #ffffff; stroke: #d0d7de } text { fill: #1f2328; font: 14px system-ui, sans-serif }
    .title { font-weight: 600; font-size: 15px } .note { fill: #59636e; font-size: 12px }
    .bar { fill: #9aa7b4 } .ours { fill: #00897b } .end { text-anchor: end }
    @media (prefers-color-scheme: dark) {
      .panel { fill: #161b22; stroke: #30363d } text { fill: #e6edf3 } .note { fill: #9198a1 }
      .bar { fill: #6e7681 } .ours { fill: #26a69a }
    }"""


def picture(report: Mapping[str, Any]) -> str:
    """The SVG of one report of `benchmarks.memory`, at its largest number of records."""
    rows = [row for row in report["results"] if row["workers"] == WORKERS and row["contender"] in LABELS]
    most = max(row["n"] for row in rows)
    taken = {row["contender"]: row["total_pss_above_idle"] / 1e6 for row in rows if row["n"] == most}
    dim = next(row["dim"] for row in rows if row["n"] == most)
    title = f"Memory of {WORKERS} workers that read {most:,} records with embeddings of {dim} numbers"
    about = report["environment"]
    note = (
        f"{report['command']}, {about['time'][:10]}: {about['cpu']}, {about['system'].split('-')[0]}, {about['python']}"
    )
    return _svg(title, note, [(name, label, taken[name]) for name, label in LABELS.items() if name in taken])


def _svg(title: str, note: str, bars: Sequence[tuple[str, str, float]]) -> str:
    height = TOP + ROW * len(bars) + 34
    scale = (WIDTH - LEFT - RIGHT) / max(megabytes for *_, megabytes in bars)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            ' role="img">'
        ),
        f"  <title>{escape(title)}</title>",
        f"  <style>{STYLE}\n  </style>",
        f'  <rect class="panel" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>',
        f'  <text class="title" x="20" y="34">{escape(title)}</text>',
    ]
    for i, (name, label, megabytes) in enumerate(bars):
        y = TOP + ROW * i
        kind = "bar ours" if name == "mmcache" else "bar"
        width = max(1.0, megabytes * scale)
        lines += [
            f'  <text class="end" x="{LEFT - 12}" y="{y + 14}">{escape(label)}</text>',
            f'  <rect class="{kind}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
            f'  <text x="{LEFT + width + 8:.1f}" y="{y + 14}">{megabytes:,.0f} MB</text>',
        ]
    lines += [f'  <text class="note" x="20" y="{height - 16}">{escape(note)}</text>', "</svg>", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the picture of the README.")
    parser.add_argument(
        "results", nargs="?", default=RESULTS, type=Path, help="JSON of a run (default: the last full one)"
    )
    parser.add_argument("-o", "--output", default=PICTURE, type=Path, help="the SVG to write")
    chosen = parser.parse_args(arguments)
    results = json.loads(chosen.results.read_text("utf-8"))
    chosen.output.write_text(picture(results.get("memory", results)), "utf-8")


if __name__ == "__main__":
    main()
