"""What does a build cost beyond reading the rows and writing the bytes, and what does it cost elsewhere?

Everything is built from the same rows of the same SQLite database, each time in a process of its own, which tells how
long it took (imports apart) and the most memory that it had beyond its imports. Two FLOORS are what no builder can do
without: the SELECT drained row by row, and as many bytes as mmcache's file has, written and synced. Their rates are the
source's and the disk's.

mmcache and LMDB are a fair pair: both pack the same records, keep the embeddings beside them, answer one facet and
three, and sync before they are done. mmcache also checksums all it writes, reads it back and verifies it; LMDB, loaded
as its documentation recommends, has the rows sorted by SQLite. What syncs nothing has its bytes in memory only.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import mmcache
from mmcache.presets.patterns import PatternsSource

from . import peers
from .common import (
    Range,
    Report,
    Settings,
    child,
    dim_of,
    parser,
    ratio_text,
    settings_of,
    size_text,
    time_text,
    turns,
)
from .data import DataSet, read_bank
from .processes import named, peer_of, size_of

QUESTION = "What does a build cost beyond reading the rows and writing the bytes, and what does it cost elsewhere?"
TIMES_LMDB = 1.0
TIMES_FLOOR = 2.0
"""Goal: a build over the slower of reading the rows and writing the bytes, which is half of the lower rate."""
GROWTH = 16e6
"""Goal: bytes of memory that embeddings of 768 numbers may cost more than those of 16: what a run of rows holds."""
LONG = 120.0
"""Seconds: a peer that would take longer, judged by the size before, is left out."""

READ, WRITE, SLOWER = "read the rows", "write the bytes, sync", "the slower of both"
FLOORS = (READ, WRITE, SLOWER)
JUDGED = ("mmcache", "LMDB", READ, WRITE)
_CHUNK = 2**20


# --- in a process of its own ------------------------------------------------------------------------------------------


def as_text(data: DataSet, path: str, _size: int) -> None:
    mmcache.build(path, mmcache.SQLiteSource(data.bank, dataclasses.replace(data.schema, json=())))


def checked(data: DataSet, path: str, _size: int) -> None:
    mmcache.build(path, PatternsSource(data.bank, data.schema))


def read(data: DataSet, _path: str, _size: int) -> None:
    """In the order and with the columns of a build; which is not looked at."""
    collections.deque(read_bank(data.bank), maxlen=0)


def write(_data: DataSet, path: str, size: int) -> None:
    chunk = os.urandom(_CHUNK)
    with open(path, "wb") as file:
        file.writelines(chunk[: size - begin] for begin in range(0, size, _CHUNK))
        file.flush()
        os.fsync(file.fileno())


OTHERS: dict[str, tuple[str, Callable[[DataSet, str, int], None]]] = {
    "mmcache, JSON as text": ("metadata not decoded", as_text),
    "mmcache, PatternsSource": ("every record checked", checked),
    READ: ("the source's rate", read),
    WRITE: ("the disk's rate", write),
}


def build_of(name: str) -> Callable[[DataSet, str, int], None]:
    """One of `OTHERS`, or of a peer, without importing the libraries of other peers."""
    if name in OTHERS:
        return OTHERS[name][1]
    peer = peer_of(name)
    return lambda data, path, _: peer.write(data, path)


def run_child(name: str, data: DataSet, path: str, size: int) -> dict[str, Any]:
    build = build_of(name)
    mmcache.build(f"{path}.first", [{"id": "1"}], mmcache.Schema("first"))  # imports what a build needs
    imported = peak()
    begin = time.perf_counter()
    try:
        build(data, path, size)
    except peers.AbsentError as error:
        return {"absent": str(error)}
    seconds = time.perf_counter() - begin
    if os.path.exists(path) and os.path.samefile(path, data.bank):
        return {"absent": "it has no file, and is filled from the bank by every process"}
    return {"seconds": seconds, "peak": peak() - imported, "size": size_of(path)}


def peak() -> int:
    """Bytes resident at the most. Linux's ru_maxrss begins with what the parent had; VmHWM is of this program."""
    try:
        with open("/proc/self/status") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else 1024 * used


# --- the comparison ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Line:
    """A contender, and of each repetition in which it was built the seconds and the peak memory."""

    name: str
    how: str
    build: str
    suffix: str = ""
    seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    peaks: list[float] = dataclasses.field(default_factory=list)
    size: int = 0

    def ratio(self, other: Line) -> Range:
        """How many times as long as the other, in the repetitions that both took part in."""
        return Range.of(took / other.seconds[r] for r, took in self.seconds.items() if r in other.seconds)


def lines_of(notice: Callable[[str], None]) -> list[Line]:
    """What keeps records in a store of its own, and the floors."""
    stores = [peer for peer in peers.load(notice) if peer.store is None]
    found = [Line(peer.name, "", named(peer), peer.suffix) for peer in stores if "get" in peer.operations]
    if partial := [peer.name for peer in stores if "get" not in peer.operations]:
        notice(f"{', '.join(partial)} left out: not whole records")
    others = [Line(name, how, name) for name, (how, _) in OTHERS.items()]
    return [found[0], *others, *found[1:]]


def build(line: Line, data: DataSet, size: int) -> dict[str, Any]:
    """One build in a directory that is removed afterwards, on the file system of the data sets."""
    directory = tempfile.mkdtemp(dir=data.home)
    os.sync()  # what others left to be written is not written now
    try:
        where = ("--child", line.build, "--sizes", str(data.n), "--dim", str(data.dim), "--data", data.home)
        path = os.path.join(directory, f"built{line.suffix}")
        told: dict[str, Any] = child("build", *where, "--path", path, "--bytes", str(size))
        return told
    finally:
        shutil.rmtree(directory)


def measure(data: DataSet, lines: Sequence[Line], repetitions: int, patience: float, report: Report) -> list[Line]:
    """patience: seconds of a build beyond which it is not repeated. The lines that could be built."""
    file = build(lines[0], data, 0)["size"]
    given_up: set[str] = set()
    by_name = {line.name: line for line in lines}
    for repetition, name in turns(list(by_name), repetitions, report.noise):
        line = by_name[name]
        if name in given_up or (repetition and name not in JUDGED and line.seconds[0] > patience):
            continue
        told = build(line, data, file)
        if "absent" in told:
            report.note(f"{name} left out: {told['absent']}")
            given_up.add(name)
            continue
        line.seconds[repetition], line.size = told["seconds"], told["size"]
        line.peaks.append(told["peak"])
    built = [line for line in lines if line.name not in given_up]
    tell(data, built, repetitions, report)
    return built


def tell(data: DataSet, built: Sequence[Line], repetitions: int, report: Report) -> None:
    ours, by_name = built[0], {line.name: line for line in built}
    both = (by_name[READ].seconds, by_name[WRITE].seconds)
    slower = Line(SLOWER, "the lower of both rates", "", "", {r: max(one[r] for one in both) for r in both[0]})
    limits = {"LMDB": ("build: mmcache / LMDB", TIMES_LMDB), SLOWER: (f"build: mmcache / {SLOWER}", TIMES_FLOOR)}
    rows = []
    for line in sorted((*built, slower), key=lambda line: line.name in FLOORS):
        seconds, ratio, verdict = Range.of(line.seconds.values()), None, ""
        if line is not ours:
            ratio = ours.ratio(line)
        if ratio is not None and line.name in limits:
            name, limit = limits[line.name]
            verdict = report.goal(name, data.n, ratio.median, limit)
        size = ours.size if line.name in FLOORS else line.size
        memory = Range.of(line.peaks) if line.peaks and line.name not in FLOORS else None
        report.result(
            n=data.n,
            dim=data.dim,
            operation="build",
            contender=line.name,
            per="store",
            seconds=seconds,
            ratio=ratio,
            peak=memory,
            size=size,
        )
        times = [
            time_text(seconds.median),
            f"{seconds.median / data.n * 1e6:.1f}",
            f"{size / seconds.median / 1e6:,.0f}",
        ]
        more = [size_text(line.size), f"{memory.median / 1e6:+.1f} MB", str(len(line.seconds))] if memory else [""] * 3
        rows.append([line.name, line.how, *times, ratio_text(ratio) if ratio else "", verdict, *more])
    report.table(
        f"{data.n:,} records, embeddings of {data.dim}, {repetitions} repetitions",
        (
            "built from SQLite",
            "",
            "median",
            "us/record",
            "MB/s",
            "mmcache / it",
            "goal",
            "on disk",
            "peak memory",
            "runs",
        ),
        rows,
    )


def bearable(lines: Sequence[Line], n: int, before: dict[str, float], report: Report) -> list[Line]:
    """Not yet built. before: seconds for a record, of each line that was built at another size; empty at the first."""
    late = [line for line in lines if before and before.get(line.name, LONG) * n > LONG and line.name not in JUDGED]
    if late:
        names = ", ".join(line.name for line in late)
        report.note(f"{names} left out at {n:,} records: would take more than {LONG:.0f} s each, or could not be built")
    return [dataclasses.replace(line, seconds={}, peaks=[]) for line in lines if line not in late]


def measure_growth(ours: Line, n: int, settings: Settings, report: Report) -> None:
    """The same records with short and with long embeddings: only what a run of rows holds may grow."""
    rows, peaks = [], []
    for dim in (16, 768):
        data = DataSet(n, dim, settings.data)
        data.ids()
        memory = Range.of(build(ours, data, 0)["peak"] for _ in range(min(3, settings.repeat(3))))
        peaks.append(memory.median)
        embeddings = 4 * dim * n
        report.result(n=n, dim=dim, contender=ours.name, peak_above_imports=memory, embeddings=embeddings)
        rows.append([f"{n:,}", str(dim), size_text(embeddings), f"{memory.median / 1e6:+.1f} MB", ""])
    growth = peaks[1] - peaks[0]
    rows[-1][-1] = report.goal("growth of peak memory with embeddings, MB", n, growth / 1e6, GROWTH / 1e6)
    rows.append(["", "", size_text(4 * (768 - 16) * n), f"{growth / 1e6:+.1f} MB", ""])
    report.table("Peak memory of a build, above imports", ("records", "dim", "embeddings", "peak", "growth, MB"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser(QUESTION)
    for hidden in ("--child", "--path"):
        asked.add_argument(hidden, help=argparse.SUPPRESS)
    for hidden in ("--dim", "--bytes"):
        asked.add_argument(hidden, type=int, default=0, help=argparse.SUPPRESS)
    given = asked.parse_args(arguments)
    settings = settings_of(given)
    if given.child is not None:
        data = DataSet(settings.sizes[0], given.dim, settings.data)
        print(json.dumps(run_child(given.child, data, given.path, given.bytes)))
        return 0
    report = Report("build", QUESTION, settings)
    lines = lines_of(report.note)
    before: dict[str, float] = {}
    for n in settings.sizes:
        data = DataSet(n, dim_of(n), settings.data)
        data.ids()
        repetitions = settings.repeat(2 if given.quick else 5 if n <= 10_000 else 3)
        built = measure(data, bearable(lines, n, before, report), repetitions, 1.0 if given.quick else 20.0, report)
        before = {line.name: Range.of(line.seconds.values()).median / n for line in built}
    measure_growth(lines[0], min(max(settings.sizes), 20_000 if given.quick else 100_000), settings, report)
    report.note(
        "Beside its own work, mmcache reads the new file back and verifies it before it is published. mmcache and LMDB "
        "sync; what others leave to be written is not in their times. peak memory: the most that was resident in the "
        "process that builds, above its imports; a server's is its own."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
