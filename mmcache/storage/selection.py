"""`Selection`: the records that a `where` found, as a sequence that reads them when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

from .record import Record

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["Selection"]


class _Rows(Protocol):
    """What a selection asks of its collection."""

    def ids_at(self, rows: NDArray[np.uint32]) -> list[str]: ...

    def records_at(self, rows: NDArray[np.uint32]) -> Iterator[Record]: ...

    def embeddings_at(self, rows: NDArray[np.uint32]) -> NDArray[np.float32]: ...

    def table_at(self, rows: NDArray[np.uint32], columns: Iterable[str] | None) -> pa.Table: ...

    def place(self) -> _Rows: ...


class Selection(Sequence[Record]):
    """Rows of one collection, ascending. Making one reads no record; iterating decodes them as it goes.

    Belongs to the generation that it came from, and keeps it mapped. Pickles to the path, what tells that generation,
    and the rows, 4 bytes each. Where it arrives, that generation is mapped at the first use, from the path or, if a
    newer one was published meanwhile, from its backup; GenerationGoneError if it is neither any more.
    """

    __slots__ = ("_collection", "_rows")

    def __init__(self, collection: _Rows, rows: NDArray[np.uint32]) -> None:
        self._collection = collection
        self._rows = rows

    @property
    def rows(self) -> NDArray[np.uint32]:
        """uint32, (len,): ordinals, the same in `embeddings` and every other array of the collection. Read-only."""
        view = self._rows.view()
        view.flags.writeable = False
        return view

    @property
    def ids(self) -> list[str]:
        """The keys, in row order. O(len)."""
        return self._collection.ids_at(self._rows)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (len, dim): a read-only view where the rows are consecutive (see `cluster_by`), else a copy.

        A record without an embedding has zeros.
        """
        return self._collection.embeddings_at(self._rows)

    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """A pyarrow.Table of these records, with the columns of `Collection.to_arrow`; the embeddings as `embeddings`
        has them, but null for none."""
        return self._collection.table_at(self._rows, columns)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Record]:
        return self._collection.records_at(self._rows)

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> Selection: ...
    def __getitem__(self, i: int | slice) -> Record | Selection:
        if isinstance(i, slice):
            return Selection(self._collection, self._rows[i])
        return next(self._collection.records_at(self._rows[i].reshape(1)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Selection, (self._collection.place(), self._rows)

    def __repr__(self) -> str:
        return f"<Selection of {len(self)} records>"
