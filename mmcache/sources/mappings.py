"""Mappings as source records, and lookups among them.

What IterableSource and JSONLinesSource have in common. There is no index: the first lookup reads everything into a
dict, which costs about as much memory as the records and stays until the source goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

from ..errors import BuildError, SourceError
from ..schema import Query, Schema, matches, terms_of
from .base import Key, SourceRecord
from .vectors import VectorDecoder

__all__ = ["Keyed", "shape_records"]

_MAX_LAYOUTS = 4096

Layout = tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]


def shape_records(
    schema: Schema,
    items: Iterable[Any],
    place: Callable[[int], str],
    vectors: Iterator[bytes] | None = None,
) -> Iterator[SourceRecord]:
    """Mappings as source records. Raises BuildError.

    place: says where the item of an ordinal is, for messages.
    vectors: the embeddings, one for each item, where the items do not hold them.

    Records of the same fields share one `names`, whatever the order of the fields in each.
    """
    new, record, key_field, field = tuple.__new__, SourceRecord, schema.key, schema.embedding
    decode = VectorDecoder(schema.dim, schema.dtype)
    layouts = _Layouts(schema)
    vector = None
    ordinal = -1
    for ordinal, item in enumerate(items):
        key: Any = None
        try:
            if type(item) is not dict and not isinstance(item, Mapping):
                raise ValueError(f"a record must be a mapping, not {type(item).__name__}")
            names, values_of = layouts[tuple(item)]
            key = item[key_field]
            if not isinstance(key, str) or not key:
                raise ValueError(f"the key {key_field!r} must be a non-empty str, not {key!r}")
            if vectors is not None:
                if field in item:
                    raise ValueError(f"the record holds {field!r}, and embeddings= is given too; use one of them")
                vector = next(vectors, None)
                if vector is None:
                    raise ValueError(f"embeddings= has {ordinal} rows and there are more records; give each a row")
            elif field is not None:
                vector = decode(item.get(field))
            values = values_of(item)
        except ValueError as error:
            raise BuildError.of(schema.name, key, f"{place(ordinal)}: {error}") from error
        yield new(record, (names, values, vector))
    if vectors is not None and next(vectors, None) is not None:
        raise BuildError.of(
            schema.name, None, f"embeddings= has more rows than the {ordinal + 1} records; give one row for each"
        )


class _Layouts(dict[tuple[Any, ...], Layout]):
    """The fields of a mapping in its own order -> the names of the record, and a function that gives their values.

    Bounded, as every record may have fields of its own.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        self._schema = schema
        self._by_fields: dict[frozenset[str], Layout] = {}

    def __missing__(self, fields: tuple[Any, ...]) -> Layout:
        key, embedding = self._schema.key, self._schema.embedding
        if key not in fields:
            known = ", ".join(map(str, fields)) or "none"
            raise ValueError(f"no field {key!r}, which is the key; the record has: {known}")
        odd = [name for name in fields if not isinstance(name, str)]
        if odd:
            raise ValueError(f"field names must be str, not {odd[0]!r}")
        if len(self) >= _MAX_LAYOUTS:
            self.clear()
            self._by_fields.clear()
        names = (key, *(name for name in fields if name not in (key, embedding)))
        layout = self[fields] = self._by_fields.setdefault(frozenset(names), (names, _getter(names)))
        return layout


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    (name,) = names
    return lambda item: (item[name],)


class Keyed:
    """Records in their order, with the ordinal of each key. Of records with one key the first counts.

    Raises SourceError for one that cannot be used.
    """

    def __init__(self, records: Iterator[SourceRecord]) -> None:
        self._records: list[SourceRecord] = []
        self._ordinals: dict[Key, int] = {}
        try:
            for record in records:
                if self._ordinals.setdefault(record.values[0], len(self._records)) == len(self._records):
                    self._records.append(record)
        except BuildError as error:
            raise SourceError(error.message, path=error.path) from error

    def fetch(self, ids: Iterable[Key]) -> list[SourceRecord | None]:
        ordinals, records = self._ordinals, self._records
        return [None if (ordinal := ordinals.get(key)) is None else records[ordinal] for key in ids]

    def in_order(self, ids: Iterable[Key]) -> list[Key]:
        ordinals = self._ordinals
        return sorted({key for key in ids if key in ordinals}, key=ordinals.__getitem__)

    def find(self, query: Query) -> Iterator[SourceRecord]:
        for record in self._records:
            fields = dict(zip(record.names, record.values, strict=True))
            try:
                terms = {field: terms_of(fields.get(field)) for field in query}
            except TypeError:
                continue  # not a term, so it is not in an index either
            if matches(terms, query):
                yield record
