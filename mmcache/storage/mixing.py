"""Records of a file and of a source in one sequence, as a `Selection` has them; arrays and Arrow tables of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from operator import index
from typing import TYPE_CHECKING

from ..arrays import np
from ..format.records import Shape
from .record import Record, copied
from .rows import File, Given, Rows

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["interleaved", "mixed_embeddings", "mixed_table", "place_among"]


def place_among(i: int, n: int) -> int:
    """The place of record i, or of n + i where that is negative. Raises IndexError; TypeError for what is no int."""
    try:
        at = index(i)
    except TypeError:
        raise TypeError(
            f"a Selection takes an int or a slice, not {type(i).__name__}: index its arrays (rows, embeddings) by "
            "arrays"
        ) from None
    if not -n <= at < n:
        raise IndexError(f"record {at} of a Selection of {n}")
    return at % n


def interleaved(of_file: Iterator[Record], given: Given, fields: Sequence[str]) -> Iterator[Record]:
    """The records of the file, with those of the source at their places. fields: of the embeddings of these."""
    here = 0
    for at, record in zip(given.at.tolist(), given.records, strict=True):
        yield from islice(of_file, at - here)
        yield copied(*record, fields)
        here = at + 1
    yield from of_file


def mixed_embeddings(
    collection: Rows, file: File, rows: NDArray[np.uint32], given: Given, field: str | None
) -> NDArray[np.float32]:
    """float32, (rows and given, dim): see `Selection.embeddings`. file: of the collection.

    One gather of rows, where a neighbour keeps the place of each record of the source. Raises SourceError.
    """
    n, wanted = len(rows) + len(given.records), rows
    if len(rows):
        wanted = np.empty(n, np.uint32)
        wanted[given.others(n)] = rows
        wanted[given.at] = rows.take(given.at - np.arange(len(given.at)), mode="clip")
    vectors = collection.embeddings_at(wanted, field)
    block = given.block(file.embedding_fields, field, vectors.shape[1] or file.dim_of(field))
    if not len(rows):
        return block
    matrix = vectors if vectors.shape[1] else np.zeros((n, block.shape[1]), np.float32)
    matrix[given.at] = block
    return matrix


def mixed_table(
    file: File,
    rows: NDArray[np.uint32],
    given: Given,
    columns: Iterable[str] | None,
    *,
    records: Iterator[Record],
    vectors_of: Callable[[str], NDArray[np.float32]],
) -> pa.Table:
    """See `Selection.to_arrow`. records: all, in order. vectors_of: by field, of all."""
    from .arrow import Vectors, table_of

    n = len(rows) + len(given.records)

    def vectors(field: str, there: list[bool]) -> Vectors:
        presence = np.zeros(n, np.bool_)
        presence[given.at] = there
        presence[given.others(n)] = file.has_embedding_of(field)[rows]
        return vectors_of(field), None if presence.all() else np.packbits(presence, bitorder="little")

    columns_of_vectors = {}
    for field in file.embedding_fields:
        there = [vector is not None for vector in given.vectors(file.embedding_fields, field)]
        if file.dim_of(field) or any(there):
            columns_of_vectors[field] = partial(vectors, field, there)
    shapes = [shape.names for shape in file.layout.shapes]
    shapes += [Shape(names, {}).names for names in dict.fromkeys(record.names for record in given.records)]
    names = list(dict.fromkeys(name for shape in shapes for name in shape))
    return table_of(records, names, columns_of_vectors, columns)
