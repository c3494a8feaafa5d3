"""`mmcache nearest`: the neighbours of a vector or a record, on stdout."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mmcache
from mmcache import Schema
from tests.support.console import ok, run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("nearest") / "items.mmc"
    vectors = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], None, [-1.0, 0.0]]
    records = [{"id": key, "kind": "ab"[i % 2], "v": vectors[i]} for i, key in enumerate("abcde")]
    mmcache.build(path, records, Schema("items", index=("kind",), embedding="v"))
    return path


@pytest.fixture
def query(tmp_path):
    path = tmp_path / "q.json"
    path.write_text("[1, 0.1]")
    return path


def test_neighbours_of_a_record_are_lines_of_score_and_record(file):
    lines = ok("nearest", file, "--id", "a", "-k", 2).lines
    assert [line["record"] for line in lines] == [{"id": "b", "kind": "b"}, {"id": "c", "kind": "a"}]
    assert [line["score"] for line in lines] == pytest.approx([0.8, 0.0])


def test_a_filter_and_a_least_score_choose_among_them(file, query):
    assert ok("nearest", file, "--vector", query, "--where", "kind=a", "--ids").out.split() == ["a", "c", "e"]
    assert ok("nearest", file, "--vector", query, "--where", "kind!=a", "--ids").out.split() == ["b"]
    assert ok("nearest", file, "--vector", query, "--min-score", "0.5", "--ids").out.split() == ["a", "b"]


def test_as_json_it_is_one_list(file, query):
    printed = ok("nearest", file, "--vector", query, "-k", 1, "--metric", "dot", "--json").json
    assert printed == [{"score": 1.0, "record": {"id": "a", "kind": "a"}}]
    assert ok("nearest", file, "--id", "a", "--ids", "--json").json == ["b", "c", "e"]


@pytest.mark.parametrize("shape", [(2,), (1, 2)])
def test_a_vector_may_be_a_file_of_numpy(file, tmp_path, shape):
    np.save(tmp_path / "q.npy", np.array([0.0, 2.0], np.float16).reshape(shape))
    assert ok("nearest", file, "--vector", tmp_path / "q.npy", "-k", 1, "--ids").out == "c\n"


REFUSED = {
    "[1, 2, 3]": "expected",
    "[0, 0]": "no direction",
    "[1, NaN]": "NaN",
    '"text"': "numbers",
    "{}": "numbers",
    "[1,": "no list of numbers",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_vector_is_a_usage_error(file, tmp_path, text):
    (tmp_path / "q.json").write_text(text)
    printed = run("nearest", file, "--vector", tmp_path / "q.json")
    assert (printed.code, printed.out) == (2, "")
    assert REFUSED[text] in printed.err


def test_arguments_that_cannot_be_meant_are_usage_errors(file, query, tmp_path):
    (tmp_path / "q.npy").write_bytes(b"no array")
    for words in (
        ("--id", "a", "--vector", query),
        (),
        ("--id", "d"),
        ("--id", "a", "--metric", "hamming"),
        ("--id", "a", "--where", "v=1"),
        ("--id", "a", "-k", 0),
        ("--id", "a", "--embedding", "other"),
        ("--vector", tmp_path / "none.json"),
        ("--vector", tmp_path / "q.npy"),
    ):
        printed = run("nearest", file, *words)
        assert (printed.code, printed.out) == (2, ""), printed
        assert printed.err.startswith(("mmcache nearest: ", "usage: "))


def test_a_record_that_is_not_there_is_an_error(file):
    printed = run("nearest", file, "--id", "nope", "--json")
    assert printed.code == 1
    assert printed.err == f"mmcache nearest: {file}: no 'nope' in collection 'items'\n"


def test_a_damaged_block_ends_in_exit_code_5(file, tmp_path):
    with mmcache.Snapshot.open(file) as snapshot:
        at = snapshot.layout.collections["items"].sections["embeddings.v"].offset
    data = bytearray(file.read_bytes())
    data[at + 3] ^= 1
    (tmp_path / "damaged.mmc").write_bytes(data)
    assert run("nearest", tmp_path / "damaged.mmc", "--id", "b", "--verify", "lazy").code == 5


def test_numbers_are_printed_in_full(file):
    scores = [line["score"] for line in ok("nearest", file, "--id", "b").lines]
    with mmcache.Snapshot.open(file) as snapshot:
        assert scores == snapshot.nearest(id="b").scores.tolist()
        assert json.loads(json.dumps(scores)) == scores
