"""docs/format.md is the format: its numbers are the code's, a reader made from it alone agrees with ours, and its
example is what a build gives."""

# mypy: disable-error-code="index, union-attr"

from __future__ import annotations

import itertools
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from mmcache import Schema, Snapshot, SourceRecord, between, excluding, schema, startswith
from mmcache.format import curves, header, keys, layout, postings, records, sketch, slots
from mmcache.format.keys import pack_key
from mmcache.storage import planning
from mmcache.storage.publish import Order, publish
from tests.format import plain_reader
from tests.format.example import example_bytes, hex_dump
from tests.storage.helpers import SMALL, Image, build_bytes, damaged, same, same_record, small_items, vector
from tests.storage.test_round_trip import collections
from tests.storage.test_typed_keys import TWO, Held, keyed, two
from tests.support import inside

pytestmark = pytest.mark.usefixtures("no_disk_wait")

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def constants() -> dict[str, int]:
    """Every `NAME` number of the page."""
    found = re.findall(r"`([A-Z][A-Z_]+)`\s(\d+)", PAGE)
    assert len(found) > 10
    return {name: int(value) for name, value in found}


def test_every_constant_on_the_page_is_the_codes():
    modules = (curves, header, keys, layout, records, slots, postings, schema, sketch)
    known = {name: getattr(module, name) for module in modules for name in vars(module) if name.isupper()}
    for name, value in constants().items():
        assert known[name] == value, name
    for name in (
        "HEADER_SIZE",
        "TABLE_ROW_SIZE",
        "ROW_SIZE",
        "INDEX_ENTRY_SIZE",
        "ALIGN",
        "PAGE",
        "BLOCK",
        "MAX_SECTIONS",
    ):
        assert name in constants(), name
    for name in (
        "MAX_META_BYTES",
        "MAX_ROWS",
        "MAX_KEY_BYTES",
        "MAX_RECORD_BYTES",
        "MAX_SHAPES",
        "MAX_DIM",
        "MAX_DEPTH",
        "MAX_PARTS",
        "MAX_NAME_BYTES",
        "STEPS",
        "LEAF",
    ):
        assert name in constants(), name
    assert constants()["MAX_NESTED_SHAPES"] == records.MAX_NESTED_SHAPES
    assert constants()["MAX_MAP_NAMES"] == records.MAX_MAP_NAMES


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the first table with an offset column after a heading."""
    text = PAGE[PAGE.index(heading) :]
    table = re.search(r"\| offset \| size \|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    assert table
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[1].splitlines()]


@pytest.mark.parametrize(
    ("heading", "size"),
    [
        ("## Header", header.HEADER_SIZE),
        ("## Section table", header.TABLE_ROW_SIZE),
        ("## rows", layout.ROW_SIZE),
        ("## index.", layout.INDEX_ENTRY_SIZE),
    ],
)
def test_the_fields_of_every_byte_table_are_gapless_and_as_long_as_the_struct(heading, size):
    end = 0
    for offset, length, *_ in rows_after(heading):
        assert int(offset) == end
        end += int(length)
    assert end == size


def test_the_byte_tables_are_those_of_the_code():
    fields = {name: (int(offset), int(length)) for offset, length, name, *_ in rows_after("## Header")}
    sample = header.Header(
        file_size=1001,
        section_count=1002,
        generation=1003,
        created_ns=1004,
        elapsed_ns=1005,
        build_id=b"b" * 16,
        sha256=b"s" * 32,
        fingerprint=b"f" * 32,
        soft=1006,
        hard=1007,
        ring=1008,
        page=1009,
    )
    packed = sample.pack()
    numbers = ("file_size", "section_count", "generation", "created_ns", "elapsed_ns", "soft", "hard", "ring", "page")
    for name in numbers:
        offset, length = fields[name]
        assert int.from_bytes(packed[offset : offset + length], "little") == getattr(sample, name), name
    for name in ("build_id", "sha256", "fingerprint"):
        offset, length = fields[name]
        assert packed[offset : offset + length] == getattr(sample, name)
    assert bytes.fromhex("894D4D430D0A1A0A") == header.MAGIC == packed[:8]
    row = header.Section("n" * 32, 1, 2, 3, 4, 5, 6, 7)
    places = {name: int(offset) for offset, _, name, *_ in rows_after("## Section table")}
    for name, form in {
        "kind": "<I",
        "flags": "<I",
        "offset": "<Q",
        "length": "<Q",
        "payload": "<Q",
        "count": "<Q",
        "checksum": "<Q",
    }.items():
        assert struct.unpack_from(form, row.pack(), places[name])[0] == getattr(row, name), name
    for dtype, heading in (
        (planning.ROW, "## rows"),
        (inside.row_type_of_readers(), "## rows"),
        (postings.entry_type(), "## index."),
    ):
        documented = [(int(offset), int(length)) for offset, length, *_ in rows_after(heading)]
        assert [(dtype.fields[name][1], dtype.fields[name][0].itemsize) for name in dtype.names] == documented
    for number, name in header.KINDS.items():
        line = rf"^\| {number} `{name.upper()}` \| `.*{name}.*` \| {header.flags_of(number)} \|"
        assert re.search(line, PAGE, re.MULTILINE), name
    assert f"version {'.'.join(map(str, header.VERSION))}" in PAGE.splitlines()[0]
    for number, name in ((postings.LIST, "LIST"), (postings.BITMAP, "BITMAP"), (postings.RANGE, "RANGE")):
        assert f"{number} {name}" in PAGE


def test_the_worked_example_is_what_a_build_gives():
    (example,) = re.findall(r"```text\n(0000 .*?)```", PAGE, re.DOTALL)
    assert example == hex_dump(example_bytes()), "python -m tests.format.example prints it"


def agrees(data: bytes | bytearray) -> None:
    """The reader made from the page gives what `Snapshot` gives, for every record, term and embedding."""
    plain = plain_reader.File(bytes(data))
    with damaged(data, "full") as ours:
        assert list(plain.collections) == list(ours.collections)
        assert plain.generation == ours.generation
        assert plain.meta["metadata"] == dict(ours.metadata)
        for name, theirs in plain.collections.items():
            collection = ours.collection(name)
            theirs.check_table()
            assert len(collection) == theirs.n
            assert Schema.from_dict(theirs.schema) == collection.schema
            found = list(collection.values())
            streamed = list(theirs.stream())
            assert len(found) == len(streamed) == theirs.n
            for row, record in enumerate(found):
                assert same(dict(record), theirs.record(row))
                assert streamed[row][0] == (list(record.id) if isinstance(record.id, tuple) else record.id)
                assert theirs.key_bytes(row) == pack_key(record.id)
                assert theirs.find(record.id) == row == collection.row(record.id)
                embedding = record.embedding
                assert (None if embedding is None else embedding.tolist()) == theirs.embedding(row)
                for e, (field, dim) in enumerate(zip(theirs.embeddings, theirs.dims, strict=True)):
                    one = record.embedding_of(field)
                    assert (None if one is None else one.tolist()) == theirs.embedding(row, e)
                    if dim:
                        assert float(collection.norms_of(field)[row]) == theirs.norm(row, e)
            assert theirs.find("\0not there") is None
            for field, terms in theirs.index.items():
                assert collection.terms(field) == {term: len(rows) for term, rows in terms.items()}
                for term, rows in terms.items():
                    assert collection.where({field: term}).rows.tolist() == rows


def test_a_reader_made_from_the_page_agrees_on_a_small_file(path):
    agrees(build_bytes(path, small_items(200), SMALL))
    path.unlink()
    agrees(build_bytes(path, small_items(200), SMALL, cluster_by="kind"))


def test_a_reader_made_from_the_page_agrees_on_a_file_of_many_blocks(path):
    items = [
        {"id": f"k{i}", "kind": i % 5, "text": "x" * (i % 900), "v": vector(i, 20) if i % 3 else None}
        for i in range(1500)
    ]
    data = build_bytes(path, items, Schema("items", index=("kind",), embedding="v"))
    assert len(data) > 4 * header.BLOCK
    agrees(data)


OPTIONAL = ("norms",)


def without(data: bytes, kind: int | None) -> bytearray:
    """The same file, sealed, that lacks what is not REQUIRED, or has it under another kind."""
    image = Image.of(data)
    for part in [part for part in image.parts if not part.flags & header.REQUIRED]:
        assert part.name.partition("/")[2].partition(".")[0] in OPTIONAL
        if kind is None:
            image.parts.remove(part)
        else:
            part.kind = kind
    return image.pack()


@pytest.mark.parametrize("kind", [None, 77], ids=["missing", "of another kind"])
def test_a_file_without_what_is_not_required_answers_the_same(path, kind):
    described = Schema("items", index=("kind", "tags", "n"), embedding="v")
    items = [{**item, "n": [i % 7 / 2, f"t{i % 5}", None][: i % 4]} for i, item in enumerate(small_items(200))]
    whole = build_bytes(path, items, described)
    data = without(whole, kind)
    if kind is None:
        agrees(data)
    with damaged(whole, "full") as expected, damaged(data, "full") as found, damaged(data, "lazy") as lazy:
        for one in (found, lazy):
            for query in ({"n": between(0.5, 2)}, {"n": startswith("t")}, {"n": excluding(1)}, {"n": range(1, 3)}):
                assert one.where(query).ids == expected.where(query).ids
            for field, descending in itertools.product(described.index, (False, True)):
                assert list(one.terms(field)) == list(expected.terms(field))
                by_order = [each.where().order_by(field, descending=descending) for each in (one, expected)]
                assert by_order[0].ids == by_order[1].ids
                assert by_order[0].limit(5).ids == by_order[1].limit(5).ids
            assert np.array_equal(one.default.norms, expected.default.norms)
            assert np.array_equal(one.default.norms_of("v"), expected.default.norms)
        found.verify(deep=True)


@settings(max_examples=25)
@given(part=collections())
def test_a_reader_made_from_the_page_agrees_on_anything(tmp_path_factory, part):
    described, items, cluster_by = part
    path = tmp_path_factory.mktemp("plain", numbered=True) / "items.mmc"
    agrees(build_bytes(path, items, described, cluster_by=cluster_by))


def test_a_reader_made_from_the_page_agrees_on_keys_of_every_type_and_several_embeddings(path):
    keys = [5, -1, 2**63, "a", b"a", "", b"", "x" * 40, "5"]
    for described, held in (
        (Schema("t"), keyed(keys, Schema("t"))),
        (Schema("t", key=("a", "b"), index=("kind",)), keyed_pairs(keys)),
        (TWO, two(20)),
    ):
        publish(path, Order(Held(described, held)))
        agrees(path.read_bytes())


def keyed_pairs(keys: list[Any]) -> list[SourceRecord]:
    return [SourceRecord((("a", "b"), "kind"), ((a, b), 1.5 * i), None) for a in keys for i, b in enumerate(keys)]


def test_every_ids_and_index_section_is_one_value_of_stock_msgpack(path):
    import msgpack

    data = build_bytes(path, small_items(50), SMALL)
    with Snapshot.open(path) as ours:
        sections = ours.layout.sections.values()
        framed = [section for section in sections if section.kind in (header.IDS, header.INDEX)]
        assert len(framed) == 3
        for section in framed:
            value = msgpack.unpackb(data[section.offset : section.end])
            assert isinstance(value, dict)
            assert (section.offset + section.payload) % 64 == 0
        for record, values in zip(ours.values(), plain_reader.File(data).collections["items"].stream(), strict=True):
            assert record.id == values[0]
            assert same_record(record, record.asdict())
