"""The golden files of all versions open for ever, and what the last was made from still gives the same bytes.

Any change of the format shows here: the file and its script are then made anew under another name, for another version.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmcache import Snapshot
from tests.data import make_golden
from tests.format import plain_reader
from tests.storage.helpers import Expected, questions, sweep

OLDER = ["golden-1.0.0"]


@pytest.fixture(scope="session", params=[*OLDER, make_golden.NAME])
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
        for schema in make_golden.SCHEMAS
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
    assert {section.kind for section in plain.sections.values()} == set(range(1, 10))
    kinds = set()
    for collection in plain.collections.values():
        for field in collection.schema.get("index", []):
            arrays = collection.framed(f"index.{field}", ("hash", "term", "entries", "terms", "rows"))
            kinds |= {entry[4] for entry in plain_reader.ENTRY.iter_unpack(arrays["entries"])}
    assert kinds == {0, 1, 2}
    assert [collection.cluster_by for collection in plain.collections.values()] == [None, "type", None]
    patterns = plain.collections["patterns"]
    assert 0 < patterns.missing < patterns.n
    assert len(patterns.shapes) > 5
    assert any(isinstance(name, list) for shape in patterns.shapes for name in shape)
    for collection in plain.collections.values():
        collection.check_table()
