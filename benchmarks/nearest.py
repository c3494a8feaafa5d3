"""How long does a search for neighbours take, beside what one would take instead?

Each contender has a process of its own (faiss and usearch do not go together in one), with one thread of BLAS and
OpenMP, and takes turns there with numpy: `E @ q` and `argpartition` on the same mapped block. What is compared is the
CPU time as a multiple of numpy's in the same process, so that the noise of the machine cancels out. Answers are
compared first. Approximate searches are for queries that are like the records, each with the least effort that finds
a share of RECALL. Two builds take turns as well, with and without a sketch, whose recall is not measured there.

    python -m benchmarks.nearest --quick
    python -m benchmarks.nearest --vectors mine.npy    # and those of a file: float32, (n, dim)
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import numpy as np

from .common import ROOT, Report, parser, settings_of, time_text
from .searching import (
    APPROXIMATE,
    BATCH,
    EXACT,
    ONE,
    RECALL,
    Case,
    K,
    Search,
    among,
    build,
    of_numpy,
    opened,
)

QUESTION = "How long does a search for neighbours take, beside what one would take instead?"
TOGETHER = 32
FILTERED = (10, 100, 1_000, 10_000)
QUERIES = 50
"""That are like records, for approximate searches."""
QUICK, FULL = (20_000,), (20_000, 100_000, 1_000_000)
GRAPHED = 100_000
"""Rows up to which approximate indexes of others are built, unless it is said otherwise: these take minutes, and of a
million rows an hour."""
BUILT = 20_000
"""Rows up to which builds are compared."""
JUDGED = 100_000
"""Rows from which on exact searches have goals: of fewer, what a call costs is a good part."""

GOALS = {
    (ONE, "numpy"): 1.05,
    (ONE, "faiss"): 1.1,
    (ONE, "usearch"): 0.65,
    (ONE, "sqlite-vec"): 0.25,
    (ONE, "lancedb"): 0.1,
    (BATCH, "faiss"): 0.2,
    (BATCH, "usearch"): 0.2,
    **{(among(rows), "lancedb"): 0.1 for rows in (100, 1_000, 10_000)},
}
"""Operation and peer -> the CPU time of mmcache, at most, as a share of the peer's."""
SHARES = {384: 0.2, 768: 0.12}
"""Numbers in a vector -> the CPU time of a search with that recall, at most, as a share of the exact one's."""
BUILD = 1.03
"""The CPU time of a build with a sketch, at most, as a multiple of one without."""

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_AS_BUILDS = "builds"


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A .npy file of vectors. are_real: whether they were not made up; then the last QUERIES are kept as queries."""

    name: str
    path: str
    are_real: bool

    def case(self, scratch: str) -> Case:
        vectors = np.asarray(np.load(self.path, mmap_mode="r"))
        queries = np.random.default_rng(1).standard_normal((TOGETHER, vectors.shape[1])).astype(np.float32)
        if self.are_real:
            queries, vectors = np.ascontiguousarray(vectors[-TOGETHER:]), vectors[:-QUERIES]
        chosen = {n: share_of(len(vectors), n) for n in FILTERED if 2 * n <= len(vectors)}
        return Case(self.name, vectors, queries, chosen, scratch)

    def alike(self) -> Any:
        """float32, (QUERIES, dim): rows that were kept apart, or that are somewhat like some."""
        vectors = np.load(self.path, mmap_mode="r")
        if self.are_real:
            return np.ascontiguousarray(vectors[-QUERIES:])
        random = np.random.default_rng(2)
        rows = vectors[np.sort(random.choice(len(vectors), QUERIES, replace=False))]
        return rows + 0.2 * random.standard_normal(rows.shape, np.float32) / np.sqrt(np.float32(rows.shape[1]))


def dim_of(n: int) -> int:
    return 384 if n < 100_000 else 768 if n == 100_000 else 64


def made_up(n: int, directory: str) -> Block:
    """n vectors of length 1 in 200 clusters, made once."""
    path = os.path.join(directory, f"nearest-{n}-{dim_of(n)}.npy")
    if not os.path.exists(path):
        os.makedirs(directory, exist_ok=True)
        random = np.random.default_rng(n)
        centres = random.standard_normal((200, dim_of(n)), dtype=np.float32)
        vectors = centres[random.integers(0, 200, n)] + random.standard_normal((n, dim_of(n)), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.save(path, vectors)
    return Block(f"nearest-{n}", path, are_real=False)


def given(path: str) -> Block:
    """The vectors of a file, under a name that other ones do not have."""
    stem, _ = os.path.splitext(os.path.basename(path))
    return Block(f"nearest-{stem}-{os.stat(path).st_mtime_ns:x}", path, are_real=True)


def share_of(n: int, rows: int) -> Any:
    """bool, (n,): which rows have the value 1 in the field that selects so many, scattered."""
    chosen = np.zeros(n, np.bool_)
    chosen[np.random.default_rng(rows).choice(n, rows, replace=False)] = True
    return chosen


# --- one process ------------------------------------------------------------------------------------------------------


def in_turns(actions: Mapping[str, Search], repetitions: int) -> dict[str, list[float]]:
    """CPU seconds of each in each repetition, forwards and backwards."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for repetition in range(repetitions):
        for name in list(actions)[:: 1 if repetition % 2 else -1]:
            found[name].append(_cpu(actions[name]))
    return found


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Pair by pair."""
    return statistics.median(one / other for one, other in zip(seconds, others, strict=True))


def contend(case: Case, peer: str, repetitions: int) -> dict[str, Any]:
    """By operation: CPU seconds of numpy and of the peer, in turns, and their ratio."""
    ours, theirs = of_numpy(case), EXACT[peer](case)
    told = {}
    for operation, search in theirs.items():
        expected, found = np.asarray(ours[operation]()), np.asarray(search())
        same = [
            len(set(one) & set(other)) for one, other in zip(np.atleast_2d(expected), np.atleast_2d(found), strict=True)
        ]
        assert min(same) >= K - 1, (peer, operation, same)  # the last one may be as near as another
        seconds = in_turns({"numpy": ours[operation], "peer": search}, repetitions)
        told[operation] = [min(one) for one in seconds.values()] + [ratio(seconds["peer"], seconds["numpy"])]
    return told


def approximate(case: Case, queries: Any, peer: str, repetitions: int) -> dict[str, Any]:
    """With the least effort that finds enough, or else the greatest: CPU seconds, the same of numpy and of an exact
    search by mmcache, and what was found."""
    make, efforts = APPROXIMATE[peer]
    search = make(case)
    right = [set(of_numpy(_asking(case, query))[ONE]().tolist()) for query in queries]
    effort, found = efforts[0], 0.0
    for effort in efforts:
        found = found_by(partial(search, effort), queries, right)
        if found >= RECALL:
            break
    rows = []
    for query in queries[:5]:
        ways: dict[str, Search] = {
            "numpy": of_numpy(_asking(case, query))[ONE],
            "peer": partial(search, effort, query),
        }
        if peer.startswith("mmcache"):
            ways["exact"] = partial(opened(case).nearest, query, K)
        rows.append(in_turns(ways, repetitions))
    seconds = {name: [one for row in rows for one in row[name]] for name in rows[0]}
    told = {"effort": effort, "found": found, "seconds": min(seconds["peer"])}
    told |= {f"of_{name}": ratio(seconds["peer"], seconds[name]) for name in seconds if name != "peer"}
    return told


def _asking(case: Case, query: Any) -> Case:
    return Case(case.name, case.vectors, query[None], {}, case.scratch)


def found_by(search: Callable[[Any], Any], queries: Any, right: Sequence[set[int]]) -> float:
    """The share of the K nearest that is found."""
    hits = [len(one & {int(row) for row in search(query)}) for query, one in zip(queries, right, strict=True)]
    return sum(hits) / (K * len(hits))


def builds(case: Case, repetitions: int) -> list[float]:
    """CPU seconds of a build without a sketch, of one with it, and their ratio. The recall is not measured."""
    from mmcache.search import measuring

    ways = {
        str(sketch): partial(build, case, os.path.join(case.scratch, f"{case.name}-{sketch}.mmc"), sketch=sketch)
        for sketch in (False, True)
    }
    with mock.patch.object(measuring, "SMALL", case.n):  # of more rows it is
        for way in ways.values():
            way()
        seconds = in_turns(ways, 3 * repetitions)
    return [*map(min, seconds.values()), ratio(seconds["True"], seconds["False"])]


def _cpu(search: Search) -> float:
    """CPU seconds of one search, of all threads of this process."""
    times, begun = 0, time.process_time()
    spent = 0.0
    while spent < 0.02:
        search()
        times += 1
        spent = time.process_time() - begun
    return spent / times


def child(block: Block, scratch: str, peer: str, repetitions: int) -> Any:
    case = block.case(scratch)
    if peer == _AS_BUILDS:
        return builds(case, repetitions)
    if peer in EXACT:
        return contend(case, peer, repetitions)
    return approximate(case, block.alike(), peer, repetitions)


# --- all of them ------------------------------------------------------------------------------------------------------


def asked(block: Block, peer: str, scratch: str, repetitions: int, report: Report) -> Any:
    """What a process of its own tells; None where it has failed."""
    report.noise.probe()
    words = [peer, block.name, block.path, str(int(block.are_real)), scratch, str(repetitions)]
    command = [
        sys.executable,
        *(f"-W{option}" for option in sys.warnoptions),
        "-m",
        "benchmarks.nearest",
        "--peer",
        *words,
    ]
    environment = {**os.environ, **_ONE_THREAD}
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        report.note(f"{peer} was not measured: it is not installed, or failed (see above)")
        return None
    return json.loads(done.stdout)


def measure(block: Block, scratch: str, repetitions: int, graphed: int, report: Report) -> None:
    n, dim = np.load(block.path, mmap_mode="r").shape
    n -= QUERIES if block.are_real else 0
    size = f"{n:,} {'real vectors' if block.are_real else ''} x {dim}".replace("  ", " ")

    def of(peer: str) -> Any:
        return asked(block, peer, scratch, repetitions, report)

    told = {peer: found for peer in EXACT if (found := of(peer)) is not None}
    show_exact(n, dim, size, told, report)
    if n > graphed:
        report.note(f"approximate indexes of others were left out at {n:,} rows")
    peers = [peer for peer in APPROXIMATE if n <= graphed or peer.startswith("mmcache")]
    show_approximate(n, dim, size, {peer: found for peer in peers if (found := of(peer)) is not None}, report)
    if n <= BUILT and (found := of(_AS_BUILDS)) is not None:
        plain, sketched, times = found
        verdict = report.goal("build with a sketch / without", n, times, BUILD)
        rows = [
            ["without a sketch", time_text(plain), "1.00"],
            ["with one", time_text(sketched), f"{times:.3f} {verdict}"],
        ]
        report.table(f"{size}, a build, without the measurement of recall", ("mmcache", "CPU", "ratio"), rows)
        report.result(
            n=n, dim=dim, operation="build", contender="mmcache, sketch", cpu_seconds=sketched, of_plain=times
        )


def show_exact(n: int, dim: int, size: str, told: Mapping[str, Mapping[str, list[float]]], report: Report) -> None:
    rows = []
    for operation, (numpy_seconds, seconds, share) in told["mmcache"].items():
        verdict = _share(report, operation, "numpy", n, share)
        rows.append([operation, "numpy", time_text(numpy_seconds), "1.00", verdict])
        rows.append(["", "mmcache", time_text(seconds), f"{share:.2f}", ""])
        for peer, operations in told.items():
            if peer == "mmcache" or operation not in operations:
                continue
            _, other, times = operations[operation]
            verdict = _share(report, operation, peer, n, share / times)
            rows.append(["", peer, time_text(other), f"{times:.2f}", verdict])
            report.result(n=n, dim=dim, operation=operation, contender=peer, cpu_seconds=other, of_numpy=times)
        report.result(n=n, dim=dim, operation=operation, contender="mmcache", cpu_seconds=seconds, of_numpy=share)
    title = f"{size}, CPU time of one thread, the {K} nearest; batch: {TOGETHER} at once; of N: among N rows"
    report.table(title, ("search", "", "CPU", "/ numpy", "mmcache / it"), rows)


def show_approximate(n: int, dim: int, size: str, told: Mapping[str, Mapping[str, float]], report: Report) -> None:
    rows = []
    for peer, found in told.items():
        if not found["found"]:
            report.note(f"{peer}: a recall of {RECALL} of {size} is more than the file promises")
            continue
        verdict = ""
        if (share := found.get("of_exact")) is not None:
            verdict = f"{share:.3f}"
            if found["found"] >= RECALL and dim in SHARES:
                verdict += f" {report.goal(f'recall {RECALL} / exact', n, share, SHARES[dim])}"
        rows.append(
            [
                *(peer, f"{found['found']:.3f}", str(found["effort"]), time_text(found["seconds"])),
                *(f"{found['of_numpy']:.3f}", verdict),
            ]
        )
        report.result(
            n=n,
            dim=dim,
            operation="approximate",
            contender=peer,
            cpu_seconds=found["seconds"],
            **{name: value for name, value in found.items() if name != "seconds"},
        )
    title = f"{size}, approximate: the least effort that finds {RECALL}, for queries like the records"
    report.table(title, ("", "found", "effort", "CPU", "/ numpy", "/ exact by mmcache"), rows)


def _share(report: Report, operation: str, peer: str, n: int, share: float) -> str:
    limit = GOALS.get((operation, peer)) if n >= JUDGED else None
    verdict = "" if limit is None else f" {report.goal(f'{operation} / {peer}', n, share, limit)}"
    return f"{share:.3f}{verdict}"


def main() -> int:
    if "--peer" in sys.argv:
        _, _, peer, name, path, are_real, scratch, repetitions = sys.argv
        print(json.dumps(child(Block(name, path, are_real == "1"), scratch, peer, int(repetitions))))
        return 0
    options = parser(QUESTION)
    options.add_argument("--vectors", metavar="FILE", help="a .npy file of real ones, float32, (n, dim), of length 1")
    options.add_argument("--graphs", type=int, metavar="N", default=GRAPHED, help="others' indexes up to so many rows")
    arguments = options.parse_args()
    settings = settings_of(arguments)
    report = Report("nearest", QUESTION, settings)
    sizes = settings.sizes if arguments.sizes else QUICK if arguments.quick else FULL
    blocks = [made_up(n, settings.data) for n in sizes if n]
    if arguments.vectors is not None:
        blocks.append(given(os.path.abspath(arguments.vectors)))
    for block in blocks:
        measure(block, settings.data, settings.repeat(7), arguments.graphs, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
