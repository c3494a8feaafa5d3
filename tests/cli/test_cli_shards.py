"""`mmcache build --shards`: the bytes of one build, read by several processes."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.support.console import COMMAND, ROOT, run_here as run


@pytest.fixture
def database(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "t.db") as db:
        db.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT)")
        db.executemany("INSERT INTO items VALUES (?, ?)", [(f"k{i}", f"x{i % 7}") for i in range(3000)])
    db.close()
    return tmp_path / "t.db"


def test_processes_of_the_command_build_what_one_builds(database, tmp_path, capsys):
    one, cut = tmp_path / "one.mmc", tmp_path / "cut.mmc"
    assert run(capsys, "build", database, "--index", "kind", "-o", one)[0] == 0
    command = [*COMMAND, "build", database, "--index", "kind", "-o", cut, "--shards", "4", "--workers", "2", "--json"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["records"] == {"items": 3000}
    assert cut.read_bytes()[256:] == one.read_bytes()[256:]
    assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--workers", "2"], "--workers goes with --shards"),
        (["--dask", "tcp://host:1"], "--dask goes with --shards"),
        (["--segments", "x"], "--segments goes with --shards"),
        (["--shards", "0"], "1 or more"),
        (["--shards", "2", "--workers", "0"], "1 or more"),
        (["--shards", "2", "--workers", "2", "--dask", "tcp://host:1"], "not both"),
        (["--shards", "2.5"], "expected a whole number"),
    ],
)
def test_options_of_shards_that_do_not_fit_are_refused(database, tmp_path, capsys, words, why):
    code, out, err = run(capsys, "build", database, "-o", tmp_path / "x.mmc", *words)
    assert (code, out) == (2, "")
    assert why in err
    assert not (tmp_path / "x.mmc").exists()


def test_what_cannot_be_cut_is_refused_before_a_process_is_started(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("id\n1\n")
    code, _, err = run(capsys, "build", tmp_path / "t.csv", "-o", tmp_path / "x.mmc", "--shards", "2")
    assert code == 1
    assert "cannot be read in shards" in err
