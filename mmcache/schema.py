"""What a collection is, and what may be asked of it.

A `Schema` is plain data: it is stored in the file, so that the file alone can say how to rebuild itself.
`terms_of` and `parse_query` are the one definition of equality in lookups by field; the builder, the
snapshot and every source use them, so that all tiers give the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

__all__ = ["Query", "Schema", "Term", "parse_query", "terms_of"]

Term = str | int | bool | None
"""A value that can be looked up. True and 1 are one term, as they are one key of a dict and one value in SQL."""

Query = dict[str, tuple[Term, ...]]
"""Field -> the values asked for: OR within a field, AND over fields."""

MAX_COLLECTION_BYTES = 24
MAX_FIELD_BYTES = 40
MAX_DIM = 65_536
METRICS = ("cosine", "dot", "euclidean")


@dataclass(frozen=True, slots=True)
class Schema:
    """One collection: its key, its indexed fields, its embedding.

    name: of the collection; at most 24 bytes of UTF-8, no "/".
    key: the field whose value (a non-empty str) identifies a record.
    index: fields that `where` can ask for, at most 40 bytes each. A record may hold one term or a list of them.
    embedding: the field that holds the embedding; it is kept apart from the record's other fields.
    dim: numbers in an embedding; None takes it from the first one.
    metric: what distance the embeddings are meant for; stored for the reader, not used in a build.
    allow_nan: accept embeddings with NaN or infinite numbers, which are refused otherwise.

    How to read it from a source of rows (SQLite):
    table: the table, by default the collection's name; or query: a SELECT that gives the records.
    columns: the columns to take; None takes all. Key and embedding are always taken.
    json: columns of JSON text to decode.
    dtype: of the numbers in embedding BLOBs: "f4" (little-endian float32) or "f8", which is converted.
    """

    name: str
    key: str = "id"
    index: tuple[str, ...] = ()
    embedding: str | None = None
    dim: int | None = None
    metric: Literal["cosine", "dot", "euclidean"] = "cosine"
    allow_nan: bool = False
    table: str | None = None
    query: str | None = None
    columns: tuple[str, ...] | None = None
    json: tuple[str, ...] = ()
    dtype: Literal["f4", "f8"] = "f4"

    def __post_init__(self) -> None:
        for name in ("index", "json", "columns"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise TypeError(f"Schema({name}=...) takes a sequence of names; write ({value!r},)")
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        _check_name("collection", self.name, MAX_COLLECTION_BYTES)
        for field in self.index:
            _check_name("indexed field", field, MAX_FIELD_BYTES)
        if len(set(self.index)) != len(self.index):
            raise ValueError(f"Schema {self.name!r}: a field is listed twice in index={self.index!r}")
        if not isinstance(self.key, str) or not self.key:
            raise ValueError(f"Schema {self.name!r}: key must be a field name, not {self.key!r}")
        if self.embedding is not None and (self.embedding == self.key or self.embedding in self.index):
            raise ValueError(f"Schema {self.name!r}: {self.embedding!r} is the embedding, not a key or index too")
        if self.dim is not None and not (isinstance(self.dim, int) and 1 <= self.dim <= MAX_DIM):
            raise ValueError(f"Schema {self.name!r}: dim must be an int in 1..{MAX_DIM}, not {self.dim!r}")
        if self.dim is not None and self.embedding is None:
            raise ValueError(f"Schema {self.name!r}: dim={self.dim} without an embedding field")
        if self.metric not in METRICS:
            raise ValueError(f"Schema {self.name!r}: metric must be one of {', '.join(METRICS)}, not {self.metric!r}")
        if self.dtype not in ("f4", "f8"):
            raise ValueError(f"Schema {self.name!r}: dtype must be 'f4' or 'f8', not {self.dtype!r}")
        if self.table is not None and self.query is not None:
            raise ValueError(f"Schema {self.name!r}: give table= or query=, not both")

    def to_dict(self) -> dict[str, Any]:
        """Plain data from which `from_dict` makes the same schema; defaults are left out."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value != _DEFAULTS[name]
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Schema:
        """The schema that `to_dict` described. Names it does not know (a newer writer's) are ignored.

        Raises TypeError or ValueError when a value is not what the field takes.
        """
        return cls(**{name: value for name, value in data.items() if name in _DEFAULTS})


_DEFAULTS = {f.name: f.default for f in fields(Schema)}


def _check_name(what: str, name: object, limit: int) -> None:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what} name must be a non-empty str, not {name!r}")
    size = len(name.encode("utf-8", "surrogatepass"))
    if size > limit or "/" in name or not name.isprintable():
        raise ValueError(f"{what} name {name!r}: at most {limit} bytes of printable text without '/'; it has {size}")


def _term(value: object) -> Term:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise TypeError(f"{value} is out of range: an indexed int takes 64 bits")
        return int(value)
    raise TypeError(
        f"{value!r} is of type {type(value).__name__}; an indexed value is a str, int, bool or None, or a list of them"
    )


def terms_of(value: object) -> tuple[Term, ...]:
    """The terms under which a field's value is indexed: one, or those of a list without repeats.

    A record that lacks the field is indexed as if it held None. Raises TypeError for any other type.
    """
    if isinstance(value, (list, tuple)):
        return tuple(dict.fromkeys(_term(item) for item in value))
    return (_term(value),)


def parse_query(schema: Schema, terms: Mapping[str, object] | None, more: Mapping[str, object]) -> Query:
    """Check what `where` was asked and give it one form.

    Raises ValueError for a field without an index (naming those that have one), TypeError for a value that
    cannot be a term.
    """
    query: Query = {}
    for field, value in {**(terms or {}), **more}.items():
        if field not in schema.index:
            known = ", ".join(schema.index) or "none"
            raise ValueError(f"collection {schema.name!r} has no index on {field!r}; indexed fields: {known}")
        if isinstance(value, (set, frozenset)):
            value = list(value)
        query[field] = terms_of(value)
    return query


def matches(terms: Mapping[str, Iterable[Term]], query: Query) -> bool:
    """Whether a record, given as field -> its terms, answers the query."""
    return all(not set(wanted).isdisjoint(terms[field]) for field, wanted in query.items())
