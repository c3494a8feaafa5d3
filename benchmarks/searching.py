"""The contenders of `nearest`: each is made of a block of vectors, and gives its searches by name.

A contender has a process of its own: faiss and usearch do not go together in one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import mmcache

K = 10
RECALL = 0.95
ONE, BATCH = "one", "batch"

Search = Callable[[], Any]
"""Gives the rows that it found: (K,), or (queries, K)."""
Ways = Mapping[str, Search]
Approximate = Callable[[int, Any], Any]
"""approximate(effort, query) gives the rows that it found."""


@dataclass(frozen=True)
class Case:
    """vectors: float32, (n, dim), mapped. queries: float32, (queries, dim). chosen: how many rows a filter selects ->
    bool, (n,). scratch: a directory. name: of the vectors, for files in it."""

    name: str
    vectors: Any
    queries: Any
    chosen: Mapping[int, Any]
    scratch: str

    @property
    def n(self) -> int:
        return len(self.vectors)


def among(n: int) -> str:
    """The name of a search among so many rows."""
    return f"of {n}"


def top(scores: Any) -> Any:
    found = np.argpartition(scores, len(scores) - K)[-K:]
    return found[np.argsort(-scores[found])]


def of_numpy(case: Case) -> Ways:
    vectors, queries = case.vectors, case.queries

    def batch() -> Any:
        return [top(scores) for scores in queries @ vectors.T]

    def filtered(rows: Any) -> Any:
        return rows[top(vectors[rows] @ queries[0])]

    searches: dict[str, Search] = {ONE: lambda: top(vectors @ queries[0]), BATCH: batch}
    return searches | {among(n): partial(filtered, np.flatnonzero(mask)) for n, mask in case.chosen.items()}


# --- mmcache ----------------------------------------------------------------------------------------------------------


def records_of(case: Case) -> Iterator[dict[str, Any]]:
    fields = {f"of{n}": mask.astype(int).tolist() for n, mask in case.chosen.items()}
    return (dict(zip(("id", *fields), row, strict=True)) for row in zip(range(case.n), *fields.values(), strict=True))


def build(case: Case, path: str, *, sketch: bool) -> None:
    index = tuple(f"of{n}" for n in case.chosen)
    schema = mmcache.Schema("items", index=index, embedding="v", metric="dot", sketch=sketch)
    mmcache.build(path, records_of(case), schema, embeddings=case.vectors)


def opened(case: Case) -> mmcache.Snapshot:
    path = os.path.join(case.scratch, f"{case.name}-sketched.mmc")
    if not os.path.exists(path):
        build(case, path, sketch=True)
    return mmcache.Snapshot.open(path)


def of_mmcache(case: Case) -> Ways:
    snapshot, queries = opened(case), case.queries
    searches: dict[str, Search] = {
        ONE: lambda: snapshot.nearest(queries[0], K).rows,
        BATCH: lambda: [found.rows for found in snapshot.nearest_many(queries, K)],
    }

    def filtered(n: int) -> Any:
        return snapshot.nearest(queries[0], K, {f"of{n}": 1}).rows

    return searches | {among(n): partial(filtered, n) for n in case.chosen}


def sketch_of_mmcache(case: Case) -> Approximate:
    """effort: the recall that is asked for, in percent."""
    snapshot = opened(case)

    def search(effort: int, query: Any) -> Any:
        with contextlib.suppress(mmcache.RecallError):  # of vectors whose signs say too little
            return snapshot.nearest(query, K, recall=effort / 100).rows
        return []

    return search


# --- others -----------------------------------------------------------------------------------------------------------


def of_faiss(case: Case) -> Ways:
    import faiss

    def search(asked: Any) -> Any:
        return faiss.knn(asked, case.vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1]

    return {ONE: lambda: search(case.queries[:1])[0], BATCH: lambda: search(case.queries)}


def graph_of_faiss(case: Case) -> Approximate:
    """effort: efSearch."""
    import faiss

    index = faiss.IndexHNSWFlat(case.vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(case.vectors)

    def search(effort: int, query: Any) -> Any:
        index.hnsw.efSearch = effort
        return index.search(query[None], K)[1][0]

    return search


def of_usearch(case: Case) -> Ways:
    from usearch import index

    module: Any = index

    def found(asked: Any) -> Any:
        return module.search(case.vectors, asked, K, module.MetricKind.IP, exact=True, threads=1).keys

    return {ONE: lambda: found(case.queries[0]), BATCH: lambda: found(case.queries)}


def graph_of_usearch(case: Case) -> Approximate:
    """effort: expansion_search."""
    from usearch import index

    module: Any = index
    graph = module.Index(ndim=case.vectors.shape[1], metric="ip", dtype="f32")
    graph.add(np.arange(case.n), np.ascontiguousarray(case.vectors))

    def search(effort: int, query: Any) -> Any:
        graph.expansion_search = effort
        return graph.search(query, K, threads=1).keys

    return search


def of_sqlite_vec(case: Case) -> Ways:
    import apsw
    import sqlite_vec

    db = apsw.Connection(":memory:")
    db.enable_load_extension(True)  # noqa: FBT003
    db.load_extension(sqlite_vec.loadable_path())
    db.execute(f"CREATE VIRTUAL TABLE items USING vec0(v float[{case.vectors.shape[1]}])")
    with db:
        rows = ((i, row.tobytes()) for i, row in enumerate(case.vectors))
        db.executemany("INSERT INTO items (rowid, v) VALUES (?, ?)", rows)
    asked = case.queries[0] / np.linalg.norm(case.queries[0])
    sql = "SELECT rowid FROM items WHERE v MATCH ? AND k = ? ORDER BY distance"  # of unit vectors: the same order
    return {ONE: lambda: [row for (row,) in db.execute(sql, (asked.tobytes(), K))]}


def _table_of_lancedb(case: Case) -> Any:
    import lancedb
    import pyarrow as pa

    flat = pa.FixedSizeListArray.from_arrays(pa.array(case.vectors.ravel()), case.vectors.shape[1])
    columns = {"id": pa.array(range(case.n)), "vector": flat}
    columns |= {f"of{n}": pa.array(mask.astype(np.int64)) for n, mask in case.chosen.items()}
    db = lancedb.connect(os.path.join(case.scratch, f"{case.name}.lance"))
    return db.create_table("items", pa.table(columns), mode="overwrite")


def of_lancedb(case: Case) -> Ways:
    from lancedb.index import Bitmap

    table = _table_of_lancedb(case)
    for n in case.chosen:
        table.create_index(f"of{n}", config=Bitmap(), replace=True)

    def search(where: str | None) -> Any:
        asked: Any = table.search(case.queries[0])
        asked = asked.distance_type("dot").limit(K).select(["id", "_distance"])
        return (asked.where(where, prefilter=True) if where else asked).to_arrow().column("id").to_pylist()

    return {ONE: lambda: search(None)} | {among(n): partial(search, f"of{n} = 1") for n in case.chosen}


def partitions_of_lancedb(case: Case) -> Approximate:
    """effort: partitions that are searched, with ten times as many rows scored again as are wanted."""
    from lancedb.index import IvfPq

    table = _table_of_lancedb(case)
    table.create_index("vector", config=IvfPq(distance_type="dot"), replace=True)

    def search(effort: int, query: Any) -> Any:
        asked: Any = table.search(query).distance_type("dot").limit(K).select(["id", "_distance"])
        return asked.nprobes(effort).refine_factor(10).to_arrow().column("id").to_pylist()

    return search


EXACT: dict[str, Callable[[Case], Ways]] = {
    "mmcache": of_mmcache,
    "faiss": of_faiss,
    "usearch": of_usearch,
    "sqlite-vec": of_sqlite_vec,
    "lancedb": of_lancedb,
}
APPROXIMATE: dict[str, tuple[Callable[[Case], Approximate], tuple[int, ...]]] = {
    "mmcache, sketch": (sketch_of_mmcache, (95, 96, 97, 98, 99)),
    "faiss, HNSW": (graph_of_faiss, (16, 32, 64, 128, 256, 512)),
    "usearch, HNSW": (graph_of_usearch, (16, 32, 64, 128, 256, 512)),
    "lancedb, IVF_PQ": (partitions_of_lancedb, (5, 20, 80, 320)),
}
"""Contender -> how it is made, and the efforts of which the least is measured that finds enough."""
