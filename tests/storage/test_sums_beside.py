"""The sums of a build are the same wherever they are taken: in a thread, beside the work, or when all is written."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Schema, Snapshot
from mmcache.storage.fs import CHUNK
from mmcache.storage.lane import Lane
from tests.support import inside
from tests.support.faults import FailName, faults
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_disk_wait")

DIM = 1024
ROW = 4 * DIM
BY_LANE = 4 * CHUNK // ROW
"""Records whose embeddings take four chunks."""


def vectors(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(7).random((n, DIM), np.float32)


def records(n: int, note: str = "note") -> Iterator[dict[str, Any]]:
    for i, vector in enumerate(vectors(n)):
        yield {"id": f"k{i}", "kind": i % 5, "note": note * (i % 50), "vector": vector}


SCHEMA = Schema("items", index=("kind",), embedding="vector")


def build(path: Path, n: int, **options: Any) -> mmcache.BuildReport:
    return mmcache.build(path, records(n), SCHEMA, **options)


def check(path: Path, n: int) -> None:
    """All sums are those of the bytes, and the bytes are those of the records."""
    with Snapshot.open(path, verify="full") as snapshot:
        snapshot.verify(deep=True)
        assert np.array_equal(snapshot.default.embeddings, vectors(n))
        assert [record["note"] for record in snapshot.values()] == ["note" * (i % 50) for i in range(n)]


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "mmcache-sums"}


@pytest.mark.parametrize("n", [1, 255, 256, 257, 512, 513, BY_LANE - 1, BY_LANE, BY_LANE + 1, 5 * BY_LANE + 100])
def test_the_sums_of_a_file_are_those_of_its_bytes(path: Path, n: int) -> None:
    build(path, n)
    check(path, n)


@pytest.mark.parametrize("refusal", ["limit", "uwsgi", "begins"])
def test_a_build_without_threads_gives_the_same_bytes(tmp_path: Path, refusal: str) -> None:
    n = 5 * BY_LANE
    report = build(tmp_path / "a.mmc", n)
    with inside.no_threads(refusal) as asked:
        alone = build(tmp_path / "b.mmc", n)
    assert asked, "a build of this size begins a thread"
    assert (alone.sha256, alone.build_id) == (report.sha256, report.build_id)


def test_a_scratch_file_that_cannot_be_cut_off_gives_the_same_bytes(tmp_path: Path) -> None:
    n = 5 * BY_LANE
    report = build(tmp_path / "a.mmc", n)
    with faults(FailName("ftruncate", 5)) as calls:
        other = build(tmp_path / "b.mmc", n)
    assert "ftruncate" in "".join(map(str, calls.log))
    assert other.sha256 == report.sha256


def test_no_thread_is_left_after_a_build(path: Path) -> None:
    begun: set[threading.Thread] = set()

    def watch(*_: object) -> None:
        begun.update(threads())

    build(path, 5 * BY_LANE, progress=watch)
    assert begun
    assert not threads()


@pytest.mark.parametrize("stage", ["items", "write"])
def test_no_thread_is_left_after_a_build_that_ends_early(path: Path, stage: str) -> None:
    def stop(at: str, _done: int, _total: int | None) -> None:
        if at == stage and threads():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(path, 5 * BY_LANE, progress=stop)
    until("the thread has ended", lambda: not threads())
    build(path, 5 * BY_LANE)
    check(path, 5 * BY_LANE)


# --- Lane -------------------------------------------------------------------------------------------------------------

PIECE = bytes(2**20)


@pytest.fixture(params=["in a thread", "alone"])
def filled(request: pytest.FixtureRequest) -> Iterator[Lane]:
    """A lane that has seen enough to have a thread, or cannot have one."""
    with Lane() as lane:
        if request.param == "alone":
            with inside.no_threads("limit"):
                fill(lane)
        else:
            fill(lane)
        yield lane


def fill(lane: Lane) -> None:
    for _ in range(16):
        lane.call(len, PIECE)
    lane.wait()


def test_calls_are_made_in_their_order(filled: Lane) -> None:
    made: list[int] = []
    for i in range(50):
        filled.call(lambda _, i=i: made.append(i), PIECE[: i * 40_000])  # type: ignore[misc]
    filled.wait()
    assert made == list(range(50))


def test_what_a_call_raises_is_raised_by_a_later_one(filled: Lane) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    def act() -> None:
        filled.call(fail, PIECE)
        filled.wait()

    with pytest.raises(ZeroDivisionError):
        act()


def test_a_lane_that_is_gone_leaves_no_thread() -> None:
    lane = Lane()
    fill(lane)
    assert threads()
    del lane
    until("the thread has ended", lambda: not threads())


def test_a_thread_ends_whose_lane_was_forgotten_without_a_word() -> None:
    lane = Lane()
    fill(lane)
    assert threads()
    inside.forget(lane)
    del lane
    until("the thread has ended", lambda: not threads())


def test_a_lane_waits_for_a_slow_call() -> None:
    made: list[float] = []

    def slow(_: object) -> None:
        time.sleep(0.05)
        made.append(time.monotonic())

    with Lane() as lane:
        fill(lane)
        lane.call(slow, PIECE)
        lane.wait()
        assert len(made) == 1
