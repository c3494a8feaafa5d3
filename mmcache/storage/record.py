"""`Record`: one record as a read-only mapping, whichever tier gave it."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from typing import TYPE_CHECKING, Any, Protocol

from ..format.keys import Key, key_of
from ..format.records import Names, Shape
from ..native import bound, core
from ..schema import R_co
from ..shown import ABSENT, made_here

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..models import M

__all__ = [
    "UNNAMED",
    "Owner",
    "Record",
    "RecordItems",
    "RecordValues",
    "Vector",
    "attach",
    "copied",
    "detached",
    "parts_of",
    "place_of_embedding",
]

Vector = bytes | None | tuple[bytes | None, ...]
"""Embeddings as little-endian float32 bytes: of a schema with several a tuple, in their order."""


UNNAMED = ("",)
"""The fields of a record of which only is known that it has one embedding at most."""


class Owner(Protocol):
    """What a record came from."""

    def vector(self, row: int, field: str | None = None) -> NDArray[np.float32] | None: ...

    @property
    def embedding_fields(self) -> tuple[str, ...]: ...


class PureFields:
    """The fields of one record. index, nested, inner: see `Shape`."""

    __slots__ = ("_owner", "_row", "_shape", "_values")

    _owner: Owner
    _row: int
    _shape: Shape
    _values: list[Any]

    def __getitem__(self, name: str) -> Any:
        i = self._shape.index[name]
        if i in self._shape.nested:
            return self._shape.inner(i, self._values)
        return self._values[i]

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """float32, (dim,), read-only: a view of the file (which stays mapped while it is referenced); None without. Of
        several embeddings the first."""
        return self._owner.vector(self._row)


if TYPE_CHECKING or core is None:  # noqa: SIM108 (type checkers want a class)
    Fields = PureFields
else:
    Fields = core.Fields


@made_here
class Record(Fields, Mapping[str, Any]):
    """The fields of one record as they were given, the key first, the embeddings apart.

    Equal to a dict with the same items. Lists and maps in it are this record's own; changing them changes
    nothing else. Pickles with its embedding, as bytes; a list of rows of `embeddings` is cheaper to send.

    >>> record = cache["a"]
    >>> record["kind"], record.id, dict(record)
    ('tool', 'a', {'id': 'a', 'kind': 'tool', 'size': 1})
    >>> record.embedding.tolist(), record.embedding_of("vector").tolist(), record.embedding_fields
    ([1.0, 0.0], [1.0, 0.0], ('vector',))
    """

    __slots__ = ()

    def __init__(
        self, shape: Shape = ABSENT, values: list[Any] = ABSENT, owner: Owner = ABSENT, row: int = ABSENT
    ) -> None:
        if row is ABSENT:
            raise TypeError("a Record is given by a cache or a snapshot: cache[key]")
        self._shape = shape
        self._values = values
        self._owner = owner
        self._row = row

    def __iter__(self) -> Iterator[str]:
        return iter(self._shape.names)

    def __len__(self) -> int:
        return len(self._shape.names)

    def __contains__(self, name: object) -> bool:
        return name in self._shape.index

    @property
    def id(self) -> Key:
        """The key, whatever the key field is called; of a key of several fields the tuple of their values."""
        return key_of(self._values[0])

    def embedding_of(self, field: str) -> NDArray[np.float32] | None:
        """The same of one of several embeddings. Raises ValueError for a field that is none."""
        return self._owner.vector(self._row, field)

    @property
    def embedding_fields(self) -> tuple[str, ...]:
        """The fields that hold embeddings; () where there are none, or their name is not known here."""
        fields = tuple(self._owner.embedding_fields)
        return () if fields == UNNAMED else fields

    def asdict(self) -> dict[str, Any]:
        """A plain dict of the fields, without embeddings: what json and pydantic take, unless a field holds bytes.

        >>> json.dumps(cache["a"].asdict())
        '{"id": "a", "kind": "tool", "size": 1}'
        """
        shape = self._shape
        if shape.key or len(shape.names) < shape.count:
            return {name: self[name] for name in shape.names}
        fields = dict(zip(shape.names, self._values))  # noqa: B905  lengths were compared when it was decoded
        for i in shape.nested:
            fields[shape.names[i]] = shape.inner(i, self._values)
        return fields

    def to(self, model: type[M]) -> M:
        """This record as an instance of a dataclass, TypedDict, NamedTuple, attrs class or pydantic model: see
        `Schema(model=...)`, with which a cache does so itself. Raises ModelError.

        >>> cache["a"].to(Item)
        Item(id='a', kind='tool', size=1)
        """
        from ..models import Model  # whose import costs what a reader of plain records need not pay

        return Model(model)(self)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, _handler: object) -> Any:
        """For pydantic and FastAPI: a record, or a mapping of its fields; on the way out an object of the fields."""
        from pydantic_core import core_schema

        fields = core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema())
        record = core_schema.no_info_after_validator_function(_of_fields, fields)
        return core_schema.json_or_python_schema(
            json_schema=record,
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), record]),
            serialization=core_schema.plain_serializer_function_ser_schema(cls.asdict, return_schema=fields),
        )

    def __repr__(self) -> str:
        return f"Record({self.asdict()!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return detached, (*parts_of(self), tuple(self._owner.embedding_fields))


bound(Record, "Record")


def parts_of(record: Record) -> tuple[Names, list[Any], Vector]:
    """Names, values and embeddings as a source gives them."""
    shape, owner = record._shape, record._owner
    names = (shape.key, *shape.names[len(shape.key) :]) if shape.key else shape.names
    values = [record.id, *list(record.asdict().values())[len(shape.key) or 1 :]]
    further = (owner.vector(record._row, field) for field in owner.embedding_fields[1:])
    vectors = tuple(map(_packed, (record.embedding, *further))) if owner.embedding_fields else ()
    return names, values, vectors if len(vectors) > 1 else vectors[0] if vectors else None


def place_of_embedding(fields: Sequence[str], field: str) -> int:
    """Which of the embeddings this one is. Raises ValueError naming those that there are."""
    try:
        return fields.index(field)
    except ValueError:
        raise ValueError(f"there is no embedding {field!r}; there are: {', '.join(fields) or 'none'}") from None


def _packed(embedding: NDArray[np.float32] | None) -> bytes | None:
    return None if embedding is None else embedding.tobytes()


class _Attached:
    """The owner of a record whose embedding was read together with it."""

    __slots__ = ("_embedding", "_owner")

    def __init__(self, owner: Owner, embedding: NDArray[np.float32] | None) -> None:
        self._owner = owner
        self._embedding = embedding

    @property
    def embedding_fields(self) -> tuple[str, ...]:
        return self._owner.embedding_fields

    def vector(self, row: int, field: str | None = None) -> NDArray[np.float32] | None:
        return self._embedding if field is None else self._owner.vector(row, field)


def attach(records: Iterable[Record | None]) -> None:
    """Read the embedding of each now, so that `record.embedding` has it at hand. The compiled core does so itself."""
    for record in records:
        if record is not None:
            record._owner = _Attached(record._owner, record.embedding)


class _Vector:
    """The embeddings of a record that is not in a file. fields: their names, or UNNAMED."""

    __slots__ = ("_data", "embedding_fields")

    def __init__(self, data: Vector, fields: Sequence[str]) -> None:
        self._data: tuple[bytes | None, ...] = data if isinstance(data, tuple) else (data,)
        self.embedding_fields: tuple[str, ...] = tuple(fields)

    def vector(self, _: int, field: str | None = None) -> NDArray[np.float32] | None:
        import numpy as np

        fields = self.embedding_fields
        data = self._data[0 if field is None or fields == UNNAMED else place_of_embedding(fields, field)]
        return None if data is None else np.frombuffer(data, "<f4")


def detached(names: Names, values: Sequence[Any], vector: Vector, embeddings: Sequence[str] = UNNAMED) -> Record:
    """A record of its own, not a part of a file: what a source gave. vector: little-endian float32 bytes or None; of
    several embeddings a tuple of these. embeddings: their fields."""
    return Record(Shape(names, {}), list(values), _Vector(vector, embeddings), 0)


def _of_fields(fields: Mapping[str, Any]) -> Record:
    """Of a mapping, whose first field is the key."""
    if not fields:
        raise ValueError("a record has at least one field, its key")
    return detached(tuple(fields), list(fields.values()), None)


def copied(names: Names, values: Sequence[Any], vector: Vector, embeddings: Sequence[str] = UNNAMED) -> Record:
    """The same, whose values are copies: what a caller changes in it changes no other record."""
    return detached(names, [_copy(value) for value in values], vector, embeddings)


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy(item) for item in value]
    if isinstance(value, dict):
        return {name: _copy(item) for name, item in value.items()}
    return tuple(map(_copy, value)) if isinstance(value, tuple) else value


class _Records(Protocol[R_co]):
    def all_records(self) -> Iterator[R_co]: ...

    def __len__(self) -> int: ...


Pairs = Callable[[], Iterator[tuple[Key, Any]]]


class RecordValues(ValuesView[R_co]):
    """`values()` of a mapping that can read its records in bulk."""

    _mapping: _Records[R_co]

    def __iter__(self) -> Iterator[R_co]:
        return self._mapping.all_records()


class RecordItems(ItemsView[Key, R_co]):
    """`items()` of the same. pairs: gives them, where the key is not in the record."""

    _mapping: _Records[Any]

    def __init__(self, mapping: Any, pairs: Pairs | None = None) -> None:
        super().__init__(mapping)
        self._pairs = pairs

    def __iter__(self) -> Iterator[tuple[Key, R_co]]:
        if self._pairs is not None:
            return self._pairs()
        return ((record.id, record) for record in self._mapping.all_records())
