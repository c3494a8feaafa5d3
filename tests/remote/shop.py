"""Files that tests publish: their content is a number, so an answer tells which release it is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import mmcache
from mmcache import BuildReport, Schema

SCHEMA = Schema("items", index=("kind",))


def build(path: Path | str, number: int, n: int = 200, *, size: int = 0) -> BuildReport:
    """n items of a number; size: bytes of noise in each, the same in every build."""
    noise = np.random.default_rng(7).bytes(n * size)
    records = [
        {"id": f"item-{i}", "kind": i % 3, "number": number, "noise": noise[i * size : (i + 1) * size]}
        for i in range(n)
    ]
    return mmcache.build(path, records, SCHEMA)


def number_of(path: Path | str) -> int:
    """Which build a file is of; every record must be of one."""
    with mmcache.Snapshot.open(path, verify="full") as snapshot:
        (number,) = {record["number"] for record in snapshot.values()}
        return int(number)


def told(where: mmcache.Cache | Path) -> mmcache.Following:
    """What `status` says that a node follows."""
    if isinstance(where, Path):
        with mmcache.open(where) as cache:
            return told(cache)
    found = where.status().following
    assert found is not None
    return found


def publish(path: Path | str, url: str, number: int, n: int = 200, *, size: int = 0) -> mmcache.Release:
    build(path, number, n, size=size)
    return mmcache.publish(path, url)
