"""`Record`: one record as a read-only mapping, whichever tier gave it."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import CorruptFileError
from ..format.records import Shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Record", "RecordItems", "RecordValues", "detached"]


class _HasVectors(Protocol):
    def vector(self, row: int) -> NDArray[np.float32] | None: ...


class Record(Mapping[str, Any]):
    """The fields of one record as they were given, the key first, the embedding apart.

    Equal to a dict with the same items. Lists and maps in it are this record's own; changing them changes
    nothing else. Pickles with its embedding, as bytes; a list of rows of `embeddings` is cheaper to send.
    """

    __slots__ = ("_owner", "_row", "_shape", "_values")

    def __init__(self, shape: Shape, values: list[Any], owner: _HasVectors, row: int) -> None:
        self._shape = shape
        self._values = values
        self._owner = owner
        self._row = row

    def __getitem__(self, name: str) -> Any:
        i = self._shape.index[name]
        if i in self._shape.nested:
            return _map(self._shape.nested[i], self._values[i])
        return self._values[i]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shape.names)

    def __len__(self) -> int:
        return len(self._shape.names)

    def __contains__(self, name: object) -> bool:
        return name in self._shape.index

    @property
    def id(self) -> str:
        """The key's value, whatever the key field is called."""
        return self._values[0]  # type: ignore[no-any-return]

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """float32, (dim,), read-only: a view of the file (which stays mapped while it is referenced); None without."""
        return self._owner.vector(self._row)

    def asdict(self) -> dict[str, Any]:
        """A plain dict of the fields."""
        shape = self._shape
        if len(shape.names) < shape.count:
            return {name: self[name] for name in shape.names}
        fields = dict(zip(shape.names, self._values))  # noqa: B905  lengths were compared when it was decoded
        for i, names in shape.nested.items():
            fields[shape.names[i]] = _map(names, self._values[i])
        return fields

    def __repr__(self) -> str:
        return f"Record({self.asdict()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        embedding = self.embedding
        vector = None if embedding is None else embedding.tobytes()
        return detached, (self._shape.names, list(self.asdict().values()), vector)


def _map(names: tuple[str, ...], values: Any) -> dict[str, Any]:
    try:
        return dict(zip(names, values, strict=True))
    except (TypeError, ValueError):
        raise CorruptFileError("section 'records': a map does not match its shape", section="records") from None


class _Vector:
    """The embedding of a record that is not in a file."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | None) -> None:
        self._data = data

    def vector(self, _: int) -> NDArray[np.float32] | None:
        import numpy as np

        return None if self._data is None else np.frombuffer(self._data, "<f4")


def detached(names: tuple[str, ...], values: Sequence[Any], vector: bytes | None) -> Record:
    """A record of its own, not a part of a file: what a source gave. vector: little-endian float32 bytes or None."""
    return Record(Shape(names, {}), list(values), _Vector(vector), 0)


class _Records(Protocol):
    def all_records(self) -> Iterator[Record]: ...

    def __len__(self) -> int: ...


class RecordValues(ValuesView[Record]):
    """`values()` of a mapping that can read its records in bulk."""

    _mapping: _Records

    def __iter__(self) -> Iterator[Record]:
        return self._mapping.all_records()


class RecordItems(ItemsView[str, Record]):
    """`items()` of a mapping that can read its records in bulk."""

    _mapping: _Records

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        return ((record.id, record) for record in self._mapping.all_records())
