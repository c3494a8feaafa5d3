"""How long does a search for neighbours take, beside what one would take instead?

Each contender has a process of its own (faiss and usearch do not go together in one), with one thread of BLAS and
OpenMP, and takes turns there with numpy: `E @ q` and `argpartition` on the same mapped block. What is compared is the
CPU time as a multiple of numpy's in the same process, so that the noise of the machine cancels out. Answers are
compared first. A search with a recall takes turns with the exact one, for queries that are like the records.

    python -m benchmarks.nearest --quick
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import mmcache

from .common import ROOT, Report, Settings, parser, settings_of, time_text

QUESTION = "How long does a search for neighbours take, beside what one would take instead?"
K = 10
BATCH = 32
RECALL = 0.95
SHARES = {20_000: 0.2, 100_000: 0.12}
"""Records -> the CPU time of a search with that recall, at most, as a share of the exact one's."""
FILTERED = (10, 100, 1_000, 10_000)
PEERS = ("mmcache", "faiss", "usearch", "sqlite-vec", "lancedb")
GOALS = {
    ("one", "numpy"): 1.05,
    ("one", "faiss"): 1.1,
    ("one", "usearch"): 0.65,
    ("one", "sqlite-vec"): 0.25,
    ("one", "lancedb"): 0.1,
    ("batch", "faiss"): 0.2,
    ("batch", "usearch"): 0.2,
    **{(f"of {rows}", "lancedb"): 0.1 for rows in (100, 1_000, 10_000)},
}
"""Operation and peer -> the CPU time of mmcache, at most, as a share of the peer's."""

APPROXIMATE = f"recall {RECALL}"

Search = Callable[[], Any]
"""Gives the rows that it found: (K,), or (BATCH, K)."""

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


# --- data -------------------------------------------------------------------------------------------------------------


def dim_of(n: int) -> int:
    return 384 if n < 100_000 else 768 if n == 100_000 else 64


def block(n: int, directory: str) -> str:
    """A .npy file of n vectors of length 1 in 200 clusters, made once."""
    path = os.path.join(directory, f"nearest-{n}-{dim_of(n)}.npy")
    if not os.path.exists(path):
        os.makedirs(directory, exist_ok=True)
        random = np.random.default_rng(n)
        centres = random.standard_normal((200, dim_of(n)), dtype=np.float32)
        vectors = centres[random.integers(0, 200, n)] + random.standard_normal((n, dim_of(n)), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        np.save(path, vectors)
    return path


def share_of(n: int, rows: int) -> Any:
    """bool, (n,): which rows have the value 1 in the field that selects so many, scattered."""
    chosen = np.zeros(n, np.bool_)
    chosen[np.random.default_rng(rows).choice(n, rows, replace=False)] = True
    return chosen


# --- contenders -------------------------------------------------------------------------------------------------------


def top(scores: Any) -> Any:
    found = np.argpartition(scores, len(scores) - K)[-K:]
    return found[np.argsort(-scores[found])]


def of_numpy(vectors: Any, queries: Any, chosen: dict[int, Any]) -> dict[str, Search]:
    def batch() -> Any:
        return [top(scores) for scores in queries @ vectors.T]

    def among(rows: Any) -> Any:
        return rows[top(vectors[rows] @ queries[0])]

    searches: dict[str, Search] = {"one": lambda: top(vectors @ queries[0]), "batch": batch}
    return searches | {f"of {n}": partial(among, np.flatnonzero(mask)) for n, mask in chosen.items()}


def of_file(scratch: str, n: int) -> str:
    return os.path.join(scratch, f"nearest-{n}-sketched.mmc")


def of_mmcache(vectors: Any, queries: Any, chosen: dict[int, Any], scratch: str) -> dict[str, Search]:
    path = of_file(scratch, len(vectors))
    if not os.path.exists(path):
        fields = {f"of{n}": mask.astype(int).tolist() for n, mask in chosen.items()}
        columns = [range(len(vectors)), *fields.values()]
        records = (dict(zip(("id", *fields), row, strict=True)) for row in zip(*columns, strict=True))
        schema = mmcache.Schema("items", index=tuple(fields), embedding="v", metric="dot", sketch=True)
        mmcache.build(path, records, schema, embeddings=vectors)
    snapshot = mmcache.Snapshot.open(path)
    searches: dict[str, Search] = {
        "one": lambda: snapshot.nearest(queries[0], K).rows,
        "batch": lambda: [found.rows for found in snapshot.nearest_many(queries, K)],
    }

    def among(n: int) -> Any:
        return snapshot.nearest(queries[0], K, {f"of{n}": 1}).rows

    return searches | {f"of {n}": partial(among, n) for n in chosen}


def of_faiss(vectors: Any, queries: Any, _chosen: dict[int, Any], _scratch: str) -> dict[str, Search]:
    import faiss

    def search(asked: Any) -> Any:
        return faiss.knn(asked, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1]

    return {"one": lambda: search(queries[:1])[0], "batch": lambda: search(queries)}


def of_usearch(vectors: Any, queries: Any, _chosen: dict[int, Any], _scratch: str) -> dict[str, Search]:
    from usearch import index

    module: Any = index

    def found(asked: Any) -> Any:
        return module.search(vectors, asked, K, module.MetricKind.IP, exact=True, threads=1).keys

    return {"one": lambda: found(queries[0]), "batch": lambda: found(queries)}


def of_sqlite_vec(vectors: Any, queries: Any, _chosen: dict[int, Any], _scratch: str) -> dict[str, Search]:
    import apsw
    import sqlite_vec

    db = apsw.Connection(":memory:")
    db.enable_load_extension(True)  # noqa: FBT003
    db.load_extension(sqlite_vec.loadable_path())
    db.execute(f"CREATE VIRTUAL TABLE items USING vec0(v float[{vectors.shape[1]}])")
    with db:
        rows = ((i, row.tobytes()) for i, row in enumerate(vectors))
        db.executemany("INSERT INTO items (rowid, v) VALUES (?, ?)", rows)
    asked = queries[0] / np.linalg.norm(queries[0])
    sql = "SELECT rowid FROM items WHERE v MATCH ? AND k = ? ORDER BY distance"  # of unit vectors: the same order
    return {"one": lambda: [row for (row,) in db.execute(sql, (asked.tobytes(), K))]}


def of_lancedb(vectors: Any, queries: Any, chosen: dict[int, Any], scratch: str) -> dict[str, Search]:
    import lancedb
    import pyarrow as pa
    from lancedb.index import Bitmap

    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    columns = {"id": pa.array(range(len(vectors))), "vector": flat}
    columns |= {f"of{n}": pa.array(mask.astype(np.int64)) for n, mask in chosen.items()}
    db = lancedb.connect(os.path.join(scratch, f"nearest-{len(vectors)}.lance"))
    table = db.create_table("items", pa.table(columns), mode="overwrite")
    for n in chosen:
        table.create_index(f"of{n}", config=Bitmap(), replace=True)

    def search(where: str | None) -> Any:
        asked: Any = table.search(queries[0])
        asked = asked.distance_type("dot").limit(K).select(["id", "_distance"])
        return (asked.where(where, prefilter=True) if where else asked).to_arrow().column("id").to_pylist()

    return {"one": lambda: search(None)} | {f"of {n}": partial(search, f"of{n} = 1") for n in chosen}


CONTENDERS = {
    "mmcache": of_mmcache,
    "faiss": of_faiss,
    "usearch": of_usearch,
    "sqlite-vec": of_sqlite_vec,
    "lancedb": of_lancedb,
}


# --- one process ------------------------------------------------------------------------------------------------------


def contend(peer: str, path: str, scratch: str, repetitions: int) -> dict[str, Any]:
    """By operation: CPU seconds of numpy and of the peer, in turns."""
    vectors = np.load(path, mmap_mode="r")
    queries = np.random.default_rng(1).standard_normal((BATCH, vectors.shape[1])).astype(np.float32)
    chosen = {n: share_of(len(vectors), n) for n in FILTERED}
    ours, theirs = of_numpy(vectors, queries, chosen), CONTENDERS[peer](np.asarray(vectors), queries, chosen, scratch)
    told = {}
    for operation, search in theirs.items():
        expected, found = np.asarray(ours[operation]()), np.asarray(search())
        same = [
            len(set(one) & set(other)) for one, other in zip(np.atleast_2d(expected), np.atleast_2d(found), strict=True)
        ]
        assert min(same) >= K - 1, (peer, operation, same)  # the last one may be as near as another
        seconds = [(_cpu(ours[operation]), _cpu(search)) for _ in range(repetitions)]
        told[operation] = [min(one) for one in zip(*seconds, strict=True)]
        told[operation].append(statistics.median(theirs / ours for ours, theirs in seconds))
    if peer == "mmcache":
        with contextlib.suppress(mmcache.RecallError):  # of vectors whose signs say too little
            told[APPROXIMATE] = approximate(of_file(scratch, len(vectors)), np.asarray(vectors), repetitions)
    return told


def approximate(path: str, vectors: Any, repetitions: int) -> list[float]:
    """CPU seconds of an exact search and of one with a recall, their ratio, and what that one has found.

    Of queries that are each like one of the records.
    """
    random = np.random.default_rng(2)
    queries = vectors[np.sort(random.choice(len(vectors), 50, replace=False))]
    queries = queries + 0.2 * random.standard_normal(queries.shape, np.float32) / np.sqrt(np.float32(queries.shape[1]))
    seconds, found = [], 0
    with mmcache.Snapshot.open(path) as snapshot:
        for query in queries:
            exact, some = snapshot.nearest(query, K), snapshot.nearest(query, K, recall=RECALL)
            found += len(set(exact.ids) & set(some.ids))
        for query in np.repeat(queries[:5], repetitions, axis=0):
            exact_seconds = _cpu(partial(snapshot.nearest, query, K))
            seconds.append((exact_seconds, _cpu(partial(snapshot.nearest, query, K, recall=RECALL))))
    least = [min(one) for one in zip(*seconds, strict=True)]
    return [*least, statistics.median(some / exact for exact, some in seconds), found / (K * len(queries))]


def _cpu(search: Search) -> float:
    """CPU seconds of one search, of all threads of this process."""
    times, begun = 0, time.process_time()
    spent = 0.0
    while spent < 0.02:
        search()
        times += 1
        spent = time.process_time() - begun
    return spent / times


# --- all of them ------------------------------------------------------------------------------------------------------


def measure(n: int, settings: Settings, report: Report) -> None:
    path = block(n, settings.data)
    told: dict[str, dict[str, list[float]]] = {}
    for peer in PEERS:
        report.noise.probe()
        command = [sys.executable, "-m", "benchmarks.nearest", "--peer", peer, path, settings.data]
        done = subprocess.run(
            [*command, str(settings.repeat(7))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **_ONE_THREAD},
            check=False,
        )
        if done.returncode:
            report.note(f"{peer} was not measured: it is not installed, or failed (see above)")
        else:
            told[peer] = json.loads(done.stdout)
    ours = told["mmcache"]
    rows = []
    show_approximate(n, ours.pop(APPROXIMATE, None), report)
    for operation, (numpy_seconds, seconds, ratio) in ours.items():
        rows.append(
            [operation, "numpy", time_text(numpy_seconds), "1.00", _share(report, operation, "numpy", n, ratio)]
        )
        rows.append(["", "mmcache", time_text(seconds), f"{ratio:.2f}", ""])
        for peer, operations in told.items():
            if peer == "mmcache" or operation not in operations:
                continue
            _, other, times = operations[operation]
            share = _share(report, operation, peer, n, ratio / times)
            rows.append(["", peer, time_text(other), f"{times:.2f}", share])
            report.result(n=n, dim=dim_of(n), operation=operation, contender=peer, cpu_seconds=other, of_numpy=times)
        report.result(n=n, dim=dim_of(n), operation=operation, contender="mmcache", cpu_seconds=seconds, of_numpy=ratio)
    report.table(
        f"{n:,} x {dim_of(n)}, CPU time of one thread, the {K} nearest; batch: {BATCH} at once; of N: among N rows",
        ("search", "", "CPU", "/ numpy", "mmcache / it"),
        rows,
    )


def show_approximate(n: int, found: list[float] | None, report: Report) -> None:
    if found is None:
        report.note(f"a recall of {RECALL} of {n:,} x {dim_of(n)} is more than the file promises")
        return
    exact, seconds, share, recall = found
    limit = SHARES.get(n)
    verdict = "" if limit is None else f" {report.goal(f'{APPROXIMATE} / exact', n, share, limit)}"
    rows = [
        ["exact", time_text(exact), "1.00", "1.00"],
        [APPROXIMATE, time_text(seconds), f"{share:.3f}{verdict}", f"{recall:.3f}"],
    ]
    report.result(n=n, dim=dim_of(n), operation=APPROXIMATE, contender="mmcache", cpu_seconds=seconds, of_exact=share)
    report.table(f"{n:,} x {dim_of(n)}, one query like a record", ("mmcache", "CPU", "/ exact", "found"), rows)


def _share(report: Report, operation: str, peer: str, n: int, share: float) -> str:
    limit = GOALS.get((operation, peer))
    verdict = "" if limit is None else f" {report.goal(f'{operation} / {peer}', n, share, limit)}"
    return f"{share:.3f}{verdict}"


def main() -> int:
    if "--peer" in sys.argv:
        _, _, peer, path, scratch, repetitions = sys.argv
        print(json.dumps(contend(peer, path, scratch, int(repetitions))))
        return 0
    arguments = parser(QUESTION).parse_args()
    settings = settings_of(arguments)
    report = Report("nearest", QUESTION, settings)
    for n in settings.sizes if arguments.sizes else (20_000,) if arguments.quick else (20_000, 100_000, 1_000_000):
        measure(n, settings, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
