"""A collection as a Parquet or Arrow file, a batch at a time. Needs the extra `arrow`.

Two passes over the records: the first finds a type for each field that all its values have, the second writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet

from .options import UsageError
from .output import Step

if TYPE_CHECKING:
    from ..storage.snapshot import FileCollection

__all__ = ["write"]

_BATCH_BYTES: Final = 32 * 2**20
"""Of embeddings, in a batch."""

_MAX_ROWS: Final = 16_384


def write(
    kind: str, collection: FileCollection, wanted: list[str], file: IO[bytes], progress: Step, *, is_stream: bool
) -> None:
    """is_stream: to what cannot seek. Raises UsageError for values that have no common type, CorruptFileError."""
    schema = _schema(collection, wanted, progress)
    with _writer(kind, file, schema, is_stream=is_stream) as writer:
        for rows in _batches(collection, "records", progress):
            writer.write_table(_table(collection, rows, schema))


def _writer(kind: str, file: IO[bytes], schema: pa.Schema, *, is_stream: bool) -> Any:
    if kind == "parquet":
        return parquet.ParquetWriter(file, schema)
    return ipc.new_stream(file, schema) if is_stream else ipc.new_file(file, schema)


def _batches(collection: FileCollection, stage: str, progress: Step) -> Iterator[np.ndarray[Any, Any]]:
    width = 4 * sum(one.dim for one in collection.layout.embeddings.values())
    size = min(_MAX_ROWS, max(1, _BATCH_BYTES // max(width, 1)))
    for begin in range(0, len(collection), size):
        progress(stage, begin, len(collection))
        yield np.arange(begin, min(begin + size, len(collection)), dtype=np.uint32)


def _schema(collection: FileCollection, wanted: list[str], progress: Step) -> pa.Schema:
    found = pa.schema([])
    vectors = _vectors(collection)
    apart = collection.layout.embeddings
    fields = [name for name in wanted if name not in apart]
    for rows in _batches(collection, "types", progress) if fields else ():
        try:
            seen = collection.table_at(rows, fields).schema
            found = pa.unify_schemas([found, seen], promote_options="permissive")
        except (ValueError, pa.ArrowException) as error:
            raise _no_type(error) from error
    types = {field.name: field.type for field in found}
    types |= {name: pa.list_(pa.float32(), vectors[name]) for name in wanted if name in vectors}
    return pa.schema([(name, types.get(name, pa.null())) for name in wanted])


def _vectors(collection: FileCollection) -> dict[str, int]:
    """Field -> dim of the embeddings, but those that no record has."""
    return {name: one.dim for name, one in collection.layout.embeddings.items() if one.dim}


def _no_type(error: Exception) -> UsageError:
    text = str(error).partition("; leave it out: ")[0]
    return UsageError(f"{text}; leave it out with --columns, or --format jsonl")


def _table(collection: FileCollection, rows: np.ndarray[Any, Any], schema: pa.Schema) -> pa.Table:
    vectors = [name for name in schema.names if name in _vectors(collection)]
    columns: dict[str, Any] = {name: [] for name in schema.names if name not in vectors}
    if columns:
        for record in collection.records_at(rows):
            for name, column in columns.items():
                column.append(record.get(name))
    arrays = {name: _array(name, column, schema.field(name).type) for name, column in columns.items()}
    if vectors:
        table = collection.table_at(rows, vectors)
        arrays |= {name: table.column(name) for name in vectors}
    return pa.table([arrays[name] for name in schema.names], schema=schema)


def _array(name: str, values: list[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise _no_type(ValueError(f"the values of {name!r} have no common Arrow type ({error})")) from error
