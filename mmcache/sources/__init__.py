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
from .base import Changes, EvolvingSource, Invalid, OrderedSource, Reading, Source, SourceRecord, TrackedSource, ordered

if TYPE_CHECKING:
    from .arrow import ParquetSource
    from .iterable import IterableSource, JSONLinesSource
    from .sqlite import SQLiteSource

__all__ = [
    "Changes",
    "Invalid",
    "IterableSource",
    "JSONLinesSource",
    "OrderedSource",
    "ParquetSource",
    "Reading",
    "SQLiteSource",
    "Source",
    "SourceRecord",
    "TrackedSource",
    "as_source",
    "available",
    "from_spec",
    "is_remakable",
    "ordered",
    "with_rules",
]

_HOMES = {
    "IterableSource": "mmcache.sources.iterable",
    "JSONLinesSource": "mmcache.sources.iterable",
    "SQLiteSource": "mmcache.sources.sqlite",
    "ParquetSource": "mmcache.sources.arrow",
    "PatternsSource": "mmcache.presets.patterns",
}

_KINDS = {
    "sqlite": "SQLiteSource",
    "jsonl": "JSONLinesSource",
    "parquet": "ParquetSource",
    "patterns": "PatternsSource",
}
"""All that a spec can name. A file chooses from this table and cannot add to it."""


def __getattr__(name: str) -> Any:
    if name in __all__ and name in _HOMES:
        return _load(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _load(name: str) -> Any:
    return getattr(import_module(_HOMES[name]), name)


def as_source(records_or_source: Any, schemas: Iterable[AnySchema], *, embeddings: Any = None) -> Source:
    """What `mmcache.build` was given, as a source: a source as it is, anything else by way of `IterableSource`.

    Several schemas take a mapping {collection: records}. embeddings: see `IterableSource`. Raises TypeError when a
    source comes with schemas or embeddings, as it has its own, or records come without a schema.
    """
    schemas = tuple(schemas)
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


@contextlib.contextmanager
def closing(source: Source | None) -> Iterator[Source | None]:
    """A source that is needed for a while: what it holds open, if it is one that does, is closed then."""
    try:
        yield source
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


def available(source: Source, schemas: Iterable[Schema]) -> tuple[Schema, ...]:
    """`EvolvingSource.available` of a source that has it; of any other, those that it has itself.

    Raises SourceError.
    """
    schemas = tuple(schemas)
    if isinstance(source, EvolvingSource):
        return source.available(schemas)
    return tuple(schema for schema in schemas if schema in source.schemas)


def is_remakable(source: Source) -> bool:
    """Whether `from_spec` makes the same source again. Not one of a subclass, which inherits the spec of its base."""
    spec = source.spec()
    return spec is not None and spec.get("kind") in _KINDS and type(source) is _load(_KINDS[spec["kind"]])


def from_spec(spec: Mapping[str, Any], schemas: Iterable[Schema], *, default: Any = None) -> Source:
    """The source that `Source.spec` described. Raises SourceError for a kind that this version does not know.

    default: the argument of that name, from a program or a command line. What the spec says of it is not imported, as
    that may come from a file: without `default`, values that need the function are refused.
    """
    kind, path = spec.get("kind"), spec.get("path")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise SourceError(f"unknown kind of source {kind!r}; this version knows: {', '.join(_KINDS)}")
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str) or not path:
        raise SourceError(f"a source of kind {kind!r} needs a path, found {path!r}")
    options: dict[str, Any] = {}
    if default is not None or "default" in spec:
        from ..values import Unimported

        options["default"] = default or Unimported(str(spec["default"]))
    try:
        source: Source = _load(_KINDS[kind])(path, *schemas, **options)
    except (TypeError, ValueError) as error:
        raise SourceError(f"the source of kind {kind!r} cannot be made again: {error}", path=path) from error
    return source
