"""A fleet: 16 nodes with directories of their own follow one store. Each downloads a release once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mmcache
from tests.remote.shop import build, number_of
from tests.support.hosts import hosts
from tests.support.observe import beside
from tests.support.stores import Served
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_disk_wait")

ROOT = Path(__file__).parents[2]
NODES = 16
SIZE = 5_000
EVERY = 0.5

NODE = """
import json, sys, threading, mmcache
url, path = sys.argv[1:]
cache = mmcache.open(path, follow=url, follow_every=%r, executor="thread", wait=60)
for line in sys.stdin:
    following = cache.status().following
    print(json.dumps([cache["item-3"]["number"], following.release, following.error]), flush=True)
cache.close()
"""


class Node:
    """A process that has the cache open, and says what it sees when asked."""

    def __init__(self, start: Callable[..., subprocess.Popen[str]], url: str, path: Path) -> None:
        self.path = path
        self._start = lambda: start(
            [sys.executable, "-W", "error", "-c", NODE % EVERY, url, str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        path.parent.mkdir(parents=True)
        self.process = self._start()

    def ask(self) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print("?", file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        """And start it again."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        self.process = self._start()

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.communicate(timeout=60)


@contextlib.contextmanager
def fleet(served: Served, directory: Path, starts: list[Callable[..., subprocess.Popen[str]]]) -> Iterator[list[Node]]:
    nodes = [Node(start, served.url, directory / f"node-{i}" / "items.mmc") for i, start in enumerate(starts)]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.end()


def plain(command: list[str], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(command, text=True, **options)


def blobs(served: Served) -> Counter[str]:
    return Counter(path for verb, path in served.requests if path.startswith("blobs/") and verb == "GET")


def release(tmp_path: Path, made: Path, number: int) -> None:
    build(made, number, size=SIZE + number)
    mmcache.publish(made, f"file://{tmp_path}/store", deltas=False)


def all_have(nodes: list[Node], number: int) -> bool:
    return all(node.ask()[0] == number for node in nodes)


@pytest.mark.integration
def test_every_node_downloads_a_release_once(tmp_path, made):
    release(tmp_path, made, 1)
    with Served(tmp_path / "store") as served, fleet(served, tmp_path, [plain] * NODES) as nodes:
        assert all_have(nodes, 1)
        for number in (2, 3):
            before, sent = blobs(served), served.sent
            release(tmp_path, made, number)
            until("all nodes have it", partial(all_have, nodes, number), timeout=120)
            (asked,) = (blobs(served) - before).values()
            assert asked == 3 * NODES, "the table, the digests, and one range of chunks a node"
            assert served.sent - sent < 1.05 * NODES * made.stat().st_size
        for node in nodes:
            assert number_of(node.path) == 3


@pytest.mark.integration
def test_hosts_that_are_cut_and_killed_reach_the_newest(tmp_path, made):
    """In namespaces of their own. While releases come, cables are pulled and processes killed; then all is well."""
    draw = random.Random(3)
    release(tmp_path, made, 1)
    with (
        hosts(NODES) as machines,
        Served(tmp_path / "store", machines.address) as served,
        fleet(served, tmp_path, [machine.run for machine in machines.all]) as nodes,
    ):
        assert all_have(nodes, 1)
        for number in range(2, 8):
            cut = draw.sample(machines.all, 4)
            for machine in cut:
                machine.cut()
            release(tmp_path, made, number)
            time.sleep(draw.uniform(0.0, 2 * EVERY))
            nodes[draw.randrange(NODES)].kill()
            for machine in cut:
                machine.mend()
        until("all nodes have the newest", lambda: all_have(nodes, 7), timeout=300)
        for node in nodes:
            assert number_of(node.path) == 7
            assert not [name for name in beside(node.path) if name.endswith(".tmp")]
            assert node.ask()[1:] == [7, ""]


@pytest.mark.parametrize("kills", [12, pytest.param(1_000, marks=pytest.mark.nightly)])
@pytest.mark.timeout(7200)
def test_a_follower_killed_at_any_moment_leaves_a_whole_file(tmp_path, made, kills):
    """By SIGKILL, at a random time after it began; what it left, the next one takes up."""
    url, node = f"file://{tmp_path}/store", tmp_path / "node" / "items.mmc"
    node.parent.mkdir()
    release(tmp_path, made, 1)
    mmcache.follow(url, node)
    draw = random.Random(kills)
    code = (
        "import os, sys, time, mmcache, mmcache.remote.download as d, mmcache.remote.follower\n"
        "real = d._Download.put\n"
        "d._Download.put = lambda *a: time.sleep(0.005) or real(*a)\n"
        "print(flush=True); mmcache.follow(*sys.argv[1:])"
    )
    for number in range(2, kills + 2):
        release(tmp_path, made, number)
        process = plain([sys.executable, "-c", code, url, str(node)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.uniform(0.0, 0.15))
        process.kill()
        process.communicate()
        assert number_of(node) in (number - 1, number)
        if draw.random() < 0.5 or number == kills + 1:
            mmcache.follow(url, node)
            assert number_of(node) == number
        else:
            release(tmp_path, made, number)
            mmcache.follow(url, node)
    assert not [name for name in os.listdir(node.parent) if name.endswith(".tmp")]
