"""Files of one JSON object a line."""

from __future__ import annotations

import gzip
import os
import pickle

import pytest

from mmcache.errors import BuildError, SourceError
from mmcache.schema import Schema
from mmcache.sources import JSONLinesSource, from_spec
from mmcache.sources.base import Source
from tests.support.waits import until

pytestmark = pytest.mark.usefixtures("no_leaks")

ITEMS = Schema("items", index=("tags",), embedding="v")
LINES = '{"id": "a", "tags": ["x", "ü"], "v": [1, 2]}\n\n  {"id": "b", "n": 1.5, "tags": null}\n'


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture(params=["items.jsonl", "items.jsonl.gz"])
def file(tmp_path, request):
    return write(tmp_path / request.param, LINES)


def records(path, schema=ITEMS):
    with JSONLinesSource(path, schema).read() as reading:
        return list(reading.records("items"))


def test_it_reads_lines_and_skips_blank_ones(file):
    source = JSONLinesSource(file, ITEMS)
    assert isinstance(source, Source)
    with source.read() as reading:
        assert reading.count("items") is None
        found = list(reading.records("items"))
        assert found == list(reading.records("items"))
    assert found == [
        (("id", "tags"), ("a", ["x", "ü"]), b"\0\0\x80?\0\0\0@"),
        (("id", "n", "tags"), ("b", 1.5, None), None),
    ]
    assert found == records(file)


@pytest.mark.parametrize(
    "text", ["", "\n \n", '{"id": "a", "tags": 1, "v": null}', '\ufeff{"id": "a", "tags": 1, "v": null}\r\n']
)
def test_last_lines_marks_and_empty_files(file, text):
    write(file, text)
    assert [record.values for record in records(file)] == [("a", 1)] * ("a" in text)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "b"', "line 3 is not JSON: Expecting"),
        ('{"id": "b"} {}', "line 3 is not JSON: Extra data"),
        (b'{"id": "\xff"}', "line 3 is not JSON: 'utf-8' codec"),
        ("[" * 100_000, "line 3 is not JSON: maximum recursion"),
        ('["id", "b"]', "line 3: a record must be a mapping, not list"),
        ('{"key": "b"}', "line 3: no field 'id'"),
        ('{"id": 5.5}', "line 3: the key 'id': a key cannot be 5.5"),
        ('{"id": "b", "v": [1]}', "line 3: the embedding has 1 numbers, expected dim=2"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_line(file, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    write(file, b'{"id": "a", "v": [1, 2]}\n\n' + line + b"\n")
    with pytest.raises(BuildError, match=reason) as caught:
        records(file)
    assert (caught.value.collection, caught.value.path) == ("items", str(file))
    with pytest.raises(SourceError, match=reason):
        JSONLinesSource(file, ITEMS).fetch("items", ["a"])


def test_files_that_cannot_be_read_are_source_errors(tmp_path):
    source = JSONLinesSource(tmp_path / "no.jsonl", ITEMS)
    for ask in (lambda: source.read().__enter__(), source.fingerprint, lambda: source.fetch("items", ["a"])):
        with pytest.raises(SourceError, match="no file at this path") as caught:
            ask()
        assert caught.value.path == str(tmp_path / "no.jsonl")
    with pytest.raises(SourceError, match="this directory holds no file"):
        records(tmp_path)
    (tmp_path / "plain.gz").write_text(LINES)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-100])
    damaged = bytearray(gzip.compress(LINES.encode()))
    damaged[20:30] = b"\xff" * 10
    (tmp_path / "damaged.gz").write_bytes(damaged)
    assert len(records(tmp_path / "plain.gz")) == 2  # as a browser leaves it, unpacked under its name
    for name in ("cut.gz", "damaged.gz"):
        with pytest.raises((SourceError, BuildError)) as found:
            records(tmp_path / name)
        assert found.value.path == str(tmp_path / name)


def test_a_file_that_changes_under_a_read_is_noticed(file):
    source = JSONLinesSource(file, ITEMS)
    with source.read() as reading:
        rows = reading.records("items")
        next(rows)
        with open(file, "ab") as other:
            other.write(b"\n" if file.suffix == ".jsonl" else gzip.compress(b"\n"))
        with pytest.raises(SourceError, match="changed while it was being read"):
            list(rows)


def test_a_file_put_in_its_place_does_not_disturb_a_read(file):
    source = JSONLinesSource(file, ITEMS)
    with source.read() as reading:
        rows = reading.records("items")
        assert next(rows).values[0] == "a"
        os.replace(write(file.with_name("new" + file.suffix), '{"id": "new", "tags": null, "v": null}'), file)
        assert [record.values[0] for record in rows] == ["b"]
    assert [record.values[0] for record in records(file)] == ["new"]


def test_lookups_follow_the_file(file):
    source = JSONLinesSource(file, ITEMS)
    assert [record and record.values[0] for record in source.fetch("items", ["b", "no", "a"])] == ["b", None, "a"]
    assert [record.values[0] for record in source.find("items", {"tags": ("x", None)})] == ["a", "b"]
    other = JSONLinesSource(file, Schema("items"))
    before = until("times that tell of a write", lambda: (one := source.fingerprint()) == other.fingerprint() and one)
    assert len(before) == 32
    write(file, LINES + '{"id": "c", "tags": ["x"]}\n')
    assert source.fingerprint() != before
    assert [record and record.values[0] for record in source.fetch("items", ["c"])] == ["c"]
    assert [record.values[0] for record in source.find("items", {"tags": ("x",)})] == ["a", "c"]
    with pytest.raises(ValueError, match="no collection 'x'; it has: items"):
        source.find("x", {})


def test_it_pickles_to_its_arguments_and_has_a_spec(file, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    source = JSONLinesSource(file.name, ITEMS)
    size = len(pickle.dumps(source))
    source.fetch("items", ["a"])
    assert len(pickle.dumps(source)) == size
    monkeypatch.chdir("/")
    spec = {"kind": "jsonl", "path": str(file)}
    assert source.spec() == spec
    for again in (pickle.loads(pickle.dumps(source)), from_spec(spec, source.schemas)):
        assert again.fetch("items", ["a"]) == source.fetch("items", ["a"])


def test_columns_are_those_that_a_record_has(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"id": "a", "v": 1, "price": "1.10"}\n{"id": "b", "price": "2"}\n')
    with JSONLinesSource(tmp_path / "t.jsonl", Schema("t", columns=("v",))).read() as reading:
        assert [(one.names, one.values) for one in reading.records("t")] == [(("id", "v"), ("a", 1)), (("id",), ("b",))]
    schema = Schema("t", columns=("v",), index=("price",))
    with (
        JSONLinesSource(tmp_path / "t.jsonl", schema).read() as reading,
        pytest.raises(BuildError, match="add it there"),
    ):
        list(reading.records("t"))
