"""What does the first worker after a restart of the machine wait for?

Nothing of the store is in memory: all its files are synced and dropped from the page cache (POSIX_FADV_DONTNEED), and
`mincore` says whether they really are out. Then a process that has imported everything, and that has used a small store
of the same kind before, opens it, gets 1, 100 and 1,000 random records, and reads all embeddings once. Each turn has a
process of its own and other ids; contenders take turns, with the same ids. Servers are left out: they hold what they
have in memory.

Apart from that, and with files in memory, the CPU time of a first answer: of a process that imports a library, opens
its store, asks for one record and for the ids of a domain, beside the `sqlite3` module.

Directories and inodes stay known to the kernel, and below a virtual machine the host may have its own cache: times are
of this machine, bytes read from the device are not.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import mmap
import os
import random
import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .common import (
    Range,
    Report,
    Samples,
    Settings,
    dim_of,
    parser,
    ratio_text,
    settings_of,
    size_text,
    time_text,
    turns,
)
from .data import DataSet
from .open import MmcacheLazy
from .peers import Peer, load
from .peers.mmcache_file import Mmcache
from .processes import Child, files_of, named, peer_of, say, size_of, steps, stored

QUESTION = "What does the first worker after a restart of the machine wait for?"
QUICK, FULL = "10_000", "100_000"
REPETITIONS_QUICK, REPETITIONS = 3, 7

REHEARSAL = 200
"""Records of the small store that is used before."""
GETS = (1, 100, 1_000)
SCAN = "all embeddings"
STEPS = ("open", *(f"{count:,} gets" if count > 1 else "1 get" for count in GETS), SCAN)


# --- in a process of its own ------------------------------------------------------------------------------------------


def work(peer: type[Peer], rehearsed: str, dim: int) -> None:
    """Told a store and ids: seconds, bytes read and major faults of each step."""
    query = np.ones(dim, "f4")
    use(peer, rehearsed, [["pattern-0"]], query)
    for path, batches in steps():
        say(use(peer, path, batches, query))


def use(peer: type[Peer], path: str, batches: Sequence[Sequence[str]], query: object) -> dict[str, list[float]]:
    measured = {}
    readers: list[Peer] = []

    def step(action: Callable[[], object]) -> list[float]:
        read, faults, begin = device_bytes(), major_faults(), time.perf_counter()
        action()
        elapsed = time.perf_counter() - begin
        return [elapsed, device_bytes() - read, major_faults() - faults]

    measured["open"] = step(lambda: readers.append(peer(path)))
    reader = readers[0]
    for name, ids in zip(STEPS[1:-1], batches, strict=False):
        measured[name] = step(lambda ids=ids: reader.get(ids))  # type: ignore[misc]
    if "scan_embeddings" in peer.operations:
        measured[SCAN] = step(lambda: reader.scan_embeddings(query))  # type: ignore[arg-type]
    reader.close()
    return measured


def device_bytes() -> int:
    """Read for this process so far, readahead too; 0 where the kernel does not say."""
    try:
        with open("/proc/self/io") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
    except OSError:
        return 0


def major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


# --- the page cache ---------------------------------------------------------------------------------------------------


def drop(path: str) -> int:
    """Let go of all files of a store; how many bytes of them are in the page cache all the same.

    The control page of mmcache goes too: it says who has checked the file since the machine was started.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}.ctl")
    left = 0
    for name in files_of(path):
        fd = os.open(name, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            left += resident(fd)
        finally:
            os.close(fd)
    return left


def resident(fd: int) -> int:
    """Bytes of a file that are in the page cache."""
    size = os.fstat(fd).st_size
    if size == 0:
        return 0
    pages = -(-size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * pages)()
    with mmap.mmap(fd, size, access=mmap.ACCESS_COPY) as view:  # ctypes takes the address of what is writable only
        start = ctypes.c_char.from_buffer(view)
        failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), found)
        del start
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return mmap.PAGESIZE * sum(page & 1 for page in found)


_libc = ctypes.CDLL(None, use_errno=True)


# --- a first answer -------------------------------------------------------------------------------------------------

_ANSWERS = {
    Mmcache.name: """
import mmcache
with mmcache.Snapshot.open(path) as snapshot:
    assert snapshot[key]["domain"]
    found = snapshot.where(domain=domain).ids
""",
    "sqlite3": """
import sqlite3
db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
assert db.execute("SELECT * FROM patterns WHERE id = ?", (key,)).fetchone()[0]
found = [id_ for (id_,) in db.execute("SELECT id FROM patterns WHERE domain = ?", (domain,))]
""",
}
"""One record by its key and the ids of a domain, as a program asks that is started for this and ends."""

OVER_SQLITE = 1.5
"""Goal: CPU time of mmcache over that of the sqlite3 module."""


def first_answers(data: DataSet, settings: Settings, report: Report) -> None:
    """CPU time from the first import to the answer, in processes that have imported nothing; files are in memory."""
    with contextlib.closing(sqlite3.connect(data.bank)) as db:
        key, domain = db.execute("SELECT id, domain FROM patterns LIMIT 1").fetchone()
    stores = {Mmcache.name: data.store(Mmcache), "sqlite3": data.bank}
    found: dict[str, list[float]] = {name: [] for name in stores}
    repetitions = settings.repeat(21)
    for repetition, name in turns(list(stores), repetitions + 1, report.noise):
        code = f"import sys, time; path, key, domain = sys.argv[1:]; begun = time.process_time()\n{_ANSWERS[name]}"
        command = [sys.executable, "-c", f"{code}\nprint(time.process_time() - begun, len(found))"]
        done = subprocess.run([*command, stores[name], key, domain], capture_output=True, text=True, check=True)
        if repetition:  # the first one may have compiled modules
            found[name].append(float(done.stdout.split()[0]))
    samples = Samples(found)
    rows = []
    for name in stores:
        seconds, ratio = samples.range(name), samples.ratio(Mmcache.name, name)
        values = {"operation": "first answer, CPU", "contender": name, "seconds": seconds, "ratio": ratio}
        report.result(n=data.n, dim=data.dim, **values)
        verdict = ""
        if name == "sqlite3":
            verdict = report.goal("first answer, CPU: mmcache / sqlite3", data.n, ratio.median, OVER_SQLITE)
        rows.append([name, time_text(seconds.median), "" if name == Mmcache.name else ratio_text(ratio), verdict])
    title = f"a first answer, {data.n:,} records: CPU time from the first import on, {repetitions} repetitions"
    report.table(title, ("", "median", "mmcache / it", "goal"), rows)


# --- telling ----------------------------------------------------------------------------------------------------------


def measure(peers: Iterable[type[Peer]], n: int, settings: Settings, repetitions: int, report: Report) -> None:
    data = DataSet(n, dim_of(n), settings.data)
    small = DataSet(min(n, REHEARSAL), data.dim, settings.data)
    paths = {peer.name: (peer, path) for peer, path in stored(peers, data, report.note).items()}
    all_ids = data.ids()
    found: dict[str, dict[str, list[list[float]]]] = {name: {} for name in paths}
    left: dict[str, int] = {}
    for repetition, name in turns(list(paths), repetitions, report.noise):
        peer, path = paths[name]
        chosen = random.Random(f"cold {repetition}")
        batches = [chosen.sample(all_ids, min(count, n)) for count in GETS[: 2 if peer.slow else None]]
        with Child("cold", "--child", named(peer), "--rehearsed", small.store(peer), "--dim", str(data.dim)) as child:
            child.answer()
            left[name] = max(left.get(name, 0), drop(path))
            child.tell((path, batches))
            for step, figures in child.answer().items():
                found[name].setdefault(step, []).append(figures)
    tell(data, {name: peer for name, (peer, _) in paths.items()}, found, repetitions, report)
    sizes = {name: size_of(path) for name, (_, path) in paths.items()}
    report.result(n=n, dim=data.dim, store_sizes=sizes, left_in_memory=left)
    staying = [f"{name} {size_text(size)}" for name, size in left.items() if size]
    if staying:
        report.note(f"It could not be shown that all was out of memory: at worst, {', '.join(staying)} stayed.")
    else:
        report.note("mincore found no page of any store in memory before any turn.")


def tell(
    data: DataSet,
    peers: dict[str, type[Peer]],
    found: dict[str, dict[str, list[list[float]]]],
    repetitions: int,
    report: Report,
) -> None:
    baseline = MmcacheLazy.name
    for step in STEPS:
        seconds = Samples({name: [one[0] for one in took[step]] for name, took in found.items() if step in took})
        rows = []
        for name, took in found.items():
            if step not in took:
                continue
            time_, ratio = seconds.range(name), seconds.ratio(name, baseline)
            read, faults = (Range.of(one[i] for one in took[step]) for i in (1, 2))
            values = {"seconds": time_, "over_lazy": ratio, "bytes_read": read, "major_faults": faults}
            report.result(n=data.n, dim=data.dim, operation=step, contender=name, **values)
            times = f"{time_text(time_.median)} ({time_text(time_.min)}-{time_text(time_.max)})"
            row = [name, peers[name].how, times, ratio_text(ratio), size_text(read.median), f"{faults.median:,.0f}"]
            rows.append(row)
        title = f"{step}: {data.n:,} records, embeddings of {data.dim}, {repetitions} repetitions"
        report.table(title, ("", "", "median", f"/ {baseline}", "read from device", "major faults"), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser(QUESTION)
    for hidden in ("--child", "--rehearsed", "--dim"):
        asked.add_argument(hidden, help=argparse.SUPPRESS)
    given = asked.parse_args(arguments)
    if given.child is not None:
        work(peer_of(given.child), given.rehearsed, int(given.dim))
        return 0
    given.sizes = given.sizes or (QUICK if given.quick else FULL)
    settings = settings_of(given)
    report = Report("cold", QUESTION, settings)
    if not hasattr(os, "posix_fadvise"):
        report.note("Nothing was measured: this needs posix_fadvise, which this system does not have.")
        return report.finish()
    peers = [peer for peer in load(report.note) if "get" in peer.operations]
    peers.insert(1 + peers.index(Mmcache), MmcacheLazy)
    for n in settings.sizes:
        measure(peers, n, settings, settings.repeat(REPETITIONS_QUICK if given.quick else REPETITIONS), report)
        first_answers(DataSet(n, dim_of(n), settings.data), settings, report)
    report.note(
        "Steps follow one another: a later one finds what an earlier one, and the kernel's readahead, brought in; how "
        "much is read ahead is a setting of the device. "
        "mmcache opens a file of up to 64 MB by checking every byte of it, which reads it; lazily, it checks what is "
        "touched. A peer that decodes everything when it opens has read all by then."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
