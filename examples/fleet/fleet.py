"""A fleet on one machine: a publisher, a directory as the store, and three nodes with directories of their own.

    python fleet.py

Each node is a process that answers from its own file, and follows the store. The publisher makes four releases, one of
them bad, and takes it back: the drill of docs/fleet.md. All of it ends within a minute, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mmcache
from mmcache import ReleaseError, Schema, Snapshot

ITEMS = Schema("items", index=("kind",))
NODES = 3
EVERY = 0.3
"""Seconds between two polls of a node. In a fleet that is 5, or more."""

PATIENCE = 60.0


# --- a node -----------------------------------------------------------------------------------------------------------


def node(url: str, path: str) -> None:
    """What every worker of a node does: open the file, and answer. A line of stdin is a question; its end is ours."""
    with mmcache.open(path, follow=url, follow_every=EVERY, wait=PATIENCE) as cache:
        for line in sys.stdin:
            following = cache.status().following
            price = cache[line.strip()]["price"]
            print(price, following.release if following is not None else None, flush=True)


class Node:
    """One of them, as the publisher's machine never sees it: here only to show what its customers see."""

    def __init__(self, number: int, url: str, directory: Path) -> None:
        self.name = f"node {number}"
        path = directory / f"node-{number}" / "items.mmc"
        command = [sys.executable, __file__, "node", url, str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def price_of(self, item: str) -> tuple[float, str]:
        """And the release that it is from."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(item, file=self._process.stdin, flush=True)
        price, release = self._process.stdout.readline().split()
        return float(price), release

    def end(self) -> None:
        self._process.communicate(timeout=PATIENCE)


@contextlib.contextmanager
def nodes(url: str, directory: Path) -> Iterator[list[Node]]:
    started = [Node(number, url, directory) for number in range(1, NODES + 1)]
    try:
        yield started
    finally:
        for one in started:
            one.end()


# --- the publisher ----------------------------------------------------------------------------------------------------


def build(path: Path, factor: float) -> None:
    """Prices of today. Most of an item stays as it was, so a release is a small delta of the one before."""
    about = "An item with a long description. " * 20
    records = ({"id": f"item-{i}", "kind": i % 7, "about": f"{i}: {about}", "price": i * factor} for i in range(5000))
    mmcache.build(path, records, ITEMS)


def prices_are_right(snapshot: Snapshot) -> str | None:
    """A validator: what it returns refuses the file."""
    free = sum(record["price"] == 0 for record in snapshot.values())
    return f"{free} items cost nothing" if free > 1 else None


def show(fleet: list[Node], release: int, price: float) -> None:
    """Wait until every node answers by a release, and say how long that took."""
    begun = time.monotonic()
    for one in fleet:
        while (found := one.price_of("item-100")) != (price, str(release)):
            if time.monotonic() - begun > PATIENCE:
                raise SystemExit(f"{one.name} still answers {found[0]:g} by release {found[1]}")
            time.sleep(0.02)
        print(f"  {one.name}: item-100 costs {found[0]:g}, by release {found[1]} ({time.monotonic() - begun:.1f} s)")


def drill(directory: Path) -> None:
    url, file = f"file://{directory}/store", directory / "publisher" / "items.mmc"
    build(file, 1.0)
    first = mmcache.publish(file, url, checks=[prices_are_right], reason="the first one")
    print(f"release {first.number} is published: {first.size / 1e6:.1f} MB")
    with nodes(url, directory) as fleet:
        show(fleet, first.number, 100.0)

        build(file, 1.5)
        second = mmcache.publish(file, url, checks=[prices_are_right], reason="prices of today")
        deltas = sum(path.stat().st_size for path in (directory / "store" / "deltas").iterdir())
        print(f"release {second.number} is published: nodes take a delta of {deltas / 1e3:.0f} kB")
        show(fleet, second.number, 150.0)

        build(file, 0.0)
        try:
            mmcache.publish(file, url, checks=[prices_are_right])
        except ReleaseError as error:
            print(f"the next one is refused: {error.message}")
        third = mmcache.publish(file, url, reason="without the check")
        print(f"release {third.number} is published all the same, and is bad:")
        show(fleet, third.number, 0.0)

        mmcache.withdraw(url, third.number, reason="prices are zero")
        print(f"release {third.number} is withdrawn: every node leaves it, and transfers nothing for that")
        show(fleet, second.number, 150.0)

        back = mmcache.rollback(url, to=first.number, reason="the prices of yesterday, too")
        print(f"release {back.number} is the content of release {back.of}:")
        show(fleet, back.number, 100.0)
    print("what the store tells of it, the newest first:")
    for release in mmcache.releases(url):
        state = "withdrawn" if release.withdrawn else "adopted" if release.current else ""
        print(f"  {release.number}  {release.kind:8}  {state:9}  {release.reason}")


def main() -> int:
    if sys.argv[1:2] == ["node"]:
        node(*sys.argv[2:])
        return 0
    with tempfile.TemporaryDirectory() as directory:
        drill(Path(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
