"""How long does a full scan take, beside everything that a user would take instead?

All ids, all records decoded, and the scores of all embeddings against one query, in whatever order a store has them. As
in `lookup`: one process, in turns, answers compared before the clock starts. There are no goals; ratios only.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import numpy as np

from .common import (
    Report,
    Settings,
    Work,
    dim_of,
    interleave,
    parser,
    ratio_text,
    settings_of,
    time_text,
)
from .data import DataSet
from .lookup import OURS, compare, opened

QUESTION = "How long does a full scan take, beside everything that a user would take instead?"

SCANS = {"scan_ids": "all ids", "scan_records": "all records decoded", "scan_embeddings": "scores of all embeddings"}

FEW = 2
"""Repetitions of what is slow, beside mmcache."""

_SUMS = 1e-4
"""Scores may differ by so much: the order of additions is everyone's own."""


def measure(data: DataSet, settings: Settings, report: Report) -> None:
    query = np.random.default_rng(0).standard_normal(data.dim, dtype=np.float32)
    query /= np.linalg.norm(query)
    repetitions = settings.repeat(11 if data.n <= 10_000 else 5)
    rows: list[list[str]] = []
    with opened(data, SCANS, report) as readers:
        for method, title in SCANS.items():
            arguments = (query,) if method == "scan_embeddings" else ()
            scans = {
                name: partial(getattr(reader, method), *arguments)
                for name, reader in readers.items()
                if method in reader.operations
            }
            check(title, {name: scan() for name, scan in scans.items()}, data)
            work: dict[str, Work] = {name: partial(_turn, scan, data.n) for name, scan in scans.items()}
            slow = {name for name in scans if readers[name].slow}
            samples = interleave({name: work[name] for name in work if name not in slow}, repetitions, report.noise)
            few = interleave({name: work[name] for name in work if name in {OURS, *slow}}, FEW, report.noise)
            for i, name in enumerate(scans):
                of = few if name in slow else samples
                seconds = of.range(name)
                ratio = None if name == OURS or OURS not in scans else of.ratio(OURS, name)
                report.result(
                    n=data.n,
                    dim=data.dim,
                    operation=method,
                    contender=name,
                    per="record",
                    seconds=seconds,
                    ratio=ratio,
                )
                whole = time_text(seconds.median * data.n)
                told = ratio_text(ratio) if ratio else ""
                rows.append(["" if i else title, name, whole, time_text(seconds.median), told])
            rows.append([""] * 5)
    report.table(
        f"{data.n:,} records, embeddings of {data.dim}, {repetitions} repetitions ({FEW} of slow peers)",
        ("scan", "", "median", "per record", "mmcache / it"),
        rows[:-1],
    )


def _turn(scan: Any, n: int, _repetition: int) -> tuple[Any, int]:
    return scan, n


def check(title: str, answers: dict[str, Any], data: DataSet) -> None:
    """All must have found all records, and the same."""
    first = next(iter(answers))
    if not isinstance(answers[first], np.ndarray):
        compare(title, answers)
        return
    expected = np.sort(answers[first])
    assert len(expected) == data.n, (title, len(expected))
    for name, scores in answers.items():
        assert scores.dtype == np.float32, (name, scores.dtype)
        assert np.allclose(np.sort(scores), expected, rtol=0, atol=_SUMS), f"{title}: {first} and {name} differ"


def main() -> int:
    settings = settings_of(parser(QUESTION).parse_args())
    report = Report("scan", QUESTION, settings)
    for n in settings.sizes:
        measure(DataSet(n, dim_of(n), settings.data), settings, report)
    report.note(
        "mmcache and the dict floor multiply one matrix that is there already; who has an embedding a key multiplies a "
        "hundred or so at a time, joined. mmcache checks the records' checksums as it goes."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
