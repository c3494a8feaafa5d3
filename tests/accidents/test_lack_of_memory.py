"""Builds in a process with a limit of memory: each publishes, or raises and leaves all as it was."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import MmcacheError, Schema
from tests.accidents.stage import apart, source
from tests.support.observe import beside, open_files

N = 20_000
ITEMS = Schema("items", index=("kind", "name"), embedding="vector")
ROOM = [0, 1, 2, 4, 6, 8, 12, 24]
"""MiB of address space beyond what the process has when a build begins."""


def records(note: str) -> Any:
    vectors = [[float(i), 1.0, 2.0, 3.0] for i in range(50)]
    return (
        {"id": f"k{i}", "kind": "abc"[i % 3], "name": f"{note}-{i}", "note": note * 20, "vector": vectors[i % 50]}
        for i in range(N)
    )


def limited(mebibytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def unlimited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)


def build_in_little_memory(path: Path, mebibytes: int) -> tuple[str, list[str]]:
    """What became of it, and what is wrong."""
    mmcache.build(path, records("old"), ITEMS)
    before, files = beside(path), len(open_files())
    limited(mebibytes)
    try:
        mmcache.build(path, records("new"), ITEMS)
        outcome = "built"
    except (MmcacheError, MemoryError) as error:
        outcome = type(error).__name__
    finally:
        unlimited()
    wrong = []
    with mmcache.Snapshot.open(path, verify="full") as snapshot:
        expected = "new" if outcome == "built" else "old"
        if snapshot.generation != (2 if outcome == "built" else 1) or snapshot["k7"]["name"] != f"{expected}-7":
            wrong.append(f"{outcome}: generation {snapshot.generation}, {snapshot['k7']['name']}")
    if outcome != "built" and beside(path) != before:
        wrong.append(f"left behind: {beside(path)}")
    if len(open_files()) != files:
        wrong.append(f"descriptors: {open_files()}")
    if not mmcache.build(path, records("last"), ITEMS).changed:
        wrong.append("it does not build once there is memory")
    return outcome, wrong


@pytest.mark.parametrize("mebibytes", ROOM)
def test_a_build_in_little_memory_publishes_or_leaves_all_as_it_was(tmp_path, mebibytes):
    outcome, wrong = apart(build_in_little_memory, tmp_path / "items.mmc", mebibytes, within=100.0)
    assert wrong == []
    assert outcome != "MemoryError" or mebibytes < max(ROOM)


def rebuild_in_little_memory(path: Path, db: Path, mebibytes: int) -> list[str]:
    """By a thread of a worker, which reads on."""
    wrong = []
    with mmcache.open(path, source(db), executor="thread", check_interval=0.01, rebuild_after=0) as cache:
        assert cache["k1"]["note"] == "old"
        limited(mebibytes)
        try:
            cache.invalidate(hard=False)
            for _ in range(300):
                if cache["k1"]["note"] != "old":
                    wrong.append("a wrong answer")
                os.sched_yield()
        except (MmcacheError, MemoryError) as error:
            wrong += [f"{type(error).__name__}: {error}"] * (mebibytes > 4)
        finally:
            unlimited()
        from tests.support.waits import until

        cache.rebuild()
        until("it is fresh", lambda: cache["k1"]["note"] == "old" and cache.stats().state == "fresh")
    return wrong


@pytest.mark.parametrize("mebibytes", [8, 32, 96])
def test_a_worker_that_rebuilds_in_little_memory_reads_on(path, db, mebibytes):
    assert apart(rebuild_in_little_memory, path, db, mebibytes, within=100.0) == []
