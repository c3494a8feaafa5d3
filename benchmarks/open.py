"""Does opening a file depend on how many records are in it?

Everything is opened, asked for one record where it says so, and closed again, in the page cache, over and over in one
process; a new random id every time. Sizes take turns too, so that the ratio of two sizes is of one run. For scale:
LMDB, and one msgpack map decoded whole, which is how a cache without an index has to begin.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import lmdb
import msgpack

import mmcache

from .common import (
    Report,
    Settings,
    dim_of,
    interleave,
    parser,
    ratio_text,
    repeated,
    settings_of,
    size_text,
    time_text,
)
from .data import DataSet

QUESTION = "Does opening a file depend on how many records are in it?"
FLAT = 1.5
"""Goal: a lazy open of the largest file over that of the smallest."""

Verify = Literal["auto", "full", "lazy"]


def open_mmcache(path: str, verify: Verify) -> None:
    mmcache.Snapshot.open(path, verify=verify).close()


def get_mmcache(path: str, verify: Verify, ids: Iterator[str]) -> None:
    with mmcache.Snapshot.open(path, verify=verify) as snapshot:
        assert snapshot[next(ids)]["domain"]


def open_lmdb(path: str) -> None:
    lmdb.open(path, readonly=True, max_dbs=4).close()


def get_lmdb(path: str, ids: Iterator[str]) -> None:
    with lmdb.open(path, readonly=True, max_dbs=4) as env, env.begin(env.open_db(b"records")) as txn:
        assert msgpack.unpackb(txn.get(next(ids).encode()))["domain"]


def decode_blob(path: str) -> None:
    with open(path, "rb") as file:
        assert msgpack.unpackb(file.read())


def actions(data: DataSet) -> dict[str, Callable[[], None]]:
    path, other = data.file, data.lmdb
    chosen = data.ids()
    random.Random("opens").shuffle(chosen)
    ids = itertools.cycle(chosen[:20_000])
    verifies: tuple[Verify, ...] = ("lazy", "auto", "full")
    return {
        **{f"mmcache, {verify}": functools.partial(open_mmcache, path, verify) for verify in verifies},
        **{
            f"mmcache, {verify}, first get": functools.partial(get_mmcache, path, verify, ids)
            for verify in verifies[:2]
        },
        "LMDB": functools.partial(open_lmdb, other),
        "LMDB, first get": functools.partial(get_lmdb, other, ids),
        "msgpack map decoded": functools.partial(decode_blob, data.blob),
    }


def measure(settings: Settings, report: Report) -> None:
    sets = {n: DataSet(n, dim_of(n), settings.data) for n in settings.sizes}
    contenders = {f"{how} {n}": action for n, data in sets.items() for how, action in actions(data).items()}
    # What takes long is not done as often: it is there for scale.
    slow = {name for name in contenders if name.startswith(("msgpack", "mmcache, full", "mmcache, auto"))}
    work = {name: repeated(action, 0.005) for name, action in contenders.items()}
    gc.freeze()
    repetitions = settings.repeat(31)
    few = min(repetitions, 5)
    samples = interleave(
        {name: work[name] for name in work if name not in slow}, repetitions, report.noise, primed=True
    )
    scale = interleave({name: work[name] for name in work if name in slow}, few, report.noise)
    smallest = min(sets)
    rows = []
    for how in actions(sets[smallest]):
        for n in sets:
            of = scale if f"{how} {n}" in slow else samples
            seconds, ratio = of.range(f"{how} {n}"), of.ratio(f"{how} {n}", f"{how} {smallest}")
            verdict = ""
            if how == "mmcache, lazy" and n == max(sets) != smallest:
                verdict = report.goal(f"lazy open over that of {smallest:,} records", n, ratio.median, FLAT)
            report.result(n=n, contender=how, seconds=seconds, ratio=ratio)
            title = how if n == smallest else ""
            row = [title, f"{n:,}", time_text(seconds.median), ratio_text(ratio) if n != smallest else "", verdict]
            rows.append(row)
    report.table(
        f"{repetitions} repetitions ({few} of what takes long)",
        ("open and close", "records", "median", f"of {smallest:,} records", "goal"),
        rows,
    )
    sizes = {n: os.path.getsize(data.file) for n, data in sets.items()}
    report.result(file_sizes=sizes)
    report.note("; ".join(f"{n:,} records, embeddings of {dim_of(n)}: {size_text(size)}" for n, size in sizes.items()))


def main() -> int:
    settings = settings_of(parser(QUESTION).parse_args())
    report = Report("open", QUESTION, settings)
    measure(settings, report)
    report.note(
        "lazy checks header, table and meta, and every 64 KiB when first touched; full checks every byte; auto is full "
        "up to 64 MB, and above it checks ids, rows and indexes. What is checked at open takes its time. LMDB "
        "checks nothing."
    )
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
