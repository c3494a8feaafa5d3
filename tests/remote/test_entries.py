"""Entries as bytes: what was written is read back, and whatever else stands there is refused, and never believed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mmcache import CorruptFileError, IncompatibleFormatError
from mmcache.format.header import VERSION, Header
from mmcache.remote.entries import FORMAT, Delta, Entry, File, entry_path, number_of, parse, successor

HEADER = Header(10_000, 7, 3, 1_700_000_000_000_000_000, 5, bytes(16), bytes(range(32)))
NUMBERS = st.integers(1, 2**40)
NAMES = st.builds("{:064x}-{:016x}.mmc".format, st.integers(0, 2**256 - 1), st.integers(0, 2**64 - 1))
DELTAS = st.builds(
    Delta,
    NAMES.map(lambda name: f"{name[:-4]}.mmd"),
    st.text("0123456789abcdef", max_size=64),
    NUMBERS,
    st.text(max_size=9),
)
FILES = st.builds(
    File,
    NAMES,
    st.just(HEADER.pack()),
    st.just(HEADER.file_size),
    st.just(HEADER.sha256.hex()),
    st.dictionaries(st.text(max_size=9), NUMBERS, max_size=3),
    st.dictionaries(st.text(max_size=9), st.text(max_size=9) | NUMBERS, max_size=3),
    st.lists(DELTAS, max_size=2).map(tuple),
)
ENTRIES = st.builds(
    Entry,
    NUMBERS,
    st.sampled_from(["publish", "rollback", "withdraw", "pin", "unpin", "prune"]),
    st.integers(0, 2**62),
    st.text(max_size=9),
    st.text(max_size=9),
    NUMBERS | st.none(),
    NUMBERS | st.none(),
    NUMBERS | st.none(),
    st.frozensets(NUMBERS, max_size=3),
    st.dictionaries(st.text(max_size=9), NUMBERS, max_size=3),
    NUMBERS,
    FILES | st.none(),
    NUMBERS | st.none(),
    st.text(max_size=9),
    st.frozensets(NAMES, max_size=3),
)


def first(**changes: Any) -> Entry:
    file = File("a" * 64 + "-" + "b" * 16 + ".mmc", HEADER.pack(), HEADER.file_size, HEADER.sha256.hex(), {"items": 3})
    fields = {"kind": "publish", "at_ns": 1, "host": "h", "nonce": "n", "current": 1, "newest": 1, "file": file}
    return Entry(**successor(None, **(fields | changes)))


@given(ENTRIES)
def test_an_entry_reads_back_as_it_was_written(entry):
    assert parse(entry.pack(), entry.number, "here") == entry


@given(NUMBERS)
def test_paths_sort_as_numbers_do(number):
    assert number_of(entry_path(number)) == number
    assert entry_path(number) < entry_path(number + 1)


@pytest.mark.parametrize(
    "path", ["generations/1.json", "generations/x.json", "blobs/1", f"a/generations/{1:020}.json", ""]
)
def test_other_paths_are_no_entries(path):
    assert number_of(path) is None


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(max_size=3), st.lists, max_leaves=5).map(
        lambda v: json.dumps(v).encode()
    )
)
def test_any_bytes_are_an_entry_or_refused(data):
    with pytest.raises(CorruptFileError):
        parse(data, 1, "here")


@given(st.data())
def test_an_entry_with_any_field_of_any_value_is_read_or_refused(data):
    plain = json.loads(first().pack())
    holder = data.draw(st.sampled_from([plain, plain["file"]]))
    name = data.draw(st.sampled_from(sorted(holder)))
    odd = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | st.lists(st.integers(), max_size=2)
    )
    holder[name] = data.draw(odd)
    with contextlib.suppress(CorruptFileError, IncompatibleFormatError):
        entry = parse(json.dumps(plain).encode(), 1, "here")
        assert entry.file is None or entry.file.header.sha256 == HEADER.sha256


def test_a_later_format_is_incompatible_and_not_corrupt():
    plain = json.loads(first().pack()) | {"format": FORMAT + 1, "kind": "something new"}
    with pytest.raises(IncompatibleFormatError, match="upgrade mmcache") as refused:
        parse(json.dumps(plain).encode(), 1, "here")
    assert refused.value.found == str(FORMAT + 1)


def test_a_file_of_a_later_major_format_does_not_hide_the_state_of_the_store():
    raw = bytearray(HEADER.pack())
    raw[8] = VERSION[0] + 1
    plain = json.loads(first(pinned=1).pack())
    plain["file"]["raw"] = raw.hex()
    entry = parse(json.dumps(plain).encode(), 1, "here")
    assert entry.pinned == 1
    assert entry.file is not None
    with pytest.raises(IncompatibleFormatError):
        _ = entry.file.header


def test_an_entry_of_another_number_is_refused():
    with pytest.raises(CorruptFileError):
        parse(first().pack(), 2, "here")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "x.mmc", "a" * 64 + ".mmc", "/" + "a" * 64 + "-" + "b" * 16 + ".mmc"]
)
def test_a_blob_is_never_outside_its_directory(name):
    plain = json.loads(first().pack())
    plain["file"]["blob"] = name
    with pytest.raises(CorruptFileError):
        parse(json.dumps(plain).encode(), 1, "here")
