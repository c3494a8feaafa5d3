"""The build lock: one writer at a time over all threads and processes, freed by death, named when it is busy."""

# mypy: disable-error-code="misc, var-annotated"
# What may be None fails the test where it is.

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmcache
from mmcache import LockTimeoutError, Schema, Snapshot, UntrustedPathError
from tests.support.faults import faults
from tests.support.inside import build_lock
from tests.support.observe import open_files
from tests.support.processes import Child, child, forked, in_child, together

pytestmark = pytest.mark.usefixtures("no_disk_wait")

SCHEMA = Schema("items")


def live_on(process: Child) -> None:
    process.say()
    process.hear()


@contextlib.contextmanager
def holder_of(path: Path, *, with_child: bool = False) -> Iterator[Child]:
    """A process that holds the lock until the test says something, or kills it; with a forked child, if asked for."""

    def work(process: Child) -> None:
        with build_lock(path):
            if with_child:
                forked(lambda: live_on(process))
            process.say()
            process.hear()

    with child(work) as process:
        for _ in range(1 + with_child):
            assert process.hear()
        yield process


def test_the_holder_is_named_to_a_process_that_waits_in_vain(path):
    with holder_of(path) as holder:
        files = open_files()
        named = rf"another build holds 'items.mmc.lock' \(pid {holder.pid} since"
        for timeout in (0, 0.05):
            with pytest.raises(LockTimeoutError, match=named) as caught:
                mmcache.build(path, [], SCHEMA, timeout=timeout)
            assert caught.value.path == str(path)
        assert open_files() == files
        assert not path.exists()
        holder.say()
        assert holder.wait() == 0
    assert mmcache.build(path, [], SCHEMA, timeout=5).generation == 1


@pytest.mark.parametrize("with_child", [False, True])
def test_a_killed_builder_frees_the_lock_at_once(path, with_child):
    """Also when a child that it forked meanwhile lives on: the child gives the descriptor up as it is born."""
    with holder_of(path, with_child=with_child) as holder:
        with pytest.raises(LockTimeoutError):
            mmcache.build(path, [], SCHEMA, timeout=0)
        holder.kill()
        mmcache.build(path, [], SCHEMA, timeout=0)


def test_a_waiter_gets_the_lock_when_the_holder_leaves(path):
    done = threading.Event()

    def build() -> None:
        mmcache.build(path, [{"id": "a"}], SCHEMA, timeout=30)
        done.set()

    waiter = threading.Thread(target=build)
    with holder_of(path) as holder:
        waiter.start()
        assert not done.wait(0.05)
        holder.say()
        waiter.join(30)
        assert done.is_set()
        assert holder.wait() == 0


def test_threads_exclude_each_other(path):
    holders = 0
    most = 0
    begin = threading.Barrier(8)

    def work() -> None:
        nonlocal holders, most
        begin.wait()
        for _ in range(10):
            with build_lock(path, 60):
                holders += 1
                most = max(most, holders)
                os.sched_yield()
                holders -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_processes_exclude_each_other_and_every_build_counts(path, tmp_path):
    diary = tmp_path / "diary"
    diary.touch()

    def work(number: int) -> None:
        for i in range(5):
            report = mmcache.build(path, [{"id": f"{number}-{i}"}], SCHEMA, timeout=60)
            assert report.changed
            with build_lock(path, 60), open(diary, "ab", buffering=0) as file:
                file.write(b"(")
                os.sched_yield()
                file.write(b")")

    together(4, work)
    assert diary.read_bytes() == b"()" * 20
    with Snapshot.open(path) as snapshot:
        assert snapshot.generation == 20


def test_the_lock_file_stays_and_is_used_again(path):
    mmcache.build(path, [], SCHEMA)
    lock = Path(f"{path}.lock")
    inode = lock.stat().st_ino
    mmcache.build(path, [{"id": "a"}], SCHEMA)
    assert lock.stat().st_ino == inode
    assert f"pid {os.getpid()} since" in lock.read_text()


def test_a_lock_file_of_any_content_serves(path):
    lock = Path(f"{path}.lock")
    for content in (b"", b"x" * 100_000, b"\0\xff" * 40, b"pid 1 since for ever\n\x1b[2J"):
        lock.write_bytes(content)
        mmcache.build(path, [], SCHEMA, timeout=0)
        assert len(lock.read_bytes()) >= len(content)
        lock.write_bytes(content)
        with holder_of(path):
            assert lock.read_bytes()
            os.pwrite(fd := os.open(lock, os.O_WRONLY), content[:64], 0)
            os.close(fd)
            with pytest.raises(LockTimeoutError) as caught:
                mmcache.build(path, [], SCHEMA, timeout=0)
            assert str(caught.value).isprintable()


def test_a_lock_on_a_file_that_was_replaced_meanwhile_does_not_count(path):
    """Case: another process puts a new lock file in the place of the one that we have just locked."""
    lock = f"{path}.lock"
    replaced = []

    def replace(number, name, args, call):
        if name == "stat" and args == ("items.mmc.lock",) and not replaced:
            replaced.append(os.stat(lock).st_ino)
            os.unlink(lock)
            with open(lock, "x"):
                pass
        return call()

    files = open_files()
    with (
        faults(replace),
        build_lock(path, 5),
        pytest.raises(LockTimeoutError),
    ):
        mmcache.build(path, [], SCHEMA, timeout=0)
    assert replaced
    assert open_files() == files
    mmcache.build(path, [], SCHEMA, timeout=0)


def test_a_lock_file_that_vanishes_before_the_lock_is_made_again(path):
    lock = f"{path}.lock"
    removed = []

    def remove(number, name, args, call):
        if name == "stat" and args == ("items.mmc.lock",) and len(removed) < 3:
            removed.append(1)
            os.unlink(lock)
        return call()

    with faults(remove):
        mmcache.build(path, [], SCHEMA, timeout=5)
    assert len(removed) == 3


def test_a_lock_file_with_a_second_name_is_refused(path, tmp_path):
    other = tmp_path / "precious"
    other.write_text("precious")
    os.link(other, f"{path}.lock")
    with pytest.raises(UntrustedPathError, match="the lock file has 2 names"):
        mmcache.build(path, [], SCHEMA)
    assert other.read_text() == "precious"


def test_a_fork_while_the_lock_is_held_leaves_it_with_the_parent(path):
    def build() -> None:
        try:
            mmcache.build(path, [], SCHEMA, timeout=0)
        except LockTimeoutError:
            return
        raise AssertionError("the child got the lock that its parent holds")

    with build_lock(path):
        assert in_child(build) == 0
        with pytest.raises(LockTimeoutError):
            mmcache.build(path, [], SCHEMA, timeout=0)
    assert in_child(lambda: mmcache.build(path, [], SCHEMA, timeout=0)) == 0
