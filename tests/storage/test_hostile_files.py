"""Whatever a file contains, and with every checksum right: a value or a MmcacheError, soon, and in little memory.

Damage is re-sealed, so that nothing but the checks of structure stands between the reader and the bytes. What could
blow up in time or memory runs in a process of its own under a limit.
"""

# mypy: disable-error-code="arg-type, list-item, type-arg"

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from xxhash import xxh3_64_intdigest

import mmcache
from mmcache import (
    CorruptFileError,
    IncompatibleFormatError,
    MmcacheError,
    Schema,
    at_least,
    below,
    between,
    startswith,
)
from mmcache.format.header import MAX_GENERATION
from mmcache.storage.verify import verify_bytes
from tests.storage.fuzz import extents, fuzz, numbers, small_file, tried
from tests.storage.helpers import (
    ROW_ENTRY,
    SMALL,
    TABLE_ROW,
    Bytes,
    Image,
    Part,
    arrays_in,
    build_bytes,
    damaged,
    reseal,
    reseal_records,
    table_rows,
)
from tests.support.profile import NIGHTLY
from tests.support.samples import sampled

pytestmark = pytest.mark.usefixtures("no_disk_wait")

ROOT = Path(__file__).parents[2]
_small_bytes = functools.cache(lambda directory: small_file(Path(directory) / "small.mmc"))


@pytest.fixture
def small(tmp_path_factory) -> bytearray:
    return bytearray(_small_bytes(str(tmp_path_factory.getbasetemp())))


def test_the_file_that_is_damaged_here_is_whole(small):
    assert not tried(small, "whole")
    assert reseal(bytearray(small)) == small
    assert Image.of(bytes(small)).pack() == small


HEADER_FIELDS = {
    "major": (8, "<H"),
    "minor": (10, "<H"),
    "patch": (12, "<H"),
    "reserved": (14, "<H"),
    "flags": (16, "<I"),
    "section count": (20, "<I"),
    "table offset": (24, "<Q"),
    "file size": (32, "<Q"),
    "generation": (40, "<Q"),
    "created": (48, "<Q"),
    "elapsed": (56, "<Q"),
    "soft": (144, "<Q"),
    "hard": (152, "<Q"),
    "ring": (160, "<Q"),
    "page": (168, "<Q"),
    "reserved tail": (240, "<Q"),
}


HARMLESS = ("minor", "patch", "generation", "created", "elapsed", "soft", "hard", "ring", "page")


def set_field(data: bytearray, at: int, form: str, value: int) -> None:
    struct.pack_into(form, data, at, value)


def test_every_field_of_the_header_at_every_edge_is_harmless(small):
    for name, (at, form) in HEADER_FIELDS.items():
        (value,) = struct.unpack_from(form, small, at)
        for number in numbers(8 * struct.calcsize(form), value, len(small)):
            for sealed in (False, True):
                data = bytearray(small)
                set_field(data, at, form, number)
                if sealed:
                    reseal(data, sections=name != "section count")
                    refused = tried(data, (name, number))
                    harmless = name in HARMLESS and (name, number) != ("generation", 0)
                    harmless &= name != "generation" or number <= MAX_GENERATION
                    assert refused != harmless, (name, number)
                else:
                    with pytest.raises(MmcacheError):
                        damaged(data)


TABLE_FIELDS = {"kind": (32, "<I"), "flags": (36, "<I"), "offset": (40, "<Q"), "length": (48, "<Q")}
TABLE_FIELDS |= {"payload": (56, "<Q"), "count": (64, "<Q"), "reserved": (80, "<Q")}


@pytest.mark.parametrize("name", sampled(TABLE_FIELDS, 2))
def test_every_field_of_the_section_table_at_every_edge_is_harmless(small, name):
    at, form = TABLE_FIELDS[name]
    for i, row in enumerate(table_rows(small)):
        place = 256 + 96 * i + at
        (value,) = struct.unpack_from(form, small, place)
        for number in numbers(8 * struct.calcsize(form), value, len(small)):
            data = bytearray(small)
            set_field(data, place, form, number)
            reseal(data)
            refused = tried(data, (row[0], name, number))
            if name in ("offset", "length") and row[1] != 4:  # records may take in the zeros behind them
                assert refused, (row[0], name, number)


def test_every_section_name_may_be_anything(small):
    names = [
        b"",
        b"\xff",
        b"a" * 32,
        b"0/ids",
        b"1/ids",
        b"meta",
        b"blocks",
        b"chunks",
        b"0/",
        b"/ids",
        b"/",
        b"0/index.",
        b"0/index.00",
        b"0/index.2",
        b"x/y/z",
    ]
    for i, name in itertools.product(range(len(table_rows(small))), names):
        data = bytearray(small)
        data[256 + 96 * i : 256 + 96 * i + 32] = name.ljust(32, b"\0")
        tried(reseal(data), (i, name))


@pytest.mark.parametrize("i", [0, 3, 7] if NIGHTLY else [3])
def test_every_field_of_a_row_entry_at_every_edge_is_harmless(small, i):
    rows_at, _ = extents(small)["0/rows"]
    for at, form in ((0, "<Q"), (8, "<I"), (12, "<H"), (14, "<H"), (16, "<Q")):
        place = rows_at + 24 * i + at
        (value,) = struct.unpack_from(form, small, place)
        for number in numbers(8 * struct.calcsize(form), value, len(small)):
            for records_too in (False, True):
                data = bytearray(small)
                set_field(data, place, form, number)
                if records_too:
                    reseal_records(data)
                tried(reseal(data), (i, at, number, records_too))


def test_every_slot_of_a_table_may_hold_anything(small):
    for section, parts in (("0/ids", {"hash": 8, "row": 4}), ("0/index.0", {"hash": 8, "term": 4})):
        arrays = arrays_in(small, section)
        slots = len(arrays["hash"]) // 8
        for part, width in parts.items():
            begin = arrays[part].start
            top = 2 ** (8 * width)
            for wrong in (0, 5, 8, top - 1, top - 2, top // 2):
                for slot in range(0, slots, 1 if NIGHTLY else 3):
                    data = bytearray(small)
                    data[begin + width * slot : begin + width * (slot + 1)] = wrong.to_bytes(width, "little")
                    tried(reseal(data), (section, part, slot, wrong))
            whole = bytes(small[begin : begin + width * slots])
            for arrangement in (
                whole[::-1],
                bytes(len(whole)),
                b"\xff" * len(whole),
                random.Random(1).randbytes(len(whole)),
                whole[:width] * slots,
                whole[-width:] * slots,
            ):
                data = bytearray(small)
                data[begin : begin + width * slots] = arrangement
                tried(reseal(data), (section, part, arrangement[:8]))


def test_every_field_of_an_index_entry_at_every_edge_is_harmless(small):
    for field in ("kind", "tags"):
        entries = arrays_in(small, f"0/index.{SMALL.index.index(field)}")["entries"]
        begin = entries.start
        for term in range(min(2 if NIGHTLY else 1, len(entries) // 32)):
            for offset, form in ((0, "<Q"), (8, "<Q"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<I")):
                place = begin + 32 * term + offset
                (value,) = struct.unpack_from(form, small, place)
                for number in numbers(8 * struct.calcsize(form), value, 8):
                    data = bytearray(small)
                    set_field(data, place, form, number)
                    tried(reseal(data), (field, term, offset, number))


@pytest.fixture
def listed(path) -> bytearray:
    """A file with a posting list that is a list: two rows of 66, far apart."""
    items = [{"id": f"k{i}", "kind": "rare" if i in (0, 65) else "usual"} for i in range(66)]
    data = bytearray(build_bytes(path, items, Schema("items", index=("kind",))))
    assert struct.unpack_from("<I", data, arrays_in(data, "0/index.0")["entries"].start + 24) == (0,)
    return data


def test_a_list_of_rows_may_hold_anything(listed):
    arrays = arrays_in(listed, "0/index.0")
    rows = arrays["rows"][-8:]
    for one, other in itertools.product((0, 1, 64, 65, 66, 67, 2**31, 2**32 - 1), repeat=2):
        data = bytearray(listed)
        struct.pack_into("<II", data, rows.start, one, other)
        with damaged(reseal(data)) as snapshot:
            try:
                found = snapshot.where(kind="rare").rows.tolist()
            except CorruptFileError:
                assert not one < other < 66
            else:
                assert found == [one, other]
                assert one < other < 66
        tried(data, (one, other))
    for offset, form in ((8, "<Q"), (16, "<I"), (24, "<I")):
        place = arrays["entries"].start + offset
        (value,) = struct.unpack_from(form, listed, place)
        for number in numbers(8 * struct.calcsize(form), value, len(arrays["rows"])):
            data = bytearray(listed)
            set_field(data, place, form, number)
            tried(reseal(data), (offset, number))


def test_posting_lists_may_hold_anything(small):
    for field in ("kind", "tags"):
        for part in ("terms", "rows", "entries"):
            extent = arrays_in(small, f"0/index.{SMALL.index.index(field)}")[part]
            begin, end = extent.start, extent.stop
            for fill in (b"\0", b"\xff", b"\x7f", b"\xc1", b"\xdf", b"\x01\0\0\0", b"\x93", b"\xd9"):
                data = bytearray(small)
                data[begin:end] = (fill * (end - begin))[: end - begin]
                tried(reseal(data), (field, part, fill))


def paths_to_numbers(plain: Any, at: tuple = ()) -> Iterator[tuple]:
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield (*at, key)
            yield from paths_to_numbers(value, (*at, key))
    elif isinstance(plain, list):
        for i, value in enumerate(plain):
            yield (*at, i)
            yield from paths_to_numbers(value, (*at, i))


DELETE = object()


def changed(plain: Any, at: tuple, value: Any) -> Any:
    if not at:
        return value
    head, *rest = at
    copy = dict(plain) if isinstance(plain, dict) else list(plain)
    if not rest and value is DELETE:
        del copy[head]
    else:
        copy[head] = changed(copy[head], tuple(rest), value)
    return copy


def nested(depth: int, kind: type = list) -> bytes:
    return (b"\x91" if kind is list else b"\x81\xa0") * depth + b"\xc0"


def test_every_value_in_meta_may_be_anything(small):
    image = Image.of(bytes(small))
    wrong = [
        DELETE,
        None,
        True,
        -1,
        0,
        1,
        2,
        7,
        2**16,
        2**31,
        2**32,
        2**62,
        2**63 - 1,
        2**64 - 1,
        0.5,
        "",
        "items",
        "x" * 200,
    ]
    wrong += [
        b"",
        [],
        {},
        [[]],
        {"": 1},
        [None] * 3,
        [0] * 7,
        ["id", "id"],
        [["id", ["a"]]],
        [["id", [1]]],
        float("nan"),
    ]
    wrong += [msgpack.Timestamp(1), msgpack.ExtType(1, b"")]
    plain = image.meta
    for i, at in enumerate(paths_to_numbers(plain)):
        for value in wrong if NIGHTLY else wrong[i % 3 :: 3]:
            image.meta = changed(plain, at, value)
            tried(image.pack(), (at, value if value is not DELETE else "deleted"))


@pytest.mark.parametrize("depth", [100, 300, 500, 800, 950, 1000, 1020, 1024, 1025, 100_000])
def test_meta_nested_to_any_depth_is_harmless(small, depth):
    """Deeper than Python's own functions nest: what decodes need not have a repr."""
    image = Image.of(bytes(small))
    plain = image.meta
    for at in paths_to_numbers(plain):
        raw = msgpack.packb(changed(plain, at, "\0BOMB\0"))
        for kind in (list, dict):
            image.meta = raw.replace(msgpack.packb("\0BOMB\0"), nested(depth, kind))
            tried(image.pack(), (at, depth, kind))


def test_meta_that_is_not_msgpack_or_not_a_map_is_corrupt(small):
    image = Image.of(bytes(small))
    good = bytes(image.part("meta").data)
    for raw in (
        b"",
        b"\xc1",
        b"\xc0",
        b"\x80",
        b"\x90",
        good + b"\0",
        good[:-1],
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
    ):
        image.meta = raw
        with pytest.raises(CorruptFileError):
            damaged(image.pack())
    image.meta = b"\xa4text"
    with pytest.raises(CorruptFileError, match="expected a map"):
        damaged(image.pack())


def test_every_byte_of_a_record_may_be_anything(small):
    begin, length = extents(small)["0/records"]
    for at in range(begin, begin + length // 4, 1 if NIGHTLY else 5):
        for wrong in (
            0x00,
            0x80,
            0x90,
            0xA0,
            0xC0,
            0xC1,
            0xC4,
            0xC7,
            0xC9,
            0xCA,
            0xCF,
            0xD4,
            0xD9,
            0xDC,
            0xDD,
            0xDE,
            0xDF,
            0xFF,
        ):
            data = bytearray(small)
            data[at] = wrong
            tried(reseal(reseal_records(data)), (at - begin, wrong))


# Sections -------------------------------------------------------------------------------------------------------------


def test_an_unknown_optional_section_is_skipped_and_an_unknown_required_one_refused(small):
    image = Image.of(bytes(small))
    image.parts.insert(-2, Part("future", 77, 0, bytearray(b"anything"), 0, 3))
    assert not tried(image.pack(), "optional")
    image.parts.insert(2, Part("0/index.9", 78, 0, bytearray(100), 64, 3))
    assert not tried(image.pack(), "optional, of a collection")
    image.parts[-3].flags = 1
    with pytest.raises(IncompatibleFormatError, match="'future' is of kind 77"):
        damaged(image.pack())


def test_a_newer_minor_version_opens_and_another_major_is_incompatible(small):
    for minor, patch in ((1, 0), (0, 9), (65_535, 65_535)):
        data = bytearray(small)
        struct.pack_into("<HH", data, 10, minor, patch)
        if minor:  # fields and a flag that it has added
            data[200] = data[256 + 95] = 9
            data[256 + 36] |= 1 << 5
        with damaged(reseal(data)) as snapshot:
            assert snapshot.header.version == (2, minor, patch)
            assert snapshot["k1"]["id"] == "k1"
            snapshot.verify(deep=True)
    for major in (0, 1, 3, 65_535):
        data = bytearray(small)
        struct.pack_into("<H", data, 8, major)
        for wrong in (data, reseal(bytearray(data))):
            with pytest.raises(IncompatibleFormatError) as caught:
                damaged(wrong)
            assert (caught.value.found, caught.value.supported) == (f"{major}.0.0", "2.0.0")


def test_unknown_features_are_incompatible_and_reserved_bytes_corrupt(small):
    data = bytearray(small)
    struct.pack_into("<I", data, 16, 1 << 31)
    with pytest.raises(IncompatibleFormatError, match="0x80000000"):
        damaged(reseal(data))
    for at in (14, 15, 176, 200, 247):
        data = bytearray(small)
        data[at] = 1
        with pytest.raises(CorruptFileError, match="reserved"):
            damaged(reseal(data))


def test_a_missing_a_repeated_or_a_misplaced_section_is_refused(small):
    image = Image.of(bytes(small))
    for part in image.parts[:-2]:
        others = [other for other in image.parts if other is not part]
        if part.flags & 1:
            with pytest.raises(CorruptFileError):
                damaged(Image(image.header, others).pack())
        twice = [*image.parts[:-2], part, *image.parts[-2:]]
        with pytest.raises(CorruptFileError):
            damaged(Image(image.header, twice).pack())
        copy = Part(part.name, part.kind, part.flags, bytearray(), 0, 0)
        with pytest.raises(CorruptFileError, match="stands twice"):
            damaged(Image(image.header, [*image.parts[:-2], copy, *image.parts[-2:]]).pack())
    with pytest.raises(CorruptFileError):
        damaged(Image(image.header, [image.parts[-1], *image.parts[:-1]]).pack())


def test_a_section_of_another_kind_than_its_name_says_is_refused(small):
    for i, row in enumerate(table_rows(small)):
        for kind in range(1, 13):
            if kind not in (row[1], 10):  # which is none
                data = bytearray(small)
                struct.pack_into("<I", data, 256 + 96 * i + 32, kind)
                with pytest.raises(CorruptFileError):
                    damaged(reseal(data))


def test_overlapping_or_gaping_sections_are_refused(small):
    rows = table_rows(small)
    for i in range(len(rows) - 1):
        for offset, length in (
            (rows[i][3], rows[i][4] + 4096),
            (rows[i][3], rows[i + 1][3] - rows[i][3] + 1),
            (rows[i + 1][3], rows[i][4]),
            (rows[0][3], rows[i][4]),
            (0, rows[i][4]),
            (256, 64),
        ):
            if (offset, length) != (rows[i][3], rows[i][4]):
                data = bytearray(small)
                struct.pack_into("<QQ", data, 256 + 96 * i + 40, offset, length)
                with pytest.raises(CorruptFileError):
                    damaged(reseal(data))


def test_padding_that_is_not_zero_is_found_by_verify(small):
    ends = [row[3] + row[4] for row in table_rows(small)]
    starts = [*(row[3] for row in table_rows(small)[1:]), len(small)]
    assert any(start > end for start, end in zip(starts, ends, strict=True))
    for end, start in zip(ends, starts, strict=True):
        for at in {end, (end + start) // 2, start - 1} if start > end else set():
            data = bytearray(small)
            data[at] = 1
            with pytest.raises(CorruptFileError, match="padding"):
                verify_bytes(Bytes(reseal(data)).read, len(data))


def test_deep_verification_finds_what_right_checksums_hide(small, listed):
    """Answers that are not those of the records: a stranger's row, a missing posting, a key that leads nowhere."""
    swapped = bytearray(small)
    rows = arrays_in(small, "0/ids")["row"]
    for at in rows[::4]:
        (row,) = struct.unpack_from("<I", small, at)
        if row in (1, 2):
            struct.pack_into("<I", swapped, at, 3 - row)
    entry = arrays_in(listed, "0/index.0")["entries"].start
    fewer, as_range, others = bytearray(listed), bytearray(listed), bytearray(listed)
    struct.pack_into("<I", fewer, entry + 16, 1)
    struct.pack_into("<QIII", as_range, entry + 8, 0, 2, 5, 2)
    struct.pack_into("<I", others, arrays_in(listed, "0/index.0")["rows"].stop - 4, 64)
    stranger = bytearray(small)
    place = stranger.index(b"\xa2k5")
    stranger[place : place + 3] = b"\xa2zz"
    for data in (swapped, fewer, as_range, others, reseal_records(stranger)):
        assert data not in (small, listed)
        with damaged(reseal(data)) as snapshot:
            snapshot.verify()
            with pytest.raises(CorruptFileError):
                snapshot.verify(deep=True)


ASCENDING = bytes(range(100))
"""The ints 0 to 99 as terms, end to end."""


@pytest.mark.parametrize(
    "terms",
    [
        pytest.param(ASCENDING[::-1], id="they descend"),
        pytest.param(bytes([0, 2, 1]) + ASCENDING[3:], id="two are exchanged"),
        pytest.param(bytes([0, 0]) + ASCENDING[2:], id="two are equal"),
        pytest.param(bytes(100), id="all are equal"),
        pytest.param(ASCENDING[:50] + b"\xc0" + ASCENDING[51:], id="null among numbers"),
        pytest.param(b"\xa0" + ASCENDING[1:], id="text before numbers"),
    ],
)
def test_terms_that_do_not_ascend_are_found_where_they_are_listed(path, terms):
    items = [{"id": f"k{i}", "n": i} for i in range(100)]
    data = bytearray(build_bytes(path, items, Schema("items", index=("n",))))
    extent = arrays_in(data, "0/index.0")["terms"]
    assert data[extent.start : extent.stop] == ASCENDING
    data[extent.start : extent.stop] = terms
    with damaged(reseal(data)) as snapshot:
        snapshot.verify()
        for ask in (lambda: snapshot.terms("n"), lambda: snapshot.verify(deep=True)):
            with pytest.raises(CorruptFileError, match="the terms do not ascend"):
                ask()
        for some in (between(3, 60), at_least(98), below(2), range(1, 90, 2), startswith("")):
            found = snapshot.where(n=some)
            assert found.ids == [f"k{row}" for row in found.rows.tolist()]  # a wrong range, and no more
        for descending in (False, True):
            assert len(set(snapshot.where().order_by("n", descending=descending).ids)) == 100
    assert tried(data, terms)


# Bombs ----------------------------------------------------------------------------------------------------------------


def run_child(files: Iterable[bytes], megabytes: int, seconds: float) -> list[dict]:
    """What a process under limits found in each file. Fails on a signal, a wrong exception or too much time."""
    files = list(files)
    stdin = b"".join(struct.pack("<I", len(data)) + bytes(data) for data in files)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.hostile_child", str(megabytes)],
        cwd=ROOT,
        env=environment,
        input=stdin,
        capture_output=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(files)
    for i, one in enumerate(found):
        assert "wrong" not in one, (i, one["wrong"])
        assert one["seconds"] < seconds, (i, one)
    return found


def one_collection(n: int, **fields: Any) -> tuple[Image, Any]:
    """A file of n small records, taken apart."""
    items = [{"id": f"k{i}", **fields} for i in range(n)]
    with tempfile.TemporaryDirectory() as directory:
        data = build_bytes(Path(directory) / "x.mmc", items, Schema("items", index=tuple(fields)))
    return Image.of(data), items


def replace_records(image: Image, records: bytes, rows: list[tuple[int, int, int, int]]) -> bytearray:
    """Other records, and rows (offset from the records' start, length, key length, shape), sealed."""
    image.part("0/records").data = bytearray(records)
    image.part("0/rows").data = bytearray(b"".join(ROW_ENTRY.pack(*row, 0) for row in rows))
    data = image.pack()
    return reseal(reseal_records(data))


def test_records_that_share_their_bytes_do_not_multiply_them():
    """Two thousand rows that all lead to one large record: no batch holds two thousand copies."""
    n = 2000
    image, _ = one_collection(n)
    record = msgpack.packb(["k0", bytes(4 * 2**20)])
    image.meta = changed(image.meta, ("collections", 0, "shapes"), [["id", "x"]])
    data = replace_records(image, record, [(0, len(record), 2, 0)] * n)
    run_child([data], 256, 60)


def test_terms_that_share_their_bytes_do_not_multiply_them():
    """A thousand terms that overlap in one megabyte of text."""
    items = [{"id": f"k{i}", "t": "x" * (1000 + i)} for i in range(1000)]
    with tempfile.TemporaryDirectory() as directory:
        data = bytearray(build_bytes(Path(directory) / "x.mmc", items, Schema("items", index=("t",))))
    arrays = arrays_in(data, "0/index.0")
    size = len(arrays["terms"])
    text = bytearray(b"x" * size)
    for i in range(1000):
        text[8 * i : 8 * i + 5] = b"\xdb" + struct.pack(">I", size - 8 * i - 5)
        struct.pack_into("<Q", data, arrays["entries"].start + 32 * i, 8 * i)
        struct.pack_into("<I", data, arrays["entries"].start + 32 * i + 20, size - 8 * i)
    data[arrays["terms"].start : arrays["terms"].stop] = text
    run_child([reseal(data)], 200, 20)


def test_posting_lists_that_share_their_rows_do_not_multiply_them():
    """Thousands of terms that all claim all rows: deep verification does not hold them all."""
    items = [{"id": f"k{i}", "t": i} for i in range(4000)]
    with tempfile.TemporaryDirectory() as directory:
        data = bytearray(build_bytes(Path(directory) / "x.mmc", items, Schema("items", index=("t",))))
    entries = arrays_in(data, "0/index.0")["entries"]
    begin = entries.start
    for i in range(len(entries) // 32):
        struct.pack_into("<Q", data, begin + 32 * i + 8, 0)
        struct.pack_into("<I", data, begin + 32 * i + 16, 4000)
        struct.pack_into("<I", data, begin + 32 * i + 24, 2)
    run_child([reseal(data)], 200, 30)


def test_collections_and_sections_without_number_are_refused_in_time(small):
    """Sixteen megabytes of meta that describe one collection again and again, and a table of 4,096 sections."""
    image = Image.of(bytes(small))
    plain = image.meta
    again = {**plain, "collections": [plain["collections"][1]] * 50_000}
    image.meta = again
    many = Image.of(bytes(small))
    for i in range(4000):
        many.parts.insert(-2, Part(f"x{i}/ids", 70, 0, bytearray(), 0, 0))
    many.meta = {**plain, "collections": [plain["collections"][1]] * 20_000}
    wide = Image.of(bytes(small))
    wide.meta = {**plain, "collections": [{**plain["collections"][1], "shapes": [["name", "text"]] * 400_000}]}
    files = [image.pack(), many.pack(), wide.pack()]
    for data in files[:2]:
        begun = time.process_time()
        with pytest.raises(CorruptFileError):
            damaged(data)
        assert time.process_time() - begun < 2
    run_child(files, 400, 30)


def test_more_maps_and_arrays_than_meta_may_have_are_refused_in_time(small):
    image = Image.of(bytes(small))
    plain = image.meta
    for bomb in (b"\x80", b"\x90"):
        packed = msgpack.packb(plain | {"metadata": None})
        count = 4 * 2**20 - len(packed) - 100
        hole = msgpack.packb("metadata") + b"\xc0"
        filled = msgpack.packb("metadata") + b"\x81\xa1x\xdd" + struct.pack(">I", count) + bomb * count
        image.meta = packed.replace(hole, filled)
        (found,) = run_child([image.pack()], 64, 5)
        assert found["refused"]
        with pytest.raises(CorruptFileError, match="more than 262144 arrays and maps"):
            damaged(image.pack())


@pytest.mark.integration  # it takes long
def test_msgpack_bombs_in_meta_and_records_stay_within_the_limit():
    megabyte = 2**17  # enough to see an amplification
    bombs = {
        "array headers": b"\xdd\xff\xff\xff\xff" * (megabyte // 5),
        "nested arrays": b"\x91" * megabyte,
        "nested maps": b"\x81\xa0" * (megabyte // 2),
        "array of empty maps": b"\xdd" + struct.pack(">I", megabyte) + b"\x80" * megabyte,
        "array of empty lists": b"\xdd" + struct.pack(">I", megabyte) + b"\x90" * megabyte,
        "huge text": b"\xdb\xff\xff\xff\xff" + bytes(100),
        "huge bin": b"\xc6\xff\xff\xff\xff" + bytes(100),
        "huge map": b"\xdf\xff\xff\xff\xff" + bytes(100),
        "huge ext": b"\xc9\xff\xff\xff\xff\x05" + bytes(100),
        "map with a list for a key": b"\x81\x90\x00",
        "map with a map for a key": b"\x81\x80\x00",
        "map with int keys": b"\xdf"
        + struct.pack(">I", 50_000)
        + b"".join(b"\xcf" + struct.pack(">Q", i << 40) + b"\x00" for i in range(50_000)),
        "map with nan keys": b"\xdf" + struct.pack(">I", 2000) + b"\xcb\x7f\xf8\0\0\0\0\0\0\x00" * 2000,
        "one key many times": b"\xdf" + struct.pack(">I", 50_000) + b"\xa1a\x00" * 50_000,
        "bad text": b"\xa2\xff\xfe",
        "surrogate": b"\xa3\xed\xa0\x80",
        "timestamp out of range": b"\xc7\x0c\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
        "timestamp of a strange size": b"\xc7\x03\xff\0\0\0",
        "negative ext": b"\xd4\x85\x00",
        "never used": b"\xc1",
        "nothing": b"",
    }
    files = []
    for bomb in bombs.values():
        image, _ = one_collection(2, x=1)
        image.meta = bomb
        files.append(image.pack())
        image, _ = one_collection(2, x=1)
        files.append(
            bytes(
                replace_records(
                    image,
                    b"\x92\xa2k0" + bomb + b"\x92\xa2k1\x01",
                    [(0, 4 + len(bomb), 2, 0), (4 + len(bomb), 5, 2, 0)],
                )
            )
        )
        image, _ = one_collection(2, x=1)
        files.append(
            bytes(replace_records(image, bomb + b"\x92\xa2k1\x01", [(0, len(bomb), 2, 0), (len(bomb), 5, 2, 0)]))
        )
    run_child(files, 512, 20)


# Fuzz -----------------------------------------------------------------------------------------------------------------


def test_random_sealed_mutations_give_a_value_or_an_error(small):
    assert fuzz(bytes(small), 2024, rounds=300).refused > 30


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_very_many_random_sealed_mutations_give_a_value_or_an_error(small):
    print(fuzz(bytes(small), random.randrange(2**32), rounds=50_000))


def test_a_file_that_is_not_ours_is_corrupt_and_says_so(path):
    for data in (
        b"",
        b"x",
        b"\x89PNG\r\n\x1a\n" + bytes(500),
        b"SQLite format 3\0" + bytes(4096),
        b"\x89MMC\n\x1a\n" + bytes(500),
    ):
        path.write_bytes(data)
        for access in ("mmap", "copy"):
            with pytest.raises(CorruptFileError) as caught:
                mmcache.Snapshot.open(path, access=access)
            assert str(path) in str(caught.value)
    path.write_bytes(b"\x89MMC\n\x1a\n" + bytes(500))
    with pytest.raises(CorruptFileError, match="not an mmcache file"):
        mmcache.Snapshot.open(path)


def test_checksums_are_as_specified(small):
    """The re-sealing above would hide a checksum that covers less than it should."""
    for row in table_rows(small):
        assert row[7] == xxh3_64_intdigest(small[row[3] : row[3] + row[4]])
    assert TABLE_ROW.size == 96
