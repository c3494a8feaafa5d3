"""Deltas: what makes the file of one release of that of another. An optimisation: every chunk that one gives is proved
by the release's digests, and what it does not give is downloaded.

Blocks of a file shift when one section grows, so a delta knows what the sections mean. Rows of both files are matched
by the hashes of their keys. Then

    copy     bytes of the base, or new ones: records and embeddings row by row, other sections in blocks of 64 bytes
    rows     the entries without their offsets, which follow from the lengths of the records
    ids      the hashes of new keys; the table is made again

A delta is a msgpack value, compressed: [format, base, target, operations], one for each section but `chunks`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgpack
import numpy as np

from ..errors import CorruptFileError
from ..format.frame import array_headers, place_arrays
from ..format.header import Section
from ..format.layout import CHUNKS_NAME, CollectionLayout, Layout, Read, ids_sizes
from ..format.slots import EMPTY, build_slots
from ..storage.planning import ROW

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["apply", "make"]

FORMAT: Final = 1
_BLOCK: Final = 64
_PIECE: Final = 2**20
_ROWS_AT_ONCE: Final = 65_536
_FIELDS: Final = ["length", "key_length", "shape", "checksum"]
_ENTRY: Final = np.dtype([("length", "<u4"), ("key_length", "<u2"), ("shape", "<u2"), ("checksum", "<u8")])


class _File(NamedTuple):
    """read: its bytes. layout: what it is."""

    read: Read
    layout: Layout


class Target(Protocol):
    """What is filled."""

    def write(self, offset: int, data: bytes) -> None: ...


# --- runs -------------------------------------------------------------------------------------------------------------


def _runs(source: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(from, bytes) of what lies end to end: source is where each piece is in the base, -1 for a new one."""
    if not len(source):
        return []
    goes_on = np.where(source[1:] < 0, source[:-1] < 0, source[1:] == source[:-1] + sizes[:-1]) & (
        (source[1:] < 0) == (source[:-1] < 0)
    )
    begins = np.append(0, np.flatnonzero(~goes_on) + 1)
    totals = np.add.reduceat(sizes, begins)
    return list(zip(source[begins].tolist(), totals.tolist(), strict=True))


def _packed(runs: Sequence[tuple[int, int]]) -> bytes:
    return np.array(runs, "<i8").tobytes()


def _unpacked(data: bytes) -> list[tuple[int, int]]:
    found = np.frombuffer(data, "<i8").reshape(-1, 2).tolist()
    if any(length < 0 for _, length in found):
        raise ValueError("a run of less than nothing")
    return [(begin, length) for begin, length in found]


# --- making -----------------------------------------------------------------------------------------------------------


def make(base: Read, base_layout: Layout, new: Read, new_layout: Layout) -> bytes:
    """A delta from one file to another. O(both); memory for the tables of one collection of each."""
    one, other = _File(base, base_layout), _File(new, new_layout)
    operations: dict[str, list[Any]] = {}
    for name, collection in new_layout.collections.items():
        before = base_layout.collections.get(name)
        if before is not None:
            operations |= _of_collection(one, before, other, collection)
    twins = _twins(base_layout, new_layout)
    ordered = []
    for section in new_layout.sections.values():
        if section.name != CHUNKS_NAME:
            found = operations.get(section.name)
            ordered.append(found if found is not None else _blocks(one, twins.get(section.name), other, section))
    header = [FORMAT, base_layout.header.sha256, new_layout.header.sha256]
    return zlib.compress(msgpack.packb([*header, ordered]), 6)


def _twins(base: Layout, new: Layout) -> dict[str, Section]:
    """Name of a section of the new file -> the section of the base that means the same."""
    found = {name: base.sections[name] for name in new.sections if "/" not in name and name in base.sections}
    for name, collection in new.collections.items():
        before = base.collections.get(name)
        if before is not None:
            for part, section in collection.sections.items():
                if part in before.sections:
                    found[section.name] = before.sections[part]
    return found


def _hashes(file: _File, collection: CollectionLayout) -> NDArray[np.uint64] | None:
    """Of the keys, by row; None where two keys have one."""
    ids = collection.sections["ids"]
    arrays = place_arrays(ids_sizes(ids.count)).offsets
    hashes = np.frombuffer(file.read(ids.offset + arrays["hash"], 8 * ids.count), "<u8")
    rows = np.frombuffer(file.read(ids.offset + arrays["row"], 4 * ids.count), "<u4")
    entries = np.append(True, rows[1:] != rows[:-1]) & (rows != EMPTY)
    rows, hashes = rows[entries], hashes[entries]
    if len(rows) != collection.n or (hashes[1:] == hashes[:-1]).any():
        return None
    found = np.empty(collection.n, np.uint64)
    found[rows] = hashes
    return found


def _rows(file: _File, collection: CollectionLayout) -> NDArray[Any]:
    section = collection.sections["rows"]
    return np.frombuffer(file.read(section.offset, section.length), ROW)


def _matched(base: NDArray[np.uint64], new: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each new row the row of the base that has its key; -1 for none."""
    if not len(base):
        return np.full(len(new), -1, np.int64)
    order = np.argsort(base, kind="stable")
    at = np.minimum(np.searchsorted(base, new, sorter=order), len(base) - 1)
    return np.where(base[order[at]] == new, order[at], -1)


def _of_collection(one: _File, before: CollectionLayout, other: _File, after: CollectionLayout) -> dict[str, list[Any]]:
    """Section -> operation, of those that are made row by row."""
    old_hashes, new_hashes = _hashes(one, before), _hashes(other, after)
    if old_hashes is None or new_hashes is None or not after.n:
        return {}
    match = _matched(old_hashes, new_hashes)
    there = match >= 0
    old_rows, new_rows = _rows(one, before), _rows(other, after)
    lengths = new_rows["length"].astype(np.int64)
    twin = old_rows[np.maximum(match, 0)] if before.n else new_rows
    alike = there & (twin["length"] == new_rows["length"])
    alike &= (twin["checksum"] ^ twin["shape"]) == (new_rows["checksum"] ^ new_rows["shape"])
    sections = after.sections
    found = {
        sections["records"].name: _copied(
            other, sections["records"], np.where(alike, twin["offset"].astype(np.int64), -1), lengths
        )
    }
    if (new_rows["offset"] == sections["records"].offset + np.cumsum(lengths) - lengths).all():
        same = there & (twin[_FIELDS] == new_rows[_FIELDS])
        runs = _runs(np.where(same, match, -1), np.ones(after.n, np.int64))
        literal = np.ascontiguousarray(new_rows[~same][_FIELDS].astype(_ENTRY)).tobytes()
        base = before.sections["rows"]
        found[sections["rows"].name] = ["rows", base.offset, base.count, _packed(runs), literal]
    runs = _runs(match, np.ones(after.n, np.int64))
    ids = ["ids", before.sections["ids"].offset, before.sections["ids"].count, before.n, _packed(runs)]
    ids.append(new_hashes[~there].tobytes())
    if _table_of(new_hashes) == other.read(sections["ids"].offset, sections["ids"].length):
        found[sections["ids"].name] = ids
    for name, embedding in after.embeddings.items():
        for part, unit in ((f"embeddings.{name}", 4 * embedding.dim), (f"norms.{name}", 4)):
            if part in sections and part in before.sections and before.sections[part].length == unit * before.n:
                old, now = before.sections[part], sections[part]
                places = _equal_units(one, old, other, now, match=match, unit=unit)
                found[sections[part].name] = _copied(other, sections[part], places, np.full(after.n, unit, np.int64))
    return found


def _equal_units(
    one: _File, base: Section, other: _File, new: Section, *, match: NDArray[np.int64], unit: int
) -> NDArray[np.int64]:
    """Where in the base each unit of a section is; -1 where it is another."""
    places = np.full(len(match), -1, np.int64)
    kind = np.dtype((np.void, unit))
    for begin in range(0, len(match), _ROWS_AT_ONCE):
        rows = match[begin : begin + _ROWS_AT_ONCE]
        news = np.frombuffer(other.read(new.offset + begin * unit, len(rows) * unit), kind)
        known = np.flatnonzero(rows >= 0)
        if not len(known):
            continue
        low, high = int(rows[known].min()), int(rows[known].max()) + 1
        olds = np.frombuffer(one.read(base.offset + low * unit, (high - low) * unit), kind)
        equal = known[olds[rows[known] - low] == news[known]]
        places[begin + equal] = base.offset + rows[equal] * unit
    return places


def _copied(other: _File, section: Section, places: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[Any]:
    """["copy", runs, new bytes]."""
    runs, literal, at = _runs(places, sizes), [], section.offset
    for begin, length in runs:
        if begin < 0:
            literal.append(other.read(at, length))
        at += length
    return ["copy", _packed(runs), b"".join(literal)]


def _blocks(one: _File, base: Section | None, other: _File, section: Section) -> list[Any]:
    """A section in blocks of 64 bytes, those copied that are the same at the same place of its twin."""
    new = other.read(section.offset, section.length)
    old = b"" if base is None else one.read(base.offset, min(base.length, section.length))
    whole = min(len(old), len(new)) // _BLOCK
    kind = np.dtype((np.void, _BLOCK))
    equal = np.frombuffer(old, kind, whole) == np.frombuffer(new, kind, whole) if whole else np.zeros(0, np.bool_)
    begin = 0 if base is None else base.offset
    places = np.where(equal, begin + np.arange(whole, dtype=np.int64) * _BLOCK, -1)
    sizes = np.full(whole, _BLOCK, np.int64)
    if rest := len(new) - whole * _BLOCK:
        places, sizes = np.append(places, -1), np.append(sizes, rest)
    return _copied(other, section, places, sizes)


def _table_of(hashes: NDArray[np.uint64]) -> bytes:
    """The section `ids` of keys whose hashes, all different, these are by row."""
    slots = build_slots(hashes, np.argsort(hashes, kind="stable").astype(np.uint32))
    before = array_headers(ids_sizes(len(slots.hash)))
    arrays = {"hash": slots.hash.astype("<u8").tobytes(), "row": slots.ordinal.astype("<u4").tobytes()}
    return b"".join(before[name] + array for name, array in arrays.items())


# --- applying ---------------------------------------------------------------------------------------------------------


class Base(Protocol):
    """What a delta is applied to: `fs.ReadFile`."""

    @property
    def size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...


def apply(
    data: bytes, base: Base, sections: Mapping[str, Section], target: Target, digests: tuple[bytes, bytes]
) -> None:
    """Write what a delta gives into a file of these sections. digests: of the contents of base and target.

    What it writes need not be right. Raises CorruptFileError for what is no delta between these files; then anything
    may have been written between the table and the last section.
    """
    most = 2 * sum(section.length for section in sections.values()) + 2**20
    try:
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(data, most)
        if not unpacker.eof:
            raise ValueError("it is too long, or cut")
        form, before, after, operations = msgpack.unpackb(plain, strict_map_key=False)
        if (form, before, after) != (FORMAT, *digests):
            raise ValueError("it is of other files")
        wanted = [section for section in sections.values() if section.name != CHUNKS_NAME]
        records = {s.name.partition("/")[0]: s for s in wanted if s.name.endswith("/records")}
        for section, operation in zip(wanted, operations, strict=True):
            _perform(operation, base, section, records.get(section.name.partition("/")[0]), target)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, zlib.error, msgpack.UnpackException) as error:
        raise CorruptFileError(f"it is no delta between these files ({type(error).__name__}: {error})") from None


def _read(base: Base, offset: int, length: int) -> bytes:
    """Raises ValueError for what is not there."""
    if not 0 <= offset <= offset + length <= base.size:
        raise ValueError("it copies what the base has not")
    return base.read(offset, length)


def _perform(operation: Sequence[Any], base: Base, section: Section, records: Section | None, target: Target) -> None:
    kind, *rest = operation
    if kind == "copy":
        pieces = _pieces(base, *rest)
    elif kind == "rows" and records is not None:
        pieces = iter([_rows_made(base, records.offset, *rest)])
    elif kind == "ids":
        pieces = iter([_ids_made(base, *rest)])
    else:
        raise ValueError(f"operation {kind!r:.20} is not known")
    at, pending = section.offset, bytearray()
    for piece in pieces:
        pending += piece
        if at + len(pending) > section.end:
            raise ValueError(f"section {section.name!r} is longer than it should be")
        if len(pending) >= _PIECE:
            target.write(at, bytes(pending))
            at += len(pending)
            pending.clear()
    target.write(at, bytes(pending))
    if at + len(pending) != section.end:
        raise ValueError(f"section {section.name!r} is shorter than it should be")


def _pieces(base: Base, runs: bytes, literal: bytes) -> Iterator[bytes]:
    used = 0
    for begin, length in _unpacked(runs):
        if begin < 0:
            yield literal[used : used + length]
            used += length
            continue
        for at in range(begin, begin + length, _PIECE):
            yield _read(base, at, min(_PIECE, begin + length - at))


def _by_runs(
    runs: bytes, base: NDArray[Any], literal: NDArray[Any], checked: Callable[[int, int], object]
) -> NDArray[Any]:
    parts, used = [], 0
    for begin, length in _unpacked(runs):
        if begin < 0:
            parts.append(literal[used : used + length])
            used += length
        else:
            checked(begin, length)
            parts.append(base[begin : begin + length])
    return np.concatenate(parts) if parts else base[:0]


def _within(count: int) -> Callable[[int, int], None]:
    def check(begin: int, length: int) -> None:
        if begin + length > count:
            raise ValueError("it copies rows that the base has not")

    return check


def _rows_made(base: Base, records: int, offset: int, count: int, *more: bytes) -> bytes:
    """records: where the section of them begins. more: runs, and new entries."""
    runs, literal = more
    old = np.frombuffer(_read(base, offset, ROW.itemsize * count), ROW)
    entries = np.ascontiguousarray(old[_FIELDS].astype(_ENTRY))
    made = _by_runs(runs, entries, np.frombuffer(literal, _ENTRY), _within(count))
    lengths = made["length"].astype(np.uint64)
    rows = np.empty(len(made), ROW)
    for name in _FIELDS:
        rows[name] = made[name]
    rows["offset"] = np.uint64(records) + np.cumsum(lengths) - lengths
    return rows.tobytes()


def _ids_made(base: Base, offset: int, slots: int, n: int, *more: bytes) -> bytes:
    """n: rows of the base. more: runs, and the hashes of new keys."""
    runs, literal = more
    if not 0 <= n <= slots:
        raise ValueError(f"{n} rows in {slots} slots")
    arrays = place_arrays(ids_sizes(slots)).offsets
    hashes = np.frombuffer(_read(base, offset + arrays["hash"], 8 * slots), "<u8")
    rows = np.frombuffer(_read(base, offset + arrays["row"], 4 * slots), "<u4")
    used = rows < n
    by_row = np.zeros(n, np.uint64)
    by_row[rows[used]] = hashes[used]
    return _table_of(_by_runs(runs, by_row, np.frombuffer(literal, "<u8"), _within(n)))
