"""`progress=`: how far a build is, on a terminal, in lines, or by a function."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import mmcache
from mmcache import IterableSource, Schema
from tests.support.console import environment, on_terminal

SLOW = """
import sys, time, mmcache
def records():
    for i in range(3):
        time.sleep(0.25)
        yield {"id": str(i)}
directory, how, what = sys.argv[1:]
progress = {"True": True, "lines": "lines", "False": False}[how]
schema = mmcache.Schema("items")
if what == "build":
    mmcache.build(f"{directory}/i.mmc", records(), schema, progress=progress)
else:
    source = mmcache.IterableSource(records(), schema)
    mmcache.open(f"{directory}/i.mmc", source, executor="thread", progress=progress).close()
"""


def piped(*words: object) -> str:
    command = [sys.executable, "-c", SLOW, *map(str, words)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("what", ["build", "open"])
@pytest.mark.parametrize("bar", [True, False], ids=["rich", "one line"])
def test_a_terminal_shows_how_far_a_build_is(what, bar, tmp_path):
    if bar:
        pytest.importorskip("rich")
    code, shown = on_terminal(tmp_path, "True", what, code=SLOW, env={} if bar else {"NO_COLOR": "1"})
    assert code == 0
    assert "items" in shown
    assert ("\x1b[" in shown) is bar


@pytest.mark.parametrize("what", ["build", "open"])
def test_without_a_terminal_only_lines_that_were_asked_for_are_written(what, tmp_path):
    assert piped(tmp_path, "True", what) == ""
    (tmp_path / "i.mmc").unlink()
    lines = piped(tmp_path, "lines", what).splitlines()
    assert lines[0] == "mmcache: items: 3"
    assert lines[-1].startswith("mmcache: write: ")


def test_without_being_asked_nothing_is_shown(tmp_path):
    assert "items" not in on_terminal(tmp_path, "False", "build", code=SLOW)[1]


def test_a_function_is_called_with_what_is_done(path, tmp_path):
    told = []
    mmcache.build(path, [{"id": "a"}, {"id": "b"}], Schema("items"), progress=lambda *step: told.append(step))
    assert told[-1][0] == "write"
    assert ("items", 2, 2) in told
    told.clear()
    source = IterableSource([{"id": "a"}], Schema("items"))
    steps = told.append
    with mmcache.open(tmp_path / "o.mmc", source, executor="thread", progress=lambda *step: steps(step)) as cache:
        assert ("items", 1, 1) in told
        told.clear()
        cache.rebuild()
        assert told == [], "only the first build"


@pytest.mark.parametrize("wrong", [1, "bar", object()])
def test_what_progress_does_not_take_is_refused(wrong, path):
    with pytest.raises(TypeError, match=r"progress must be True, 'lines', or a function"):
        mmcache.build(path, [{"id": "a"}], Schema("items"), progress=wrong)
    with pytest.raises(TypeError, match=r"progress must be True, 'lines', or a function"):
        mmcache.open(path, IterableSource([{"id": "a"}], Schema("items")), progress=wrong)
    assert not os.path.exists(path)


def test_build_takes_embeddings_beside_the_records(path):
    vectors = np.arange(6, dtype="f8").reshape(3, 2)
    rows = [{"id": str(i)} for i in range(3)]
    mmcache.build(path, rows, Schema("items", embedding="v"), embeddings=vectors)
    with mmcache.Snapshot.open(path) as snapshot:
        assert snapshot.embeddings.tolist() == vectors.tolist()
    several = Schema("items", embedding=("v", "w"))
    mmcache.build(path, rows, several, embeddings={"items": {"v": vectors, "w": vectors[:, :1]}})
    with mmcache.Snapshot.open(path) as snapshot:
        assert snapshot.embeddings_of("w").tolist() == vectors[:, :1].tolist()


def test_embeddings_beside_a_source_are_refused(path):
    source = IterableSource([{"id": "a"}], Schema("items", embedding="v"))
    with pytest.raises(TypeError, match="embeddings= goes with records in memory; a source has its own"):
        mmcache.build(path, source, embeddings=np.zeros((1, 2)))
