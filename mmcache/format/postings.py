"""Index sections: the terms of one field, and for each the ascending rows that carry it.

A framed msgpack map (see `frame`) of five arrays:

    hash u64[slots], term u32[slots]   the gapped table over xxh3_64 of the encoded terms
    entries                            32 bytes a term: where its bytes and its rows are
    terms                              the terms, each one msgpack object, end to end
    rows                               posting lists: u32 rows, or a bitmap

A posting list is a RANGE (its rows are first..first+count-1, nothing is stored), a BITMAP (bit i & 7 of byte
i >> 3; chosen when more than one row in 32 has the term, where it is the smaller) or a LIST of u32 rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
import numpy as np
from xxhash import xxh3_64_intdigest

from ..errors import CorruptFileError
from .frame import place_arrays
from .layout import INDEX_ENTRY_SIZE, IndexLayout, bitmap_size
from .slots import EMPTY, seeded_slots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..schema import Query, Term

LIST: Final = 0
BITMAP: Final = 1
RANGE: Final = 2

REMEMBERED: Final = 256
"""Terms of a field whose posting lists a reader keeps at hand: a view of the file each."""

ENTRY: Final = np.dtype(
    [
        ("term_at", "<u8"),
        ("rows_at", "<u8"),
        ("count", "<u4"),
        ("term_length", "<u4"),
        ("kind", "<u4"),
        ("zero", "<u4"),
    ]
)
_FEW_BYTES: Final = 4096
"""Of a bitmap that is unpacked whole."""

_unpack_entry = struct.Struct("<QQIII4x").unpack_from
assert ENTRY.itemsize == INDEX_ENTRY_SIZE


class Entry(NamedTuple):
    """Where a term and its rows are, from the start of their arrays; of a RANGE, rows_at is the first row."""

    term_at: int
    rows_at: int
    size: int
    term_length: int
    kind: int


def encode_term(term: Term) -> bytes:
    """One msgpack object; True and False are 1 and 0, since they are equal."""
    return msgpack.packb(int(term) if isinstance(term, bool) else term)  # type: ignore[no-any-return]


class EncodedIndex(NamedTuple):
    """An index section, ready to be written: its layout for `meta`, and the bytes of its arrays by name."""

    layout: IndexLayout
    arrays: dict[str, bytes | NDArray[Any]]


def encode_index(terms: list[bytes], codes: NDArray[np.uint32], rows: NDArray[np.uint32], n: int) -> EncodedIndex:
    """The index of one field: rows[i] carries terms[codes[i]]; rows ascend; n rows in the collection.

    O(p log p) for p postings.
    """
    order = np.argsort(codes, kind="stable")
    rows = rows[order]
    counts = np.bincount(codes, minlength=len(terms)).astype(np.int64)
    ends = np.cumsum(counts)
    begins = ends - counts
    first, last = rows[begins].astype(np.int64), rows[ends - 1].astype(np.int64)
    kinds = np.where(last - first + 1 == counts, RANGE, np.where(counts > n // 32, BITMAP, LIST))
    stored = np.where(kinds == LIST, 4 * counts, np.where(kinds == BITMAP, bitmap_size(n), 0))

    # Bitmaps first, so that every list is 4-byte aligned and every bitmap 8-byte aligned.
    by_kind = np.argsort(kinds != BITMAP, kind="stable")
    rows_at = np.empty(len(terms), np.int64)
    rows_at[by_kind] = np.cumsum(stored[by_kind]) - stored[by_kind]
    payload = [_bitmap(rows[begins[t] : ends[t]], n) for t in np.flatnonzero(kinds == BITMAP)]
    payload.append(rows[np.repeat(kinds == LIST, counts)].astype("<u4").tobytes())

    lengths = np.fromiter(map(len, terms), np.int64, len(terms))
    entries = np.zeros(len(terms), ENTRY)
    entries["term_at"] = np.cumsum(lengths) - lengths
    entries["rows_at"] = np.where(kinds == RANGE, first, rows_at)
    entries["count"] = counts
    entries["term_length"] = lengths
    entries["kind"] = kinds
    slots, seed = seeded_slots(lambda seed: [xxh3_64_intdigest(term, seed) for term in terms])
    names, rows_bytes = b"".join(terms), b"".join(payload)
    layout = IndexLayout(len(slots.hash), slots.bits, slots.max_probe, seed, len(terms), len(names), len(rows_bytes))
    arrays: dict[str, bytes | NDArray[Any]] = {
        "hash": slots.hash,
        "term": slots.ordinal,
        "entries": entries,
        "terms": names,
        "rows": rows_bytes,
    }
    return EncodedIndex(layout, arrays)


def _bitmap(rows: NDArray[np.uint32], n: int) -> bytes:
    bits = np.zeros(8 * bitmap_size(n), np.uint8)
    bits[rows] = 1
    return np.packbits(bits, bitorder="little").tobytes()


class Postings(NamedTuple):
    """The rows of one term, `size` of them, in the form in which they are stored.

    data: u32 rows, bitmap bytes, or nothing for a RANGE, which begins at `first`.
    """

    kind: int
    size: int
    first: int
    data: NDArray[Any] | None

    def rows(self, n: int) -> NDArray[np.uint32]:
        """Ascending rows, checked to be below n. A LIST is a view of the file. O(count), of a BITMAP O(n)."""
        if self.kind == RANGE:
            return np.arange(self.first, self.first + self.size, dtype=np.uint32)
        assert self.data is not None
        if self.kind == BITMAP:
            return _rows_of_bitmap(self.data, n)
        return self.data

    def mask(self, rows: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of these rows carry the term. O(len(rows)), of a LIST O(len(rows) log count)."""
        if self.kind == RANGE:
            return (rows >= self.first) & (rows < self.first + self.size)
        assert self.data is not None
        if self.kind == BITMAP:
            byte: NDArray[np.uint8] = self.data[rows >> np.uint32(3)]
            return np.asarray(byte >> (rows & np.uint32(7)).astype(np.uint8) & 1, np.bool_)
        at = np.searchsorted(self.data, rows)
        at[at == len(self.data)] = 0
        return np.asarray(self.data[at] == rows, np.bool_)


def _rows_of_bitmap(bitmap: NDArray[np.uint8], n: int) -> NDArray[np.uint32]:
    if len(bitmap) <= _FEW_BYTES:
        return np.flatnonzero(np.unpackbits(bitmap, count=n, bitorder="little").view(np.bool_)).astype(np.uint32)
    # Bytes without a bit cost no more than a look.
    used = np.flatnonzero(bitmap != 0)
    bits = np.flatnonzero(np.unpackbits(bitmap[used], bitorder="little").view(np.bool_))
    rows: NDArray[np.uint32] = (used[bits >> 3] << 3 | bits & 7).astype(np.uint32)
    return rows if not len(rows) or rows[-1] < n else rows[rows < n]


class IndexReader:
    """One index section, read in place.

    `buffer` is the section's bytes, `n` the rows of its collection. Costs nothing that grows with the section
    to make; a look-up reads a slot or two, one entry, and the term itself, and checks the list. Some are remembered.
    """

    __slots__ = ("_entries", "_hash", "_known", "_layout", "_n", "_rows", "_term", "_terms")

    def __init__(self, buffer: memoryview, layout: IndexLayout, n: int) -> None:
        sizes = layout.sizes()
        offsets = place_arrays(sizes).offsets

        def array(name: str) -> memoryview:
            return buffer[offsets[name] : offsets[name] + sizes[name]]

        self._layout = layout
        self._n = n
        self._hash = array("hash").cast("Q")
        self._term = array("term").cast("I")
        self._entries = array("entries")
        self._terms = array("terms")
        self._rows = array("rows")
        self._known: dict[Term, Postings | None] = {}

    def lookup(self, term: Term) -> Postings | None:
        """The posting list of a term, or None if no record carries it."""
        try:
            return self._known[term]
        except KeyError:
            found = self._lookup(term)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[term] = found
            return found

    def _lookup(self, term: Term) -> Postings | None:
        raw = encode_term(term)
        hashed = xxh3_64_intdigest(raw, self._layout.seed)
        at = hashed >> 64 - self._layout.bits
        try:
            for slot in range(at, at + self._layout.max_probe + 2):
                found = self._hash[slot]
                if found > hashed:
                    return None
                if found == hashed:
                    code = self._term[slot]
                    if code == EMPTY:
                        return None
                    entry = self._entry(code)
                    if self._term_bytes(entry) == raw:
                        return self._postings(code, entry)
        except IndexError:
            raise _corrupt("a slot or term lies outside of its array") from None
        return None

    def terms(self) -> Iterator[tuple[Term, int]]:
        """Every term and how many records carry it, in the order of first appearance. O(terms)."""
        entries = np.frombuffer(self._entries, ENTRY)
        lengths = entries["term_length"].astype(np.uint64)
        if not np.array_equal(entries["term_at"], np.cumsum(lengths) - lengths):
            raise _corrupt("the terms do not stand end to end")
        for code in range(self._layout.terms):
            entry = self._entry(code)
            try:
                term = msgpack.unpackb(self._term_bytes(entry))
            except (ValueError, msgpack.UnpackException) as error:
                raise _corrupt(f"term {code} does not decode ({error})") from None
            if not (term is None or isinstance(term, (str, int))):
                raise _corrupt(f"term {code} is of type {type(term).__name__}")
            yield term, entry.size

    def _entry(self, code: int) -> Entry:
        if code >= self._layout.terms:
            raise _corrupt(f"term {code} of {self._layout.terms}")
        return Entry._make(_unpack_entry(self._entries, INDEX_ENTRY_SIZE * code))

    def _term_bytes(self, entry: Entry) -> bytes:
        raw = bytes(self._terms[entry.term_at : entry.term_at + entry.term_length])
        if len(raw) != entry.term_length:
            raise _corrupt("a term lies outside of its array")
        return raw

    def _postings(self, code: int, entry: Entry) -> Postings:
        """The posting list of a term, every number in it checked against what it is used for."""
        at, count, kind = entry.rows_at, entry.size, entry.kind
        if not 1 <= count <= self._n:
            raise _corrupt(f"term {code} has {count} of {self._n} rows")
        if kind == RANGE:
            if at > self._n - count:
                raise _corrupt(f"term {code} has rows {at}..{at + count - 1} of {self._n}")
            return Postings(kind, count, at, None)
        size = {LIST: 4 * count, BITMAP: bitmap_size(self._n)}.get(kind)
        if size is None or size > len(self._rows) or at > len(self._rows) - size or at % 4:
            raise _corrupt(f"the rows of term {code} lie outside of their array")
        raw = self._rows[at : at + size]
        if kind == BITMAP:
            return Postings(kind, count, 0, np.frombuffer(raw, np.uint8))
        rows = np.frombuffer(raw, "<u4")
        if rows[-1] >= self._n or not (rows[1:] > rows[:-1]).all():
            raise _corrupt(f"the rows of term {code} do not ascend within 0..{self._n - 1}")
        return Postings(kind, count, 0, rows)


def _corrupt(reason: str) -> CorruptFileError:
    return CorruptFileError(f"section 'index': {reason}", section="index")


def select(readers: dict[str, IndexReader], query: Query, n: int) -> NDArray[np.uint32]:
    """The ascending rows that answer a query: OR within a field, AND over fields, all n for an empty query.

    Starts from the rarest field and tests the others against what is left.
    """
    fields: list[tuple[int, list[Postings]]] = []
    for field, terms in query.items():
        found = [postings for term in terms if (postings := readers[field].lookup(term)) is not None]
        if not found:
            return np.empty(0, np.uint32)
        fields.append((sum(postings.size for postings in found), found))
    if not fields:
        return np.arange(n, dtype=np.uint32)
    fields.sort(key=lambda field: field[0])
    rows, rest = _start(fields, n)
    for alternatives in rest:
        if len(rows):
            keep = alternatives[0].mask(rows)
            for postings in alternatives[1:]:
                keep |= postings.mask(rows)
            rows = rows[keep]
    return rows


def distinct(values: NDArray[Any]) -> NDArray[Any]:
    """The values in ascending order, each once; the array itself is sorted.

    Not `np.unique`, which imports `numpy.ma` when it is called first: two threads that do so at once may recurse."""
    values.sort()
    keep = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]


def _start(fields: list[tuple[int, list[Postings]]], n: int) -> tuple[NDArray[np.uint32], list[list[Postings]]]:
    """The rows of the rarest field, and the fields that they have still to be tested against. Where the rarest is a
    bitmap, all fields that are bitmaps are ANDed word by word."""
    rarest, *rest = [found for _, found in fields]
    if len(rarest) > 1:
        return distinct(np.concatenate([postings.rows(n) for postings in rarest])), rest
    if rarest[0].kind != BITMAP:
        return rarest[0].rows(n), rest
    both = rarest[0].data
    assert both is not None
    left = []
    for found in rest:
        if len(found) == 1 and found[0].kind == BITMAP:
            assert found[0].data is not None
            both = both & found[0].data
        else:
            left.append(found)
    return _rows_of_bitmap(both, n), left
