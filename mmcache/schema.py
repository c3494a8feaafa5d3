"""What a collection is, and what may be asked of it.

A `Schema` is plain data: it is stored in the file, so that the file alone can say how to rebuild itself. What `where`
may ask is in `query`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field as declared, fields, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from .query import Query, Term, matches, parse_query, path_of, terms_of

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # which type checkers bring along: it is not needed to run

    from .models import M
    from .storage.record import Record

    R_co = TypeVar("R_co", covariant=True, default=Record)
else:
    from typing import TypeVar

    R_co = TypeVar("R_co", covariant=True)

__all__ = ["AnySchema", "Query", "R_co", "Schema", "Term", "check_width", "matches", "parse_query", "terms_of"]

MAX_KEY_FIELDS = 8
MAX_NAME_BYTES = 255
MAX_DIM = 65_536
METRICS = ("cosine", "dot", "euclidean")
ON_INVALID = ("raise", "skip")
ON_DUPLICATE = ("raise", "first", "last")

Metric = Literal["cosine", "dot", "euclidean"]
OnInvalid = Literal["raise", "skip"]
OnDuplicate = Literal["raise", "first", "last"]
Cast = Literal["str", "int", "float", "bool", "bytes", "json"]
CASTS = ("str", "int", "float", "bool", "bytes", "json")
Dtype = Literal["f4", "f8", "f2", "bf2", ">f4", ">f8", ">f2", ">bf2", "i1", "u1", "bits"]
DTYPES: dict[str, str] = {
    "f4": "float32",
    "f8": "float64",
    "f2": "float16",
    "bf2": "bfloat16",
    ">f4": "big-endian float32",
    ">f8": "big-endian float64",
    ">f2": "big-endian float16",
    ">bf2": "big-endian bfloat16",
    "i1": "int8",
    "u1": "uint8",
    "bits": "8 numbers of 0 or 1 a byte, the first in its highest bit",
}
"""What the numbers in the bytes of an embedding may be, and how messages call it."""


Tracks = Mapping[str, str | tuple[str, ...]] | tuple[tuple[str, str | tuple[str, ...]], ...]
"""As it is given, and as it is kept: in the order of the tables."""


@dataclass(frozen=True, slots=True)
class Schema(Generic[R_co]):
    """One collection: its key, its indexed fields, its embeddings.

    name: of the collection; printable text of at most 255 bytes of UTF-8.
    key: the field whose value identifies a record: a str, an int of 64 bits or bytes; or 2 to 8 fields, whose values
        together do, as a tuple. None leaves it to the source: of a SQLite table its primary key, else its rowid (as a
        field `rowid`); of anything else the field `id`. `Source.schemas` and files have it *resolved*: not None.
    index: fields that `where` can ask for, at most 255 bytes each, or paths into a field: `metadata.s`, `tags[*]`,
        `a.b[*].c`. A record may hold one term or a list of them. A field literally of that name wins over a path.
    embedding: the field that holds the embedding, or a tuple of several; kept apart from the record's other fields. Of
        several, `dim`, `dtype` and `metric` are one for all, or a tuple of as many.
    dim: numbers in an embedding; None takes it from the first one.
    metric: what distance the embeddings are meant for; stored for the reader, not used in a build.
    allow_nan: accept embeddings with NaN or infinite numbers, which are refused otherwise.
    sketch: a bit for each number of the embeddings is kept beside them, for searches that give a `recall`; see
        docs/search.md.

    Which rows of the source are its records, in the file and in every answer of the source as a whole:
    on_invalid: a row that cannot be taken is an error ("raise"), or is left out ("skip"): of `where`, `len` and
        iteration. A build counts and names it, and a lookup by its key gives it as the source has it.
    max_invalid: more rows than this that cannot be taken are an error; None: any number is left out.
    on_duplicate: a key of several rows is an error ("raise"), or the "first" or "last" of them in the source's order is
        its record. The choice comes first: if that row cannot be taken, the key has no record.

    How to read it from a source of rows (SQLite):
    table: the table, by default the collection's name; or query: a SELECT that gives the records.
    columns: the columns to take; None takes all. Key and embedding are always taken.
    json: columns of JSON text to decode.
    dtype: of the numbers in embeddings that are bytes, converted to float32 where it is another (see `DTYPES`). None:
        float32, unless `dim` and the bytes leave no doubt that they are another. JSON text, lists, arrays and the bytes
        of .npy files say themselves what they are.

    How to take what a source of mappings has (files, iterables, callables); SQL says this by a query:
    renames: {column in the source: field}. All else names fields.
    casts: {field: type}, of `str`, `int`, `float`, `bool`, `bytes`, `json`. A value that does not fit makes its row one
        that cannot be taken. None stays None.

    What a cache gives for a record:
    model: a dataclass, TypedDict, NamedTuple, attrs class or pydantic model, made of the fields of the same names; by
        default a `Record`. It is of this process, not of the file: see docs/types.md. Raises ModelError where a record
        does not fit.

    >>> Schema("items", key="sku", index=("kind", "price"), embedding="vector", dim=384).key
    'sku'
    >>> Schema("items", model=Item).model.__name__
    'Item'
    >>> both = Schema("items", embedding=("title", "text"), dim=(384, 768), metric="dot")
    >>> both.embeddings, both.first_embedding, both.first_dim, both.dim_of("text"), both.metric_of("text")
    (('title', 'text'), 'title', 384, 768, 'dot')
    """

    name: str
    key: str | tuple[str, ...] | None = None
    index: tuple[str, ...] = ()
    embedding: str | tuple[str, ...] | None = None
    dim: int | tuple[int | None, ...] | None = None
    metric: Metric | tuple[Metric, ...] = "cosine"
    allow_nan: bool = False
    table: str | None = None
    query: str | None = None
    columns: tuple[str, ...] | None = None
    json: tuple[str, ...] = ()
    dtype: Dtype | tuple[Dtype | None, ...] | None = None
    on_invalid: OnInvalid = "raise"
    max_invalid: int | None = None
    on_duplicate: OnDuplicate = "raise"
    tracks: Tracks = ()
    expires: str | None = None
    renames: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    casts: Mapping[str, Cast] | tuple[tuple[str, Cast], ...] = ()
    sketch: bool = False
    model: type[R_co] | None = declared(default=None, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("index", "json", "columns"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"Schema({name}=...) takes a sequence of names; write ({value!r},)")
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        _check_name("collection", self.name)
        for field in self.index:
            _check_name("indexed field", field)
        if len(set(self.index)) != len(self.index):
            raise ValueError(f"Schema {self.name!r}: a field is listed twice in index={self.index!r}")
        if self.key is not None:
            object.__setattr__(self, "key", _key(self.name, self.key))
        self._check_embeddings()
        if self.table is not None and self.query is not None:
            raise ValueError(f"Schema {self.name!r}: give table= or query=, not both")
        self._check_rules()
        self._check_declared()
        object.__setattr__(self, "tracks", _tracks(self.name, self.tracks))
        if self.expires is not None:
            self._check_expires(self.expires)
        if self.model is not None:
            from .models import check_model

            check_model(self.model)

    def _check_expires(self, field: str) -> None:
        """And index it: what has expired is found by the order of that index."""
        _check_name("expires", field)
        if field in self.embeddings or (self.key is not None and field in self.key_fields):
            raise ValueError(f"Schema {self.name!r}: expires={field!r} is the key or an embedding")
        if path_of(field)[1]:
            raise ValueError(f"Schema {self.name!r}: expires={field!r} is a path; give it as a field by query=")
        if field not in self.index:
            object.__setattr__(self, "index", (*self.index, field))

    def _check_declared(self) -> None:
        for name in ("renames", "casts"):
            object.__setattr__(self, name, _pairs(self.name, name, getattr(self, name)))
        renames, casts = dict(self.renames), dict(self.casts)
        if len({*renames.values()}) < len(renames):
            raise ValueError(f"Schema {self.name!r}: renames={renames} makes one field of two columns")
        for field, kind in casts.items():
            if kind not in CASTS:
                known = ", ".join(CASTS)
                raise ValueError(f"Schema {self.name!r}: casts: {field!r} must be one of {known}, not {kind!r}")
            if field in self.embeddings:
                raise ValueError(f"Schema {self.name!r}: casts: {field!r} is an embedding; dtype= says what it holds")
            if field in renames and field not in renames.values():
                raise ValueError(f"Schema {self.name!r}: casts: {field!r} is called {renames[field]!r} by renames")

    def _check_rules(self) -> None:
        for name, known in (("on_invalid", ON_INVALID), ("on_duplicate", ON_DUPLICATE)):
            if (value := getattr(self, name)) not in known:
                choice = ", ".join(map(repr, known))
                raise ValueError(f"Schema {self.name!r}: {name} must be one of {choice}, not {value!r}")
        most = self.max_invalid
        if most is not None and not (type(most) is int and 0 <= most < 2**63):
            raise ValueError(f"Schema {self.name!r}: max_invalid must be an int, 0 or more, or None, not {most!r}")
        if most is not None and self.on_invalid == "raise":
            raise ValueError(f"Schema {self.name!r}: max_invalid={most} goes with on_invalid='skip'")

    def _check_embeddings(self) -> None:
        """And bring them into one form: one value instead of a tuple wherever that says the same."""
        if isinstance(self.embedding, (list, tuple)):
            object.__setattr__(self, "embedding", _one_or_several(tuple(self.embedding)) if self.embedding else None)
        fields, keys = self.embeddings, () if self.key is None else self.key_fields
        for field in fields:
            if not isinstance(field, str) or not field:
                raise ValueError(f"Schema {self.name!r}: embedding must be a field name or several, not {field!r}")
            if field in keys or field in self.index:
                raise ValueError(f"Schema {self.name!r}: {field!r} is the embedding, not a key or index too")
        if len(set(fields)) != len(fields):
            raise ValueError(f"Schema {self.name!r}: a field is listed twice in embedding={self.embedding!r}")
        for name in ("dim", "dtype", "metric"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                if len(value) != len(fields):
                    raise ValueError(
                        f"Schema {self.name!r}: {name} has {len(value)} values for {len(fields)} embeddings; "
                        "give one for all, or one for each"
                    )
                same = all(item == value[0] for item in value)
                object.__setattr__(self, name, value[0] if same else tuple(value))
        for dim in _each(self.dim):
            if dim is not None and not (type(dim) is int and 1 <= dim <= MAX_DIM):
                raise ValueError(f"Schema {self.name!r}: dim must be an int in 1..{MAX_DIM}, not {dim!r}")
        if type(self.sketch) is not bool:
            raise TypeError(f"Schema {self.name!r}: sketch must be True or False, not {self.sketch!r}")
        if self.sketch and not fields:
            raise ValueError(f"Schema {self.name!r}: sketch=True without an embedding field")
        if self.dim is not None and not fields:
            raise ValueError(f"Schema {self.name!r}: dim={self.dim} without an embedding field")
        for metric in _each(self.metric):
            if metric not in METRICS:
                raise ValueError(f"Schema {self.name!r}: metric must be one of {', '.join(METRICS)}, not {metric!r}")
        for dtype in _each(self.dtype):
            if dtype is not None and dtype not in DTYPES:
                known = ", ".join(f"{name!r} ({what})" for name, what in DTYPES.items())
                raise ValueError(f"Schema {self.name!r}: dtype must be one of {known}, or None, not {dtype!r}")

    @property
    def key_fields(self) -> tuple[str, ...]:
        """The fields of the key, one or more. Raises ValueError for a schema that is not resolved.

        >>> Schema("codes", key=("auth", "code")).key_fields
        ('auth', 'code')
        """
        if self.key is None:
            raise ValueError(f"Schema {self.name!r}: only the source knows its key, and has not been asked")
        return (self.key,) if isinstance(self.key, str) else self.key

    @property
    def tracked_tables(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """What `tracks` names: tables, each with its columns.

        >>> Schema("items", query="SELECT * FROM a JOIN b USING (id)", tracks={"a": "id", "b": "id"}).tracked_tables
        (('a', ('id',)), ('b', ('id',)))
        """
        pairs = self.tracks.items() if isinstance(self.tracks, Mapping) else self.tracks
        return tuple((table, (columns,) if isinstance(columns, str) else columns) for table, columns in pairs)

    @overload
    @classmethod
    def from_model(cls, mapped: object, /, name: str | None = None, *, model: type[M], **fields: Any) -> Schema[M]: ...
    @overload
    @classmethod
    def from_model(cls, mapped: object, /, name: str | None = None, **fields: Any) -> Schema: ...
    @classmethod
    def from_model(cls, mapped: Any, /, name: str | None = None, **fields: Any) -> Schema[Any]:
        """Of an ORM model of SQLAlchemy, or of a `Table`: its table, primary key, columns, and those of JSON.

        >>> from sqlalchemy import JSON, Column, MetaData, String, Table
        >>> table = Table("items", MetaData(), Column("sku", String, primary_key=True), Column("tags", JSON))
        >>> schema = Schema.from_model(table, index=("tags[*]",))
        >>> schema.name, schema.key, schema.json
        ('items', 'sku', ('tags',))

        name: of the collection, by default the table's. fields: all others of a schema, and those that are to differ;
        `model` among them, as what a cache gives for a record is no ORM model.
        Raises TypeError for what is no model, ValueError for one whose columns are of several tables.
        """
        table = getattr(mapped, "__table__", mapped)
        columns = getattr(table, "columns", None)
        if columns is None or not hasattr(table, "primary_key"):
            raise TypeError(f"from_model() takes a mapped class or a Table of SQLAlchemy, not {mapped!r:.100}")
        mapper = getattr(mapped, "__mapper__", None)
        if mapper is not None and len(mapper.tables) > 1:
            tables = ", ".join(str(one.name) for one in mapper.tables)
            raise ValueError(
                f"the columns of {mapped.__name__} are of several tables ({tables}); use query= with a join"
            )
        if mapper is not None and mapper.single:
            raise ValueError(
                f"{mapped.__name__} is some of the rows of the table {table.name} (single-table inheritance); "
                f"use query= with WHERE {mapper.polymorphic_on.name} = ..."
            )
        if not hasattr(table, "name"):
            raise ValueError(f"{mapped!r:.100} is mapped to no table, but to a query; use query=")
        place = table.name if table.schema is None else f"{table.schema}.{table.name}"
        key = fields.get("key") or tuple(column.name for column in table.primary_key.columns)
        apart = {
            name
            for names in (key, fields.get("embedding") or ())
            for name in ((names,) if isinstance(names, str) else names)
        }
        json = (column.name for column in columns if column.type.__visit_name__ in ("JSON", "JSONB"))
        derived: dict[str, Any] = {
            "table": None if place == (name or table.name) else place,
            "key": key or None,
            "columns": tuple(column.name for column in columns if column.name not in apart),
            "json": tuple(column for column in json if column not in apart),
        }
        return cls(name or table.name, **(derived | fields))

    def resolved(self, key: str | tuple[str, ...] = "id") -> Schema[R_co]:
        """With this key, if it has none of its own.

        >>> Schema("items").resolved("sku").key, Schema("items", key="id").resolved("sku").key
        ('sku', 'id')
        """
        return self if self.key is not None else replace(self, key=key)

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The fields that hold embeddings, in the order of `embedding`."""
        if self.embedding is None:
            return ()
        return (self.embedding,) if isinstance(self.embedding, str) else self.embedding

    @property
    def first_embedding(self) -> str | None:
        """The one that is meant where none is named; None without embeddings."""
        return self.embeddings[0] if self.embeddings else None

    @property
    def first_dim(self) -> int | None:
        """`dim` of `first_embedding`."""
        return self.dim[0] if isinstance(self.dim, tuple) else self.dim

    def dim_of(self, field: str) -> int | None:
        """`dim` of one embedding. Raises ValueError for another field."""
        return self._of_embedding(field, self.dim)  # type: ignore[no-any-return]

    def dtype_of(self, field: str) -> Dtype | None:
        """`dtype` of one embedding. Raises ValueError for another field.

        >>> Schema("items", embedding="vector", dtype="f2").dtype_of("vector")
        'f2'
        """
        return self._of_embedding(field, self.dtype)  # type: ignore[no-any-return]

    def metric_of(self, field: str) -> Metric:
        """`metric` of one embedding. Raises ValueError for another field."""
        return self._of_embedding(field, self.metric)  # type: ignore[no-any-return]

    def _of_embedding(self, field: str, value: Any) -> Any:
        if field not in self.embeddings:
            known = ", ".join(self.embeddings) or "none"
            raise ValueError(f"collection {self.name!r} has no embedding {field!r}; there are: {known}")
        return value[self.embeddings.index(field)] if isinstance(value, tuple) else value

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `from_dict` makes the same schema; defaults are left out.

        >>> Schema("items", index=("kind",)).to_dict()
        {'name': 'items', 'index': ['kind']}
        """
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if name in _DEFAULTS and value != _DEFAULTS[name]
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schema[Any]:
        """The schema that `to_dict` described. Names it does not know (a newer writer's) are ignored.

        Raises TypeError or ValueError when a value is not what the field takes.

        >>> Schema.from_dict({"name": "items", "index": ["kind"]}) == Schema("items", index=("kind",))
        True
        """
        return cls(**{name: value for name, value in data.items() if name in _DEFAULTS})


_DEFAULTS = {f.name: f.default for f in fields(Schema) if f.name != "model"}
AnySchema = Schema[Any]
"""Of any model: in a list of several, each has its own."""


def _key(name: str, key: object) -> str | tuple[str, ...]:
    """A key of one field is that field, not a tuple of it."""
    fields = tuple(key) if isinstance(key, (list, tuple)) else (key,)
    if not all(isinstance(field, str) and field for field in fields):
        raise ValueError(f"Schema {name!r}: key must be a field name, or a tuple of them, not {key!r}")
    for field in fields:
        _check_name("key field", field)
    if not 1 <= len(fields) <= MAX_KEY_FIELDS or len(set(fields)) != len(fields):
        raise ValueError(f"Schema {name!r}: key must name 1 to {MAX_KEY_FIELDS} fields, each once, not {key!r}")
    return fields if len(fields) > 1 else fields[0]


def _tracks(name: str, given: Any) -> tuple[tuple[str, str | tuple[str, ...]], ...]:
    """In one form, in the order of the tables."""
    kept = {}
    try:
        for table, columns in dict(given).items():
            one = (columns,) if isinstance(columns, str) else tuple(columns)
            if not all(isinstance(text, str) and text for text in (table, *one)):
                raise ValueError(f"{table!r}: {columns!r}")
            kept[table] = one[0] if len(one) == 1 else one
    except (TypeError, ValueError) as error:
        raise ValueError(f"Schema {name!r}: tracks must be {{table: column or columns}}, not {given!r}") from error
    return tuple(sorted(kept.items()))


def check_width(schema: Schema, key: object) -> None:
    """Raises TypeError for a key with more or fewer values than those of a collection have."""
    width = len(schema.key_fields)
    if width != (len(key) if isinstance(key, tuple) else 1):
        expected = "one value" if width == 1 else f"a tuple of {width} values ({', '.join(schema.key_fields)})"
        raise TypeError(f"a key of collection {schema.name!r} is {expected}, not {key!r}; keys are given as a list")


def _pairs(name: str, argument: str, value: Any) -> tuple[tuple[str, Any], ...]:
    """A mapping of names, in the form that is stored: sorted pairs."""
    try:
        pairs = dict(value)
    except (TypeError, ValueError):
        raise TypeError(f"Schema {name!r}: {argument} must be a mapping, not {value!r}") from None
    for key, one in pairs.items():
        if not (isinstance(key, str) and isinstance(one, str) and key and one):
            raise ValueError(f"Schema {name!r}: {argument} must be a mapping of names, not {{{key!r}: {one!r}}}")
        if argument == "renames":
            _check_name("field", one)
    return tuple(sorted(pairs.items()))


def _one_or_several(fields: tuple[str, ...]) -> str | tuple[str, ...]:
    return fields[0] if len(fields) == 1 else fields


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what} name must be a non-empty str, not {name!r}")
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > MAX_NAME_BYTES or not name.isprintable():
        way = _WAYS.get(what, "give it another by query='SELECT ... AS ...'")
        raise ValueError(
            f"{what} name {name!r:.300}: at most {MAX_NAME_BYTES} bytes of printable text; it has {size}: {way}"
        )


_WAYS = {"collection": "name it otherwise, and its table apart: Schema('short', table='long')"}
