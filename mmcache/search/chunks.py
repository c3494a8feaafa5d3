"""Which rows of a file a search reads, and in what pieces.

Up to a third of all rows are gathered, some at a time, into one buffer; where they are more, all are read where they
lie, and what is not among them is masked. Consecutive rows are a part of the block, and are not copied. Nothing is made
that grows with the file: a mask is of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

import numpy as np

from ..format.postings import BITMAP, LIST, RANGE, Postings
from ..format.select import Found
from ..storage.unread import Less, Packed, Ranged

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["READ", "Block", "Chunk", "Span", "chosen", "chunks", "pieces", "wanted_in"]

GATHERED: Final = 1024
"""Rows gathered at a time, at most."""
BUFFER: Final = 3 * 2**20
"""Bytes of them, at most, unless one row has more."""
SCANNED: Final = 2**16
"""Rows multiplied at a time where they lie, at most."""
READ: Final = 2**26
"""Bytes of them, at most: some 10 ms, between which an interrupt and a deadline act."""
VALUES: Final = 2**21
"""Bytes of the values of several queries, at most: what keeps them in the CPU's cache."""
LEAST: Final = 256
"""Rows of a chunk, at least, whatever these numbers say, but `READ`."""

_DENSE: Final = 3
"""Where one row in so many is wanted, or more, all are read. Measured: `python -m benchmarks.nearest`."""

Mask: TypeAlias = "Callable[[int, int], NDArray[np.bool_]]"


class Block(Protocol):
    """The embeddings of one field: `storage.vectors.Vectors`, or those of a file that is being built."""

    dim: int
    stride: int
    extremes: tuple[float, float] | None

    @property
    def has_norms(self) -> bool: ...

    def norms(self) -> NDArray[np.float32]: ...

    def bitmap(self) -> NDArray[np.uint8] | None: ...

    def part(self, begin: int, end: int) -> NDArray[np.float32]: ...

    def take(self, rows: NDArray[np.uint32], out: NDArray[np.float32]) -> None: ...

    def placed(self, rows: NDArray[np.uint32]) -> tuple[NDArray[np.float32], NDArray[np.uint32]]: ...


class Span(NamedTuple):
    """Consecutive rows. mask(begin, end): which of these are wanted; None where all are. is_everything: whether they
    are all rows of the file but the dirty ones, chosen by no filter."""

    begin: int
    end: int
    mask: Mask | None = None
    is_everything: bool = False


class Chunk(NamedTuple):
    """vectors: float32, (rows, dim): a view of the file, or of a buffer that the next chunk overwrites. rows: their
    ordinals, int64, or the first of consecutive ones. wanted: bool, (rows,); None where all are."""

    vectors: NDArray[np.float32]
    rows: NDArray[np.int64] | int
    wanted: NDArray[np.bool_] | None

    def ordinals(self, places: NDArray[np.intp]) -> NDArray[np.int64]:
        """Of the rows at these places of the chunk."""
        return places + self.rows if isinstance(self.rows, int) else self.rows[places]

    def lengths(self, norms: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32, (rows,): of the vectors. norms: of all rows of the file."""
        if isinstance(self.rows, int):
            return norms[self.rows : self.rows + len(self.vectors)]
        return norms[self.rows]


def chosen(found: NDArray[np.uint32] | Packed | Ranged, n: int) -> Span | NDArray[np.uint32]:
    """What the rows of a selection, as it holds them, are of n: a span of them, or ascending rows."""
    if isinstance(found, Packed):
        inner, dirty = (found.found.found, found.found.dirty) if isinstance(found.found, Less) else (found.found, None)
        if isinstance(inner, Postings) and inner.kind == RANGE:
            begin = inner.first_row
            return Span(begin, begin + inner.size, None if dirty is None else _all_but(dirty), found.is_everything)
        if inner.kind != LIST and _DENSE * found.size >= n:
            mask = _mask_of(inner)
            return Span(0, n, mask if dirty is None else _both(mask, _all_but(dirty)))
    rows = found if isinstance(found, np.ndarray) else found.rows()
    if not (rows[1:] > rows[:-1]).all():
        rows = np.sort(rows)
    if len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1:
        return Span(int(rows[0]), int(rows[-1]) + 1)
    return Span(0, n, _only(rows)) if _DENSE * len(rows) >= n else rows


def _mask_of(found: Found) -> Mask:
    if isinstance(found, Postings) and found.kind == BITMAP:
        bits: Any = found.data
        return lambda begin, end: _unpacked(bits, begin, end)
    return lambda begin, end: found.mask(np.arange(begin, end, dtype=np.uint32))


def _both(one: Mask, other: Mask) -> Mask:
    return lambda begin, end: one(begin, end) & other(begin, end)


def _unpacked(bits: NDArray[np.uint8], begin: int, end: int) -> NDArray[np.bool_]:
    """bool, (end - begin,), of a bitmap of rows."""
    some = np.unpackbits(bits[begin >> 3 : (end + 7) >> 3], bitorder="little")
    return some[begin & 7 :][: end - begin].view(np.bool_)


def _all_but(rows: NDArray[np.uint32]) -> Mask:
    def mask(begin: int, end: int) -> NDArray[np.bool_]:
        wanted = np.ones(end - begin, np.bool_)
        wanted[_within(rows, begin, end)] = False
        return wanted

    return mask


def _only(rows: NDArray[np.uint32]) -> Mask:
    def mask(begin: int, end: int) -> NDArray[np.bool_]:
        wanted = np.zeros(end - begin, np.bool_)
        wanted[_within(rows, begin, end)] = True
        return wanted

    return mask


def _within(rows: NDArray[np.uint32], begin: int, end: int) -> NDArray[np.uint32]:
    """Which of them are from one row to another, counted from that one."""
    low, high = rows.searchsorted(np.array((begin, end), np.uint32)).tolist()
    return rows[low:high] - np.uint32(begin)


def chunks(vectors: Block, which: Span | NDArray[np.uint32], queries: int) -> Iterator[Chunk]:
    """The rows that have an embedding, some at a time, ascending. queries: how many are multiplied by each chunk.

    Verifies what it reads, and was not verified before. Raises UnusableFileError.
    """
    bits = vectors.bitmap()
    if isinstance(which, Span):
        yield from _scanned(vectors, which, bits, queries)
        return
    buffer = np.empty((min(gathered(vectors), len(which)), vectors.dim), np.float32)
    for rows in pieces(vectors, which):
        vectors.take(rows, buffer[: len(rows)])
        yield Chunk(buffer[: len(rows)], rows.astype(np.int64), None)


def gathered(vectors: Block) -> int:
    """Rows that are gathered at a time, at most."""
    return max(1, min(GATHERED, BUFFER // vectors.stride))


def pieces(vectors: Block, rows: NDArray[np.uint32]) -> Iterator[NDArray[np.uint32]]:
    """Those of some rows that have an embedding, so many at a time as are gathered."""
    size, bits = gathered(vectors), vectors.bitmap()
    for begin in range(0, len(rows), size):
        some = rows[begin : begin + size]
        yield some if bits is None else some[_are_set(bits, some)]


def _scanned(vectors: Block, which: Span, bits: NDArray[np.uint8] | None, queries: int) -> Iterator[Chunk]:
    size = max(LEAST, min(SCANNED, VALUES // (4 * queries)))
    size = max(1, min(size, READ // vectors.stride))
    for begin in range(which.begin, which.end, size):
        end = min(begin + size, which.end)
        wanted = wanted_in(which, bits, begin, end)
        if wanted is None or wanted.any():
            yield Chunk(vectors.part(begin, end), begin, wanted)


def wanted_in(which: Span, bits: NDArray[np.uint8] | None, begin: int, end: int) -> NDArray[np.bool_] | None:
    """bool, (end - begin,): which of these rows of a span are wanted, and have an embedding; None where all are.
    bits: of those that have one."""
    wanted = None if which.mask is None else which.mask(begin, end)
    if bits is None:
        return wanted
    there = _unpacked(bits, begin, end)
    return there if wanted is None else wanted & there


def _are_set(bits: NDArray[np.uint8], rows: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """bool, (len(rows),)."""
    found: NDArray[np.uint8] = bits[rows >> np.uint32(3)] >> (rows & np.uint32(7)).astype(np.uint8)
    return np.asarray(found & np.uint8(1), np.bool_)
