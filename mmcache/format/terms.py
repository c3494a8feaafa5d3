"""Many distinct terms as bytes: what a build holds of them without an object for each, and their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgpack
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from ..query import Term, canonical

__all__ = ["PackedTerms", "are_equal", "pack_terms", "term_order", "terms_end_to_end"]

_PIECES: Final = 16_384
"""Terms that are looked at together."""

_TEXT_HEADERS: Final = np.zeros(256, np.uint8)
"""First byte of a msgpack object -> bytes before its text; 0 for what is no text."""
_TEXT_HEADERS[0xA0:0xC0] = 1
_TEXT_HEADERS[[0xD9, 0xDA, 0xDB]] = 2, 3, 5
_NIL: Final = 0xC0

_SIZES: Final = np.zeros(256, np.uint8)
"""First byte of a term -> bytes of all of it, of longer texts without these; 0 for what is no term."""
_SIZES[:0x80] = _SIZES[0xE0:] = _SIZES[_NIL] = 1
_SIZES[0xA0:0xC0] = np.arange(1, 33)
_SIZES[[0xCB, 0xCC, 0xCD, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2, 0xD3]] = 9, 2, 3, 5, 9, 2, 3, 5, 9
_SIZES[[0xD9, 0xDA, 0xDB]] = 2, 3, 5


class PackedTerms(NamedTuple):
    """Distinct terms. data: their msgpack objects, end to end. lengths: u32, of each. hashes: u64, of its bytes."""

    data: bytes | bytearray
    lengths: NDArray[np.uint32]
    hashes: NDArray[np.uint64]

    def begins(self) -> NDArray[np.int64]:
        """Where each lies in the data."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    def taken(self, ordinals: NDArray[Any]) -> PackedTerms:
        """These of them, in this order."""
        data, at = memoryview(self.data), self.begins()[ordinals]
        lengths = self.lengths[ordinals]
        ends = at + lengths

        def some(begin: int) -> bytes:
            pieces = map(slice, at[begin : begin + _PIECES].tolist(), ends[begin : begin + _PIECES].tolist())
            return b"".join(map(data.__getitem__, pieces))

        return PackedTerms(b"".join(map(some, range(0, len(at), _PIECES))), lengths, self.hashes[ordinals])


def pack_terms(values: Sequence[Term]) -> PackedTerms:
    """Distinct terms, packed."""
    packed = [msgpack.packb(canonical(value), unicode_errors="surrogatepass") for value in values]
    hashes = np.fromiter(map(xxh3_64_intdigest, packed), np.uint64, len(packed))
    return PackedTerms(b"".join(packed), np.fromiter(map(len, packed), np.uint32, len(packed)), hashes)


def terms_end_to_end(data: bytes, lengths: NDArray[np.uint32]) -> PackedTerms | None:
    """The terms of an index of a file; None for what are none: not null, a number or a text each, of its length."""
    raw = np.frombuffer(data, np.uint8)
    ends = np.cumsum(lengths, dtype=np.int64)
    if not lengths.all() or (ends[-1] if len(ends) else 0) != len(raw):
        return None
    begins = ends - lengths
    first = raw[begins]
    sizes = _SIZES[first].astype(np.int64)
    for header, width in ((0xD9, 1), (0xDA, 2), (0xDB, 4)):
        texts = np.flatnonzero(first == header)
        if not (lengths[texts] > width).all():
            return None
        for i in range(width):
            sizes[texts] += raw[begins[texts] + 1 + i].astype(np.int64) << (8 * (width - 1 - i))
    if not (sizes == lengths).all():
        return None
    view = memoryview(data)
    pieces = map(view.__getitem__, map(slice, begins.tolist(), ends.tolist()))
    return PackedTerms(data, lengths, np.fromiter(map(xxh3_64_intdigest, pieces), np.uint64, len(lengths)))


def term_order(terms: PackedTerms) -> NDArray[np.uint32]:
    """u32[terms]: the ordinals of the terms as these ascend: null, numbers, text (see `query.order_key`)."""
    begins = terms.begins()
    data = np.frombuffer(terms.data, np.uint8)
    first = data[begins]
    headers = _TEXT_HEADERS[first]
    nulls = np.flatnonzero(first == _NIL).astype(np.uint32)
    numbers = np.flatnonzero((headers == 0) & (first != _NIL)).astype(np.uint32)
    texts = np.flatnonzero(headers).astype(np.uint32)
    if len(numbers):
        numbers = numbers[_ascending_numbers(terms, begins[numbers], numbers)]
    if len(texts):
        begins += headers
        starts = begins if len(texts) == len(begins) else begins[texts]
        del begins, first
        texts = texts[_ascending_texts(data, starts, terms.lengths[texts] - headers[texts])]
    return np.concatenate([nulls, numbers, texts])


def are_equal(
    data: NDArray[np.uint8], one: NDArray[np.int64], other: NDArray[np.int64], sizes: NDArray[Any]
) -> NDArray[np.bool_]:
    """Whether the bytes at two places are equal, so many each."""
    found = np.ones(len(one), np.bool_)
    left = np.arange(len(one))
    depth = 0
    while len(left := left[found[left] & (sizes[left] > depth)]):
        width = np.minimum(sizes[left] - depth, 8).astype(np.uint8)
        found[left] = _eight_bytes(data, one[left] + depth, width) == _eight_bytes(data, other[left] + depth, width)
        depth += 8
    return found


def _ascending_numbers(terms: PackedTerms, begins: NDArray[np.int64], numbers: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The order of numbers: as float64, which never turns two around, and exactly among those that are one float64."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(terms.data if len(numbers) == len(terms.lengths) else terms.taken(numbers).data)
    keys = np.fromiter(map(float, unpacker), np.float64, len(numbers))

    def value(i: int) -> Any:
        begin = int(begins[i])
        return msgpack.unpackb(terms.data[begin : begin + int(terms.lengths[numbers[i]])])

    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    same = np.flatnonzero(keys[1:] == keys[:-1])
    if len(same):
        breaks = np.flatnonzero(np.diff(same) > 1)
        for begin, end in zip(same[np.append(0, breaks + 1)], same[np.append(breaks, len(same) - 1)] + 2, strict=True):
            order[begin:end] = sorted(order[begin:end].tolist(), key=value)
    return order


def _ascending_texts(data: NDArray[np.uint8], starts: NDArray[Any], sizes: NDArray[Any]) -> NDArray[np.uint32]:
    """The order of distinct texts by their bytes: by eight of them at a time, as far as there are equal ones."""
    order = np.arange(len(starts), dtype=np.uint32)
    places, groups, depth = order.copy(), np.zeros(len(order), np.uint32), 0
    while len(places):
        some = order[places]
        left = np.minimum(sizes[some] - depth, 9).astype(np.uint8)  # 9: goes on after these eight
        keys = _eight_bytes(data, starts[some] + depth, left)
        sequence = np.lexsort((left, keys, groups))
        order[places] = some[sequence]
        left, keys, groups = left[sequence], keys[sequence], groups[sequence]
        del some, sequence
        is_new = np.ones(len(places) + 1, np.bool_)
        is_new[1:-1] = (keys[1:] != keys[:-1]) | (groups[1:] != groups[:-1]) | (left[1:] != left[:-1])
        tied = ~(is_new[1:] & is_new[:-1])
        del keys
        groups = np.cumsum(is_new[:-1], dtype=np.uint32)[tied]
        places, depth = places[tied], depth + 8
    return order


def _eight_bytes(data: NDArray[np.uint8], starts: NDArray[Any], left: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The next bytes of each text as a number that compares as they do; zeros behind its end."""
    keys = np.empty(len(starts), np.uint64)
    last = len(data) - 1
    for begin in range(0, len(starts), _PIECES):
        some = slice(begin, begin + _PIECES)
        places = starts[some, None] + np.arange(8)
        found = data[np.minimum(places, last)]
        found[np.arange(8) >= left[some, None]] = 0
        keys[some] = found.view(">u8")[:, 0]
    return keys
