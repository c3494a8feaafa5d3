"""The golden files of all versions of a major open for ever, and what the last was made from gives the same bytes.

Any change of the format shows here: the file and its script are then made anew under another name, for another version.
Those of an older major are refused, and still tell how to rebuild them.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from xxhash import xxh3_64_intdigest, xxh3_128_digest

import mmcache
from mmcache import IncompatibleFormatError, Schema, Snapshot, SQLiteSource, UnusableFileError
from mmcache.format.layout import Layout, validate
from mmcache.sources import as_source
from mmcache.storage import fs
from tests.data import make_golden
from tests.format import plain_reader
from tests.storage.helpers import Bytes, Expected, questions, sweep
from tests.support.console import run
from tests.support.waits import until

OLDER_MINORS: list[str] = []
OLDER_MAJORS = ["golden-1.0.0", "golden-1.1.0"]


@pytest.fixture(scope="session", params=[*OLDER_MINORS, make_golden.NAME])
def golden(request, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: a checkout is writable, and may belong to another user."""
    copy = tmp_path_factory.mktemp("golden") / f"{request.param}.mmc"
    shutil.copyfile(data / f"{request.param}.mmc", copy)
    return copy


def test_it_opens_verifies_and_holds_what_it_held(golden, data):
    expected = json.loads((data / f"{golden.stem}.json").read_text())
    with Snapshot.open(golden, verify="full") as snapshot:
        snapshot.verify(deep=True)
        assert snapshot.header.version == tuple(map(int, golden.stem.removeprefix("golden-").split(".")))
        assert snapshot.generation == 1
    assert json.loads(json.dumps(make_golden.described(golden))) == expected


def test_it_answers_every_question_in_every_way_of_opening(golden):
    records = make_golden.records()
    expected = {
        schema.name: list(questions(Expected.of(schema, records[schema.name], make_golden.CLUSTER_BY.get(schema.name))))
        for schema in make_golden.SCHEMAS[:3]
    }
    for verify in ("auto", "full", "lazy"):
        for access in ("mmap", "copy"):
            with Snapshot.open(golden, verify=verify, access=access) as snapshot:
                assert sweep(snapshot, expected) == 0


def test_the_same_records_give_the_same_bytes_today(golden, path):
    """If this fails, the format has changed: that takes another version, another golden file and a note on the page."""
    make_golden.build(path)
    today, then = path.read_bytes(), golden.read_bytes()
    with Snapshot.open(golden) as snapshot:
        sections = [(section.name, section.offset, section.end) for section in snapshot.layout.sections.values()]
    differing = [name for name, begin, end in sections if today[begin:end] != then[begin:end]]
    assert not differing
    assert today[256:] == then[256:]
    assert today[:10] == then[:10]
    assert today[14:48] == then[14:48]
    assert (today[10:14] == then[10:14]) is (golden.stem == make_golden.NAME)
    assert today[64:248] == then[64:248]


def test_it_has_every_kind_of_section_and_posting_list(golden):
    plain = plain_reader.File(golden.read_bytes())
    assert {section.kind for section in plain.sections.values()} == set(range(1, 12)) - {10}
    kinds = set()
    for collection in plain.collections.values():
        for i in range(len(collection.schema.get("index", []))):
            arrays = collection.framed(f"index.{i}", ("hash", "term", "entries", "terms", "rows"))
            kinds |= {entry[4] for entry in plain_reader.ENTRY.iter_unpack(arrays["entries"])}
        collection.check_table()
    assert kinds == {0, 1, 2}
    assert [collection.cluster_by for collection in plain.collections.values()] == [None, "type", None, None, None]
    patterns = plain.collections["patterns"]
    assert 0 < patterns.missing[0] < patterns.n
    assert len(patterns.shapes) > 5
    assert any(isinstance(name, list) for shape in patterns.shapes for name in shape)


def test_it_has_keys_of_every_type_and_form(golden):
    with Snapshot.open(golden) as snapshot:
        keys, systems = snapshot.collection("keys"), snapshot.collection(make_golden.SCHEMAS[3].name)
        assert keys.key_types == ("bytes", "int", "str")
        for record in make_golden.typed_keys():
            assert keys[record.values[0]]["n"] == record.values[1]
        assert systems.key_types == ("(str, int)",)
        for record in make_golden.systems():
            found = systems[record.values[0]]
            for field, vector in zip(systems.embedding_fields, record.vector, strict=True):  # type: ignore[arg-type]
                one = found.embedding_of(field)
                assert (None if one is None else one.tobytes()) == vector
        assert systems.where(scale=[1, 0.5]).ids == [("ESRI", 4326), ("EPSG", 4327), ("EPSG", 4328), *LATER]


LATER = [("EPSG", 4336), ("EPSG", 4337), ("ESRI", 4338)]
"""More keys of scale 0.5 or 1 in the golden file."""


@pytest.mark.parametrize("name", OLDER_MAJORS)
def test_a_file_of_an_older_major_is_refused_and_says_what_it_was_made_of(name, data):
    original = data / f"{name}.mmc"
    with pytest.raises(IncompatibleFormatError, match="rebuild the file") as caught:
        Snapshot.open(original)
    assert caught.value.is_older
    file = fs.ReadFile(str(original))
    try:
        layout = validate(file.read, file.size, older=True)
    finally:
        file.close()
    assert layout.metadata == make_golden.METADATA
    assert [collection.schema for collection in layout.collections.values()] == list(make_golden.SCHEMAS[:3])
    assert {
        name: one.cluster_by for name, one in layout.collections.items() if one.cluster_by
    } == make_golden.CLUSTER_BY
    assert (layout.header.generation, layout.writer) == (1, make_golden.WRITER)


@pytest.mark.parametrize("name", OLDER_MAJORS)
def test_a_cache_with_a_source_rebuilds_a_file_of_an_older_major(name, data, path):
    shutil.copyfile(data / f"{name}.mmc", path)
    path.chmod(0o444)
    source = as_source(make_golden.records(), make_golden.SCHEMAS[:3])
    with mmcache.open(path, source) as cache:
        assert cache["pattern-001"]["domain"] == "api"
        until("generation 2", lambda: (cache["pattern-001"], cache.generation == 2)[1])
    with Snapshot.open(path, verify="full") as snapshot:
        assert snapshot.header.version == (2, 0, 0)
        assert snapshot.default.schema == make_golden.SCHEMAS[0].resolved()


def older_file(path: Path, layout: Layout) -> None:
    """A file of format 1.1 that says the same of itself: header, table, and the section `meta`."""
    plain = {
        "writer": "mmcache 0.1.0",
        "source": layout.source,
        "metadata": layout.metadata,
        "collections": [{"schema": one.schema.to_dict(), "cluster_by": None} for one in layout.collections.values()],
    }
    meta = msgpack.packb(plain)
    table = struct.pack("<72s II 5Q 8x", b"meta", 1, 1, 384, len(meta), 0, 1, xxh3_64_intdigest(meta))
    header = replace(
        layout.header,
        file_size=384 + len(meta),
        section_count=1,
        generation=7,
        build_id=xxh3_128_digest(table),
        version=(1, 1, 0),
    )
    path.unlink()
    path.write_bytes(header.pack() + table + meta)
    path.chmod(0o444)


def test_a_file_of_an_older_major_is_rebuilt_from_the_source_that_it_names(tmp_path, path):
    with sqlite3.connect(tmp_path / "s.db") as database:
        database.execute("CREATE TABLE items (id TEXT PRIMARY KEY, kind TEXT)")
        database.executemany("INSERT INTO items VALUES (?, ?)", [(f"k{i}", "ab"[i % 2]) for i in range(9)])
    database.close()
    mmcache.build(path, SQLiteSource(tmp_path / "s.db", Schema("items", index=("kind",))), metadata={"owner": "tests"})
    with Snapshot.open(path) as snapshot:
        layout = snapshot.layout
    older_file(path, layout)
    with pytest.raises(IncompatibleFormatError):
        Snapshot.open(path)
    done = run("rebuild", path)
    assert done.code == 0, done.err
    with Snapshot.open(path, verify="full") as snapshot:
        assert (snapshot.generation, snapshot.header.version) == (8, (2, 0, 0))
        assert snapshot.where(kind="a").ids == ["k0", "k2", "k4", "k6", "k8"]
        assert snapshot.metadata == {"owner": "tests"}


def test_damage_in_a_file_of_an_older_major_is_told_from_its_age(data):
    whole = (data / "golden-1.1.0.mmc").read_bytes()
    for at in (*range(0, 256, 5), *range(256, 3072, 29), *range(3072, 3072 + 1344, 13)):  # header, table, meta
        changed = bytearray(whole)
        changed[at] ^= 1
        with pytest.raises(UnusableFileError):
            validate(Bytes(changed).read, len(whole), older=True)
