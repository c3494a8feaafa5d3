"""What a selection asks of its collection, and `NoFile`, which answers where there is no file.

`Rows` is a collection or the place that leads to one in another process; `File` is the collection itself. Both are in
`snapshot`, which imports the selection. Rows are uint32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from ..format.records import Shape
    from .record import Record

__all__ = ["File", "NoFile", "Place", "Rows"]


class Rows(Protocol):
    """The collection, or the place that leads there."""

    def ids_at(self, rows: NDArray[np.uint32]) -> list[str]: ...

    def records_at(self, rows: NDArray[np.uint32]) -> Iterator[Record]: ...

    def embeddings_at(self, rows: NDArray[np.uint32]) -> NDArray[np.float32]: ...

    def table_at(self, rows: NDArray[np.uint32], columns: Iterable[str] | None) -> pa.Table: ...

    def place(self) -> Place: ...


class Place(Rows, Protocol):
    """Equal for the same collection of the same generation."""

    def collection(self) -> File: ...


class File(Rows, Protocol):
    """The collection itself, which a selection with records of a source asks for more."""

    @property
    def schema(self) -> _Embedded: ...

    @property
    def layout(self) -> _Shaped: ...

    @property
    def dim(self) -> int: ...

    @property
    def has_embedding(self) -> NDArray[np.bool_]: ...

    def row(self, key: Any) -> int: ...


class _Embedded(Protocol):
    @property
    def embedding(self) -> str | None: ...

    @property
    def dim(self) -> int | None: ...


class _Shaped(Protocol):
    @property
    def shapes(self) -> Sequence[Shape]: ...


class NoFile(NamedTuple):
    """A collection without a record, for the selections that have no file. It is its own place, schema and layout."""

    embedding: str | None
    dim: int

    def ids_at(self, _: NDArray[np.uint32]) -> list[str]:
        return []

    def records_at(self, _: NDArray[np.uint32]) -> Iterator[Record]:
        return iter(())

    def embeddings_at(self, _: NDArray[np.uint32]) -> NDArray[np.float32]:
        return np.zeros((0, self.dim), np.float32)

    def table_at(self, _: NDArray[np.uint32], columns: Iterable[str] | None) -> pa.Table:
        raise NotImplementedError  # a selection without a file makes its own

    def row(self, key: Any) -> int:
        raise KeyError(key)

    def place(self) -> NoFile:
        return self

    def collection(self) -> NoFile:
        return self

    @property
    def schema(self) -> NoFile:
        return self

    @property
    def layout(self) -> NoFile:
        return self

    @property
    def shapes(self) -> Sequence[Shape]:
        return ()

    @property
    def has_embedding(self) -> NDArray[np.bool_]:
        return np.zeros(0, np.bool_)
