"""`mmcache.open(..., follow=URL)`: one process of a node polls, and every worker moves to the release."""

from __future__ import annotations

import gc
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mmcache
from mmcache import MissingFileError, Schema, SQLiteSource, StoreError
from mmcache.remote import keeper
from tests.remote.shop import build, number_of, publish, told
from tests.support import stores
from tests.support.bank import NUMBERS, commit, name_of
from tests.support.observe import children_of
from tests.support.processes import forked, in_child
from tests.support.waits import holds, until

pytestmark = pytest.mark.usefixtures("no_leaks", "no_disk_wait")

ROOT = Path(__file__).parents[2]
EVERY = 0.2


@pytest.fixture
def local(tmp_path: Path) -> str:
    return f"file://{tmp_path}/store"


def pollers(path: Path) -> list[int]:
    """Processes that follow for a file, whichever worker started them."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mmcache.remote.background" in words and os.fsencode(path) in words:
            found.append(int(name))
    return found


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def shows(cache: mmcache.Cache, number: int) -> bool:
    return bool(cache["item-3"]["number"] == number)


@pytest.mark.parametrize("executor", ["subprocess", "thread", "inline"])
def test_a_cache_without_a_file_waits_for_its_release_and_follows(local, made, node, executor):
    publish(made, local, 1)
    with mmcache.open(node, follow=local, follow_every=EVERY, executor=executor) as cache:
        assert shows(cache, 1)
        publish(made, local, 2)
        until("the release is adopted", lambda: shows(cache, 2))
        until("the node says so, after it has published the file", lambda: told(cache).release == 2)
        assert told(cache).url == local
    assert pollers(node) == []


def test_a_release_in_the_url_is_a_pin(local, made, node):
    for number in (1, 2):
        publish(made, local, number)
    with mmcache.open(node, follow=f"{local}@1", follow_every=EVERY) as cache:
        assert shows(cache, 1)
        assert told(cache).pinned == 1
        publish(made, local, 3)
        holds("it stays", lambda: shows(cache, 1), 3 * EVERY)


def test_a_follower_never_builds_unless_it_is_told(tmp_path, local, bank, node):
    source = SQLiteSource(bank, NUMBERS)
    made = tmp_path / "made.mmc"
    mmcache.build(made, source)
    mmcache.publish(made, local)
    with mmcache.open(node, source, follow=local, follow_every=EVERY, rebuild_after=0, ttl=0.05) as cache:
        assert cache[name_of(1)]["number"] == 0
        commit(bank, 5, 1)
        cache.invalidate([name_of(1)])
        cache.invalidate(hard=False)
        for _ in range(10):
            assert cache[name_of(1)]["number"] == 5
            assert cache.refresh() is False
        assert cache.generation == 1
        assert cache.stats().rebuilds == 0


def test_what_a_release_lacks_the_source_answers(tmp_path, local, bank, node):
    source = SQLiteSource(bank, NUMBERS)
    made = tmp_path / "made.mmc"
    mmcache.build(made, source)
    mmcache.publish(made, local)
    commit(bank, 7)
    with mmcache.open(node, source, follow=local, follow_every=EVERY) as cache:
        cache.invalidate([name_of(2)])
        assert cache[name_of(2)]["number"] == 7
        assert cache.stats().fallbacks == {"invalidated": 1}
        mmcache.build(made, source)
        mmcache.publish(made, local)
        until("the release with it is adopted", lambda: cache[name_of(1)]["number"] == 7)
        until("its fingerprint is the source's", lambda: cache.status().dirty == 0)


def test_workers_of_a_node_have_one_poller_and_one_download(tmp_path, local, made, node):
    """Processes of their own; the one that polls is killed, and another takes over."""
    publish(made, local, 1, size=5_000)
    code = f"""
import json, sys, mmcache
cache = mmcache.open({str(node)!r}, follow={local!r}, follow_every={EVERY})
for line in sys.stdin:
    print(json.dumps([cache["item-3"]["number"], cache.generation]), flush=True)
cache.close()
"""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]

    def ask() -> list[list[int]]:
        for worker in workers:
            print("?", file=worker.stdin, flush=True)
        return [json.loads(line_of(worker)) for worker in workers]

    try:
        assert ask() == [[1, 1]] * 4
        until("one polls", lambda: ask() and len(pollers(node)) == 1)
        publish(made, local, 2, size=5_000)
        until("all have it", lambda: {number for number, _ in ask()} == {2})
        assert {generation for _, generation in ask()} == {2}, "it was published once"
        (poller,) = pollers(node)
        owner = next(worker for worker in workers if poller in children_of(worker.pid))
        owner.kill()
        owner.communicate()
        workers.remove(owner)
        until("it is gone with its worker", lambda: poller not in pollers(node))
        publish(made, local, 3, size=5_000)
        until("another polls", lambda: {number for number, _ in ask()} == {3})
        until("and is the only one", lambda: ask() and len(pollers(node)) == 1)
    finally:
        for worker in workers:
            worker.communicate(timeout=30)
    until("none is left", lambda: not pollers(node))
    assert number_of(node) == 3


def test_a_poller_that_is_killed_is_replaced(local, made, node):
    publish(made, local, 1)
    with mmcache.open(node, follow=local, follow_every=EVERY) as cache:
        for number in (2, 3):
            (poller,) = until("one polls", lambda: pollers(node))
            os.kill(poller, signal.SIGKILL)
            publish(made, local, number)
            until("another polls", partial(shows, cache, number))


def test_forked_workers_follow_though_their_parent_has_used_a_store(local, made, node):
    """As under gunicorn --preload: the library's threads are not in the child, which starts a process of its own."""
    publish(made, local, 1)  # in this process
    with mmcache.open(node, follow=local, follow_every=EVERY) as cache:
        assert shows(cache, 1)

        def work() -> None:
            until("the fork sees the release", lambda: shows(cache, 2))
            cache.close()

        child = forked(work)
        publish(made, local, 2)
        assert os.waitpid(child, 0)[1] == 0
        until("so does the parent", lambda: shows(cache, 2))


def test_a_dropped_cache_ends_its_poller(local, made, node):
    publish(made, local, 1)
    cache = mmcache.open(node, follow=local, follow_every=EVERY)
    until("one polls", lambda: pollers(node))
    del cache
    gc.collect()
    until("it ends", lambda: not pollers(node))


def test_a_side_car_leaves_workers_nothing_to_do(local, made, node):
    publish(made, local, 1)
    command = [sys.executable, "-m", "mmcache", "follow", local, str(node), "--every", str(EVERY), "--no-source"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as side_car:
        try:
            assert "release 1" in line_of(side_car)
            with mmcache.open(node, follow=local, follow_every=EVERY) as cache:
                holds("no worker polls", lambda: shows(cache, 1) and not pollers(node), 5 * EVERY)
                publish(made, local, 2)
                assert "release 2" in line_of(side_car)
                assert shows(cache, 2), "within one get"
        finally:
            side_car.terminate()


def test_a_damaged_file_is_brought_again(local, made, node):
    publish(made, local, 1, size=2_000)
    with mmcache.open(node, follow=local, follow_every=EVERY, executor="thread") as cache:
        assert shows(cache, 1)
        data = bytearray(node.read_bytes())
        data[300] ^= 1
        fresh = node.with_name("fresh")
        fresh.write_bytes(data)
        fresh.rename(node)
        until("it is whole", lambda: shows(cache, 1) and _is_whole(node))


def _is_whole(path: Path) -> bool:
    try:
        return number_of(path) == 1
    except mmcache.UnusableFileError:
        return False


def test_an_unreachable_store_is_told_and_a_source_answers(tmp_path, bank, node):
    missing = f"file://{tmp_path}/none"
    with pytest.raises(MissingFileError, match="no release was brought"):
        mmcache.open(node, follow=missing, follow_every=EVERY)
    begun = time.monotonic()
    with mmcache.open(node, SQLiteSource(bank, NUMBERS), follow=missing, follow_every=EVERY) as cache:
        assert cache[name_of(1)]["number"] == 0
        assert time.monotonic() - begun < 25, "it does not wait for what failed"
        assert not node.exists()
        alerts = {alert.rule: alert.text for alert in cache.alerts(max_lag=0)}
    assert "there are no releases here yet" in alerts["lag"]


@pytest.mark.parametrize("source", [None, [{"id": "item-3", "number": 1}]], ids=["alone", "with a source"])
def test_what_can_never_follow_is_said_by_open(local, node, monkeypatch, source):
    """And not by a read that has waited for its release, nor by a source that answers in silence."""
    options: dict[str, Any] = {} if source is None else {"load": lambda: source, "schema": Schema("items")}
    with pytest.raises(StoreError, match="is no URL of an object store"):
        mmcache.open(node, follow="s4://bucket/items", **options)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreError, match=r"pip install 'mmcache\[remote\]'"):
        mmcache.open(node, follow=local, **options)


@pytest.mark.parametrize("executor", ["subprocess", "thread"])
def test_a_store_that_cannot_be_opened_is_told_at_once(node, monkeypatch, executor):
    monkeypatch.setenv("AWS_ALLOW_HTTP", "perhaps")
    with pytest.raises(MissingFileError, match=r"no release was brought .*could not open the store"):
        mmcache.open(node, follow="s3://bucket/items", follow_every=EVERY, executor=executor, wait=120)


@pytest.mark.parametrize("executor", ["subprocess", "thread"])
def test_a_worker_of_other_schemas_waits_for_no_other_release(local, bank, made, node, executor):
    """As while an application of a later version is rolled out: its source answers until a release has its schema."""
    publish(made, local, 1)
    source = SQLiteSource(bank, NUMBERS)
    options: dict[str, Any] = {"follow": local, "follow_every": EVERY, "executor": executor, "wait": 3_600}
    with mmcache.open(node, source, **options) as cache:
        assert cache[name_of(1)]["number"] == 0
        assert cache.status().state == "incompatible"
        mmcache.build(made, source)
        mmcache.publish(made, local, min_records_ratio=0)
        until("the release with it answers", lambda: cache[name_of(1)]["number"] == 0 and cache.generation == 2)
        assert cache.status().state == "fresh"


def test_a_store_that_hangs_holds_up_no_read(tmp_path, local, bank, made, node):
    """Of a cache that follows by a thread, which cannot be ended."""
    source = SQLiteSource(bank, NUMBERS)
    mmcache.build(made, source)
    mmcache.publish(made, local)
    free, waits = threading.Event(), list[bool]()

    def wait(_: str) -> None:
        waits.append(free.wait(30))

    with stores.Served(tmp_path / "store") as served:
        served.refuse = wait
        options: dict[str, Any] = {"follow": served.url, "follow_every": EVERY, "executor": "thread", "wait": 0.2}
        with mmcache.open(node, source, check_interval=0.02, **options) as cache:
            assert cache[name_of(1)]["number"] == 0
            assert "has not answered for" in cache.status().why
            until("it is asked", lambda: served.requests)
            holds("the source answers", lambda: cache[name_of(1)]["number"] == 0, 0.2)
            free.set()
            until("the release is there", lambda: cache[name_of(1)] and cache.generation)
    source.close()
    assert waits
    assert all(waits), "a read waited until the server gave up"


def test_a_thread_whose_store_is_silent_for_long_is_told(tmp_path, local, made, node, monkeypatch):
    monkeypatch.setattr(keeper, "_GRACE", 0.1)
    publish(made, local, 1)
    mmcache.follow(local, node)
    free = threading.Event()
    with stores.Served(tmp_path / "store") as served:
        served.refuse = lambda _: free.wait(30) and None
        options: dict[str, Any] = {"follow": served.url, "follow_every": 0.05, "executor": "thread"}
        with mmcache.open(node, check_interval=0.02, build_timeout=0.1, **options) as cache:
            until("it is told", lambda: shows(cache, 1) and "has not answered for" in told(cache).error)
            free.set()
            until("and once it answers, no more", lambda: shows(cache, 1) and not told(cache).error)


@pytest.mark.parametrize("follow", ["/mnt/items", 5, b"s3://bucket"])
def test_what_is_no_url_is_a_value_error(node, follow):
    with pytest.raises(ValueError, match="follow must be the URL of a store"):
        mmcache.open(node, follow=follow)


def test_a_cache_that_follows_pickles(local, made, node):
    import pickle

    publish(made, local, 1)
    with (
        mmcache.open(node, follow=local, follow_every=EVERY) as cache,
        pickle.loads(pickle.dumps(cache)) as twin,
    ):
        assert shows(twin, 1)
        publish(made, local, 2)
        until("both move", lambda: shows(cache, 2) and shows(twin, 2))


def test_an_invalidation_on_one_node_stays_until_a_release_is_late_enough(tmp_path, local, node):
    """With a source that cannot tell whether it has changed, by time alone; in the child, too."""
    truth = {"a": 1}
    source = mmcache.CallableSource(lambda: [{"id": k, "n": n} for k, n in truth.items()], Schema("items"))
    made = tmp_path / "made.mmc"
    mmcache.build(made, source)
    mmcache.publish(made, local)
    with mmcache.open(node, source, follow=local, follow_every=EVERY) as cache:
        build_before = made
        truth["a"] = 2
        cache.invalidate(["a"])
        truth["b"] = 1
        mmcache.build(build_before, source)
        mmcache.publish(made, local)
        until("the release is there", lambda: told(cache).release == 2)
        assert cache["a"]["n"] == 2
        assert cache.status().dirty == 1, "it is not a minute later"


def test_a_follower_that_may_build_does_so_where_there_is_no_release(tmp_path, local, bank, node):
    source = SQLiteSource(bank, NUMBERS)
    commit(bank, 3)
    with mmcache.open(node, source, follow=local, follow_every=EVERY, build=True) as cache:
        assert cache[name_of(1)]["number"] == 3
        assert cache.stats().hits == 1
        assert cache.generation == 1
        commit(bank, 4)
        made = tmp_path / "made.mmc"
        mmcache.build(made, source)
        mmcache.publish(made, local)
        until("a release takes its place", lambda: cache[name_of(1)]["number"] == 4)


def test_a_forked_worker_with_threads_follows_by_a_process(local, made, node):
    publish(made, local, 1)  # in this process
    with mmcache.open(node, follow=local, follow_every=EVERY, executor="thread") as cache:
        assert shows(cache, 1)

        def work() -> None:
            cache.close()
            with mmcache.open(node, follow=local, follow_every=EVERY, executor="thread") as own:
                until("the fork polls", lambda: shows(own, 2) or pollers(node))
                until("and sees the release", lambda: shows(own, 2))

        child = forked(work)
        cache.close()
        publish(made, local, 2)
        assert os.waitpid(child, 0)[1] == 0


def test_build_is_as_it_was_without_follow(made):
    with mmcache.open(made, load=lambda: [{"id": "a"}], schema=Schema("items")) as cache:
        assert "a" in cache
    assert build(made, 1).generation == 2


@pytest.mark.integration  # it waits for its times
def test_a_follower_that_hangs_is_ended_and_another_follows(local, made, node):
    publish(made, local, 1)
    with mmcache.open(node, follow=local, follow_every=0.05, check_interval=0.05, build_timeout=0.5) as cache:
        assert shows(cache, 1)
        for pid in until("a process follows", lambda: pollers(node)):
            os.kill(pid, signal.SIGSTOP)
        publish(made, local, 2)
        until("another one follows", lambda: shows(cache, 2), 120.0)
    assert pollers(node) == []


def test_a_descriptor_that_was_closed_under_a_follower_and_used_again_is_left_alone(local, made, node):
    publish(made, local, 1)

    def reuse() -> None:
        cache = mmcache.open(node, follow=local, follow_every=EVERY)
        assert shows(cache, 1)
        until("a process follows", lambda: pollers(node))
        line = [fd for fd in map(int, os.listdir("/proc/self/fd")) if is_socket(fd)]
        os.closerange(3, 256)
        for fd in line:
            os.dup2(0, fd)
        cache.close()
        assert line
        assert all(os.fstat(fd) for fd in line)

    assert in_child(reuse) == 0
    until("no process follows", lambda: not pollers(node))


def is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False
