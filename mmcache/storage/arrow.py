"""Records as an Arrow table. Needs the extra `arrow`.

Fields become columns, decoded and copied. The embeddings are not: their column is a FixedSizeList over the array that
is given, and the bits of a presence bitmap are what Arrow calls validity. Where both are views of a file, the column
keeps it mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .record import Record

__all__ = ["Vectors", "table_of"]

Vectors = tuple["NDArray[np.float32]", "NDArray[np.uint8] | None"]
"""float32, (n, dim), and a bit for each row, the lowest first; None where every row has an embedding."""


def table_of(
    records: Iterable[Record],
    names: Sequence[str],
    vectors: Mapping[str, Callable[[], Vectors]],
    columns: Iterable[str] | None,
) -> pa.Table:
    """One record batch. A field that a record lacks is null.

    vectors: the embeddings by field. columns: which, and in what order; None for all, the embeddings last. Neither
    records nor vectors are read that are not asked for.
    Raises ValueError for a column that there is not, or whose values have no common Arrow type.
    """
    there = [*names, *vectors]
    wanted = there if columns is None else list(dict.fromkeys(columns))
    if unknown := [name for name in wanted if name not in there]:
        raise ValueError(f"no column {unknown[0]!r}; there are: {', '.join(there)}")
    values: dict[str, list[Any]] = {name: [] for name in wanted if name not in vectors}
    if values:
        for record in records:
            for name, column in values.items():
                column.append(record.get(name))
    return pa.table(
        {name: _vectors(*vectors[name]()) if name in vectors else _array(name, values[name]) for name in wanted}
    )


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
