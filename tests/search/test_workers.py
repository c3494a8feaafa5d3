"""Searches in real processes and threads: memory, threads of BLAS, deadlines, interrupts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
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
from tests.support.waits import PATIENCE

pytestmark = pytest.mark.usefixtures("no_leaks")

N, DIM = 60_000, 128
MB = 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A block of 30 MB, on the disk: pages that are not yet there would count as the worker's own."""
    path: Path = tmp_path_factory.mktemp("large") / "items.mmc"
    vectors = np.random.default_rng(0).standard_normal((N, DIM), dtype=np.float32)
    records = [{"id": i, "half": i % 2, "tenth": i % 10} for i in range(N)]
    schema = Schema("items", index=("half", "tenth"), embedding="vector", sketch=True)
    mmcache.build(path, records, schema, embeddings=vectors)
    return path


WORKER = """
import re, sys
from pathlib import Path
import numpy as np
import mmcache
from mmcache.storage.vectors import Vectors

def private():
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(map(int, re.findall(r"^Private_Dirty: +(\\d+) kB", text, re.MULTILINE)))

def mapped(name):
    text = Path("/proc/self/smaps").read_text()
    return 1024 * sum(map(int, re.findall(re.escape(name) + r"\\n(?:\\S.*\\n)*?Rss: +(\\d+) kB", text)))

def watched(method):
    def watching(self, *arguments):
        global most
        found = method(self, *arguments)
        most = max(most, private())
        return found
    return watching

path, queries, most = sys.argv[1], np.random.default_rng(1).standard_normal((40, int(sys.argv[2]))), 0
with mmcache.Snapshot.open(path, verify="lazy") as snapshot:
    few = snapshot.where()[:10]
    few.nearest(queries[0]), few.nearest_many(queries[:2])
    before = private()
    Vectors.part, Vectors.take = watched(Vectors.part), watched(Vectors.take)
    Vectors.signs = watched(Vectors.signs)
    for where in ({}, {"tenth": 3}, {"half": 1}, {"tenth": [1, 2, 3]}, {"tenth": mmcache.excluding(4)}):
        for metric in ("cosine", "euclidean"):
            snapshot.nearest(queries[0], 20, where, metric=metric)
            snapshot.nearest_many(queries, 20, where, metric=metric)
    curve = snapshot.layout.collections["items"].sketches["vector"].curves[10]
    for recall in (0.1, 0.3, curve[-1].least / 10_000):
        snapshot.nearest(queries[0], 10, recall=recall)
        snapshot.nearest_many(np.concatenate([queries] * 3), 10, recall=recall)
    print(most - before, mapped(path), flush=True)
    sys.stdin.read()
"""
"""Prints by how much its own memory has grown at most, and how much of the file it has mapped, in bytes; then waits."""

needs_smaps = pytest.mark.skipif(
    not os.path.exists("/proc/self/smaps_rollup"), reason="what is a process's own is told by Linux"
)


def searching(path: Path, dim: int, count: int) -> tuple[list[int], list[int], int]:
    """Of workers that search at once: what each has grown by, what each has mapped of the file, and what all have of
    it together, as long as all of them have it."""
    command = [sys.executable, "-W", "error", "-c", WORKER, str(path), str(dim)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        told = [worker.stdout.readline().split() for worker in workers if worker.stdout is not None]
        together = sum(pss_of(path, worker.pid) for worker in workers)
        for worker in workers:
            worker.communicate(timeout=PATIENCE)
            assert worker.returncode == 0
    finally:
        for worker in workers:
            worker.kill()
    return [int(own) for own, _ in told], [int(mapped) for _, mapped in told], together


def pss_of(path: Path, pid: int) -> int:
    """The share of a process in the pages of a file that it has mapped; of all processes together, these pages once."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    found = re.findall(re.escape(str(path)) + r"\n(?:[A-Z]\S*:.*\n)*?Pss: +(\d+) kB", text)
    return 1024 * sum(map(int, found))


@needs_smaps
def test_a_searching_worker_has_8_mb_of_its_own_at_most(large):
    """Looked at whenever a chunk is read, so at their most."""
    grown, mapped, _ = searching(large, DIM, 2)
    assert max(grown) <= 8 * MB, f"{max(grown) / MB:.1f} MB"
    assert min(mapped) >= 4 * N * DIM, "the block is read where it lies"


@needs_smaps
@pytest.mark.integration
@pytest.mark.timeout(900)
def test_eight_workers_that_search_300_mb_have_the_file_once(tmp_path):
    """100,000 embeddings of 768 numbers: a matter of some 300 MB of disk, and of a minute."""
    path, n, dim = tmp_path / "items.mmc", 100_000, 768
    random = np.random.default_rng(0)
    centres = random.standard_normal((200, dim), dtype=np.float32)
    vectors = centres[random.integers(0, 200, n)] + random.standard_normal((n, dim), dtype=np.float32)
    schema = Schema("items", index=("half", "tenth"), embedding="vector", sketch=True)
    mmcache.build(path, ({"id": i, "half": i % 2, "tenth": i % 10} for i in range(n)), schema, embeddings=vectors)
    grown, mapped, together = searching(path, dim, 8)
    size = path.stat().st_size
    assert size > 4 * n * dim
    assert min(mapped) >= 4 * n * dim, "each of them reads the block where it lies"
    assert together <= 1.01 * size, "and all of them have it once"
    assert max(grown) <= 8 * MB, f"{max(grown) / MB:.1f} MB"


def test_threads_that_search_at_once_get_the_answers_of_one(large):
    queries = np.random.default_rng(2).standard_normal((8, DIM)).astype(np.float32)
    with Snapshot.open(large, verify="lazy") as snapshot:
        right = [(one.rows.tolist(), one.scores.tolist()) for one in snapshot.nearest_many(queries, 5)]

        def search(i: int) -> Any:
            where: Any = ({}, {"half": [0, 1]}, {"tenth": list(range(10))})[i % 3]
            found = snapshot.nearest(queries[i % 8], 5, where, threads=(None, 1, 2)[i % 3])
            return i % 8, (found.rows.tolist(), found.scores.tolist())

        with ThreadPoolExecutor(4) as pool:
            for i, found in pool.map(search, range(48)):
                assert found == right[i]


@pytest.mark.parametrize(("threads", "is_left_to_blas"), [(None, True), (1, False), (2, False), (8, True), (9, True)])
def test_no_more_threads_of_blas_are_used_than_were_asked_for(large, monkeypatch, threads, is_left_to_blas):
    """And none for one vector, or for few rows, which would wait for them."""
    products: list[int] = []
    matmul = np.matmul

    def counted(*given: Any, **more: Any) -> Any:
        products.append(1)
        return matmul(*given, **more)

    monkeypatch.setattr(np, "matmul", counted)
    queries = np.random.default_rng(4).standard_normal((3, DIM))
    with Snapshot.open(large, verify="lazy") as snapshot, inside.blas_with(threads=8):
        snapshot.nearest(queries[0], threads=threads)
        snapshot.nearest_many(queries, where={"tenth": 1}, threads=threads)
        snapshot.where()[:5000].nearest_many(queries, threads=threads)
        assert not products
        snapshot.nearest_many(queries, threads=threads)
        assert bool(products) is is_left_to_blas


def test_without_threadpoolctl_a_number_of_threads_means_one(large, monkeypatch):
    monkeypatch.setattr(np, "matmul", None)
    with Snapshot.open(large, verify="lazy") as snapshot, inside.blas_with(threads=None):
        assert len(snapshot.nearest_many(np.ones((3, DIM)), 5, threads=4)) == 3


def test_a_deadline_ends_a_search_between_two_chunks(large, monkeypatch):
    monkeypatch.setattr(chunks, "SCANNED", 512)
    with Snapshot.open(large, verify="lazy") as snapshot:
        for where in ({}, {"half": 1}, {"tenth": 1}):
            with pytest.raises(SearchTimeoutError, match="none of them is given"):
                snapshot.nearest(np.ones(DIM), where=where, deadline=0.0)
        assert len(snapshot.nearest(np.ones(DIM), deadline=60.0)) == 10


def test_an_interrupt_ends_a_search_and_leaves_all_as_it_was(large, monkeypatch):
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
