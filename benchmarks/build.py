"""What does a build cost beyond reading the rows and writing the bytes?

Every build runs in a process of its own, which tells how long the build took (imports apart) and the most memory that
it ever had. The floor is what no builder can do without: the same SELECT drained row by row, and as many bytes as the
published file has, written and synced. LMDB, loaded as its documentation recommends, is there for scale; it
computes no checksums.
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

import mmcache
from mmcache.presets.patterns import PatternsSource

from .common import (
    Range,
    Report,
    Samples,
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
from .data import DataSet, read_bank, write_lmdb

QUESTION = "What does a build cost beyond reading the rows and writing the bytes?"
FLOOR = "read rows, write bytes"
TIMES_FLOOR = 2.5
GROWTH = 16e6
"""Goal: bytes of memory that embeddings of 768 numbers may cost more than those of 16: what a run of rows holds."""

_CHUNK = 2**20


# --- in a process of its own ------------------------------------------------------------------------------------------


def nothing(_data: DataSet, _path: str, _size: int) -> None:
    """What the memory of the others is compared with."""


def plain(data: DataSet, path: str, _size: int) -> None:
    """`SQLiteSource`, the metadata kept as the text that it is."""
    mmcache.build(path, mmcache.SQLiteSource(data.bank, dataclasses.replace(data.schema, json=())))


def decoded(data: DataSet, path: str, _size: int) -> None:
    """`SQLiteSource`, the metadata decoded from JSON."""
    mmcache.build(path, mmcache.SQLiteSource(data.bank, data.schema))


def checked(data: DataSet, path: str, _size: int) -> None:
    """`PatternsSource`: decoded, and every record checked by the rules of the domain."""
    mmcache.build(path, PatternsSource(data.bank, data.schema))


def floor(data: DataSet, path: str, size: int) -> None:
    """The same rows in the same order, looked at by nobody; then `size` bytes and fsync."""
    collections.deque(read_bank(data.bank), maxlen=0)
    chunk = os.urandom(_CHUNK)
    with open(path, "wb") as file:
        file.writelines(chunk[: size - begin] for begin in range(0, size, _CHUNK))
        file.flush()
        os.fsync(file.fileno())


def peer(data: DataSet, path: str, _size: int) -> None:
    write_lmdb(data.bank, path)


BUILDS: dict[str, Callable[[DataSet, str, int], None]] = {
    "imports only": nothing,
    "SQLiteSource": plain,
    "SQLiteSource, JSON decoded": decoded,
    "PatternsSource": checked,
    FLOOR: floor,
    "LMDB": peer,
}


def run_child(name: str, data: DataSet, path: str, size: int) -> None:
    mmcache.build(f"{path}.first", [{"id": "1"}], mmcache.Schema("first"))  # imports what a build needs
    begin = time.perf_counter()
    BUILDS[name](data, path, size)
    seconds = time.perf_counter() - begin
    print(
        json.dumps({"seconds": seconds, "peak": peak(), "size": os.path.getsize(path) if os.path.isfile(path) else 0})
    )


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
class Figures:
    seconds: list[float] = dataclasses.field(default_factory=list)
    peaks: list[float] = dataclasses.field(default_factory=list)


def build(name: str, data: DataSet, size: int) -> dict[str, float]:
    """One build in a directory that is removed afterwards, on the file system of the data sets."""
    directory = tempfile.mkdtemp(dir=data.home)
    try:
        where = ("--child", name, "--sizes", str(data.n), "--dim", str(data.dim), "--data", data.home)
        told: dict[str, float] = child(
            "build", *where, "--path", os.path.join(directory, "built"), "--bytes", str(size)
        )
        return told
    finally:
        shutil.rmtree(directory)


def measure(data: DataSet, settings: Settings, report: Report) -> None:
    size = int(build("PatternsSource", data, 0)["size"])
    figures = {name: Figures() for name in BUILDS}
    repetitions = settings.repeat(9 if data.n <= 10_000 else 5 if data.n <= 100_000 else 3)
    for _, name in turns(list(BUILDS), repetitions, report.noise):
        told = build(name, data, size)
        figures[name].seconds.append(told["seconds"])
        figures[name].peaks.append(told["peak"])
    samples = Samples({name: found.seconds for name, found in figures.items()})
    idle = Range.of(figures["imports only"].peaks).median
    rows = []
    for name, found in figures.items():
        seconds, ratio, memory = samples.range(name), samples.ratio(name, FLOOR), Range.of(found.peaks)
        report.result(n=data.n, dim=data.dim, contender=name, seconds=seconds, ratio=ratio, peak=memory, file_size=size)
        verdict = ""
        if name in ("SQLiteSource", "PatternsSource"):
            verdict = report.goal(f"{name} / {FLOOR}", data.n, ratio.median, TIMES_FLOOR)
        rate = f"{seconds.median / data.n * 1e6:.2f}"
        times = [time_text(seconds.median), rate, ratio_text(ratio)] if name != "imports only" else [""] * 3
        rows.append([name, *times, verdict, f"{(memory.median - idle) / 1e6:+.1f} MB"])
    report.table(
        f"{data.n:,} records, embeddings of {data.dim}: {size_text(size)}, {repetitions} repetitions",
        ("from SQLite", "median", "us/record", f"/ {FLOOR}", "goal", "peak memory"),
        rows,
    )


def measure_growth(n: int, settings: Settings, report: Report) -> None:
    """The same records with short and with long embeddings: only what a run of rows holds may grow."""
    rows, peaks = [], []
    for dim in (16, 768):
        data = DataSet(n, dim, settings.data)
        idle = build("imports only", data, 0)["peak"]
        memory = Range.of(build("SQLiteSource", data, 0)["peak"] - idle for _ in range(min(3, settings.repeat(3))))
        peaks.append(memory.median)
        embeddings = 4 * dim * n
        report.result(n=n, dim=dim, contender="SQLiteSource", peak_above_idle=memory, embeddings=embeddings)
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
        run_child(given.child, DataSet(settings.sizes[0], given.dim, settings.data), given.path, given.bytes)
        return 0
    report = Report("build", QUESTION, settings)
    for n in settings.sizes:
        measure(DataSet(n, dim_of(n), settings.data), settings, report)
    measure_growth(min(max(settings.sizes), 20_000 if given.quick else 100_000), settings, report)
    report.note(
        "peak memory: the most that was resident, above a process with the same imports. A build with mmcache fsyncs, "
        "reads the new file back and verifies it before it is published; the floor and LMDB fsync only."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
