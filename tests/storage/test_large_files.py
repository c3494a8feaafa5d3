"""A file of more than 4 GiB: records, rows, embeddings and checksums beyond what 32 bits can say."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmcache
from mmcache import Schema, Snapshot
from mmcache.cli import main

N = 300
SIZE = 15 * 2**20
"""Bytes of a record, so that all of them are more than 4 GiB; one may have 16 MiB."""
NEEDED = 20 * 2**30
"""Bytes on disk: the file, its backup, and a temporary file."""


def content(i: int) -> bytes:
    """15 MiB that only record i has."""
    return hashlib.sha256(str(i).encode()).digest() * (SIZE // 32)


def records() -> Iterator[dict[str, Any]]:
    for i in range(N):
        yield {"id": f"k{i}", "kind": i % 7, "content": content(i), "vector": [float(i), 1.0]}


@pytest.mark.nightly
def test_a_file_of_more_than_4_gib_is_built_verified_and_read(tmp_path: Path):
    if shutil.disk_usage(tmp_path).free < NEEDED:
        pytest.skip(f"needs {NEEDED // 2**30} GiB of disk")
    path = tmp_path / "large.mmc"
    schema = Schema("items", index=("kind",), embedding="vector")
    report = mmcache.build(path, records(), schema)
    assert report.size > 2**32
    with Snapshot.open(path, verify="lazy") as snapshot:
        assert snapshot.layout.sections["0/embeddings.0"].offset > 2**32
        for i in (0, 1, N // 2, N - 2, N - 1):
            assert snapshot[f"k{i}"]["content"] == content(i)
            assert np.array_equal(snapshot.get_embeddings([f"k{i}"]), [[float(i), 1.0]])
        found = snapshot.where(kind=6)
        assert found.ids == [f"k{i}" for i in range(6, N, 7)]
        assert np.array_equal(found.embeddings[:, 0], np.arange(6, N, 7, dtype="f4"))
        assert snapshot.get("absent") is None
    assert main(["--quiet", "verify", str(path)]) == 0
    damage(path, report.size - 2**20)
    assert main(["--quiet", "verify", str(path)]) == 5


def damage(path: Path, at: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
