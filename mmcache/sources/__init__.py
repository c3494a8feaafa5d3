"""Sources of truth: where records come from, and who answers when the file cannot.

Each is loaded when it is first asked for, as sqlite3, numpy and pyarrow are not free.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import SourceError
from ..schema import AnySchema, Schema
from .base import (
    Changes,
    EvolvingSource,
    Invalid,
    OrderedSource,
    Reading,
    ScanningSource,
    ShardedSource,
    Source,
    SourceRecord,
    TrackedSource,
    Where,
    given_by,
    ordered,
)

if TYPE_CHECKING:
    from .arrow import ArrowSource, ParquetSource
    from .call import CallableSource, Fetch, Load
    from .csvfile import CSVSource
    from .duckdbfile import DuckDBSource
    from .iterable import IterableSource
    from .jsonfiles import JSONLinesSource, JSONSource
    from .own import BaseSource
    from .several import Sources
    from .sql import SQLAlchemySource
    from .sqlite import SQLiteSource

__all__ = [
    "ArrowSource",
    "BaseSource",
    "CSVSource",
    "CallableSource",
    "Changes",
    "DuckDBSource",
    "Invalid",
    "IterableSource",
    "JSONLinesSource",
    "JSONSource",
    "OrderedSource",
    "ParquetSource",
    "Reading",
    "SQLAlchemySource",
    "SQLiteSource",
    "ScanningSource",
    "ShardedSource",
    "Source",
    "SourceRecord",
    "Sources",
    "TrackedSource",
    "as_source",
    "available",
    "from_spec",
    "given_by",
    "is_remakable",
    "ordered",
    "with_rules",
]

_HOMES = {
    "BaseSource": "mmcache.sources.own",
    "CallableSource": "mmcache.sources.call",
    "IterableSource": "mmcache.sources.iterable",
    "JSONLinesSource": "mmcache.sources.jsonfiles",
    "JSONSource": "mmcache.sources.jsonfiles",
    "CSVSource": "mmcache.sources.csvfile",
    "SQLAlchemySource": "mmcache.sources.sql",
    "SQLiteSource": "mmcache.sources.sqlite",
    "Sources": "mmcache.sources.several",
    "ParquetSource": "mmcache.sources.arrow",
    "ArrowSource": "mmcache.sources.arrow",
    "DuckDBSource": "mmcache.sources.duckdbfile",
    "PatternsSource": "mmcache.presets.patterns",
}

_KINDS = {
    "sqlite": "SQLiteSource",
    "jsonl": "JSONLinesSource",
    "json": "JSONSource",
    "csv": "CSVSource",
    "parquet": "ParquetSource",
    "arrow": "ArrowSource",
    "duckdb": "DuckDBSource",
    "patterns": "PatternsSource",
    "call": "CallableSource",
    "several": "Sources",
    "sqlalchemy": "SQLAlchemySource",
}
"""All that a spec can name. A file chooses from this table and cannot add to it."""


def __getattr__(name: str) -> Any:
    if name in __all__ and name in _HOMES:
        return _load(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _load(name: str) -> Any:
    return getattr(import_module(_HOMES[name]), name)


def as_source(records_or_source: Any, schemas: Iterable[AnySchema], *, embeddings: Any = None) -> Source:
    """What `mmcache.build` was given, as a source: a source as it is, a path or URL as the source that is there,
    anything else by way of `IterableSource`.

    Several schemas take a mapping {collection: records}. embeddings: see `IterableSource`. Raises TypeError when a
    source comes with schemas or embeddings, as it has its own, or records come without a schema.
    """
    schemas = tuple(schemas)
    if isinstance(records_or_source, (str, os.PathLike)):
        return source_there(records_or_source, schemas)
    if isinstance(records_or_source, Source):
        if schemas:
            names = ", ".join(schema.name for schema in records_or_source.schemas)
            raise TypeError(f"a source has its own schemas ({names}); give them there and not here")
        if embeddings is not None:
            raise TypeError("embeddings= goes with records in memory; a source has its own embeddings")
        return records_or_source
    if not schemas:
        raise TypeError("records need a Schema, to know their key: build(path, records, Schema(...))")
    source: Source = _load("IterableSource")(records_or_source, *schemas, embeddings=embeddings)
    return source


def source_there(place: Where, schemas: Iterable[AnySchema]) -> Source:
    """The source at a path or URL. Raises SourceError."""
    found: Source = import_module("mmcache.sources.at").source_at(place, *schemas)
    return found


def chosen(
    source: Source | Where | None,
    schema: AnySchema | Iterable[AnySchema] | None,
    *,
    load: Load | str | None,
    fetch: Fetch | str | Mapping[str, Fetch | str] | None,
    **asked: Any,
) -> Source | None:
    """The source that the arguments of `mmcache.open` mean. Raises TypeError for those that do not go together."""
    schemas = () if schema is None else (schema,) if isinstance(schema, Schema) else tuple(schema)
    others = {"fetch": fetch, **asked}
    if load is not None:
        if source is not None:
            raise TypeError("give source or load=, not both")
        if not schemas:
            raise TypeError("load= needs schema=, a Schema or several, to know the key: schema=Schema('items')")
        made: Source = _load("CallableSource")(load, *schemas, **others)
        return made
    if wrong := [name for name, value in others.items() if value is not None]:
        raise TypeError(f"{wrong[0]}= goes with load=, a function that gives the records")
    if isinstance(source, (str, os.PathLike)):
        return source_there(source, schemas)
    if schemas:
        what = (
            "a source has its own schemas; give them there" if source is not None else "it goes with load=, or a path"
        )
        raise TypeError(f"schema= is for load=, or the path or URL of a source: {what}")
    return source


def with_rules(source: Source, **rules: Any) -> Source:
    """A source like this one that treats bad rows so: on_invalid, max_invalid, on_duplicate as of `Schema`, for all its
    collections. A rule that is None stays as the schemas have it, but max_invalid alone means to skip. The source
    itself, if they have it so already.

    Raises TypeError for a source that cannot be given other rules: one of your own has no method `with_rules`.
    """
    given = {name: rule for name, rule in rules.items() if rule is not None}
    if "max_invalid" in given:
        given.setdefault("on_invalid", "skip")
    if all(getattr(schema, name) == rule for schema in source.schemas for name, rule in given.items()):
        return source
    if given.get("on_invalid") == "raise":
        given.setdefault("max_invalid", None)
    make = getattr(source, "with_rules", None)
    if make is None:
        raise TypeError(
            f"{type(source).__name__} takes {', '.join(given)} in the Schema of each collection, and not here"
        )
    changed: Source = make(**given)
    return changed


def with_schemas(source: Source, schemas: Iterable[AnySchema]) -> Source:
    """A source like this one with other schemas of the same collections, where it can be made; else itself."""
    wanted = tuple(schemas)
    gone = {schema.name for schema in source.schemas} - {schema.name for schema in wanted}
    if wanted == source.schemas or gone:  # the build says what is missing
        return source
    make = getattr(source, "with_schemas", None)
    if make is not None:
        other: Source = make(*wanted)
        return other
    spec = source.spec() if is_remakable(source) else None
    return source if spec is None else from_spec(spec, wanted, given_by(source))


@contextlib.contextmanager
def closing(source: Source | None) -> Iterator[Source | None]:
    """A source that is needed for a while: what it holds open, if it is one that does, is closed then."""
    try:
        yield source
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


def available(source: Source, schemas: Iterable[AnySchema]) -> tuple[AnySchema, ...]:
    """`EvolvingSource.available` of a source that has it; of any other, those that it has itself.

    Raises SourceError.
    """
    schemas = tuple(schemas)
    if isinstance(source, EvolvingSource):
        return source.available(schemas)
    return tuple(schema for schema in schemas if schema in source.schemas)


def is_remakable(source: Source) -> bool:
    """Whether `from_spec` makes the same source again, of its spec and of what it gives besides. Not one of a subclass,
    which inherits the spec of its base."""
    spec = source.spec()
    if spec is None or spec.get("kind") not in _KINDS or type(source) is not _load(_KINDS[spec["kind"]]):
        return False
    return given_by(source) is not None


def from_spec(spec: Mapping[str, Any], schemas: Iterable[AnySchema], given: Mapping[str, Any] | None = None) -> Source:
    """The source that `Source.spec` described. Raises SourceError for a kind that this version does not know.

    given: arguments that a spec does not hold, such as functions or their names and passwords, from a program or a
    command line: what a spec says of them is not believed, as that may come from a file. See `base.told`.
    """
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise SourceError(f"unknown kind of source {kind!r}; this version knows: {', '.join(_KINDS)}")
    try:
        source: Source = _load(_KINDS[kind]).remade(spec, tuple(schemas), given or {})
    except ImportError as error:
        raise SourceError(f"a source of kind {kind!r} needs a package that is not installed: {error}") from error
    except (TypeError, ValueError) as error:
        path = spec.get("path")
        place = path if isinstance(path, str) else None
        raise SourceError(f"the source of kind {kind!r} cannot be made again: {error}", path=place) from error
    return source


def moved(spec: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The spec of the same kind of source at another path or URL. Raises SourceError for a kind that has neither."""
    if "url" in spec:
        return {**spec, "url": place}
    if "path" not in spec:
        raise SourceError(f"a source of kind {spec.get('kind')!r} is not at a path, and cannot have moved to {place!r}")
    return {**spec, "path": place if _is_object_url(place) else os.path.abspath(place)}


def _is_object_url(place: str) -> bool:
    found: bool = import_module("mmcache.sources.objects").is_object_url(place)
    return found
