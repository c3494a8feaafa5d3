"""What do eight workers cost, together and each?

Eight processes open the file, look up every record once and sum all embeddings, and then wait, while the parent reads
/proc/<pid>/smaps of all of them. Pages of the file are shared: each process is charged its part of them (PSS), so that
the sum over the workers is what they take together. What a worker holds privately is counted over its anonymous maps
(heap, arenas, stacks): Private_Clean + Private_Dirty. An idle worker has imported the same modules and opened nothing;
the difference is what using the file costs.

The alternative is what a cache without a shared file does: every worker decodes a copy of its own. Linux only, as the
figures come from the kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
import psutil

import mmcache

from .common import ROOT, Report, Settings, dim_of, parser, settings_of, size_text
from .data import DataSet

QUESTION = "What do eight workers cost, together and each?"
WORKERS = 8
PRIVATE_MB = 4.0
"""Goal: of a worker, above an idle one."""

_COPY_OVER_BLOB = 4
"""A decoded copy and its encoded form, for some time together, over the encoded form; measured 3.3."""


# --- in a process of its own ------------------------------------------------------------------------------------------


def work(kind: str, path: str) -> None:
    """Take what there is to take, say so, and wait to be looked at."""
    held = {"idle": idle, "shared": shared, "copy": private_copy}[kind](path)
    print("ready", flush=True)
    sys.stdin.read()
    del held


def idle(_: str) -> object:
    return mmcache.Snapshot, msgpack.unpackb, np.frombuffer


def shared(path: str) -> object:
    snapshot = mmcache.Snapshot.open(path)
    for id_ in snapshot:
        assert snapshot[id_]["domain"]
    total = float(snapshot.embeddings.sum())
    return snapshot, total


def private_copy(path: str) -> object:
    with open(path, "rb") as file:
        records = msgpack.unpackb(file.read())
    total = 0.0
    for record in records.values():
        assert record["domain"]
        record["embedding"] = np.frombuffer(record["embedding"], "<f4")
        total += float(record["embedding"].sum())
    return records, total


# --- looking at them --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes. pss: a process's share of everything. file: its share of the file's map. private: of anonymous maps."""

    pss: int
    file: int
    private: int


def memory_of(pid: int, file: str) -> Memory:
    """The sums over one process's maps. A map without an inode is anonymous."""
    pss = of_file = private = 0
    anonymous = is_file = False
    with open(f"/proc/{pid}/smaps") as lines:
        for line in lines:
            fields = line.split()
            if not fields[0].endswith(":"):
                anonymous, is_file = fields[4] == "0", fields[-1] == file
            elif fields[0] == "Pss:":
                pss += 1024 * int(fields[1])
                of_file += is_file * 1024 * int(fields[1])
            elif fields[0] in ("Private_Clean:", "Private_Dirty:"):
                private += anonymous * 1024 * int(fields[1])
    return Memory(pss, of_file, private)


@contextlib.contextmanager
def workers(kind: str, path: str, count: int) -> Iterator[list[int]]:
    """So many processes, all ready, until the end of the block."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", kind, "--path", path]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(count)
        ]
        try:
            for process in started:
                assert process.stdout is not None
                if process.stdout.readline() != "ready\n":
                    raise SystemExit(f"a worker ({kind}) failed; what it said is above")
            yield [process.pid for process in started]
        finally:
            for process in started:
                assert process.stdin is not None
                process.stdin.close()


def measured(kind: str, path: str, count: int) -> list[Memory]:
    with workers(kind, path, count) as pids:
        return [memory_of(pid, path) for pid in pids]


def measure(data: DataSet, count: int, report: Report) -> None:
    path, size = data.file, os.path.getsize(data.file)
    found = {"idle": measured("idle", path, count), "shared": measured("shared", path, count)}
    blob = data.blob
    needed, free = count * _COPY_OVER_BLOB * os.path.getsize(blob), psutil.virtual_memory().available
    if needed < 0.8 * free:
        found["copy"] = measured("copy", blob, count)
    titles = {"idle": "idle", "shared": "mmcache, everything touched", "copy": "a decoded copy each"}
    rest = sum(memory.pss for memory in found["idle"])
    least = sum(memory.private for memory in found["idle"]) / count
    rows = []
    for kind, memories in found.items():
        total, of_file = sum(memory.pss for memory in memories), sum(memory.file for memory in memories)
        worst = max(memory.private for memory in memories) - least
        verdict = ""
        if kind == "shared":
            verdict = report.goal("private memory of a worker above an idle one, MB", data.n, worst / 1e6, PRIVATE_MB)
        report.result(
            n=data.n,
            dim=data.dim,
            contender=kind,
            file_size=size,
            total_pss=total,
            total_pss_above_idle=total - rest,
            total_pss_of_file=of_file,
            private_above_idle=[memory.private - least for memory in memories],
        )
        more = [size_text(total - rest), f"{(total - rest) / size:.2f}"] if kind != "idle" else ["", ""]
        share = f"{of_file / size:.3f}" if kind == "shared" else ""
        above = f"{worst / 1e6:+.2f} MB" if kind != "idle" else ""
        rows.append([titles[kind], size_text(total), *more, share, above, verdict])
    report.table(
        f"{data.n:,} records, embeddings of {data.dim}: {size_text(size)}, {count} workers",
        ("", "total PSS", "above idle", "/ file size", "PSS of file / its size", "private, worst", "goal"),
        rows,
    )
    if "copy" not in found:
        report.note(
            f"A decoded copy in each of {count} workers was left out at {data.n:,} records: it takes about "
            f"{size_text(needed)}, and {size_text(free)} are free."
        )


def run(settings: Settings, count: int) -> int:
    report = Report("memory", QUESTION, settings)
    if not os.path.exists("/proc/self/smaps"):
        report.note("Nothing was measured: this needs /proc/<pid>/smaps, which only Linux has.")
        return report.finish()
    for n in settings.sizes:
        measure(DataSet(n, dim_of(n), settings.data), count, report)
    report.note(
        "total PSS counts every page once, divided among the processes that map it: interpreters, libraries and the "
        "file. private, worst: Private_Clean + Private_Dirty of anonymous maps, of the worker that has most, above the "
        "mean of idle workers."
    )
    return report.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser(QUESTION)
    for hidden in ("--child", "--path"):
        asked.add_argument(hidden, help=argparse.SUPPRESS)
    asked.add_argument("--workers", type=int, default=WORKERS, metavar="N", help=f"processes; usually {WORKERS}")
    given = asked.parse_args(arguments)
    if given.child is not None:
        work(given.child, given.path)
        return 0
    return run(settings_of(given), given.workers)


if __name__ == "__main__":
    sys.exit(main())
