"""`mmcache merge`: what it prints, and its exit codes."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

import mmcache
from mmcache import Schema
from tests.support import inside
from tests.support.console import run_here as run


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "a.mmc", tmp_path / "b.mmc"]
    for i, file in enumerate(files):
        mmcache.build(file, [{"id": 2 * i + j, "kind": f"x{j}"} for j in range(2)], Schema("t", index=("kind",)))
    return files


def test_files_are_merged_and_reported_as_a_build_is(shards, tmp_path, capsys):
    out = tmp_path / "m.mmc"
    code, said, _ = run(capsys, "merge", out, *shards, "--cluster-by", "kind", "--metadata", "a:=1")
    assert code == 0
    assert "generation 1 (t: 4 records" in said
    with mmcache.Snapshot.open(out) as merged:
        assert list(merged) == [0, 2, 1, 3]
        assert (merged.metadata, merged.layout.collections["t"].cluster_by) == ({"a": 1}, "kind")
    code, said, _ = run(capsys, "merge", out, *shards, "--json")
    assert code == 0
    assert json.loads(said)["records"] == {"t": 4}
    assert json.loads(said)["generation"] == 2


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["m.mmc"], 2, "SHARD"),
        (["m.mmc", "a.mmc", "none.mmc"], 3, "none.mmc: there is no such file"),
        (["m.mmc", "a.mmc", "a.mmc"], 1, "the key stands twice"),
        (["m.mmc", "a.mmc", "b.mmc", "--cluster-by", "other"], 1, "cannot cluster by 'other'"),
        (["notes.txt", "a.mmc"], 2, "is not an mmcache file"),
        (["m.mmc", "a.mmc", "notes.txt"], 5, "notes.txt"),
    ],
)
@pytest.mark.usefixtures("shards")
def test_what_cannot_be_merged_is_told_in_one_line(tmp_path, capsys, words, code, why):
    (tmp_path / "notes.txt").write_text("a" * 500)
    with contextlib.chdir(tmp_path):
        found, out, err = run(capsys, "merge", *words)
    assert (found, out) == (code, "")
    assert why in err
    assert not (tmp_path / "m.mmc").exists()


def test_a_merge_that_finds_a_build_ends_with_75(shards, tmp_path, capsys):
    with inside.build_lock(tmp_path / "m.mmc"):
        assert run(capsys, "merge", tmp_path / "m.mmc", *shards, "--timeout", "0")[0] == 75
