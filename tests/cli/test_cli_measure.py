"""Sketches on the command line: build, nearest, inspect and measure."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mmcache
from mmcache import Schema
from tests.search.test_sketch import alike, near, records
from tests.support.console import ok, run

CANDIDATES = [32, 45, 64, 90, 128, 180, 256, 360, 512, 720, 1024]


@pytest.fixture(scope="module")
def vectors():
    return alike()


@pytest.fixture(scope="module")
def file(tmp_path_factory, vectors):
    path = tmp_path_factory.mktemp("measure") / "items.mmc"
    mmcache.build(path, records(vectors), Schema("items", embedding="v", sketch=True))
    return path


@pytest.fixture
def queries(tmp_path, vectors):
    path = tmp_path / "queries.npy"
    np.save(path, near(vectors, 30))
    return path


def test_a_build_keeps_a_sketch_where_it_is_asked_to(tmp_path):
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps({"id": i, "v": [i, 1.0 - i]}) for i in range(5)))
    ok("build", tmp_path / "items.jsonl", "--embedding", "v", "--sketch", "-o", tmp_path / "items.mmc")
    plain = ok("inspect", tmp_path / "items.mmc", "--json").json
    assert plain["collections"]["items"]["schema"]["sketch"] is True
    assert plain["collections"]["items"]["sketches"] == {"v": {"queries": 0, "points": []}}
    assert "too few" in ok("inspect", tmp_path / "items.mmc").out


def test_inspect_shows_what_a_search_finds(file):
    sketch = ok("inspect", file, "--json").json["collections"]["items"]["sketches"]["v"]
    assert sketch["queries"] == 200
    of_ten = [point for point in sketch["points"] if point["k"] == 10]
    assert [point["candidates"] for point in of_ten] == CANDIDATES
    recalls = [point["recall"] for point in of_ten]
    assert recalls == sorted(recalls)
    assert all(0 <= point["least"] <= point["recall"] <= 1 for point in sketch["points"])
    text = ok("inspect", file).out
    assert "sketch of v: recall of 200 rows of the file" in text
    assert f"{of_ten[0]['recall']:.4f}" in text
    summary = ok("inspect", file, "--section", "items/sketch.v").json
    assert (summary["kind"], summary["bits"], summary["queries"]) == ("sketch", 72, 200)


def test_measure_compares_with_an_exact_search(file, queries):
    found = ok("measure", file, "--queries", queries, "--json").json
    assert (found["collection"], found["embedding"], found["metric"], found["k"]) == ("items", "v", "cosine", 10)
    assert (found["queries"], found["path"]) == (30, str(file))
    points = found["points"]
    assert [point["candidates"] for point in points] == CANDIDATES
    with mmcache.Snapshot.open(file) as snapshot:
        promised = snapshot.layout.collections["items"].sketches["v"].curves[10]
        assert [point["promised"] for point in points] == [point.least / 10_000 for point in promised]
        # The recall is what a search that is promised so much finds.
        first = points[0]
        asked = np.load(queries)
        pairs = zip(snapshot.nearest_many(asked), snapshot.nearest_many(asked, recall=first["promised"]), strict=True)
        hits = sum(len(set(exact.ids) & set(some.ids)) for exact, some in pairs)
        assert first["recall"] == hits / 300
    assert all(point["least"] <= point["recall"] <= 1 and point["time"] > 0 for point in points)


def test_measure_prints_a_table(file, queries):
    text = ok("measure", file, "--queries", queries, "-k", 50).out
    assert "30 queries, the 50 nearest by cosine of v" in text
    assert "promised" in text


def test_nearest_takes_a_recall(file):
    exact = ok("nearest", file, "--id", 3, "--ids").out.split()
    assert len(set(ok("nearest", file, "--id", 3, "--recall", "0.9", "--ids").out.split()) & set(exact)) >= 5
    refused = run("nearest", file, "--id", 3, "-k", 300, "--recall", "0.9")
    assert (refused.code, refused.out) == (1, "")
    assert "k=300: a recall was measured for k up to 100" in refused.err
    assert run("nearest", file, "--id", 3, "--recall", "2").code == 2


def test_what_cannot_be_measured_is_said(file, tmp_path, queries):
    for name, array in (("wide", np.ones((2, 5))), ("none", np.ones((0, 72))), ("nan", np.full((2, 72), np.nan))):
        np.save(tmp_path / f"{name}.npy", array)
        refused = run("measure", file, "--queries", tmp_path / f"{name}.npy")
        assert (refused.code, refused.out) == (2, ""), refused.err
    (tmp_path / "text.npy").write_text("no array")
    assert run("measure", file, "--queries", tmp_path / "text.npy").code == 2
    assert run("measure", file, "--queries", tmp_path / "not-there.npy").code == 2
    mmcache.build(tmp_path / "plain.mmc", [{"id": 1, "v": [1.0] * 72}], Schema("items", embedding="v"))
    refused = run("measure", tmp_path / "plain.mmc", "--queries", queries)
    assert refused.code == 1
    assert "Schema(sketch=True)" in refused.err
