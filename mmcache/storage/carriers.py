"""The terms of one indexed field while a collection is staged: which row carries which."""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from ..format.postings import EncodedIndex, encode_index
from ..format.terms import PackedTerms, are_equal, pack_terms
from ..query import Term, canonical, follow, place_of, terms_of

__all__ = ["FieldTerms", "TermsMark", "column_of", "renumbered"]

_UNIQUE_TERMS = {str, int, type(None)}
_PLAIN_TERMS = _UNIQUE_TERMS | {float, bool}
_COMMON = 8192
"""Terms of a field that a build keeps as objects, some 150 bytes each."""
_TOGETHER = 1024
"""Terms that are numbered together."""


class TermsMark(NamedTuple):
    """A state of `FieldTerms`."""

    common: int
    postings: int
    rare: int
    rare_size: int
    rows_implied: bool


class _Rare:
    """Terms met after many others, as bytes: each as often as it was met, until `distinct`."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lengths = array("I")
        self.hashes = array("Q")
        self._pack = msgpack.Packer(unicode_errors="surrogatepass").pack  # the record of such a text is refused

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, terms: Iterable[Any]) -> None:
        packed = list(map(self._pack, terms))
        self.lengths.extend(map(len, packed))
        self.hashes.extend(map(xxh3_64_intdigest, packed))
        self.data += b"".join(packed)

    def join(self, terms: PackedTerms) -> None:
        self.lengths.frombytes(terms.lengths.astype(np.uint32).tobytes())
        self.hashes.frombytes(terms.hashes.tobytes())
        self.data += terms.data

    def shorten(self, n: int, size: int) -> None:
        del self.lengths[n:], self.hashes[n:], self.data[size:]

    def distinct(self) -> tuple[PackedTerms, NDArray[np.uint32]]:
        """Each once, in the order in which they were met; and for each time the ordinal of its term."""
        hashes = np.array(self.hashes, np.uint64)
        met = PackedTerms(self.data, np.array(self.lengths, np.uint32), hashes)
        first = self._first_of_each(hashes, met.begins())
        is_first = first == np.arange(len(first))
        if is_first.all():
            return met, first
        numbers = np.cumsum(is_first, dtype=np.uint32) - np.uint32(1)
        return met.taken(np.flatnonzero(is_first)), numbers[first]

    def _first_of_each(self, hashes: NDArray[np.uint64], begins: NDArray[np.int64]) -> NDArray[np.uint32]:
        first: NDArray[np.uint32] = np.arange(len(hashes), dtype=np.uint32)
        order = np.argsort(hashes, kind="stable")
        is_same = np.diff(hashes[order]) == 0
        places = np.flatnonzero(is_same)
        if not len(places):
            return first
        one, other = order[places], order[places + 1]
        sizes = np.array(self.lengths, np.uint32)
        equal = sizes[one] == sizes[other]
        equal[equal] = are_equal(
            np.frombuffer(self.data, np.uint8), begins[one[equal]], begins[other[equal]], sizes[one[equal]]
        )
        starts = np.flatnonzero(np.append(True, ~is_same))  # where a run of one hash begins
        first[order] = np.repeat(order[starts], np.diff(starts, append=len(order)))
        for hashed in np.unique(hashes[one[~equal]]).tolist():
            seen: dict[bytes, int] = {}
            for i in np.flatnonzero(hashes == np.uint64(hashed)).tolist():
                first[i] = seen.setdefault(bytes(self.data[begins[i] : begins[i] + sizes[i]]), i)
        return first


class FieldTerms:
    """The terms of one indexed field, met so far, and which row carries which.

    The first `_COMMON` of them are looked up as they are; all that are met after that take their bytes and 16 more.
    """

    def __init__(self) -> None:
        self._codes: defaultdict[Any, int] = defaultdict(None)
        self._codes.default_factory = self._codes.__len__  # each new term has the next number
        self._rare = _Rare()
        self._code_of_row = array("I")
        self._row = array("I")
        self._rows_implied = True
        self._terms: PackedTerms | None = None

    def add(self, first_row: int, column: Sequence[Any]) -> None:
        """The values of consecutive rows. Raises TypeError for a value that cannot be a term."""
        types = set(map(type, column))
        if self._rows_implied and _PLAIN_TERMS.issuperset(types):
            if int in types:
                _check_range(column)
            if not _UNIQUE_TERMS.issuperset(types):  # each NaN would be a term of its own, and True another than 1
                column = list(map(canonical, column))
            self._number(column)
            return
        self._list_rows()
        found: list[Term] = []
        rows: list[int] = []
        for row, value in enumerate(column, first_row):
            terms = terms_of(value)
            found += terms
            rows += [row] * len(terms)
        self._row.extend(rows)
        self._number(found)

    def join(self, terms: PackedTerms, codes: NDArray[np.uint32], rows: NDArray[np.uint32] | None) -> None:
        """The terms of further rows, as the index of another file has them: rows[i] carries the term of ordinal
        codes[i], in any order; without rows, each next row carries one term."""
        if rows is not None:
            self._list_rows()
        if not self._rows_implied:
            begin = len(self._code_of_row)
            further = np.arange(begin, begin + len(codes), dtype=np.uint32) if rows is None else rows
            self._row.frombytes(further.astype(np.uint32).tobytes())
        base = len(self._codes) + len(self._rare)
        self._rare.join(terms)
        self._code_of_row.frombytes((codes + np.uint32(base)).astype(np.uint32).tobytes())

    def _number(self, terms: Sequence[Any]) -> None:
        """The codes of the next terms: of those that are not among the common ones, beyond these."""
        for begin in range(0, len(terms), _TOGETHER):
            some = terms[begin : begin + _TOGETHER]
            if len(self._codes) < _COMMON:
                self._code_of_row.extend(map(self._codes.__getitem__, some))
                continue
            codes: list[Any] = list(map(self._codes.get, some))
            if None in codes:
                rare = itertools.count(len(self._codes) + len(self._rare))
                self._rare.add(term for term, code in zip(some, codes, strict=True) if code is None)
                codes = [next(rare) if code is None else code for code in codes]
            self._code_of_row.extend(codes)

    def _list_rows(self) -> None:
        """From here on, a row may have several terms, or none."""
        if self._rows_implied:
            self._rows_implied = False
            self._row = array("I", range(len(self._code_of_row)))

    def mark(self) -> TermsMark:
        """What `restore` needs to forget all that was added since."""
        return TermsMark(
            len(self._codes), len(self._code_of_row), len(self._rare), len(self._rare.data), self._rows_implied
        )

    def restore(self, mark: TermsMark) -> None:
        while len(self._codes) > mark.common:
            self._codes.popitem()
        self._rare.shorten(mark.rare, mark.rare_size)
        del self._code_of_row[mark.postings :]
        if mark.rows_implied:
            self._row = array("I")
        del self._row[mark.postings :]
        self._rows_implied = mark.rows_implied

    def keep(self, rows: NDArray[np.bool_]) -> None:
        """Once all are added: only these rows, numbered anew; and only the terms that they carry."""
        terms = self._settled()
        codes: NDArray[Any] = self.codes()
        if self._rows_implied:
            codes = codes[rows]
        else:
            old = np.array(self._row, np.uint32)
            kept = rows[old]
            codes = codes[kept]
            self._row = array("I", renumbered(rows)[old[kept]].astype(np.uint32).tobytes())
        used, first, codes = np.unique(codes, return_index=True, return_inverse=True)
        order = np.argsort(first)  # as if no other rows had been met
        self._terms = terms.taken(used[order])
        self._code_of_row = array("I", np.argsort(order)[codes].astype(np.uint32).tobytes())

    @property
    def single(self) -> bool:
        """Whether every row has exactly one term."""
        return self._rows_implied

    def codes(self) -> NDArray[np.uint32]:
        """Once all are added: the ordinal of the term of each posting, in the order in which terms were first met."""
        self._settled()
        return np.frombuffer(self._code_of_row, np.uint32) if self._code_of_row else np.empty(0, np.uint32)

    def _settled(self) -> PackedTerms:
        """Once all are added: the terms by ordinal."""
        if self._terms is None:
            common = pack_terms(list(self._codes))
            self._codes.clear()
            if not len(self._rare):
                self._terms = common
                return common
            rare, numbers = self._rare.distinct()
            self._rare = _Rare()
            n = len(common.lengths)
            self._terms = PackedTerms(
                b"".join([common.data, rare.data]),
                np.concatenate([common.lengths, rare.lengths]),
                np.concatenate([common.hashes, rare.hashes]),
            )
            codes = np.frombuffer(self._code_of_row, np.uint32)  # in place
            codes[codes >= n] = numbers[codes[codes >= n] - np.uint32(n)] + np.uint32(n)
        return self._terms

    def encode(self, new_row: NDArray[np.uint32] | None, n: int) -> EncodedIndex:
        """The index section, once; `new_row` maps a row as staged to its row in the file."""
        rows = np.arange(n, dtype=np.uint32) if self._rows_implied else np.array(self._row, np.uint32)
        codes = self.codes()
        if new_row is not None:
            rows = new_row[rows]
            order = np.argsort(rows, kind="stable")
            rows, codes = rows[order], codes[order]
        return encode_index(self._given_up(), codes, rows, n)

    def _given_up(self) -> PackedTerms:
        """The terms, which are kept here no more, so that they go once they are sorted."""
        terms, self._terms = self._settled(), None
        return terms


def renumbered(kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Old row -> its number among those that are kept."""
    return np.cumsum(kept) - 1


def column_of(field: str, names: tuple[Any, ...], values: Sequence[Sequence[Any]]) -> list[Any]:
    """An indexed field's values, at the end of its path, of records with the same fields."""
    place = place_of(field, names)
    if place is None:
        return [None] * len(values)
    at, steps = place
    column = list(map(itemgetter(at), values))
    return [follow(value, steps) for value in column] if steps else column


def _check_range(column: Sequence[Any]) -> None:
    for value in column:
        if type(value) is int and not -(2**63) <= value < 2**64:
            terms_of(value)
