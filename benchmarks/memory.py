"""What do workers cost, together and each?

1, 2, 4, ... processes open the store, get every record once and read all embeddings, and then wait, while the parent
reads /proc/<pid>/smaps of all of them, and of the server where there is one. Pages of a mapped file are shared: each
process is charged its part of them (PSS), so that the sum over the workers is what they take together. What a worker
holds privately is counted over its anonymous maps (heap, arenas, stacks): Private_Clean + Private_Dirty.

The same processes have been looked at before, when they had imported the same modules and opened nothing: the
difference is what using the store costs. Linux only, as the figures come from the kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil

import mmcache

from .common import Report, Settings, dim_of, parser, settings_of, size_text
from .data import DataSet
from .peers import AbsentError, Peer, load
from .peers.mmcache_file import Mmcache
from .peers.npy_pickle import NpyPickle
from .processes import Child, Memory, memory_of, named, peer_of, say, size_of, steps

QUESTION = "What do workers cost, together and each?"
QUICK, FULL = "10_000", "100_000"
WORKERS, WORKERS_QUICK = "1,2,4,8,16", "1,8"

AT = 8
PRIVATE_MB = 4.0
OVER_PICKLE = 0.16
OVER_FILE = 1.1
"""Goals, at so many workers: private memory of a worker above an idle one; all that mmcache's workers take above idle
ones, over the same of workers that unpickle a copy each; and that again, at most so many files and PRIVATE_MB each."""

_FEW = ("Mmcache", "Lmdb", "SqliteTuned", "Redis", "NpyPickle", "MsgpackBlob")
EVERYBODY = 1_000
"""Up to so many records all peers take part; above, these few: each of the others is like one of them."""

_SAMPLE = 20_000
_BATCH = 1_000

_COPY_OVER_STORE = 4
"""A decoded copy and its encoded form, for some time together, over the encoded form; measured 3.3."""


# --- in a process of its own ------------------------------------------------------------------------------------------


def work(peer: type[Peer], n: int, dim: int) -> None:
    """Told an address: take what there is to take, say so, and wait to be looked at."""
    modules = mmcache.Snapshot, mmcache.open  # which are loaded when first asked for
    query = np.ones(dim, "f4")
    np.ones((1_000, dim), "f4") @ query  # its library takes buffers at first use
    for address in steps():
        reader = peer(address)
        for ids in batches(n, _SAMPLE if peer.slow else n):
            if "get" in peer.operations:
                reader.get(ids)
            if "scan_embeddings" not in peer.operations and "embedding" in peer.operations:
                for id_ in ids:
                    assert reader.embedding([id_]).any()  # where it is a view, this is what reads it
        if "scan_embeddings" in peer.operations:
            reader.scan_embeddings(query)
        say("done")
    del modules


def batches(n: int, asked: int) -> Iterator[list[str]]:
    """So many ids of a bank of n, evenly, a few at a time: a list of all would be a worker's memory too."""
    chosen = range(0, n, max(1, n // asked))
    for begin in range(0, len(chosen), _BATCH):
        yield [f"pattern-{i}" for i in chosen[begin : begin + _BATCH]]


# --- looking at them --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fleet:
    """What the same workers took before and after, and what the server took."""

    idle: list[Memory]
    busy: list[Memory]
    server: int

    @property
    def total(self) -> int:
        return sum(memory.pss for memory in self.busy) + self.server

    @property
    def above_idle(self) -> int:
        return self.total - sum(memory.pss for memory in self.idle)

    @property
    def file(self) -> int:
        return sum(memory.file for memory in self.busy)

    @property
    def private(self) -> list[int]:
        """Of each worker, above itself when it was idle."""
        return [busy.private - idle.private for busy, idle in zip(self.busy, self.idle, strict=True)]


def fleet(peer: type[Peer], path: str, data: DataSet, count: int) -> Fleet:
    """Raises AbsentError."""
    others = set(_children())
    with peer.serving(path) as address, contextlib.ExitStack() as stack:
        servers = set(_children()) - others
        arguments = ("--child", named(peer), "--sizes", str(data.n), "--dim", str(data.dim))
        workers = [stack.enter_context(Child("memory", *arguments)) for _ in range(count)]

        def answers() -> list[Memory]:
            for worker in workers:
                worker.answer()
            return [memory_of(worker.pid, path) for worker in workers]

        idle = answers()
        for worker in workers:
            worker.tell(address)
        return Fleet(idle, answers(), sum(memory_of(server.pid, path).pss for server in servers))


def _children() -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def growing(
    peer: type[Peer], path: str, data: DataSet, counts: Iterable[int], report: Report
) -> Iterator[tuple[int, Fleet]]:
    """More and more workers, for as long as there is memory for them. Raises AbsentError."""
    each = _COPY_OVER_STORE * size_of(path)
    for count in counts:
        needed, free = count * each, psutil.virtual_memory().available
        if needed > 0.8 * free:
            report.note(
                f"{count} workers of {peer.name} were left out at {data.n:,} records: they take about "
                f"{size_text(needed)}, and {size_text(free)} are free."
            )
            return
        report.noise.probe()
        found = fleet(peer, path, data, count)
        each = 2 * max(found.private)
        yield count, found


# --- telling ----------------------------------------------------------------------------------------------------------


def measure(peers: Iterable[type[Peer]], data: DataSet, counts: Sequence[int], report: Report) -> None:
    fleets: dict[int, dict[type[Peer], Fleet]] = {count: {} for count in counts}
    sizes: dict[type[Peer], int] = {}
    for peer in peers:
        try:
            path = data.store(peer)
            sizes[peer] = size_of(path)
            for count, found in growing(peer, path, data, counts, report):
                fleets[count][peer] = found
        except AbsentError as error:
            report.note(f"{peer.name} left out: {error}")
    for count, of_peers in fleets.items():
        rows = []
        for peer, found in of_peers.items():
            report.result(
                n=data.n,
                dim=data.dim,
                workers=count,
                contender=peer.name,
                store_size=sizes[peer],
                total_pss=found.total,
                total_pss_above_idle=found.above_idle,
                total_pss_of_file=found.file,
                server_pss=found.server,
                private_above_idle=found.private,
            )
            above, size = found.above_idle, sizes[peer]
            mapped = f"{found.file / size:.3f}" if found.file else ""
            worst = f"{max(found.private) / 1e6:+.2f} MB"
            row = [peer.name, peer.how, size_text(size), size_text(found.total), size_text(above)]
            rows.append([*row, f"{above / size:.2f}", mapped, worst])
        header = ("", "", "store", "total PSS", "above idle", "/ store", "PSS of file / its size", "private, worst")
        workers = f"{count} workers" if count > 1 else "1 worker"
        report.table(f"{data.n:,} records, embeddings of {data.dim}, {workers}", header, rows)
    if Mmcache in fleets.get(AT, {}):
        goals(data.n, sizes[Mmcache], fleets[AT], report)


def goals(n: int, size: int, of_peers: dict[type[Peer], Fleet], report: Report) -> None:
    found = of_peers[Mmcache]
    limit = (OVER_FILE * size + AT * PRIVATE_MB * 1e6) / 1e6
    judged = [
        ("private memory of a worker above an idle one, MB", max(found.private) / 1e6, PRIVATE_MB),
        (f"{AT} workers above idle ones, MB: 1.1 x the file + {PRIVATE_MB:g} MB each", found.above_idle / 1e6, limit),
    ]
    if NpyPickle in of_peers:
        ratio = found.above_idle / of_peers[NpyPickle].above_idle
        judged.append((f"{AT} workers above idle ones, over {NpyPickle.name}", ratio, OVER_PICKLE))
    rows = [[name, "", f"{measured:.3g}", report.goal(name, n, measured, limit)] for name, measured, limit in judged]
    report.table(f"Goals, mmcache, {AT} workers", ("", "", "measured", "goal"), rows)


def run(settings: Settings, counts: Sequence[int]) -> int:
    report = Report("memory", QUESTION, settings)
    if not os.path.exists("/proc/self/smaps"):
        report.note("Nothing was measured: this needs /proc/<pid>/smaps, which only Linux has.")
        return report.finish()
    peers = [peer for peer in load(report.note) if not peer.operations.isdisjoint(("get", "embedding"))]
    few = [peer for peer in peers if peer.__name__ in _FEW]
    for n in settings.sizes:
        taking_part = peers if n <= EVERYBODY else few
        measure(taking_part, DataSet(n, dim_of(n), settings.data), counts, report)
    report.note(
        "total PSS counts every page once, divided among the processes that map it: interpreters, libraries, files "
        "that are mapped, and servers. What is only read, as DiskCache reads its files, is in the page cache too, but "
        "is charged to no process. private, worst: Private_Clean + Private_Dirty of anonymous maps, of the worker that "
        f"has most above itself when idle. Peers with a slow operation get {_SAMPLE:,} records, the others all. Of "
        f"more than {EVERYBODY:,} records a few peers are asked."
    )
    return report.finish()


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser(QUESTION)
    asked.add_argument("--child", help=argparse.SUPPRESS)
    asked.add_argument("--dim", type=int, help=argparse.SUPPRESS)
    asked.add_argument("--workers", metavar="N,...", help=f"processes; usually {WORKERS}")
    given = asked.parse_args(arguments)
    if given.child is not None:
        work(peer_of(given.child), int(given.sizes), given.dim)
        return 0
    given.sizes = given.sizes or (QUICK if given.quick else FULL)
    workers = given.workers or (WORKERS_QUICK if given.quick else WORKERS)
    counts = sorted({1, *map(int, workers.split(","))})  # one worker tells how much memory more would take
    return run(settings_of(given), counts)


if __name__ == "__main__":
    sys.exit(main())
