"""A node whose disk is full at any step of a follow: what it had serves, and once there is room it has the newest.

The follower is the command, in a process of its own; the disk is filled by the server, before one of its answers.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mmcache
from tests.accidents.disks import fill, full_place, make_room
from tests.accidents.stage import apart
from tests.remote.shop import build, number_of
from tests.support.observe import beside
from tests.support.stores import Served

pytest.importorskip("obstore", reason="the extra remote is not installed")

ROOT = Path(__file__).parents[2]
SIZE = 3_000
"""Bytes of a record: 200 of them are 5 chunks, and three files fit on the smallest disk."""
LEFT = {"items.mmc", "items.mmc.bak", "items.mmc.ctl", "items.mmc.follow", "items.mmc.lock"}

COMMAND = "import sys, mmcache.store as s; s.PIECE = 2**17; from mmcache.cli import main; sys.exit(main(sys.argv[1:]))"
"""In requests of one chunk, so that there are steps between them."""


def mmcache_command(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def release(place: Path, number: int) -> None:
    build(place / "made.mmc", number, size=SIZE + number)
    done = mmcache_command("publish", place / "made.mmc", f"file://{place}/store", "--no-deltas")
    assert done.returncode == 0, done.stderr


def full_at(served: Served, step: int, disk: Path) -> None:
    """The disk is full from before an answer on."""
    answers = 0

    def change(_: str, body: bytes) -> bytes:
        nonlocal answers
        if answers == step:
            fill(disk)
        answers += 1
        return body

    served.change = change


@pytest.mark.parametrize("system", ["ext4", pytest.param("tmpfs", marks=pytest.mark.nightly)])
def test_a_node_whose_disk_is_full_at_any_step_serves_and_catches_up(place, system):
    print("\n".join(apart(fill_at_each_step, place, system, namespace=True, within=500)))


def fill_at_each_step(place: Path, system: str) -> list[str]:
    disk = full_place(place, system)
    node = disk / "node" / "items.mmc"
    release(place, 1)
    told = []
    with Served(place / "store") as served:
        assert mmcache_command("follow", served.url, node, "--once").returncode == 0
        with mmcache.open(node, executor="external", check_interval=0.0) as cache:
            for number in range(2, 40):
                release(place, number)
                served.requests.clear()
                step = number - 3
                fill(disk) if step < 0 else full_at(served, step, disk)
                done = mmcache_command("follow", served.url, node, "--once")
                is_full = (disk / "fill").exists()
                found = number_of(node)
                assert found in (number - 1, number), done.stderr
                assert (done.returncode == 0) == (found == number), done.stderr
                assert cache["item-3"]["number"] == found
                told.append(f"{system}, full at step {step}: {done.returncode} {done.stderr.strip()[-90:]}")
                if done.returncode and "No space" in done.stderr:
                    assert not [name for name in beside(node) if name.endswith(".tmp")], "nothing stays"
                make_room(disk)
                served.change = lambda _, body: body
                again = mmcache_command("follow", served.url, node, "--once")
                assert (again.returncode, number_of(node)) == (0, number), again.stderr
                assert cache["item-3"]["number"] == number
                assert set(beside(node)) <= LEFT
                if not is_full:
                    assert step > 4, "there were several answers before"
                    return told
    raise AssertionError("a follow has not so many steps")
