"""`Sources`: several sources as one, each with collections of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from typing import Any, ClassVar, Generic, Self, overload

from ..errors import BuildError, SourceError
from ..format.header import PARTLY
from ..query import Query
from ..schema import AnySchema, R_co, Schema
from ..shown import internal
from .base import (
    Changes,
    Key,
    Reading,
    Row,
    Source,
    SourceOf,
    SourceRecord,
    TrackedSource,
    fingerprint_of,
    given_by,
    ordered,
    scans,
)
from .plain import plain_rows

__all__ = ["Sources"]

_REMEMBERED = 64
"""Fingerprints of which the parts are remembered."""


@internal("given", "kind", "remade", "with_rules", "with_schemas")
class Sources(Generic[R_co]):
    """Several sources as one: their collections together, the first source's first one as the default.

    The names of collections must differ. Each source is read consistently by itself, at about the same time as the
    others, but not at the same moment. What changed is known by key where all sources that have changed know that.

    >>> source = mmcache.Sources(
    ...     SQLiteSource("items.db", Schema("items")), JSONLinesSource("items.jsonl", Schema("lines"))
    ... )
    >>> with mmcache.open("both.mmc", source) as cache:
    ...     cache["a"]["size"], cache.collection("lines")["c"]["kind"]
    (1, 'prompt')
    >>> len(source.sources), source.close()
    (2, None)
    """

    kind: ClassVar[str] = "several"
    _gives_plain: ClassVar[bool] = True

    @overload
    def __init__(self, first: SourceOf[R_co], /, *others: Source) -> None: ...
    @overload
    def __init__(self, *sources: Source) -> None: ...
    def __init__(self, *sources: Source) -> None:
        if not sources:
            raise TypeError("Sources(...) takes at least one source")
        for source in sources:
            if not isinstance(source, Source):
                raise TypeError(f"Sources(...) takes sources, such as SQLiteSource, not {type(source).__name__}")
        self.sources = self._ours = sources
        self._by_name: dict[str, Source] = {}
        for source in sources:
            for schema in source.schemas:
                if schema.name in self._by_name:
                    raise ValueError(
                        f"two sources have a collection {schema.name!r}; its name is unique in a cache: "
                        f"Schema('another', table={(schema.table or schema.name)!r}) reads the same table"
                    )
                self._by_name[schema.name] = source
        # Replaced whole: what each fingerprint was made of, the latest last.
        self._parts: dict[bytes, tuple[bytes, ...]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.sources))})"

    @property
    def schemas(self) -> tuple[AnySchema, ...]:
        """Of all sources, in their order."""
        return tuple(schema for source in self.sources for schema in source.schemas)

    @property
    def schema(self) -> Schema[R_co]:
        """Of the default collection."""
        return self.schemas[0]

    def _of(self, collection: str) -> Source:
        if collection not in self._by_name:
            raise ValueError(f"no source has a collection {collection!r}; there are: {', '.join(self._by_name)}")
        return self._by_name[collection]

    def _schema(self, collection: str) -> Schema:
        return next(schema for schema in self._of(collection).schemas if schema.name == collection)

    def _plain(self, collection: str, rows: Iterable[Any]) -> Iterator[Any]:
        """By the rule for values, where the part does not keep to it by itself."""
        return plain_rows(self._of(collection), self._schema(collection), rows)

    @contextmanager
    def read(self) -> Iterator[Reading]:
        """A read of each, all begun before the first record is given."""
        with ExitStack() as reads:
            readings = [(source, reads.enter_context(source.read())) for source in self.sources]
            yield _SeveralReadings(self, readings)

    def fetch(self, collection: str, ids: Sequence[Key]) -> Sequence[Row | None]:
        try:
            return list(self._plain(collection, self._of(collection).fetch(collection, ids)))
        except BuildError as error:
            raise SourceError(error.message, path=error.path) from error

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        """See `OrderedSource`."""
        return ordered(self._of(collection), collection, ids)

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        return self._plain(collection, self._of(collection).find(collection, query))

    def scans(self, collection: str) -> bool:
        """See `ScanningSource`."""
        return scans(self._of(collection), collection)

    def fingerprint(self) -> bytes:
        """Of those of all. Raises SourceError."""
        parts = tuple(map(fingerprint_of, self.sources))
        if not any(map(any, parts)):
            return bytes(32)
        whole = blake2b(b"".join(len(part).to_bytes(4, "big") + part for part in parts), digest_size=32).digest()
        if not all(map(any, parts)):
            whole = whole[: -len(PARTLY)] + PARTLY
        if whole not in self._parts:
            remembered = [item for item in self._parts.items() if item[0] != whole][1 - _REMEMBERED :]
            self._parts = dict([*remembered, (whole, parts)])
        return whole

    def changes(self, since: bytes) -> Changes | None:
        """See `TrackedSource`. None where this process has not seen the fingerprint, or one of the sources that have
        changed since cannot tell which keys."""
        before, now = self._parts.get(since), self.fingerprint()
        parts = self._parts.get(now)
        if before is None or parts is None:
            return None
        keys: dict[str, frozenset[Key]] = {}
        for source, old, new in zip(self.sources, before, parts, strict=True):
            found: Changes | None = Changes(new, {})
            if old != new:
                tracked: object = source
                found = tracked.changes(old) if isinstance(tracked, TrackedSource) else None
            if found is None:
                return None
            keys |= {schema.name: found.keys.get(schema.name, frozenset()) for schema in source.schemas}
        return Changes(now, keys)

    def available(self, schemas: Iterable[AnySchema]) -> tuple[AnySchema, ...]:
        """See `EvolvingSource`."""
        from . import available

        found: list[Schema] = []
        for schema in schemas:
            if schema.name in self._by_name:
                found += available(self._by_name[schema.name], [schema])
        return tuple(found)

    def with_rules(self, **rules: Any) -> Self:
        """See `sources.with_rules`."""
        from . import with_rules

        return self._like([with_rules(source, **rules) for source in self.sources])

    def with_schemas(self, *schemas: AnySchema) -> Self:
        """See `sources.with_schemas`."""
        from . import with_schemas

        names = [{schema.name for schema in source.schemas} for source in self.sources]
        parts = [[schema for schema in schemas if schema.name in known] for known in names]
        return self._like([with_schemas(source, part) for source, part in zip(self.sources, parts, strict=True)])

    def _like(self, sources: Sequence[Source]) -> Self:
        """With others in place of some, which alone are closed with it."""
        other = type(self)(*sources)
        other._ours = tuple(one for one, ours in zip(sources, self.sources, strict=True) if one is not ours)
        return other

    def close(self) -> None:
        """Close what the sources hold open. Not final."""
        for source in self._ours:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    # --- by name

    def spec(self) -> dict[str, Any] | None:
        """Those of all; None if one cannot be named."""
        specs = [source.spec() for source in self.sources]
        names = [[schema.name for schema in source.schemas] for source in self.sources]
        return None if None in specs else {"kind": self.kind, "sources": specs, "collections": names}

    def given(self) -> dict[str, Any] | None:
        """What each gives; None if one of them cannot be made again."""
        from . import is_remakable

        if not all(map(is_remakable, self.sources)):
            return None
        return {"sources": [given_by(source) for source in self.sources]}

    @classmethod
    def remade(cls, spec: Mapping[str, Any], schemas: Sequence[AnySchema], given: Mapping[str, Any]) -> Self:
        """See `sources.from_spec`. given: what is not given for each of them is given to the one that mentions it."""
        from . import from_spec

        specs, names = spec.get("sources"), spec.get("collections")
        if not (isinstance(specs, (list, tuple)) and isinstance(names, (list, tuple)) and len(specs) == len(names)):
            raise SourceError(f"several sources need a spec and the names of collections for each, found {spec!r:.200}")
        each = given.get("sources") or [given] * len(specs)
        for name in given.keys() - {"sources"}:
            if len(mentioned := {repr(one[name]) for one in specs if name in one}) > 1:
                several = ", ".join(sorted(mentioned))
                raise SourceError(
                    f"{name}= is for one source, and the file was built with several: {several}; rebuild it by a "
                    "program that has them all"
                )
        known = {schema.name: schema for schema in schemas}
        shared = [[known.pop(name) for name in of_one if name in known] for of_one in names]
        if known:
            raise SourceError(f"none of the sources that the file names has the collection {next(iter(known))!r}")
        return cls(*(from_spec(one, some, more) for one, some, more in zip(specs, shared, each, strict=True) if some))


class _SeveralReadings:
    def __init__(self, source: Sources[Any], readings: Sequence[tuple[Source, Reading]]) -> None:
        self._source = source
        self._readings = readings

    def _of(self, collection: str) -> Reading:
        part = self._source._of(collection)
        return next(reading for source, reading in self._readings if source is part)

    def count(self, collection: str) -> int | None:
        return self._of(collection).count(collection)

    def records(self, collection: str) -> Iterator[Row]:
        return self._source._plain(collection, self._of(collection).records(collection))

    def dtypes(self, collection: str) -> Mapping[str, str]:
        """See `IterableSource.dtypes`."""
        dtypes = getattr(self._of(collection), "dtypes", None)
        return {} if dtypes is None else dtypes(collection)
