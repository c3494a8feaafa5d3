"""Index sections: the terms of one field, and for each the ascending rows that carry it.

A framed msgpack map (see `frame`) of five arrays:

    hash u64[slots], term u32[slots]   the gapped table over xxh3_64 of the encoded terms (see `slots`)
    entries                            32 bytes a term: where its bytes and its rows are
    terms                              the terms, each one msgpack object, end to end, as they ascend
    rows                               posting lists: u32 rows, or a bitmap

Terms ascend as null, numbers, text, and their ordinals are their places in that order. So a range is a run of ordinals.

A posting list is a RANGE (its rows are first..first+count-1, nothing is stored), a BITMAP (bit i & 7 of byte
i >> 3; chosen when more than one row in 32 has the term, where it is the smaller) or a LIST of u32 rows.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack
from msgpack import UnpackException, unpackb
from xxhash import xxh3_64_intdigest

from ..arrays import np
from ..errors import CorruptFileError
from ..native import core
from ..query import Term, canonical, order_key
from .frame import place_arrays
from .layout import INDEX_ENTRY_SIZE, IndexLayout, bitmap_size
from .slots import build_slots, find_ordinal, in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .terms import PackedTerms


LIST: Final = 0
BITMAP: Final = 1
RANGE: Final = 2

REMEMBERED: Final = 256
"""Terms of a field whose posting lists a reader keeps at hand: a view of the file each."""
PIVOTS: Final = 10
"""Steps of a bisection whose terms are kept at hand: 2^10 terms of a field at most."""
TOGETHER: Final = 64
"""Terms from which on a bisection reads all that are left at once."""
_TOGETHER_BYTES: Final = 8192
"""Of such terms; longer ones are read one by one."""
_HEADERS: Final = [b"\xdc" + size.to_bytes(2, "big") for size in range(TOGETHER + 1)]
"""With which msgpack has an array of so many objects."""

_TERMS: Final = 65_536
"""Terms of which the rows are placed together: some 100 bytes of memory each."""
_FEW_BYTES: Final = 4096
"""Of a bitmap that is unpacked whole."""

_unpack_entry = struct.Struct("<QQIII4x").unpack_from


@cache
def entry_type() -> np.dtype[Any]:
    """Of an entry, as arrays have it."""
    names, formats = ("term_at", "rows_at", "count", "term_length", "kind", "zero"), ("<u8", "<u8", *["<u4"] * 4)
    found = np.dtype(list(zip(names, formats, strict=True)))
    assert found.itemsize == INDEX_ENTRY_SIZE
    return found


class Entry(NamedTuple):
    """Where a term and its rows are, from the start of their arrays; of a RANGE, rows_at is the first row."""

    term_at: int
    rows_at: int
    size: int
    term_length: int
    kind: int


def encode_term(term: Term) -> bytes:
    """One msgpack object, in its shortest form; of equal terms the same: 1 for True and 1.0. That of text which is not
    valid Unicode is in no file."""
    return msgpack.packb(canonical(term), unicode_errors="surrogatepass")  # type: ignore[no-any-return]


class EncodedIndex(NamedTuple):
    """An index section, ready to be written: the layout for `meta`, and the bytes of the arrays by name."""

    layout: IndexLayout
    arrays: dict[str, bytes | bytearray | NDArray[Any]]


def encode_index(terms: PackedTerms, codes: NDArray[np.uint32], rows: NDArray[np.uint32], n: int) -> EncodedIndex:
    """The index of one field: rows[i] carries the term of ordinal codes[i]; rows ascend; n rows in the collection.

    O(p log p) for p postings.
    """
    from .terms import term_order  # which only a build needs

    ascending = term_order(terms)  # first, as it takes most besides
    if (ascending[1:] < ascending[:-1]).any():
        places = np.empty(len(ascending), np.uint32)
        places[ascending] = np.arange(len(ascending), dtype=np.uint32)
        terms, codes = terms.taken(ascending), places[codes]
        del places
    del ascending
    entries = np.zeros(len(terms.lengths), entry_type())
    entries["term_at"] = terms.begins()
    entries["term_length"] = terms.lengths
    entries["count"] = np.bincount(codes, minlength=len(entries))
    payload = _place_rows(entries, codes, rows, n)
    data = memoryview(terms.data)

    def raw(term: int) -> bytes:
        at = int(entries["term_at"][term])
        return bytes(data[at : at + int(terms.lengths[term])])

    slots = build_slots(terms.hashes, in_order(terms.hashes, raw))
    layout = IndexLayout(len(slots.hash), slots.bits, len(entries), len(terms.data), len(payload))
    arrays: dict[str, bytes | bytearray | NDArray[Any]] = {
        "hash": slots.hash,
        "term": slots.ordinal,
        "entries": entries,
        "terms": terms.data,
        "rows": payload,
    }
    return EncodedIndex(layout, arrays)


def _place_rows(entries: NDArray[Any], codes: NDArray[np.uint32], rows: NDArray[np.uint32], n: int) -> bytes:
    """The array of rows; its places, and the kinds of the lists, are noted in the entries."""
    if not (codes[1:] >= codes[:-1]).all():
        rows = rows[np.argsort(codes, kind="stable")]
    lists, bitmaps, whose = [], [], []
    begin = size = 0
    for low in range(0, len(entries), _TERMS):
        some = entries[low : low + _TERMS]
        counts = some["count"].astype(np.int64)
        ends = begin + np.cumsum(counts)
        begins = ends - counts
        first = rows[begins].astype(np.int64)
        is_range = rows[ends - 1] - first + 1 == counts
        is_bitmap = ~is_range & (counts > n // 32)
        is_list = ~is_range & ~is_bitmap
        some["kind"] = np.where(is_range, RANGE, np.where(is_bitmap, BITMAP, LIST))
        sizes = np.where(is_list, 4 * counts, 0)
        some["rows_at"] = np.where(is_range, first, size + np.cumsum(sizes) - sizes)  # a RANGE has its first row there
        lists.append(rows[begin : ends[-1]][np.repeat(is_list, counts)].astype("<u4").tobytes())
        for t in np.flatnonzero(is_bitmap).tolist():
            whose.append(low + t)
            bitmaps.append(_bitmap(rows[begins[t] : ends[t]], n))
        begin, size = int(ends[-1]), size + int(sizes.sum())
    # Bitmaps first, so that every list is 4-byte aligned and every bitmap 8-byte aligned.
    rows_at = entries["rows_at"]
    rows_at[entries["kind"] == LIST] += np.uint64(len(bitmaps) * bitmap_size(n))
    rows_at[whose] = np.arange(len(bitmaps)) * bitmap_size(n)
    return b"".join([*bitmaps, *lists])


def _bitmap(rows: NDArray[np.uint32], n: int) -> bytes:
    bits = np.zeros(8 * bitmap_size(n), np.uint8)
    bits[rows] = 1
    return np.packbits(bits, bitorder="little").tobytes()


class Postings(NamedTuple):
    """The rows of one term, `size` of them, in the form in which they are stored.

    raw: the bytes of u32 rows or of a bitmap, or an array of these; None for a RANGE, which begins at `first_row`.
    """

    kind: int
    size: int
    first_row: int
    raw: Any

    @property
    def data(self) -> NDArray[Any]:
        """The rows of a LIST, the bytes of a BITMAP; a view."""
        raw = self.raw
        return raw if type(raw) is np.ndarray else np.frombuffer(raw, "<u4" if self.kind == LIST else np.uint8)

    def packed(self, n: int) -> Any:
        """`rows`, or where the compiled core runs, the same as bytes: without numpy."""
        if core is None or self.kind == RANGE:
            return self.rows(n)
        return core.rows(self.raw, n) if self.kind == BITMAP else self.raw

    def rows(self, n: int) -> NDArray[np.uint32]:
        """Ascending rows, checked to be below n. A LIST is a view of the file. O(count), of a BITMAP O(n)."""
        if self.kind == RANGE:
            return np.arange(self.first_row, self.first_row + self.size, dtype=np.uint32)
        if self.kind == BITMAP:
            return rows_of_bitmap(self.data, n)
        return self.data

    def first(self, count: int, n: int) -> list[int]:
        """The first rows, as many as are asked for. O(count), of a BITMAP as far as they are in it."""
        if self.kind == RANGE:
            return list(range(self.first_row, self.first_row + min(count, self.size)))
        if self.kind == LIST:
            return self.data[:count].tolist()  # type: ignore[no-any-return]
        size = _FEW_BYTES
        wanted = min(count, self.size)
        while (rows := rows_of_bitmap(self.data[:size], min(n, 8 * size))).size < wanted and size < len(self.data):
            size *= 8
        return rows[:count].tolist()  # type: ignore[no-any-return]

    def mask(self, rows: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which of these rows carry the term. O(len(rows)), of a LIST O(len(rows) log count)."""
        if self.kind == RANGE:
            return (rows >= self.first_row) & (rows < self.first_row + self.size)
        if self.kind == BITMAP:
            byte: NDArray[np.uint8] = self.data[rows >> np.uint32(3)]
            return np.asarray(byte >> (rows & np.uint32(7)).astype(np.uint8) & 1, np.bool_)
        at = np.searchsorted(self.data, rows)
        return np.asarray(self.data.take(at, mode="clip") == rows, np.bool_)


def rows_of_bitmap(bitmap: NDArray[np.uint8], n: int) -> NDArray[np.uint32]:
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

    Terms that do not ascend, in a file that no writer made, give wrong ranges; `terms` finds them.

    single: whether each row has one term, once that was found out. ends: descending or not -> what `ordering` remembers
    of the first rows, and the ordinals of their terms. compiled: the same index for the compiled core; None in pure
    Python.
    """

    __slots__ = (
        "_entries",
        "_hash",
        "_known",
        "_layout",
        "_n",
        "_pivots",
        "_rows",
        "_term",
        "_terms",
        "compiled",
        "ends",
        "single",
    )

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
        self.compiled: Any = None if core is None else _compiled(buffer, layout, n, offsets)
        self._known: dict[Term, Postings | None] = {}
        self._pivots: dict[int, tuple[int, Any]] = {}
        self.single: bool | None = None
        self.ends: dict[bool, tuple[NDArray[np.uint32], NDArray[np.int64]]] = {}

    @property
    def n(self) -> int:
        """Rows of the collection."""
        return self._n

    @property
    def size(self) -> int:
        """Terms."""
        return self._layout.terms

    @property
    def entries(self) -> NDArray[Any]:
        """Of each term, by its ordinal; see `entry_type`. A view of the file."""
        return np.frombuffer(self._entries, entry_type())

    @property
    def lists(self) -> memoryview:
        """The array in which LISTs and BITMAPs are."""
        return self._rows

    @property
    def term_bytes(self) -> memoryview:
        """The array of terms."""
        return self._terms

    def first_not_before(self, key: tuple[int, Any], *, after: bool = False, begin: int = 0) -> int:
        """The first term, from `begin` on, whose `order_key` is not less than this; after: nor equal.

        Reads log(terms) terms, and remembers those of the first steps.
        """
        pivots = self._pivots
        low, high = 0, self._layout.terms
        remembered = max(high >> PIVOTS, TOGETHER)
        while high - low > TOGETHER:
            middle = (low + high) >> 1
            if middle >= begin:
                found = pivots.get(middle)
                if found is None:
                    found = order_key(self.term(middle))
                    if high - low > remembered:
                        pivots[middle] = found
                if found > key if after else found >= key:
                    high = middle
                    continue
            low = middle + 1
        search = bisect_right if after else bisect_left
        if low < high and key[0]:
            try:  # terms of one kind compare as they are; of two kinds they do not
                return max(begin, low + search(unpackb(_HEADERS[high - low] + self._together(low, high)), key[1]))
            except (ValueError, TypeError, UnpackException):
                pass
        return max(begin, low + search([order_key(self.term(code)) for code in range(low, high)], key))

    def _together(self, begin: int, end: int) -> bytes:
        """The bytes of the terms from one ordinal to another; cut off where they are more than is read at once."""
        at = _unpack_entry(self._entries, INDEX_ENTRY_SIZE * begin)[0]
        last, _, _, length, _ = _unpack_entry(self._entries, INDEX_ENTRY_SIZE * (end - 1))
        return bytes(self._terms[at : min(last + length, at + _TOGETHER_BYTES)])

    def first_rows(self, codes: range, count: int) -> tuple[list[int], list[int]]:
        """The first so many rows, each once, of the terms of these ordinals, and the ordinal of each one's term.

        Term by term: for a few rows that is less than numpy needs to begin.
        """
        found: dict[int, int] = {}
        for code in codes:
            if len(found) >= count:
                break
            for row in self._first_rows(code, count + len(found)):
                found.setdefault(row, code)
        return [*found][:count], [*found.values()][:count]

    def _first_rows(self, code: int, count: int) -> Sequence[int]:
        _, at, size, _, kind = _unpack_entry(self._entries, INDEX_ENTRY_SIZE * code)
        if kind == RANGE and size == 1 and at < self._n:
            return (at,)
        return self.postings(code).first(count, self._n)

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
        hashed = xxh3_64_intdigest(raw)
        try:
            code = find_ordinal(self._hash, self._term, self._layout.bits, hashed, raw=raw, key=self._raw_term)
        except IndexError:
            raise corrupt("a slot or term lies outside of its array") from None
        return None if code is None else self.postings(code)

    def terms(self) -> Iterator[tuple[Term, int]]:
        """Every term and how many records carry it, checked to ascend. O(terms)."""
        self._check_terms()
        before: tuple[int, Any] = -1, None
        for code, size in enumerate(self.entries["count"].tolist()):
            term = self.term(code)
            if (key := order_key(term)) <= before:
                raise corrupt(f"the terms do not ascend: {term!r:.80}")
            before = key
            yield term, size

    def _check_terms(self) -> None:
        """All terms together must not be more than their array, or reading all takes memory without a bound."""
        lengths = self.entries["term_length"].astype(np.uint64)
        if not np.array_equal(self.entries["term_at"], np.cumsum(lengths) - lengths):
            raise corrupt("the terms do not stand end to end")

    def term(self, code: int) -> Term:
        """The term of an ordinal."""
        raw = self._raw_term(code)
        try:
            term = unpackb(raw)
        except (ValueError, UnpackException) as error:
            raise corrupt(f"term {code} does not decode ({error})") from None
        kind = type(term)
        # Of floats only those that are no other term; so no NaN, either.
        if kind is int or kind is str or term is None or (kind is float and type(canonical(term)) is float):
            return term  # type: ignore[no-any-return]
        raise corrupt(f"term {code} is {term!r:.80}, which is none")

    def postings(self, code: int) -> Postings:
        """The posting list of a code."""
        return self._postings(code, self._entry(code))

    def _raw_term(self, code: int) -> bytes:
        if code >= self._layout.terms:
            raise corrupt(f"term {code} of {self._layout.terms}")
        at, _, _, length, _ = _unpack_entry(self._entries, INDEX_ENTRY_SIZE * code)
        raw = bytes(self._terms[at : at + length])
        if len(raw) != length:
            raise corrupt("a term lies outside of its array")
        return raw

    def _entry(self, code: int) -> Entry:
        if code >= self._layout.terms:
            raise corrupt(f"term {code} of {self._layout.terms}")
        return Entry._make(_unpack_entry(self._entries, INDEX_ENTRY_SIZE * code))

    def _postings(self, code: int, entry: Entry) -> Postings:
        """The posting list of a term, every number in it checked against what it is used for."""
        at, count, kind = entry.rows_at, entry.size, entry.kind
        if not 1 <= count <= self._n:
            raise corrupt(f"term {code} has {count} of {self._n} rows")
        if kind == RANGE:
            if at > self._n - count:
                raise corrupt(f"term {code} has rows {at}..{at + count - 1} of {self._n}")
            return Postings(kind, count, at, None)
        size = {LIST: 4 * count, BITMAP: bitmap_size(self._n)}.get(kind)
        if size is None or size > len(self._rows) or at > len(self._rows) - size or at % 4:
            raise corrupt(f"the rows of term {code} lie outside of their array")
        raw = self._rows[at : at + size]
        if kind == BITMAP:
            bits = np.frombuffer(raw, np.uint8)
            if int(np.bitwise_count(bits.view(np.uint64)).sum()) != count:
                raise corrupt(f"term {code} has {count} rows, but not as many bits")
            return Postings(kind, count, 0, bits)
        rows = np.frombuffer(raw, "<u4")
        if rows[-1] >= self._n or not (rows[1:] > rows[:-1]).all():
            raise corrupt(f"the rows of term {code} do not ascend within 0..{self._n - 1}")
        return Postings(kind, count, 0, rows)


def _compiled(section: memoryview, layout: IndexLayout, n: int, offsets: Mapping[str, int]) -> Any:
    """What the compiled core reads of an index."""
    return core.Index(
        section=section,
        n=n,
        slots=layout.slots,
        bits=layout.bits,
        terms=layout.terms,
        terms_size=layout.terms_size,
        rows_size=layout.rows_size,
        places=tuple([offsets[name] for name in ("hash", "term", "entries", "terms", "rows")]),
    )


def corrupt(reason: str) -> CorruptFileError:
    return CorruptFileError(f"section 'index': {reason}", section="index")


def distinct(values: NDArray[Any]) -> NDArray[Any]:
    """The values in ascending order, each once; the array itself is sorted.

    Not `np.unique`, which imports `numpy.ma` when it is called first: two threads that do so at once may recurse."""
    values.sort()
    keep = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=keep[1:])
    return values[keep]
