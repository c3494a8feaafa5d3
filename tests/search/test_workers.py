"""Searches in real processes and threads: memory, threads of BLAS, deadlines, interrupts."""

from __future__ import annotations

import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Schema, SearchTimeoutError, Snapshot
from mmcache.search import chunks
from tests.support import inside
from tests.support.processes import ask_child, together

pytestmark = pytest.mark.usefixtures("no_disk_wait", "no_leaks")

N, DIM = 60_000, 128
MB = 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A block of 30 MB. A file of its size is not verified whole at open."""
    path: Path = tmp_path_factory.mktemp("large") / "items.mmc"
    vectors = np.random.default_rng(0).standard_normal((N, DIM), dtype=np.float32)
    records = [{"id": i, "half": i % 2, "tenth": i % 10} for i in range(N)]
    schema = Schema("items", index=("half", "tenth"), embedding="vector")
    with inside.no_fsync():
        mmcache.build(path, records, schema, embeddings=vectors)
    return path


def private_bytes() -> int:
    """What this process alone has in memory: heap, and pages of files that it has changed."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(size) for size in re.findall(r"^Private_Dirty: +(\d+) kB", text, re.MULTILINE))


def shared_map_bytes(name: str) -> int:
    """Of a mapped file, what is in this process's memory."""
    text = Path("/proc/self/smaps").read_text()
    return 1024 * sum(int(size) for size in re.findall(rf"{re.escape(name)}\n(?:\S.*\n)*?Rss: +(\d+) kB", text))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="what is a process's own is told by Linux")
def test_a_searching_worker_has_8_mb_of_its_own_at_most(large):
    query = np.random.default_rng(1).standard_normal((40, DIM)).astype(np.float32)

    def work(_: int) -> tuple[int, int]:
        with Snapshot.open(large, verify="lazy") as snapshot:
            few = snapshot.where(tenth=3)[:10]
            few.nearest(query[0]), few.nearest_many(query[:2])
            before, highest = private_bytes(), 0
            for where in ({}, {"tenth": 3}, {"half": 1}, {"tenth": [1, 2, 3]}, {"tenth": mmcache.excluding(4)}):
                for metric in ("cosine", "euclidean"):
                    snapshot.nearest(query[0], 20, where, metric=metric)
                    highest = max(highest, private_bytes() - before)
                    snapshot.nearest_many(query, 20, where, metric=metric)
                    highest = max(highest, private_bytes() - before)
            return highest, shared_map_bytes(str(large))

    for own, mapped in together(2, work):
        assert own <= 8 * MB, f"{own / MB:.1f} MB"
        assert mapped >= 4 * N * DIM, "the block is read where it lies"


def test_threads_that_search_at_once_get_the_answers_of_one(large):
    queries = np.random.default_rng(2).standard_normal((8, DIM)).astype(np.float32)
    before = inside.blas_threads()
    with Snapshot.open(large, verify="lazy") as snapshot:
        right = [(one.rows.tolist(), one.scores.tolist()) for one in snapshot.nearest_many(queries, 5)]

        def search(i: int) -> Any:
            where: Any = ({}, {"half": [0, 1]}, {"tenth": list(range(10))})[i % 3]
            found = snapshot.nearest(queries[i % 8], 5, where, threads=(None, 1, 2)[i % 3])
            return i % 8, (found.rows.tolist(), found.scores.tolist())

        with ThreadPoolExecutor(4) as pool:
            for i, found in pool.map(search, range(48)):
                assert found == right[i]
    assert inside.blas_threads() == before


def test_blas_has_as_many_threads_as_asked_for_and_then_as_before(large, monkeypatch):
    before = inside.blas_threads()
    if not before:
        pytest.skip("threadpoolctl knows no library of BLAS here")
    seen: list[list[int]] = []
    part = Snapshot.open(large, verify="lazy").collection("items").vectors().__class__.part

    def counted(self: Any, *rows: int) -> Any:
        seen.append(inside.blas_threads())
        return part(self, *rows)

    monkeypatch.setattr("mmcache.storage.vectors.Vectors.part", counted)
    with Snapshot.open(large, verify="lazy") as snapshot:
        snapshot.nearest(np.ones(DIM), threads=1)
        assert all(set(each) == {1} for each in seen)
        seen.clear()
        snapshot.nearest(np.ones(DIM), threads=1000)
        snapshot.nearest(np.ones(DIM))
        assert all(each == before for each in seen), "a number is never raised, nor lowered for large products"
        seen.clear()
        snapshot.where()[5:2000].nearest(np.ones(DIM))
        assert seen
        assert all(set(each) == {1} for each in seen), "small products run on one thread"
    assert inside.blas_threads() == before


def test_a_child_that_is_forked_by_a_search_has_all_threads_of_blas(large, monkeypatch):
    before = inside.blas_threads()
    part = Snapshot.open(large, verify="lazy").collection("items").vectors().__class__.part
    found: list[Any] = []

    def forks(self: Any, *rows: int) -> Any:
        if not found:
            found.append(ask_child(inside.blas_threads))
        return part(self, *rows)

    monkeypatch.setattr("mmcache.storage.vectors.Vectors.part", forks)
    with Snapshot.open(large, verify="lazy") as snapshot:
        snapshot.nearest(np.ones(DIM), threads=1)
    assert found == [before]
    assert inside.blas_threads() == before


def test_a_deadline_ends_a_search_between_two_chunks(large, monkeypatch):
    monkeypatch.setattr(chunks, "SCANNED", 512)
    with Snapshot.open(large, verify="lazy") as snapshot:
        for where in ({}, {"half": 1}, {"tenth": 1}):
            with pytest.raises(SearchTimeoutError, match="none of them is given"):
                snapshot.nearest(np.ones(DIM), where=where, deadline=0.0)
        assert len(snapshot.nearest(np.ones(DIM), deadline=60.0)) == 10


def test_an_interrupt_ends_a_search_and_leaves_all_as_it_was(large, monkeypatch):
    before = inside.blas_threads()
    part = Snapshot.open(large, verify="lazy").collection("items").vectors().__class__.part
    parts: list[int] = []

    def interrupted(self: Any, *rows: int) -> Any:
        parts.append(rows[0])
        if len(parts) == 3:
            signal.raise_signal(signal.SIGINT)
        return part(self, *rows)

    monkeypatch.setattr(chunks, "SCANNED", 1024)
    monkeypatch.setattr("mmcache.storage.vectors.Vectors.part", interrupted)
    assert threading.current_thread() is threading.main_thread()
    with Snapshot.open(large, verify="lazy") as snapshot:
        with pytest.raises(KeyboardInterrupt):
            snapshot.nearest(np.ones(DIM), threads=1)
        assert len(parts) == 3
        assert inside.blas_threads() == before
        assert len(snapshot.nearest(np.ones(DIM), 3)) == 3


def test_a_search_verifies_what_it_reads_once(large, monkeypatch):
    """And a small selection only its own blocks."""
    with Snapshot.open(large, verify="lazy") as snapshot:
        blocks = snapshot.collection("items").file.blocks
        assert blocks is not None
        count = lambda: sum(blocks.verified)  # noqa: E731
        snapshot.where()[100:110].nearest(np.ones(DIM))
        few = count()
        snapshot.nearest(np.ones(DIM))
        section = snapshot.layout.collections["items"].sections["embeddings.vector"]
        first, end = section.offset // 2**16, section.end // 2**16
        assert few < 10 < end - first
        assert all(blocks.verified[first:end])
        everything = count()
        snapshot.nearest(np.ones(DIM), where={"half": 1})
        assert count() >= everything
