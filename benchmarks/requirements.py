"""Are the targets for 1,000 patterns of 768 dimensions met?

The targets are of the system that this one replaces: milliseconds where a look-up should take microseconds. Everything
is measured as a caller does it, with the default verification; the slowest of a hundred is shown too.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from collections.abc import Callable

import mmcache

from .common import Report, parser, settings_of, time_text
from .data import DataSet
from .peers.mmcache_file import Mmcache

QUESTION = "Are the targets for 1,000 patterns of 768 dimensions met?"
N, DIM = 1_000, 768
SIZE_MB = 4.0


def main() -> int:
    settings = settings_of(parser(QUESTION).parse_args())
    n = min(N, settings.sizes[0])  # fewer only to try this benchmark out
    report = Report("requirements", QUESTION, settings)
    data = DataSet(n, DIM, settings.data)
    path = data.store(Mmcache)
    chosen = random.Random("requirements")
    all_ids = data.ids()
    ids = itertools.cycle(chosen.sample(all_ids, n))
    batches = itertools.cycle([chosen.sample(all_ids, min(100, n)) for _ in range(50)])
    with mmcache.Snapshot.open(path) as snapshot:
        targets: dict[str, tuple[Callable[[], object], float]] = {
            "load: open, every byte verified": (lambda: mmcache.Snapshot.open(path).close(), 5e-3),
            "one record": (lambda: snapshot[next(ids)]["content"], 0.5e-3),
            "batch of 100": (lambda: snapshot.get_many(next(batches)), 5e-3),
            "one embedding": (lambda: snapshot.embedding(next(ids)), 0.15e-3),
            "checksum: verify() of the file": (snapshot.verify, 2e-3),
        }
        rows = []
        for name, (action, target) in targets.items():
            seconds = sorted(_single(action, 20 * settings.repeat(50), report))
            median, slow = seconds[len(seconds) // 2], seconds[int(0.99 * (len(seconds) - 1))]
            report.result(n=n, dim=DIM, operation=name, median=median, p99=slow, target=target)
            verdict = report.goal(f"{name}, ms", n, median * 1e3, target * 1e3)
            rows.append(
                [name, "< " + time_text(target), time_text(median), time_text(slow), _margin(target, median), verdict]
            )
    size = os.path.getsize(path)
    report.result(n=n, dim=DIM, operation="file size", size=size, target=SIZE_MB * 1e6)
    verdict = report.goal("file, MB", n, size / 1e6, SIZE_MB)
    rows.append(["file", f"about {SIZE_MB:g} MB", f"{size:,} bytes", "", _margin(SIZE_MB * 1e6, size), verdict])
    header = ("", "target", "measured (median)", "99th percentile", "margin", "goal, ms or MB")
    report.table(f"{n:,} patterns, embeddings of {DIM}", header, rows)
    return report.finish()


def _single(action: Callable[[], object], times: int, report: Report) -> list[float]:
    """Seconds of every single call, the first apart."""
    action()
    seconds = []
    for i in range(times):
        if i % 50 == 0:
            report.noise.probe()
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return seconds


def _margin(target: float, measured: float) -> str:
    return f"{target / measured:.3g} times"


if __name__ == "__main__":
    sys.exit(main())
