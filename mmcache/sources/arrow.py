"""Arrow's record batches and Parquet files as records. Needs the extra `arrow`.

A row becomes a mapping from column to value, by the rule of `values` (see `columns`). A column that is an embedding of
the schema stays an array, whose rows are taken without making a number of Python of any of them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from ..errors import BuildError, SourceError
from ..schema import AnySchema, R_co, Schema
from ..shown import internal
from ..values import Default, Unimported, Values, importable
from .base import Where
from .casts import is_kept
from .columns import values_of
from .files import FileReading, FileSource
from .objects import raw_of
from .parts import Part
from .streams import decompressed

__all__ = ["ArrowFileSource", "ArrowReading", "ArrowSource", "ParquetSource", "of_batches", "rows_of"]

_BATCH_ROWS = 4096
_FILE = b"ARROW1"


def rows_of(stream: Any, schema: Schema) -> Iterator[Mapping[str, Any]]:
    """The rows of what has `__arrow_c_stream__`, or of a data set, scanner or lazy frame, a batch at a time. Raises
    SourceError where Arrow cannot read it."""
    try:
        with (
            pa.RecordBatchReader.from_stream(stream)
            if hasattr(stream, "__arrow_c_stream__")
            else _reader(stream) as all_
        ):
            yield from of_batches(all_, schema)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"cannot read the {type(stream).__name__} as rows of Arrow: {error}") from error


def _reader(table: Any) -> pa.RecordBatchReader:
    if hasattr(table, "collect_batches"):  # polars
        return _of_frames(table)
    if hasattr(table, "collect"):
        return pa.RecordBatchReader.from_stream(table.collect())
    if hasattr(table, "scanner"):
        table = table.scanner(batch_size=_BATCH_ROWS, batch_readahead=1, fragment_readahead=1)
    if hasattr(table, "to_reader"):
        return table.to_reader()
    if hasattr(table, "iter_batches"):
        return pa.RecordBatchReader.from_batches(table.schema_arrow, table.iter_batches(_BATCH_ROWS))
    return pa.RecordBatchReader.from_batches(table.schema, map(table.get_batch, range(table.num_record_batches)))


def _of_frames(lazy: Any) -> pa.RecordBatchReader:
    """The batches of a lazy frame, as its engine has them."""
    frames = (frame.to_arrow() for frame in lazy.collect_batches(maintain_order=True))
    first = next(frames, None)
    if first is None:
        return lazy.collect().to_arrow().to_reader()
    tables = chain([first], (frame.cast(first.schema) for frame in frames))
    return pa.RecordBatchReader.from_batches(first.schema, (batch for table in tables for batch in table.to_batches()))


def of_batches(batches: Iterable[pa.RecordBatch], schema: Schema) -> Iterator[dict[str, Any]]:
    for batch in batches:
        for begin in range(0, batch.num_rows, _BATCH_ROWS):
            yield from _rows(batch.slice(begin, _BATCH_ROWS), schema)


def _wanted(schema: Schema, names: Iterable[str]) -> list[str] | None:
    """The columns to read; None for all."""
    if schema.columns is None:
        return None
    renames = dict(schema.renames)
    return [name for name in names if is_kept(schema, renames.get(name, name))]


@internal("default", "given")
class ArrowFileSource(FileSource[R_co]):
    """What the sources of Arrow's formats have in common."""

    takes = ("default",)

    def __init__(
        self,
        path: Where,
        schema: Schema[R_co],
        *,
        embeddings: Where | None = None,
        default: Default | str | None = None,
    ) -> None:
        super().__init__(path, schema, embeddings=embeddings)
        function, self._default = importable(default)
        self._values = Values(function)

    @property
    def default(self) -> Default | None:
        """The function, if there is one."""
        return self._values.default

    def spec(self) -> dict[str, Any] | None:
        """See `Source`. None with a function that cannot be imported by name."""
        spec = super().spec()
        if self.default is None or spec is None:
            return spec
        return None if self._default is None else {**spec, "default": self._default}

    def given(self) -> dict[str, Any]:
        """The name of the function, if there is one."""
        return {} if self._default is None else {"default": self._default}

    @classmethod
    def remade(cls, spec: Mapping[str, Any], schemas: Sequence[AnySchema], given: Mapping[str, Any]) -> Self:
        """See `sources.from_spec`. Without the function, values that need it are refused."""
        if given.get("default") is None and "default" in spec:
            given = {"default": Unimported(str(spec["default"]))}
        return super().remade(spec, schemas, given)


class ArrowReading(FileReading):
    """A `FileReading` whose items have values of Arrow."""

    failures: ClassVar[tuple[type[Exception], ...]] = (OSError, EOFError, pa.ArrowException)

    def __init__(self, source: Any, parts: list[Part], held: ExitStack) -> None:
        super().__init__(source, parts, held)
        self.values_by = source._values


class ParquetReading(ArrowReading):
    """See `ParquetSource`."""

    def begin(self) -> None:
        super().begin()
        try:
            if self._first is not None:
                parquet.ParquetFile(raw_of(self._first))
        except (OSError, pa.ArrowException) as error:
            raise self.source._error(error) from error

    def count(self, collection: str) -> int | None:
        super().count(collection)
        try:
            return sum(_rows_in(parquet.ParquetFile(raw_of(file)), part) for file, part in self.each_file())
        except (OSError, pa.ArrowException) as error:
            raise self.source._error(error) from error

    def items(self, file: io.BufferedReader, part: Part, schema: Schema) -> Iterator[Any]:
        table = parquet.ParquetFile(raw_of(file), pre_buffer=False)
        columns = _wanted(schema, table.schema_arrow.names)
        groups = None if part.piece is None else range(*part.piece)
        for batch in table.iter_batches(_BATCH_ROWS, columns=columns, row_groups=groups):
            yield from _rows(batch, schema)

    def before(self, part: Part, begin: int) -> int:
        """See `FileReading`."""
        metadata = _metadata(self.source.opened(part))
        return sum(metadata.row_group(i).num_rows for i in range(begin))


def _metadata(file: io.BufferedReader) -> parquet.FileMetaData:
    """From the end of a file, which is closed then. Raises OSError and ArrowException."""
    with file:
        return parquet.read_metadata(raw_of(file))


def _rows_in(table: parquet.ParquetFile, part: Part) -> int:
    groups = range(*part.piece) if part.piece is not None else range(table.num_row_groups)
    return sum(table.metadata.row_group(i).num_rows for i in groups)


class ParquetSource(ArrowFileSource[R_co]):
    """Parquet files, one record a row; a directory of them may be partitioned by names (`year=2026/`), which become
    fields. See `FileSource`. Needs the extra `arrow`.

    default: as of `IterableSource`; of a value that has no text, such as a date beyond the year 9999, it is given the
        scalar of pyarrow. What is built with a function that cannot be imported by name is not rebuilt by other
        processes; by name, `mmcache rebuild` must be told it again, as nothing that a file names is imported.

    >>> from pyarrow import parquet
    >>> parquet.write_table(cache.to_arrow(["id", "size"]), "items.parquet")
    >>> source = mmcache.ParquetSource("items.parquet", Schema("items", index=("size",)))
    >>> with mmcache.open("items.mmc", source) as items:
    ...     items.where(size=2).ids
    ['b']
    """

    kind = "parquet"
    suffixes = (".parquet", ".parq", ".pq")
    _reads = ParquetReading
    _gives_plain: ClassVar[bool] = True
    _is_cut: ClassVar[bool] = True

    def pieces(self, part: Part, n: int) -> list[tuple[Part, int]]:  # noqa: ARG002 (all of them are joined again)
        """See `FileSource`: row groups. Raises OSError."""
        try:
            metadata = _metadata(self.opened(part))
        except pa.ArrowException as error:
            raise self._error(error, part.path) from error
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        return [(part._replace(piece=(i, i + 1)), group.num_rows) for i, group in enumerate(groups)] or [(part, 0)]


class IPCReading(ArrowReading):
    """See `ArrowSource`."""

    def items(self, file: io.BufferedReader, part: Part, schema: Schema) -> Iterator[Any]:  # noqa: ARG002
        data = decompressed(file)
        if not data.peek(6).startswith(_FILE):
            with pa.ipc.open_stream(data) as stream:
                yield from of_batches(stream, schema)
            return
        if data is not file:
            raise OSError(
                "it is an Arrow file that is compressed as a whole, in which batches cannot be found; "
                "decompress it, or compress a stream"
            )
        with pa.ipc.open_file(data) as table:
            yield from of_batches(map(table.get_batch, range(table.num_record_batches)), schema)


class ArrowSource(ArrowFileSource[R_co]):
    """Arrow IPC files (Feather) and streams, one record a row; streams may be compressed as a whole. See `FileSource`.
    Needs the extra `arrow`.

    default: as of `ParquetSource`.

    >>> from pyarrow import feather
    >>> feather.write_feather(cache.to_arrow(["id", "size"]), "items.feather")
    >>> dict(mmcache.build("items.mmc", mmcache.ArrowSource("items.feather", Schema("items"))).records)
    {'items': 3}
    """

    kind = "arrow"
    suffixes = (".arrow", ".arrows", ".feather", ".ipc")
    _reads = IPCReading
    _gives_plain: ClassVar[bool] = True
    _is_cut: ClassVar[bool] = True


def _rows(batch: pa.RecordBatch, schema: Schema) -> Iterator[dict[str, Any]]:
    columns: dict[str, Iterable[Any]] = {}
    renames = dict(schema.renames)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            if name in columns:
                raise ValueError("two columns are called so")
            columns[name] = _vectors(column) if renames.get(name, name) in schema.embeddings else values_of(column)
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
