"""Arrow's record batches and Parquet files as records. Needs the extra `arrow`.

A row becomes a mapping from column to value, by the rule of `values` (see `columns`). A column that is an embedding of
the schema stays an array, whose rows are taken without making a number of Python of any of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, ClassVar

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from ..errors import BuildError, SourceError
from ..schema import R_co, Schema
from ..values import Default, Values, importable
from .base import Reading, Row
from .columns import values_of
from .iterable import FileSource
from .mappings import shape_records
from .vectors import Decoders

__all__ = ["ParquetSource", "rows_of"]

_BATCH_ROWS = 4096


def rows_of(stream: Any, schema: Schema) -> Iterator[Mapping[str, Any]]:
    """The rows of what has `__arrow_c_stream__`, a batch at a time. Raises SourceError where Arrow cannot read it."""
    try:
        with pa.RecordBatchReader.from_stream(stream) as batches:
            for batch in batches:
                for begin in range(0, batch.num_rows, _BATCH_ROWS):
                    yield from _rows(batch.slice(begin, _BATCH_ROWS), schema)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"cannot read the {type(stream).__name__} as rows of Arrow: {error}") from error


class ParquetSource(FileSource[R_co]):
    """A Parquet file, one record a row. See `FileSource` for lookups. Needs the extra `arrow`.

    default: as of `IterableSource`; of a value that has no text, such as a date beyond the year 9999, it is given the
        scalar of pyarrow. What is built with a function that cannot be imported by name is not rebuilt by other
        processes; by name, `mmcache rebuild` must be told it again, as nothing that a file names is imported.
    """

    kind = "parquet"
    _gives_plain: ClassVar[bool] = True

    def __init__(
        self, path: str | os.PathLike[str], schema: Schema[R_co], *, default: Default | str | None = None
    ) -> None:
        super().__init__(path, schema)
        function, self._default = importable(default)
        self._values = Values(function)

    @property
    def default(self) -> Default | None:
        """The function, if there is one."""
        return self._values.default

    def spec(self) -> dict[str, Any] | None:
        if self.default is None:
            return super().spec()
        return None if self._default is None else {**(super().spec() or {}), "default": self._default}

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

    def __init__(self, source: ParquetSource[Any], file: IO[bytes], table: parquet.ParquetFile) -> None:
        self._source = source
        self._file = file
        self._table = table
        self._decoders = {schema.name: Decoders(schema) for schema in source.schemas}

    def dtypes(self, collection: str) -> Mapping[str, str]:
        """See `IterableSource.dtypes`."""
        return self._decoders[collection].dtypes

    def count(self, collection: str) -> int | None:
        self._source._catalog[collection]
        return int(self._table.metadata.num_rows)

    def records(self, collection: str) -> Iterator[Row]:
        schema = self._source._catalog[collection]
        try:
            with self._source._unchanged(self._file):
                yield from shape_records(
                    schema,
                    self._rows(schema),
                    "row {}".format,
                    decoders=self._decoders[collection],
                    values_by=self._source._values,
                )
        except BuildError as error:
            error.path = self._source.path
            raise
        except (OSError, pa.ArrowException) as error:
            raise self._source._error(error) from error

    def _rows(self, schema: Schema) -> Iterator[Mapping[str, Any]]:
        wanted = schema.columns and [*schema.key_fields, *schema.columns, *schema.embeddings]
        there = None if wanted is None else [name for name in self._table.schema_arrow.names if name in wanted]
        for batch in self._table.iter_batches(_BATCH_ROWS, columns=there):
            yield from _rows(batch, schema)


def _rows(batch: pa.RecordBatch, schema: Schema) -> Iterator[dict[str, Any]]:
    columns: dict[str, Iterable[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            if name in columns:
                raise ValueError("two columns are called so")
            columns[name] = _vectors(column) if name in schema.embeddings else values_of(column)
        except (ValueError, pa.ArrowException) as error:
            raise BuildError.of(schema.name, None, f"column {name!r}: {error}") from error
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _vectors(column: pa.Array) -> Iterable[Any]:
    """What a record may hold as its embedding, for each row: where they are lists of numbers, slices of one array."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    is_list = pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type)
    is_list = is_list or pa.types.is_large_list(column.type)
    if not is_list or not pa.types.is_floating(column.type.value_type):
        return column.to_pylist()  # type: ignore[no-any-return]
    numbers = column.flatten()  # without those of rows that are null
    if numbers.null_count:
        return column.to_pylist()  # type: ignore[no-any-return]
    flat = numbers.to_numpy()
    lengths = compute.list_value_length(column)
    ends = np.cumsum(lengths.fill_null(0).to_numpy()).tolist()
    return [
        None if length is None else flat[end - length : end]
        for length, end in zip(lengths.to_pylist(), ends, strict=True)
    ]
