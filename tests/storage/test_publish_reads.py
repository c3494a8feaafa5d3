"""What a publish reads: a changed rebuild at most 3 times the file's bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mmcache
from mmcache import Schema
from tests.support.faults import faults

pytestmark = pytest.mark.usefixtures("no_disk_wait")

SCHEMA = Schema("items", index=("kind",), embedding="vector", dim=64)


def records(n: int, note: str) -> list[dict[str, object]]:
    vectors = np.random.default_rng(1).random((n, 64), np.float32)
    return [{"id": f"k{i}", "kind": "abc"[i % 3], "note": note * 20, "vector": vectors[i].tobytes()} for i in range(n)]


@pytest.mark.parametrize("cluster_by", [None, "kind"])
def test_a_changed_rebuild_reads_at_most_three_times_the_file(path: Path, cluster_by: str | None) -> None:
    read = 0

    def count(number, name, args, call):
        nonlocal read
        found = call()
        if name in ("pread", "read"):
            read += len(found)
        return found

    mmcache.build(path, records(8000, "old"), SCHEMA, cluster_by=cluster_by)
    for note, limit in (("new", 3.0), ("new", 2.0)):
        read = 0
        with faults(count):
            report = mmcache.build(path, records(8000, note), SCHEMA, cluster_by=cluster_by)
        assert report.changed == (limit == 3.0)
        print(f"{read / report.size:.2f} of the file's {report.size:,} bytes")
        assert report.size < read <= limit * report.size
