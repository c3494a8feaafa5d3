"""Mappings as source records, and lookups among them.

What IterableSource and JSONLinesSource have in common. There is no index: the first lookup reads everything into a
dict, which costs about as much memory as the records and stays until the source goes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice, repeat
from numbers import Integral
from operator import itemgetter
from typing import Any, NamedTuple

from ..errors import BuildError, SourceError
from ..format.keys import check_key
from ..query import Query, matcher, path_of, place_of, reaches
from ..schema import Schema
from ..values import Values, all_plain
from .base import Invalid, Key, SourceRecord, refused
from .casts import Adapter, adapter_of
from .vectors import Decoders, Vector, any_doubtful

__all__ = ["LOOKED_AT", "Keyed", "Sought", "Unread", "replaces", "shape_records", "unknown_to", "with_paths", "without"]

_MAX_LAYOUTS = 4096
_RUN = 256
"""Items that are taken together: enough to let C loops do the work."""

LOOKED_AT = 1000
"""Records of which one must have each field that a schema names, or that is taken for misspelt."""


class Unread(NamedTuple):
    """In the place of an item that could not be read. reason: why, and where it is."""

    reason: str


Layout = tuple[tuple[Any, ...], Callable[[Any], tuple[Any, ...]]]
"""The `names` of a record, and what gives its values."""


def shape_records(
    schema: Schema,
    items: Iterable[Any],
    location: Callable[[int], str],
    vectors: Iterator[Vector] | None = None,
    *,
    decoders: Decoders | None = None,
    values_by: Values | None = None,
    adapter: Adapter | None = None,
    some: bool = False,
    shard: int | None = None,
) -> Iterator[SourceRecord | Invalid]:
    """Mappings as source records; a bad one as `refused`. Raises BuildError.

    location: says where the item of an ordinal is, for messages.
    vectors: the embeddings, one for each item, where the items do not hold them.
    values_by: the rule for values; None where all are plain already, and each item is to be taken alone, as `location`
        knows only the last.
    adapter: makes mappings of the items, in place of the one that applies the schema's names and casts.
    some: these are not all records, and may lack fields that the schema names.
    shard: these are part so many of all records, from 0; only the first of the whole tell of misspelt fields.

    Records of the same fields share one `names`, whatever the order of the fields in each.
    """
    adapter = adapter or adapter_of(schema, values_by or Values())
    shaper = _Shaper(
        schema, location, vectors, decode=decoders or Decoders(schema), values_by=values_by, adapter=adapter
    )
    if some or shard:
        shaper.sought.fields.clear()
    if values_by is None:
        for item in items:
            yield shaper.one(item)
    else:
        remaining = iter(items)
        while run := list(islice(remaining, _RUN)):
            together: Iterator[SourceRecord | Invalid] | None = shaper.together(run)
            yield from together or map(shaper.one, run)
    shaper.end(whole=shard is None)


class _Shaper:
    """The state of one `shape_records`. ordinal: of the next item."""

    def __init__(
        self,
        schema: Schema,
        location: Callable[[int], str],
        vectors: Iterator[Vector] | None,
        *,
        decode: Decoders,
        values_by: Values | None,
        adapter: Adapter | None,
    ) -> None:
        self.schema = schema
        self.location = location
        self.vectors = vectors
        self.decode = decode
        self.values_by = values_by
        self.adapter = adapter
        self.layouts = _Layouts(schema, decode.orders)
        self.sought = Sought(schema, schema.index, schema.json, schema.embeddings if vectors is None else ())
        self.sought.declare(schema)
        self.ordinal = 0

    def one(self, item: Any) -> SourceRecord | Invalid:
        """The next item. Raises BuildError."""
        schema, key = self.schema, None
        vector: Vector = None
        fault: str | None = None
        given = None if self.vectors is None else next(self.vectors, None)
        try:
            if type(item) is Unread:
                raise ValueError(item.reason)
            if self.adapter is not None:
                item, fault = self.adapter.one(item)
            elif type(item) is not dict:
                item = (self.values_by or Values()).record(item)
            names, values_of = self.layouts[tuple(item)]
            values: Sequence[Any] = values_of(item)
            key = values[0]
            if self.values_by is not None:
                values = self.values_by.row(names, values)
                key = values[0]
            if type(key) is not str:
                key = _checked(schema, key)
                values = (key, *values[1:])
            if fault is not None:
                raise ValueError(fault)
            if self.sought.fields:
                self.sought.see(item, names, values)
            if self.vectors is not None or schema.embeddings:
                vector = self._vector_of(item, given)
        except BuildError:
            raise  # of the source as a whole
        except ValueError as error:
            reason = item.reason if type(item) is Unread else f"{self.location(self.ordinal)}: {error}"
            row: SourceRecord | Invalid = refused(schema, key, reason, self._raw(item), cause=error)
        else:
            row = SourceRecord(names, values, vector)
        if self.vectors is not None and given is None:
            rows = f"embeddings= has {self.ordinal} rows and there are more records; give each a row"
            raise BuildError.of(schema.name, key, f"{self.location(self.ordinal)}: {rows}")
        self.ordinal += 1
        return row

    def _vector_of(self, item: Any, given: Vector) -> Vector:
        """given: what stands apart from the items for this one, where embeddings do."""
        if self.vectors is None:
            return self.decode([item.get(field) for field in self.schema.embeddings])
        self._check_apart(item)
        return given

    def _raw(self, item: Any) -> SourceRecord | None:
        """What there is of an item that is refused, if it has a key."""
        try:
            names, values_of = self.layouts[tuple(item)]
            key, *others = values_of(item)
            return SourceRecord(names, (_checked(self.schema, key), *others), None)
        except (ValueError, TypeError, KeyError):
            return None

    def _check_apart(self, item: Mapping[str, Any]) -> None:
        if both := [field for field in self.schema.embeddings if field in item]:
            raise ValueError(f"the record holds {both[0]!r}, and embeddings= is given too; use one of them")

    def together(self, run: list[Any]) -> Iterator[SourceRecord] | None:
        """The next items, where they are dicts of the same fields, with plain values; None for others, which are to be
        taken one by one. In C, and so in half the time."""
        if self.adapter is not None:
            try:
                adapted = self.adapter.run(run)
            except ValueError:
                return None
            if adapted is None:
                return None
            run = adapted
        if set(map(type, run)) != {dict}:
            return None
        fields = tuple(run[0])
        if list(map(tuple, run)).count(fields) < len(run):
            return None
        try:
            names, values_of = self.layouts[fields]
            rows = list(map(values_of, run))
            if set(map(type, map(itemgetter(0), rows))) != {str} or not all_plain(rows):
                return None
            vectors = self._vectors(run, fields)
        except BuildError:
            raise
        except ValueError:
            return None  # which of them it is shows one by one
        for item, row in zip(run, rows, strict=True) if self.sought.fields else ():
            self.sought.see(item, names, row)
        self.ordinal += len(run)
        new: Any = tuple.__new__  # without the constructor of the NamedTuple, which is Python
        return map(new, repeat(SourceRecord), zip(repeat(names), rows, vectors, strict=False))

    def _vectors(self, run: list[dict[str, Any]], fields: tuple[Any, ...]) -> Iterable[Vector]:
        wanted, size = self.schema.embeddings, self.decode.size
        if self.vectors is not None:
            found = list(islice(self.vectors, len(run)))
            if len(found) < len(run) or not {*wanted}.isdisjoint(fields):
                self.vectors = chain(found, self.vectors)
                raise ValueError
            return found
        if not wanted:
            return repeat(None)
        if len(wanted) == 1:
            column: list[Any] = [item.get(wanted[0]) for item in run]
            if set(map(type, column)) == {bytes} and set(map(len, column)) == {size} and not any_doubtful(column):
                return column
        return [self.decode([item.get(field) for field in wanted]) for item in run]

    def end(self, *, whole: bool) -> None:
        """There are no more items; whole: nor elsewhere. Raises BuildError."""
        if whole:
            self.sought.end()
        if self.vectors is not None and next(self.vectors, None) is not None:
            reason = f"embeddings= has more rows than the {self.ordinal} records; give one row for each"
            raise BuildError.of(self.schema.name, None, reason)


class Sought:
    """The fields that a schema names and that no record has had yet.

    A field that none of the first `LOOKED_AT` records has is taken for misspelt. Of a path, all steps count.
    """

    __slots__ = ("_known", "_left", "_schema", "fields")

    def __init__(
        self, schema: Schema, index: Iterable[str], json: Iterable[str] = (), other: Iterable[str] = ()
    ) -> None:
        self.fields = dict.fromkeys(other, "embedding") | dict.fromkeys(json, "json") | dict.fromkeys(index, "index")
        self._schema = schema
        self._known: dict[Any, None] = {}
        self._left = LOOKED_AT

    def declare(self, schema: Schema) -> None:
        """The fields that are chosen, named or typed by the schema, too."""
        renamed = dict(schema.renames).values()
        chosen = [field for field in schema.columns or () if field not in schema.embeddings]
        for argument, fields in (("casts", dict(schema.casts)), ("renames", renamed), ("columns", chosen)):
            self.fields |= dict.fromkeys((field for field in fields if field not in self.fields), argument)

    def see(self, fields: Collection[Any], names: tuple[Any, ...], values: Sequence[Any]) -> None:
        """Another record: all its fields, and what a `SourceRecord` has of it. Raises BuildError."""
        if not self._left or not self.fields:
            return
        self._left -= 1
        self._known.update(dict.fromkeys(fields))
        for field in [field for field in self.fields if field in fields or _reaches(names, values, field)]:
            del self.fields[field]
        if not self._left:
            self.end()

    def end(self) -> None:
        """There is no other record. Raises BuildError, unless there was none at all."""
        if self.fields and self._known:
            field, argument = next(iter(self.fields.items()))
            looked_at = LOOKED_AT - self._left
            raise BuildError.of(
                self._schema.name,
                None,
                f"{argument}: none of the first {looked_at} records has {field!r}; they have: "
                f"{', '.join(map(str, self._known))}. If that is no misspelling, give it to one of them, as None",
            )


def unknown_to(ours: Schema, asked: Schema) -> set[str]:
    """The fields that another version of a program names, and this one does not."""
    return {*asked.index, *(asked.columns or ())} - {*ours.index, *(ours.columns or ())} - {*asked.embeddings}


def without(schema: Schema, lacking: Collection[str]) -> Schema:
    """The schema, without indexes and columns that a source lacks."""
    columns = None if schema.columns is None else tuple(field for field in schema.columns if field not in lacking)
    return replace(schema, index=tuple(field for field in schema.index if field not in lacking), columns=columns)


def with_paths(
    schema: Schema, fields: Collection[str], records: Iterator[SourceRecord | Invalid], shard: int | None = None
) -> Iterator[SourceRecord | Invalid]:
    """The same records, all with these fields. A path, which is none of them, is an error if none of the first ones
    has it. shard: see `shape_records`."""
    if shard:
        yield from records
        return
    sought = Sought(schema, [field for field in schema.index if field not in fields])
    for record in records:
        if sought.fields and not isinstance(record, Invalid):
            sought.see(fields, record.names, record.values)
        yield record
    if shard is None:
        sought.end()


def _reaches(names: tuple[Any, ...], values: Sequence[Any], path: str) -> bool:
    place = place_of(path, names)
    return place is not None and reaches(values[place[0]], place[1])


class _Layouts(dict[tuple[Any, ...], Layout]):
    """The fields of a mapping in its own order -> the names of the record, and a function that gives their values.

    Bounded, as every record may have fields of its own. orders: see `Learned`; gets what is learned.
    """

    def __init__(self, schema: Schema, orders: dict[frozenset[Any], tuple[Any, ...]]) -> None:
        super().__init__()
        self._schema = schema
        self._orders = orders
        self._by_fields: dict[frozenset[Any], Layout] = {}
        kept = {*schema.key_fields, *(schema.columns or schema.index)}
        if absent := [field for field in schema.index if field not in kept and path_of(field)[0] not in kept]:
            raise BuildError.of(
                schema.name, None, f"index: {absent[0]} not among columns={schema.columns}; add it there"
            )

    def __missing__(self, fields: tuple[Any, ...]) -> Layout:
        key, apart = self._schema.key, {*self._schema.key_fields, *self._schema.embeddings}
        for name in self._schema.key_fields:
            if name not in fields:
                known = ", ".join(map(str, fields)) or "none"
                part = "the key" if name == key else "of the key"
                raise ValueError(f"no field {name!r}, which is {part}; the record has: {known}")
        odd = [name for name in fields if not isinstance(name, str)]
        if odd:
            raise ValueError(f"field names must be str, not {odd[0]!r}")
        if len(self) >= _MAX_LAYOUTS:
            self.clear()
        if len(self._by_fields) >= _MAX_LAYOUTS:
            self._by_fields.clear()
            self._orders.clear()
        columns = self._schema.columns
        names = (key, *(name for name in fields if name not in apart and (columns is None or name in columns)))
        same = frozenset(names)
        names = self._orders.setdefault(same, names)
        layout = self[fields] = self._by_fields.setdefault(same, (names, _getter(names)))
        return layout


def _getter(names: tuple[Any, ...]) -> Callable[[Any], tuple[Any, ...]]:
    key, *others = names
    if isinstance(key, str):
        return itemgetter(*names) if others else lambda item: (item[key],)
    key_of = itemgetter(*key)
    rest_of = _getter(tuple(others)) if others else lambda _: ()
    return lambda item: (key_of(item), *rest_of(item))


def _checked(schema: Schema, key: Any) -> Key:
    """The value of a key as a plain one. Raises ValueError."""
    fields = schema.key_fields
    parts = (key,) if len(fields) == 1 else key
    plain: list[Any] = []
    for field, part in zip(fields, parts, strict=True):
        try:
            if isinstance(part, tuple):
                raise TypeError("a tuple; a key of several values has a field for each: key=('a', 'b')")
            # Integers of numpy are no int.
            number = isinstance(part, Integral) and not isinstance(part, (int, bool))
            plain.append(check_key(int(part) if number else part))
        except TypeError as error:
            raise ValueError(f"the key {field!r}: {error}") from None
    return plain[0] if len(fields) == 1 else tuple(plain)


class Keyed:
    """Records in their order, with the ordinal of each key. Of records with one key that counts which the schema
    chooses, the first by default; it may be one that cannot be taken, which is given to lookups alone. wanted: only
    these keys are kept.

    Raises SourceError for one that cannot be used, where the schema does not let it be left out.
    """

    def __init__(
        self, schema: Schema, records: Iterable[SourceRecord | Invalid], wanted: Collection[Key] | None = None
    ) -> None:
        self._records: list[SourceRecord | Invalid | None] = []
        self._ordinals: dict[Key, int] = {}
        try:
            for record in records:
                key = record.key if isinstance(record, Invalid) else record.values[0]
                if key is None or (wanted is not None and key not in wanted):
                    continue
                before = self._ordinals.setdefault(key, len(self._records))
                if before < len(self._records):
                    if not replaces(schema, self._records[before]):
                        continue
                    self._records[before] = None
                    self._ordinals[key] = len(self._records)
                self._records.append(record)
        except BuildError as error:
            raise SourceError(error.message, path=error.path) from error

    def fetch(self, ids: Iterable[Key]) -> list[SourceRecord | Invalid | None]:
        ordinals, records = self._ordinals, self._records
        return [None if (ordinal := ordinals.get(key)) is None else records[ordinal] for key in ids]

    def in_order(self, ids: Iterable[Key]) -> list[Key]:
        ordinals = self._ordinals
        return sorted({key for key in ids if key in ordinals}, key=ordinals.__getitem__)

    def find(self, query: Query) -> Iterator[SourceRecord]:
        answers = matcher(query)
        for record in self._records:
            if record is None or isinstance(record, Invalid):
                continue
            if answers(record.names, record.values):
                yield record


def replaces(schema: Schema, before: SourceRecord | Invalid | None) -> bool:
    """Whether a later row with the same key is what the key means. before: the earlier one; None if there is none."""
    if before is None or schema.on_duplicate == "last":
        return True
    # Where a key may stand once only, a row that is left out counts for nothing.
    return schema.on_duplicate == "raise" and isinstance(before, Invalid)


def only_chosen(
    schema: Schema,
    matches: Iterable[SourceRecord],
    look_up: Callable[[list[Key]], Mapping[Key, SourceRecord | Invalid]],
) -> Iterable[SourceRecord]:
    """Of what matches a query, the records that a lookup of their key gives. All are held."""
    found = list(matches)
    chosen = look_up([record.values[0] for record in found])
    kept: dict[Key, SourceRecord] = {}
    for record in found:
        key = record.values[0]
        if record == chosen.get(key) and replaces(schema, kept.get(key)):
            kept.pop(key, None)  # the last of several comes at its own place
            kept[key] = record
    return kept.values()
