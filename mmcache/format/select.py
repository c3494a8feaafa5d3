"""From a query to rows: the posting lists of its terms and ranges, united within a field and intersected over fields.

A range is a run of ordinals of terms, found by bisection; what its terms carry is gathered by numpy as a whole.
Each number that is read from the file is checked before it is used, and what is gathered is bounded by the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from ..arrays import np
from ..query import Alternative, Excluding, Interval, Prefix, Query, order_key
from .layout import bitmap_size
from .postings import BITMAP, LIST, RANGE, IndexReader, Postings, corrupt, distinct, rows_of_bitmap

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Found", "everything", "is_single", "select", "span_of", "union", "walk"]

_COMPLEMENT: Final = 3
_FEW: Final = 4
"""Terms of a range whose lists are taken one by one, as they are stored."""
_DENSE: Final = 64
"""Where more than one row in so many is gathered, a mask of all rows is cheaper than sorting."""
_WALKED: Final = 65_536
"""Rows that a walk gives at a time, unless one term has more."""
_NUMBER: Final = 1
_TEXT: Final = 2
"""What keys of the order of terms begin with."""
_FLOATS: Final = 0xCA, 0xCB
"""First bytes of terms that are no ints."""


class Complement(NamedTuple):
    """All rows but those of a posting list. Stands in for one."""

    kind: int
    size: int
    without: Postings

    def rows(self, n: int) -> NDArray[np.uint32]:
        keep = np.ones(n, np.bool_)
        keep[self.without.rows(n)] = False
        return np.flatnonzero(keep).astype(np.uint32)

    def mask(self, rows: NDArray[np.uint32]) -> NDArray[np.bool_]:
        return ~self.without.mask(rows)


Found = Postings | Complement
"""The rows of an answer in the form in which they are stored: `size` of them, unpacked by `rows(n)`."""


def everything(n: int) -> Postings:
    return Postings(RANGE, n, 0, None)


def _listed(rows: NDArray[np.uint32]) -> Postings:
    return Postings(LIST, len(rows), 0, rows)


def select(readers: dict[str, IndexReader], query: Query, n: int) -> Found:
    """The rows that answer a query: OR within a field, AND over fields, all n for an empty query.

    Starts from the rarest field and tests the others against what is left.
    """
    fields: list[tuple[int, list[Found]]] = []
    for field, wanted in query.items():
        found = _found(readers[field], wanted)
        if not found:
            return _listed(np.empty(0, np.uint32))
        fields.append((sum(postings.size for postings in found), found))
    if not fields:
        return everything(n)
    if len(fields) == 1 and len(fields[0][1]) == 1:
        return fields[0][1][0]
    fields.sort(key=lambda field: field[0])
    rows, rest = _start(fields, n)
    for alternatives in rest:
        if len(rows):
            keep = alternatives[0].mask(rows)
            for postings in alternatives[1:]:
                keep |= postings.mask(rows)
            rows = rows[keep]
    return _listed(rows)


def _start(fields: list[tuple[int, list[Found]]], n: int) -> tuple[NDArray[np.uint32], list[list[Found]]]:
    """The rows of the rarest field, and the fields that they have still to be tested against. Where the rarest is a
    bitmap, all fields that are bitmaps are ANDed word by word."""
    rarest, *rest = [found for _, found in fields]
    if len(rarest) > 1:
        return _united(rarest, n), rest
    if not _is_bitmap(rarest):
        return rarest[0].rows(n), rest
    both = _bits(rarest)
    left = []
    for found in rest:
        if _is_bitmap(found):
            both = both & _bits(found)
        else:
            left.append(found)
    return rows_of_bitmap(both, n), left


def _is_bitmap(found: list[Found]) -> bool:
    return len(found) == 1 and found[0].kind == BITMAP


def _bits(found: list[Found]) -> NDArray[np.uint8]:
    (postings,) = found
    assert isinstance(postings, Postings)
    return postings.data


def _united(found: list[Found], n: int) -> NDArray[np.uint32]:
    return distinct(np.concatenate([postings.rows(n) for postings in found]))


# --- the alternatives of one field ------------------------------------------------------------------------------------


def _found(reader: IndexReader, wanted: Iterable[Alternative]) -> list[Found]:
    """What carries each alternative that any record carries."""
    found: list[Found] = []
    for one in wanted:
        if isinstance(one, Excluding):
            found.append(_without(reader, one))
        elif isinstance(one, (Interval, Prefix, range)):
            begin, end = _span(reader, one)
            codes = _ints(reader, one, begin, end) if isinstance(one, range) else range(begin, end)
            if len(codes) <= _FEW:
                found += map(reader.postings, map(int, codes))
            else:
                found.append(_listed(union(reader, codes)))
        elif (postings := reader.lookup(one)) is not None:
            found.append(postings)
    return [postings for postings in found if postings.size]


def _without(reader: IndexReader, excluded: Excluding) -> Found:
    n = reader.n
    found = _found(reader, excluded.what)
    if not found:
        return everything(n)
    (one,) = found if len(found) == 1 else (_listed(_united(found, n)),)
    assert isinstance(one, Postings), "excluding() does not nest"
    if one.kind == BITMAP:
        bits = np.zeros(8 * bitmap_size(n), np.bool_)
        bits[:n] = True
        return Postings(BITMAP, n - one.size, 0, np.packbits(bits, bitorder="little") & ~one.data)
    return Complement(_COMPLEMENT, n - one.size, one)


def _span(reader: IndexReader, wanted: Interval | Prefix | range) -> tuple[int, int]:
    """The ordinals at which the terms of a range begin and end; of a `range`, those of its interval."""
    if isinstance(wanted, range):
        if not wanted:
            return 0, 0
        wanted = Interval(min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1]))
    if isinstance(wanted, Prefix):
        text = wanted.text
        begin, after = reader.first_not_before((_TEXT, text)), _successor(text)
        return begin, reader.size if after is None else reader.first_not_before((_TEXT, after), begin=begin)
    low, high = wanted.low, wanted.high
    if low is None:
        lowest = (_TEXT, "") if wanted.is_text else (_NUMBER, -math.inf)
        begin = reader.first_not_before(lowest)
    else:
        begin = reader.first_not_before(order_key(low), after=wanted.low_open)
    if high is not None:
        return begin, reader.first_not_before(order_key(high), after=not wanted.high_open, begin=begin)
    return begin, reader.size if wanted.is_text else reader.first_not_before((_TEXT, ""), begin=begin)


def _successor(prefix: str) -> str | None:
    """The least text that is greater than all with a prefix; None where every text that is not less has it."""
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if following == 0xD800 else following)


def span_of(reader: IndexReader, wanted: Alternative) -> tuple[int, int] | None:
    """The same for what is all of these terms; None where they are few, or only some of them."""
    if not isinstance(wanted, (Interval, Prefix)):
        return None
    begin, end = _span(reader, wanted)
    return (begin, end) if end - begin > _FEW else None


def _ints(reader: IndexReader, wanted: range, begin: int, end: int) -> NDArray[np.int64]:
    """Which of the terms in its interval, from one ordinal to another, are in a `range`."""
    if begin < end and abs(wanted.step) == 1:
        terms = np.frombuffer(reader.term_bytes, np.uint8)
        first_bytes = terms.take(reader.entries["term_at"][begin:end].astype(np.int64))
        return begin + np.flatnonzero(~np.isin(first_bytes, _FLOATS))
    kept = [code for code in range(begin, end) if type(term := reader.term(code)) is int and term in wanted]
    return np.array(kept, np.int64)


# --- many posting lists at once ---------------------------------------------------------------------------------------


_Codes: TypeAlias = "range | NDArray[np.int64]"
"""Ordinals of terms, all below their number: a run, or some."""


class _Lists(NamedTuple):
    """Entries of an index, checked; at: in the array of lists, of a RANGE the first row."""

    kinds: NDArray[np.uint32]
    counts: NDArray[np.int64]
    at: NDArray[np.int64]

    def part(self, chosen: Any) -> _Lists:
        return _Lists(self.kinds[chosen], self.counts[chosen], self.at[chosen])


def _lists(reader: IndexReader, codes: _Codes) -> _Lists:
    n, size, entries = reader.n, len(reader.lists), reader.entries
    # Without a copy of whole entries, which for a range would be as dear as all the rest.
    chosen = slice(codes.start, codes.stop) if isinstance(codes, range) else codes
    kinds, at = (np.ascontiguousarray(entries[name][chosen]) for name in ("kind", "rows_at"))
    counts = entries["count"][chosen].astype(np.int64)
    if len(codes) and not 1 <= int(counts.min()) <= int(counts.max()) <= n:
        raise corrupt(f"a term has more or less than 1..{n} rows")
    if (kinds == RANGE).all():
        if (at > np.uint64(n) - counts.view(np.uint64)).any():
            raise corrupt("the rows of a term lie outside of their array")
        return _Lists(kinds, counts, at.view(np.int64))
    stored = np.where(kinds == RANGE, counts, np.where(kinds == LIST, 4 * counts, bitmap_size(n))).astype(np.uint64)
    ends = np.where(kinds == RANGE, np.uint64(n), np.uint64(size))
    if (kinds > RANGE).any() or (stored > ends).any() or (at > ends - stored).any():
        raise corrupt("the rows of a term lie outside of their array")
    in_file = kinds != RANGE
    if (at[in_file] % np.uint64(4)).any() or int(stored[in_file].sum()) > size:
        raise corrupt("the rows of two terms lie in the same place")
    return _Lists(kinds, counts, at.astype(np.int64))


def union(reader: IndexReader, codes: _Codes) -> NDArray[np.uint32]:
    """The ascending rows that carry any of these terms. O(rows log rows), where they are many O(n)."""
    found, n = _lists(reader, codes), reader.n
    if int(found.counts.sum()) <= n // _DENSE and not (found.kinds == BITMAP).any():
        return distinct(_gathered(reader, found))
    mask = np.zeros(n, np.bool_)
    runs = found.part((found.kinds == RANGE) & (found.counts > 1))
    if len(runs.at):  # how many of them cover each row; they may overlap
        change = np.bincount(runs.at, minlength=n + 1) - np.bincount(runs.at + runs.counts, minlength=n + 1)
        mask |= np.cumsum(change[:n]) > 0
    mask[_gathered(reader, found.part((found.kinds == LIST) | ((found.kinds == RANGE) & (found.counts == 1))))] = True
    for at in found.at[found.kinds == BITMAP].tolist():
        bits = np.frombuffer(reader.lists, np.uint8, bitmap_size(n), at)
        mask |= np.unpackbits(bits, count=n, bitorder="little").view(np.bool_)
    return np.flatnonzero(mask).astype(np.uint32)


def _gathered(reader: IndexReader, found: _Lists) -> NDArray[np.uint32]:
    """The rows of LISTs and RANGEs, end to end."""
    is_list, counts = found.kinds == LIST, found.counts
    if len(counts) == int(counts.sum()) and not is_list.any():
        return found.at.astype(np.uint32)
    begins = np.where(is_list, found.at >> 2, found.at)
    if len(counts) == int(counts.sum()):
        index, of_list = begins, is_list
    else:
        ends = np.cumsum(counts)
        index = np.repeat(begins - (ends - counts), counts) + np.arange(int(ends[-1]) if len(ends) else 0)
        of_list = np.repeat(is_list, counts)
    rows = index.astype(np.uint32)
    if of_list.any():
        lists = np.frombuffer(reader.lists, "<u4", len(reader.lists) // 4)
        rows[of_list] = lists[index[of_list]]
        if int(rows.max()) >= reader.n:
            raise corrupt(f"a row of {reader.n} is {int(rows.max())}")
    return rows


def is_single(reader: IndexReader) -> bool:
    """Whether each row has exactly one term. O(n) at the first time."""
    if reader.single is None:
        counts = reader.entries["count"]
        reader.single = int(counts.sum(dtype=np.int64)) == reader.n == len(union(reader, range(reader.size)))
    return reader.single


def walk(
    reader: IndexReader, *, descending: bool, most: int, span: tuple[int, int] | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint32]]]:
    """All rows in the order of their terms, of one term ascending; a row with several terms comes as often.

    Gives, some at a time, the ordinal of each one's term, and the row. most: rows that all terms together can have.
    span: only terms from this ordinal to that.
    """
    begin, end = span or (0, reader.size)
    size = 64
    while begin < end:
        some = range(max(begin, end - size), end) if descending else range(begin, min(begin + size, end))
        codes, found = np.arange(some.start, some.stop), _lists(reader, some)
        if descending:
            codes, found = codes[::-1], found.part(slice(None, None, -1))
        if int(found.counts.sum()) > _WALKED:
            cut = max(1, int(np.searchsorted(np.cumsum(found.counts), _WALKED, "right")))
            codes, found = codes[:cut], found.part(slice(cut))
        most -= int(found.counts.sum())
        if most < 0:
            raise corrupt("the terms have more rows than there are values")
        yield np.repeat(codes, found.counts), _in_turn(reader, codes, found)
        begin, end = (begin, end - len(codes)) if descending else (begin + len(codes), end)
        size = min(4 * size, _WALKED)


def _in_turn(reader: IndexReader, codes: NDArray[np.int64], found: _Lists) -> NDArray[np.uint32]:
    """The rows of all terms, end to end, of BITMAPs too."""
    bitmaps = np.flatnonzero(found.kinds == BITMAP).tolist()
    if not bitmaps:
        return _gathered(reader, found)
    parts = []
    here = 0
    for at in bitmaps:
        parts.append(_gathered(reader, found.part(slice(here, at))))
        parts.append(reader.postings(int(codes[at])).rows(reader.n))
        here = at + 1
    return np.concatenate([*parts, _gathered(reader, found.part(slice(here, None)))])
