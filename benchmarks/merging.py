"""Merging cache files beside one build of the same records: CPU and peak memory, each in a process of its own.

    python -m benchmarks.merging                      200,000 records, without and with embeddings
    python -m benchmarks.merging --records 1000000

The source is a SQLite table, cut in halves by rowid. The ratio is of CPU seconds (user and system), which other
processes change less than wall time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import mmcache
from mmcache import Schema, SQLiteSource

_TEXT = "a pattern of a test, with some words of text in it as they come; " * 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--dim", type=int, action="append")
    parser.add_argument("--slow", type=int, default=20_000, metavar="N", help="records that are slow to make; 0: none")
    parser.add_argument("--step", nargs=2, metavar=("WHAT", "DIRECTORY"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step:
        print(json.dumps(_step(*given.step, dim=(given.dim or [0])[0])))
        return 0
    print(f"{given.records} records, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs")
    for dim in given.dim or (0, 128):
        with tempfile.TemporaryDirectory() as directory:
            _make(Path(directory), given.records, dim)
            found = {what: _apart(what, directory, dim) for what in ("whole", "halves", "merged")}
        assert found["merged"]["build_id"] == found["whole"]["build_id"]
        share = found["merged"]["cpu"] / found["whole"]["cpu"]
        print(f"dim {dim}, {found['whole']['size'] / 1e6:.0f} MB, CPU of the merge / of one build: {share:.2f}")
        print(f"  one build           {_told(found['whole'])}\n  merging two halves  {_told(found['merged'])}")
    if given.slow:
        _print_slow(given.slow)
    return 0


class Slow(mmcache.BaseSource[Any]):
    """Records that take so many rounds of SHA-256 each."""

    def __init__(self, begin: int, end: int, rounds: int) -> None:
        super().__init__(Schema("t", index=("kind",)))
        self.range = begin, end
        self.rounds = rounds

    @contextmanager
    def read(self) -> Iterator[Any]:
        yield self.reading(map(self._record, range(*self.range)))

    def _record(self, i: int) -> dict[str, Any]:
        digest = b""
        for _ in range(self.rounds):
            digest = hashlib.sha256(digest).digest()
        return {"id": i, "kind": digest[0]}

    def shards(self, n: int) -> list[Slow]:
        begin, end = self.range
        edges = [begin + (end - begin) * i // n for i in range(n + 1)]
        return [Slow(a, b, self.rounds) for a, b in pairwise(edges)]


def _print_slow(records: int) -> None:
    """Wall time of builds by two processes, against one."""
    with (
        tempfile.TemporaryDirectory() as directory,
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor,
    ):
        out = Path(directory) / "t.mmc"
        mmcache.build(out, Slow(0, 100, 1), shards=2, executor=executor)  # its workers have begun
        for rounds in (1, 100, 1000):
            source = Slow(0, records, rounds)
            one = mmcache.build(Path(directory) / "one.mmc", source)
            two = mmcache.build(out, source, shards=4, executor=executor)
            assert one.build_id == two.build_id
            print(
                f"{records} records of {1e6 * one.seconds / records:.0f} us each: one process {one.seconds:.2f} s, "
                f"4 shards by 2 processes {two.seconds:.2f} s, {one.seconds / two.seconds:.1f} times as fast"
            )


def _told(one: dict[str, Any]) -> str:
    return f"{one['cpu']:.2f} s CPU, {one['seconds']:.2f} s, peak {one['peak'] / 1e6:.0f} MB"


def _make(at: Path, records: int, dim: int) -> None:
    rng = np.random.default_rng(1)
    with sqlite3.connect(at / "t.db") as db:
        db.execute("CREATE TABLE t (id TEXT, kind TEXT, domain TEXT, content TEXT, n INT, v BLOB)")
        rows = (
            (
                f"pattern-{i:08}",
                f"kind {i % 12}",
                f"domain {i * 7919 % 200}",
                f"{i} {_TEXT}",
                i % 1000,
                rng.random(dim, np.float32).tobytes() if dim else None,
            )
            for i in range(records)
        )
        db.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?)", rows)
    db.close()


def _apart(what: str, directory: str, dim: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.merging", "--step", what, directory, "--dim", str(dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def _step(what: str, directory: str, *, dim: int) -> dict[str, Any]:
    at = Path(directory)
    schema = Schema("t", key="id", index=("kind", "domain", "n"), embedding="v" if dim else None, dim=dim or None)
    source = SQLiteSource(at / "t.db", schema)
    begun = resource.getrusage(resource.RUSAGE_SELF)
    report: mmcache.BuildReport
    if what == "whole":
        report = mmcache.build(at / "whole.mmc", source)
    elif what == "halves":
        first, last = source.shards(2)
        mmcache.build(at / "half-0.mmc", first)
        report = mmcache.build(at / "half-1.mmc", last)
    else:
        report = mmcache.merge(at / "merged.mmc", [at / "half-0.mmc", at / "half-1.mmc"])
    ended = resource.getrusage(resource.RUSAGE_SELF)
    cpu = ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
    return {
        "cpu": cpu,
        "seconds": report.seconds,
        "peak": ended.ru_maxrss * 1024,
        "size": report.size,
        "build_id": report.build_id,
    }


if __name__ == "__main__":
    raise SystemExit(main())
