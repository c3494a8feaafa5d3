"""A collection as an Arrow table. Needs the extra `arrow`.

Fields become columns, decoded and copied. The embeddings are not: their column is a FixedSizeList over the block of the
file, and the file's presence bitmap is what Arrow calls its validity, bit for bit. Both keep the file mapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .record import Record

__all__ = ["table_of"]


def table_of(
    records: Iterable[Record],
    names: Sequence[str],
    embedding: str | None,
    vectors: NDArray[np.float32],
    presence: NDArray[np.uint8] | None,
) -> pa.Table:
    """One record batch. A field that a record lacks is null.

    embedding: what to call the column of `vectors`, (n, dim); None for none. presence: a bit for each row, the lowest
    first; None where every row has an embedding.
    Raises ValueError for a column whose values have no common Arrow type.
    """
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for record in records:
        for name, column in columns.items():
            column.append(record.get(name))
    arrays = {name: _array(name, column) for name, column in columns.items()}
    if embedding is not None:
        arrays[embedding] = _vectors(vectors, presence)
    return pa.table(arrays)


def _array(name: str, column: list[Any]) -> pa.Array:
    try:
        return pa.array(column)
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(
            f"the values of {name!r} have no common Arrow type ({error}); leave it out: to_arrow(columns=[...])"
        ) from error


def _vectors(vectors: NDArray[np.float32], presence: NDArray[np.uint8] | None) -> pa.Array:
    n, dim = vectors.shape
    numbers = pa.Array.from_buffers(pa.float32(), n * dim, [None, pa.py_buffer(vectors)])
    validity = None if presence is None else pa.py_buffer(presence)
    return pa.Array.from_buffers(pa.list_(pa.float32(), dim), n, [validity], children=[numbers])
