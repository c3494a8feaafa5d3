"""How long does a release take to all workers of all nodes? All nodes are of one machine, with places of their own.

    python -m benchmarks.adoption                                  16 nodes of 2 workers
    python -m benchmarks.adoption --nodes 4 --workers 4 --json out.json

A node may take the time until its poll, and 1.2 times that of its download, which is verified as it arrives and as it
is published. A node's log says how long that was. Each worker asks for one record every 10 ms, and notes when its
answer is of the release. So `beyond` is what the last worker of a node adds: (its answer - begin of the download) /
download.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np

import mmcache
from mmcache import Schema

from .common import ROOT, size_text, table_text

_LIMIT: Final = 1.2
_JITTER: Final = 1.2
"""Times the usual pause: the longest one between two polls."""
_PAUSE: Final = 0.01
_PATIENCE: Final = 300.0


class Adopted(NamedTuple):
    """Of one node and release; seconds. wait: until its poll found it. took: to download, verify and publish. last:
    until all its workers answered by it, from the release on."""

    wait: float
    took: float
    last: float

    @property
    def beyond(self) -> float:
        return (self.last - self.wait) / self.took


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--nodes", type=int, default=16)
    add("--workers", type=int, default=2, help="of each node")
    add("--releases", type=int, default=3, help="that are measured, after a first one")
    add("--records", type=int, default=20_000, help="of 1 kB each")
    add("--every", type=float, default=2.0, help="seconds between two polls of a node")
    add("--json", metavar="FILE")
    add("--worker", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        return _work(*given.worker)
    with tempfile.TemporaryDirectory() as directory:
        size, found = measure(Path(directory), given)
    print(told(found, size, given))
    if given.json:
        rows = [[one._asdict() for one in release] for release in found]
        Path(given.json).write_text(json.dumps({"size": size, "every": given.every, "releases": rows}) + "\n", "utf-8")
    return 0


def measure(directory: Path, given: argparse.Namespace) -> tuple[int, list[list[Adopted]]]:
    """Bytes of a release, and for each release what each node did."""
    url = f"file://{directory}/store"
    size = _release(directory, url, 0, given.records)[0]
    found = []
    with _fleet(directory, url, given) as nodes:
        for node in nodes:
            for worker in node:
                _until(worker, 0)
        for number in range(1, given.releases + 1):
            size, published = _release(directory, url, number, given.records)
            found.append([_adopted(node, number, published) for node in nodes])
    return size, found


def _release(directory: Path, url: str, number: int, records: int) -> tuple[int, float]:
    """Bytes, and when it was announced."""
    noise = np.random.default_rng(number).bytes(1_000 * records)
    items = ({"id": f"k{i}", "number": number, "noise": noise[1_000 * i : 1_000 * (i + 1)]} for i in range(records))
    mmcache.build(directory / "made.mmc", items, Schema("items"))
    release = mmcache.publish(directory / "made.mmc", url, deltas=False)
    return release.size, release.published


@contextlib.contextmanager
def _fleet(directory: Path, url: str, given: argparse.Namespace) -> Iterator[list[list[subprocess.Popen[str]]]]:
    nodes: list[list[subprocess.Popen[str]]] = []
    try:
        for i in range(given.nodes):
            place = directory / f"node-{i}"
            place.mkdir()
            nodes.append([])
            for executor in ("thread", *["external"] * (given.workers - 1)):
                words = [str(place / "items.mmc"), url, executor, str(given.every)]
                command = [sys.executable, "-m", "benchmarks.adoption", "--worker", *words]
                process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                nodes[-1].append(process)
        yield nodes
    finally:
        for process in (process for node in nodes for process in node):
            process.kill()
            process.communicate()


def _until(worker: subprocess.Popen[str], number: int) -> dict[str, float]:
    """What a worker notes once its answer is of a release."""
    lines: IO[str] | None = worker.stdout
    assert lines is not None
    for line in lines:
        noted: dict[str, float] = json.loads(line)
        if noted["number"] == number:
            return noted
    raise RuntimeError(f"a worker ended with status {worker.wait()}")


def _adopted(node: Sequence[subprocess.Popen[str]], number: int, published: float) -> Adopted:
    noted = [_until(worker, number) for worker in node]
    follower = noted[0]
    wait = follower["ended"] - follower["took"] - published
    return Adopted(wait, follower["took"], max(one["at"] for one in noted) - published)


# --- a worker ---------------------------------------------------------------------------------------------------------


class _Log(logging.Handler):
    """When the last release was brought, and in what time."""

    ended, took = 0.0, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", "") == "followed":
            self.ended, self.took = record.created, record.seconds  # type: ignore[attr-defined]


def _work(path: str, url: str, executor: Any, every: str) -> int:
    said, number, ended = _Log(), -1, 0.0
    logger = logging.getLogger("mmcache")
    logger.addHandler(said)
    logger.setLevel(logging.INFO)
    options: dict[str, Any] = {"follow": url, "follow_every": float(every), "check_interval": 0.1, "wait": _PATIENCE}
    with mmcache.open(path, executor=executor, **options) as cache:
        while True:
            now = int(cache["k7"]["number"])
            at = time.time()
            if now != number:
                number = now
                while executor == "thread" and said.ended == ended:  # the log's line comes after the page's word
                    time.sleep(0.001)
                ended = said.ended
                print(json.dumps({"number": number, "at": at, "ended": said.ended, "took": said.took}), flush=True)
            time.sleep(_PAUSE)


# --- telling ----------------------------------------------------------------------------------------------------------


def told(found: Sequence[Sequence[Adopted]], size: int, given: argparse.Namespace) -> str:
    rows = []
    for i, release in enumerate(found, start=1):
        beyond = sorted(one.beyond for one in release)
        within = sum(one.last <= _JITTER * given.every + _LIMIT * one.took for one in release)
        rows.append(
            [
                str(i),
                f"{max(one.wait for one in release):.2f} s",
                f"{max(one.took for one in release):.2f} s",
                f"{max(one.last for one in release):.2f} s",
                f"{beyond[len(beyond) // 2]:.2f}",
                f"{beyond[-1]:.2f}",
                f"{within} of {len(release)}",
            ]
        )
    header = ["release", "longest wait", "longest download", "all workers", "beyond, median", "worst", "nodes within"]
    return (
        f"{given.nodes} nodes of {given.workers} workers, {size_text(size)}, polls every {given.every:g} s\n\n"
        f"{table_text(header, rows, left=1)}\n\n"
        f"within: all workers answer by it after {_JITTER:g} x {given.every:g} s + {_LIMIT:g} x download at most"
    )


if __name__ == "__main__":
    raise SystemExit(main())
