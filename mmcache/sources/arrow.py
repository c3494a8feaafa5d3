"""Arrow's record batches and Parquet files as records. Needs the extra `arrow`.

A row becomes a mapping from column to value, as `to_pylist` has it; a column that is the schema's embedding stays an
array, whose rows are taken without making a number of Python of any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ..errors import BuildError
from ..schema import Schema
from .base import Reading, SourceRecord
from .iterable import FileSource
from .mappings import shape_records

__all__ = ["ParquetSource", "rows_of"]

_BATCH_ROWS = 4096


def rows_of(stream: Any, schema: Schema) -> Iterator[Mapping[str, Any]]:
    """The rows of what has `__arrow_c_stream__`, a batch at a time."""
    with pa.RecordBatchReader.from_stream(stream) as batches:
        for batch in batches:
            for begin in range(0, batch.num_rows, _BATCH_ROWS):
                yield from _rows(batch.slice(begin, _BATCH_ROWS), schema)


class ParquetSource(FileSource):
    """A Parquet file, one record a row. See `FileSource` for lookups. Needs the extra `arrow`."""

    kind = "parquet"

    @contextmanager
    def read(self) -> Iterator[Reading]:
        with self._opened() as file:
            try:
                table = parquet.ParquetFile(file)
            except (OSError, pa.ArrowException) as error:
                raise self._error(error) from error
            yield ParquetReading(self, file, table)


class ParquetReading:
    """One open file; made by `ParquetSource.read`."""

    def __init__(self, source: ParquetSource, file: IO[bytes], table: parquet.ParquetFile) -> None:
        self._source = source
        self._file = file
        self._table = table

    def count(self, collection: str) -> int | None:
        self._source._catalog[collection]
        return int(self._table.metadata.num_rows)

    def records(self, collection: str) -> Iterator[SourceRecord]:
        schema = self._source._catalog[collection]
        try:
            with self._source._unchanged(self._file):
                yield from shape_records(schema, self._rows(schema), "row {}".format)
        except BuildError as error:
            error.path = self._source.path
            raise
        except (OSError, pa.ArrowException) as error:
            raise self._source._error(error) from error

    def _rows(self, schema: Schema) -> Iterator[Mapping[str, Any]]:
        for batch in self._table.iter_batches(_BATCH_ROWS):
            yield from _rows(batch, schema)


def _rows(batch: pa.RecordBatch, schema: Schema) -> Iterable[dict[str, Any]]:
    name = schema.embedding
    if name is None or name not in batch.schema.names:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    rows = batch.drop_columns([name]).to_pylist()
    if not rows:
        rows = [{} for _ in range(batch.num_rows)]
    for row, vector in zip(rows, _vectors(batch.column(name)), strict=True):
        row[name] = vector
    return rows


def _vectors(column: pa.Array) -> Iterable[Any]:
    """Rows of an array, or None, where all are of one length; else what a record may hold as its embedding."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if not pa.types.is_fixed_size_list(column.type) or not pa.types.is_floating(column.type.value_type):
        return column.to_pylist()  # type: ignore[no-any-return]
    size = column.type.list_size
    numbers = column.values.slice(column.offset * size, len(column) * size)
    if numbers.null_count and numbers.null_count != column.null_count * size:
        return column.to_pylist()  # type: ignore[no-any-return]
    matrix = np.asarray(numbers.to_numpy(zero_copy_only=False)).reshape(len(column), size)
    if not column.null_count:
        return matrix
    return [row if is_there else None for row, is_there in zip(matrix, column.is_valid().to_pylist(), strict=True)]
