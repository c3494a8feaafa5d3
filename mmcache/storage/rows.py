"""What a selection asks of its collection, `NoFile`, which answers where there is no file, and `Given`.

`Rows` is a collection or the reference that leads to one in another process; `File` is the collection itself. Both are
in `snapshot`, which imports the selection. Rows are uint32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from ..arrays import np
from ..errors import SourceError
from .record import place_of_embedding

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from ..format.header import Section
    from ..format.keys import Key
    from ..format.postings import IndexReader
    from ..format.records import Shape
    from ..schema import Metric, Schema
    from ..sources.base import SourceRecord
    from .record import Record
    from .vectors import Vectors

__all__ = ["NO_ROW", "File", "FileRef", "Given", "NoFile", "Ref", "Rows", "Unplaced", "joined", "merged", "row_of"]

NO_ROW = 2**32
"""Above every row. Added to a place in the source's order, it orders a key that the file does not have."""


class Given(NamedTuple):
    """The records of a selection that are not of its file.

    records: as the source gave them; never handed out, nor changed.
    at: intp, ascending: the place of each one in the sequence.
    order: int64: the row of its key in the file of the selection, or NO_ROW plus its place in the source's order.
    """

    records: Sequence[SourceRecord]
    at: NDArray[np.intp]
    order: NDArray[np.int64]

    @property
    def keys(self) -> list[Any]:
        return [record.values[0] for record in self.records]

    def vectors(self, fields: Sequence[str], field: str | None) -> list[bytes | None]:
        """One embedding of each record, by default the first. fields: those of all."""
        at = 0 if field is None else place_of_embedding(fields, field)
        vectors = (record.vector for record in self.records)
        return [vector[at] if isinstance(vector, tuple) else vector for vector in vectors]

    def block(self, fields: Sequence[str], field: str | None, dim: int) -> NDArray[np.float32]:
        """float32, (number of records, dim), read-only: the same, zeros for none. dim: 0 for that of the first.

        Raises SourceError for one of another length.
        """
        data = self.vectors(fields, field)
        dim = dim or next((len(vector) // 4 for vector in data if vector is not None), 0)
        for vector, key in zip(data, self.keys, strict=True):
            if vector is not None and len(vector) != 4 * dim:
                raise SourceError(f"the embedding of {key!r} has {len(vector) // 4} numbers, where others have {dim}")
        zeros = bytes(4 * dim)
        whole = b"".join([zeros if vector is None else vector for vector in data])
        return np.frombuffer(whole, "<f4").reshape(len(data), dim)

    def others(self, n: int) -> NDArray[np.bool_]:
        """bool, (n,): which records of n in sequence are of the file."""
        mask = np.ones(n, np.bool_)
        mask[self.at] = False
        return mask


class Unplaced(NamedTuple):
    """The same of a selection in canonical order whose rows are not there yet; order: ascending.

    ranks: field, descending -> intp, distinct: of each record, in the order of its terms; None where none remembers it.
    """

    records: Sequence[SourceRecord]
    order: NDArray[np.int64]
    ranks: Callable[[str, bool], NDArray[np.intp]] | None = None

    @classmethod
    def of(cls, records: Sequence[SourceRecord], order: NDArray[np.int64]) -> Self:
        """order: see `Given`; not yet ascending."""
        if not (order[1:] >= order[:-1]).all():
            sequence = np.argsort(order, kind="stable")
            records, order = [records[i] for i in sequence.tolist()], order[sequence]
        return cls(records, order)

    def among(self, rows: NDArray[np.uint32]) -> Given:
        """rows: ascending."""
        return Given(self.records, rows.searchsorted(self.order) + np.arange(len(self.order)), self.order)


class Rows(Protocol):
    """The collection, or the reference that leads there."""

    def ids_at(self, rows: NDArray[np.uint32] | bytes) -> list[Key]: ...

    def records_at(self, rows: NDArray[np.uint32] | bytes) -> Iterator[Record]: ...

    def embeddings_at(self, rows: NDArray[np.uint32], field: str | None = None) -> NDArray[np.float32]: ...

    def table_at(self, rows: NDArray[np.uint32], columns: Iterable[str] | None) -> pa.Table: ...

    def ref(self) -> Ref: ...


class Ref(Rows, Protocol):
    """Equal for the same collection of the same generation."""

    def collection(self) -> File: ...


class FileRef(Ref, Protocol):
    """The reference to a collection of a file."""

    @property
    def path(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def generation(self) -> int: ...


class File(Rows, Protocol):
    """The collection itself, which a selection with records of a source asks for more."""

    @property
    def schema(self) -> _Indexed: ...

    @property
    def layout(self) -> _Shaped: ...

    @property
    def embedding_fields(self) -> tuple[str, ...]: ...

    def dim_of(self, field: str | None = None) -> int: ...

    def has_embedding_of(self, field: str) -> NDArray[np.bool_]: ...

    def vector(self, row: int, field: str | None = None) -> NDArray[np.float32] | None: ...

    def vectors(self, field: str | None = None) -> Vectors: ...

    def row(self, key: Any) -> int: ...

    def index(self, field: str) -> IndexReader: ...

    def rows_between(self, field: str, span: tuple[int, int]) -> NDArray[np.uint32]: ...

    def __len__(self) -> int: ...


class _Indexed(Protocol):
    @property
    def index(self) -> tuple[str, ...]: ...

    def metric_of(self, field: str) -> Metric: ...


class _Shaped(Protocol):
    @property
    def shapes(self) -> Sequence[Shape]: ...

    @property
    def sections(self) -> Mapping[str, Section]: ...


@dataclass(frozen=True, slots=True)
class _Indexes:
    """What a selection without a file needs of its schema."""

    index: tuple[str, ...]
    metrics: Mapping[str, Metric]

    def metric_of(self, field: str) -> Metric:
        return self.metrics[field]


class NoFile:
    """A collection without a record, for the selections that have no file. It is its own reference and layout.

    fields, dims: of its embeddings; a dim is 0 where it is not known. index: the fields that have one.
    """

    __slots__ = ("_dims", "embedding_fields", "schema")
    shapes: Sequence[Shape] = ()
    sections: Mapping[str, Section] = {}

    def __init__(
        self, fields: tuple[str, ...], dims: tuple[int, ...], index: tuple[str, ...], metrics: tuple[Metric, ...]
    ) -> None:
        self.embedding_fields = fields
        self._dims = dims
        self.schema = _Indexes(index, dict(zip(fields, metrics, strict=True)))

    @classmethod
    def of(cls, schema: Schema) -> Self:
        """For the records of a collection that a source gave."""
        fields = schema.embeddings
        dims = tuple(schema.dim_of(name) or 0 for name in fields)
        return cls(fields, dims, schema.index, tuple(map(schema.metric_of, fields)))

    def dim_of(self, field: str | None = None) -> int:
        at = 0 if field is None else place_of_embedding(self.embedding_fields, field)
        return self._dims[at] if self._dims else 0

    def ids_at(self, _: NDArray[np.uint32] | bytes) -> list[Key]:
        return []

    def records_at(self, _: NDArray[np.uint32] | bytes) -> Iterator[Record]:
        return iter(())

    def embeddings_at(self, _: NDArray[np.uint32], field: str | None = None) -> NDArray[np.float32]:
        return np.zeros((0, self.dim_of(field)), np.float32)

    def table_at(self, _: NDArray[np.uint32], columns: Iterable[str] | None) -> pa.Table:
        raise NotImplementedError  # a selection without a file makes its own

    def row(self, key: Any) -> int:
        raise KeyError(key)

    def vector(self, row: int, field: str | None = None) -> NDArray[np.float32] | None:
        raise NotImplementedError

    def vectors(self, field: str | None = None) -> Vectors:
        raise NotImplementedError  # there are no rows to be searched

    def ref(self) -> NoFile:
        return self

    def collection(self) -> NoFile:
        return self

    def index(self, field: str) -> IndexReader:
        raise NotImplementedError  # there are no rows to be put into order

    def rows_between(self, field: str, span: tuple[int, int]) -> NDArray[np.uint32]:
        raise NotImplementedError

    def __len__(self) -> int:
        return 0

    @property
    def layout(self) -> NoFile:
        return self

    def has_embedding_of(self, _: str) -> NDArray[np.bool_]:
        return np.zeros(0, np.bool_)


def row_of(file: File, key: Any, place: int) -> int:
    """The row of a key or, without one, what orders it by its place in the source's order."""
    try:
        return file.row(key)
    except (KeyError, TypeError):  # Case: another version of the program invalidated a key of another length
        return NO_ROW + place


def joined(*rows: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """uint32, ascending, each once; of one array, which is so already, that itself. By sorting: `np.unique` takes ten
    times as long."""
    some = [one for one in rows if len(one)]
    if len(some) < 2:
        return some[0] if some else np.empty(0, np.uint32)
    everything = np.sort(np.concatenate(some))
    return everything[np.concatenate(([True], everything[1:] != everything[:-1]))]


_FEW_GIVEN = 64
"""Records that are put in one by one, each at the cost of moving what is behind it."""


def merged(of_file: list[Any], of_source: Sequence[Any], at: NDArray[np.intp]) -> list[Any]:
    """One list of both, with those of the source at these places."""
    if len(of_source) <= _FEW_GIVEN:
        few = of_file[:]
        for place, value in zip(at.tolist(), of_source, strict=True):
            few.insert(place, value)
        return few
    both: list[Any] = []
    begin = 0
    for end, value in zip((at - np.arange(len(at))).tolist(), of_source, strict=True):
        both += of_file[begin:end]
        both.append(value)
        begin = end
    both += of_file[begin:]
    return both
