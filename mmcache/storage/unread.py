"""The rows of a selection before they are needed: as an index holds them, or as a part of the order of its terms.

Of a collection with dirty ids they are the same without the dirty rows, which are taken out where rows are given. So
what concerns few rows costs no more than the dirty ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..arrays import np
from ..format.postings import LIST, Postings
from ..format.select import Found

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .rows import File

__all__ = ["Packed", "Ranged", "is_among"]


def is_among(rows: NDArray[np.uint32], some: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """bool, (len(rows),). some: ascending, not none."""
    return np.asarray(some.take(some.searchsorted(rows), mode="clip") == rows, np.bool_)


def _without(rows: NDArray[np.uint32], dirty: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Ascending rows but the dirty ones. Searches for the fewer among the more."""
    if not len(rows) or not len(dirty):
        return rows
    keep = np.ones(len(rows), np.bool_)
    if len(rows) <= len(dirty):
        keep = ~is_among(rows, dirty)
    else:
        at = rows.searchsorted(dirty)
        keep[at[rows.take(at, mode="clip") == dirty]] = False
    return rows if keep.all() else rows[keep]


class Less(NamedTuple):
    """An answer of an index but the dirty rows of it, of which there is one at least."""

    found: Found
    dirty: NDArray[np.uint32]

    @property
    def kind(self) -> int:
        return self.found.kind

    @property
    def size(self) -> int:
        return self.found.size - len(self.dirty)

    def rows(self, n: int) -> NDArray[np.uint32]:
        return _without(self.found.rows(n), self.dirty)

    def mask(self, rows: NDArray[np.uint32]) -> NDArray[np.bool_]:
        return self.found.mask(rows) & ~is_among(rows, self.dirty)


class Packed(NamedTuple):
    """Rows as an index holds them. Their number is known; they are unpacked where they are needed. is_everything:
    whether no filter chose them, so that they are all of n but the dirty ones."""

    found: Found | Less
    n: int
    is_everything: bool = False

    @property
    def size(self) -> int:
        return self.found.size

    def rows(self) -> NDArray[np.uint32]:
        return self.found.rows(self.n)

    def packed(self) -> Any:
        """The same, or where the compiled core has found them, as bytes: without numpy."""
        found = self.found
        return found.packed(self.n) if type(found) is Postings else self.rows()

    def part(self, part: slice) -> NDArray[np.uint32] | Packed:
        """The rows at these places, ascending where they are packed."""
        rows = self.rows() if part.step is not None and part.step < 0 else self.packed()
        if type(rows) is not bytes:
            return rows[part]
        kept = memoryview(rows).cast("I")[part].tobytes()
        return Packed(Postings(LIST, len(kept) // 4, 0, kept), self.n)

    def is_within(self, most: int) -> bool:
        return self.size <= most

    def without(self, dirty: NDArray[np.uint32]) -> Packed:
        """dirty: ascending."""
        found = self.found
        assert not isinstance(found, Less)
        if isinstance(found, Postings) and found.kind == LIST and found.size <= len(dirty):
            rows = _without(data := found.data, dirty)
            return self if rows is data else Packed(found._replace(size=len(rows), raw=rows), self.n)
        if not found.size or not len(there := dirty[found.mask(dirty)]):
            return self
        return self._replace(found=Less(found, there))


class Ranged:
    """The rows whose terms of one field are from one place to another in the order of terms.

    They are gathered when their number is asked for, or one of them; the first ones by this field are found without.
    Equal for all threads, which may each gather them. dirty: those that are left out; ascending.
    """

    __slots__ = ("_file", "_rows", "dirty", "field", "span")

    def __init__(self, file: File, field: str, span: tuple[int, int], dirty: NDArray[np.uint32] | None = None) -> None:
        self._file = file
        self.field = field
        self.span = span
        self.dirty = np.empty(0, np.uint32) if dirty is None else dirty
        self._rows: NDArray[np.uint32] | None = None

    @property
    def size(self) -> int:
        return len(self.rows())

    def rows(self) -> NDArray[np.uint32]:
        if self._rows is None:
            self._rows = _without(self._file.rows_between(self.field, self.span), self.dirty)
        return self._rows

    def is_within(self, most: int) -> bool:
        """Whether they are certainly no more. Gathers none."""
        begin, end = self.span
        return end - begin <= most and int(self._file.index(self.field).entries["count"][begin:end].sum()) <= most

    def without(self, dirty: NDArray[np.uint32]) -> Ranged:
        return Ranged(self._file, self.field, self.span, dirty)
