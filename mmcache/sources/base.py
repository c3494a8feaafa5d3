"""What a source of truth must be able to do: the protocol, and the one form a record has on its way.

A source is asked two kinds of things: to be read whole, once, consistently (a build), and to answer for
single ids or terms (the fallback tier). Both give a `SourceRecord`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ..errors import BuildError, SourceError
from ..format.keys import Key, is_key
from ..query import Query
from ..schema import AnySchema, R_co, Schema

__all__ = [
    "Changes",
    "EvolvingSource",
    "Invalid",
    "Key",
    "OrderedSource",
    "Reading",
    "Row",
    "ScanningSource",
    "ShardedSource",
    "Source",
    "SourceOf",
    "SourceRecord",
    "TrackedSource",
    "UntoldError",
    "Where",
    "fingerprint_lately",
    "fingerprint_of",
    "flat",
    "given_by",
    "ordered",
    "path_in",
    "plain_path",
    "refused",
    "scans",
    "told",
]


Where = str | os.PathLike[str]


def plain_path(path: str) -> str | bytes:
    """A path as a spec holds it: the bytes of one that is not UTF-8."""
    data = os.fsencode(path)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def path_in(spec: Mapping[str, Any]) -> str:
    """The path that a spec holds. Raises SourceError where it holds none."""
    path = spec.get("path")
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str) or not path:
        raise SourceError(f"a source of kind {spec.get('kind')!r} needs a path, found {path!r}")
    return path


class UntoldError(SourceError):
    """A file alone does not say enough of its source to ask it."""


def told(spec: Mapping[str, Any], given: Mapping[str, Any], argument: str) -> Any:
    """What a program or a command line gives for an argument, which a spec only mentions; None where neither does.

    Raises UntoldError where the spec mentions one, and nothing is given: a file is never believed in what it names.
    """
    value, mentioned = given.get(argument), spec.get(argument)
    if value is None and mentioned is not None:
        flag, name = argument.replace("_", "-"), str(mentioned)
        again = "..." if "<" in name or name.startswith("__main__:") else name
        raise UntoldError(
            f"the file was built with {argument}={name!r}, and nothing that a file names is imported or connected to: "
            f"use `mmcache rebuild FILE --{flag} {again}`, or rebuild() of a cache that has the source"
        )
    return value


class SourceRecord(NamedTuple):
    """One record as a source gives it.

    names: the fields, the key first, the embeddings not among them. For a key of several fields the first name is the
        tuple of these, which stand nowhere else. The same tuple object for records of one shape where that costs
        nothing: the builder recognises a shape by identity first.
    values: as many values as names, the first of them a `Key`. A source of one's own may give any that the rule of
        `values` takes; builder and cache apply it, and the builder checks the rest.
    vector: the embedding as little-endian float32 bytes, checked to be whole numbers of 4 bytes and, where the
        schema gives `dim`, of that length; or None. Of several embeddings a tuple of these, in the schema's order. A
        source of one's own may give lists and arrays. The builder checks that all have one length and are finite.

    >>> mmcache.SourceRecord(("id", "kind"), ("a", "tool"), np.array([1, 0], "<f4").tobytes()).values
    ('a', 'tool')
    """

    names: tuple[Any, ...]
    values: Sequence[Any]
    vector: bytes | tuple[bytes | None, ...] | None


class Invalid(NamedTuple):
    """A row that cannot be a record, in the place of one.

    key: if it has a valid one; else raw_key says what there is instead, for messages. record: what a lookup of the key
    gives all the same, as far as the source can read it; None where it cannot.

    >>> mmcache.Invalid(None, "", "the key is empty").reason
    'the key is empty'
    """

    key: Key | None
    raw_key: Any
    reason: str
    record: SourceRecord | None = None


Row = SourceRecord | Any
"""A `SourceRecord`; or an `Invalid`, which a caller need not expect whose schema does not let bad rows be left out."""


def refused(
    schema: Schema, key: Any, reason: str, record: SourceRecord | None = None, *, cause: Exception | None = None
) -> Invalid:
    """What a source gives for a bad row where the schema lets it be left out. Raises BuildError where it does not."""
    if schema.on_invalid == "raise":
        raise BuildError.of(schema.name, key, reason) from cause
    return Invalid(key if is_key(key) else None, key, reason, record)


def flat(names: Sequence[Any]) -> tuple[str, ...]:
    """All fields of a record with these `names`, those of the key one by one."""
    first, *others = names
    return (*((first,) if isinstance(first, str) else first), *others)


class Changes(NamedTuple):
    """What was written between two fingerprints of a source.

    fingerprint: the later one, what `Source.fingerprint` said at that moment.
    keys: collection -> the keys of records that were inserted, updated or deleted; one entry for each collection.

    >>> mmcache.Changes(bytes(31) + b"2", {"items": frozenset({"a", "b"})}).keys["items"] == {"a", "b"}
    True
    """

    fingerprint: bytes
    keys: Mapping[str, frozenset[Key]]


class Reading(Protocol):
    """One consistent view of all collections of a source; valid inside `with source.read()`.

    >>> with SQLiteSource("items.db", Schema("items")).read() as reading:
    ...     reading.count("items"), [record.values[0] for record in reading.records("items")]
    (3, ['a', 'b', 'c'])
    """

    def count(self, collection: str) -> int | None:
        """How many records there are, or None where only reading them would tell. For progress, not for layout."""
        ...

    def records(self, collection: str) -> Iterator[Row]:
        """Every record once, in the source's own stable order. Streams; raises BuildError naming collection and key.

        A row that cannot be a record may be given as `Invalid` in its place: what becomes of it, the schema says.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """The source of truth. Safe to use from several threads, after a fork, and, pickled, in another process.

    Two more methods make it one that `from_spec` can make again in another process, if its class is one of mmcache's:
    `given() -> dict[str, Any] | None`, what a process hands on besides the spec: plain data, passwords and names of
    functions, "module:function"; None if no other process can make the source. And a class method `remade(spec,
    schemas, given)`, which raises SourceError; what `given` does not hold of functions is not imported: see `told`.

    >>> source = SQLiteSource("items.db", Schema("items", index=("kind",)))
    >>> isinstance(source, mmcache.Source), source.schemas[0].key, source.spec()["kind"], len(source.fingerprint())
    (True, 'id', 'sqlite', 32)
    >>> with source.read() as reading:
    ...     reading.count("items")
    3
    >>> [row and row.values[2] for row in source.fetch("items", ["b", "nope"])]
    [2, None]
    >>> [row.values[0] for row in source.find("items", {"kind": ("tool",)})]
    ['a', 'b']
    """

    @property
    def schemas(self) -> tuple[AnySchema, ...]:
        """One per collection, the default collection first; resolved, unless the source cannot be asked now."""
        ...

    def read(self) -> AbstractContextManager[Reading]:
        """One consistent read of all collections: later writers do not show in it."""
        ...

    def fetch(self, collection: str, ids: Sequence[Key]) -> Sequence[Row | None]:
        """The records with these ids, in their order, None where there is none, as for a key of a type that no record
        of the source has. Of several rows with one key the one that `Schema.on_duplicate` chooses. Raises
        SourceError."""
        ...

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        """The records that answer the query, in the order of `Reading.records`, without those that `records` gives as
        `Invalid`. Raises SourceError."""
        ...

    def fingerprint(self) -> bytes:
        """32 bytes that differ when the source may have changed since; cheap, and never the same by mistake
        for a change that went through the source's own means."""
        ...

    def spec(self) -> dict[str, Any] | None:
        """Plain data (with `kind`) by which a file names the source, schemas apart; None if it cannot be named.

        It holds no secret, and nothing that would be imported or connected to because a file says so, short of paths
        and of URLs without a password."""
        ...


class SourceOf(Source, Protocol[R_co]):
    """A source of which type checkers know the model of its default collection."""

    @property
    def schema(self) -> Schema[R_co]:
        """Of the default collection.

        >>> SQLiteSource("items.db", Schema("items")).schema.key
        'id'
        """
        ...


@runtime_checkable
class TrackedSource(Protocol):
    """What a source may be able to do besides: tell which records changed."""

    def changes(self, since: bytes) -> Changes | None:
        """The keys that were written between the fingerprint `since` and now; None where that cannot be told, and
        everything may have changed.

        Perhaps more keys than changed, never fewer: a fingerprint taken before a read began is a valid `since` for
        what that read did not see. Raises SourceError.

        >>> source, since = mmcache.CallableSource(list, Schema("items")), bytes(32)
        >>> source.changes(since) is None
        True
        """
        ...


@runtime_checkable
class OrderedSource(Protocol):
    """What a source may be able to do besides: put some keys into its own order."""

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        """Those of these keys that the source has, each once, in the order of `Reading.records`.

        Costs the keys, not the collection, where the source has an index. Raises SourceError.

        >>> SQLiteSource("items.db", Schema("items")).in_order("items", ["c", "nope", "a"])
        ['a', 'c']
        """
        ...


@runtime_checkable
class ScanningSource(Protocol):
    """What a source may be able to do besides: tell where a lookup costs as much as reading everything."""

    def scans(self, collection: str) -> bool:
        """Whether a lookup by key in this collection reads the whole of it.

        Such a source is not asked for a key that a file lacks which was built from what the source holds now, by its
        fingerprint. A constant fingerprint says that this is always so, until something is invalidated.

        >>> SQLiteSource("items.db", Schema("items")).scans("items")
        False
        >>> JSONLinesSource("items.jsonl", Schema("items")).scans("items")
        True
        """
        ...


@runtime_checkable
class ShardedSource(Protocol):
    """What a source may be able to do besides: be read in parts, by several processes."""

    def shards(self, n: int) -> Sequence[Source]:
        """Sources of parts of its records, n at most: read one after the other, each collection of them gives what one
        read of the whole gives.

        Each has all collections and schemas of the source, and can be pickled. All see what the source holds now, or
        their `fingerprint` differs from the one that they have here. Raises SourceError where it cannot be cut.

        >>> len(IterableSource(records, Schema("items")).shards(2))
        2
        """
        ...


@runtime_checkable
class EvolvingSource(Protocol):
    """What a source may be able to do besides: tell what of a schema it still has."""

    def available(self, schemas: Iterable[AnySchema]) -> tuple[AnySchema, ...]:
        """The schemas, without the indexes and columns that the source does not have, and without collections of which
        it lacks more than that. Cheap. Raises SourceError.

        >>> source = SQLiteSource("items.db", Schema("items"))
        >>> [schema.index for schema in source.available([Schema("items", index=("kind", "colour")), Schema("none")])]
        [('kind',)]
        """
        ...


def fingerprint_of(source: Source) -> bytes:
    """`Source.fingerprint`. Raises SourceError for what is none, as of a source of a user's own."""
    found: object = source.fingerprint()
    if not isinstance(found, bytes) or len(found) != 32:
        kind = type(source).__name__
        raise SourceError(f"fingerprint() of {kind} gave {found!r:.80}; expected 32 bytes, such as those of a SHA-256")
    return found


def fingerprint_lately(source: Source) -> bytes:
    """`Source.fingerprint`; or, of a source that is asked over a network, what it gave within the last second: for a
    question that is asked at every miss. Raises SourceError."""
    lately = getattr(source, "fingerprint_lately", None)
    return fingerprint_of(source) if lately is None else lately()


def ordered(source: Source, collection: str, ids: Sequence[Key]) -> list[Key]:
    """`OrderedSource.in_order` of a source that has it; of any other the ids as given, each once, whether there or not.

    Raises SourceError.
    """
    if isinstance(source, OrderedSource):
        return source.in_order(collection, ids)
    return list(dict.fromkeys(ids))


def scans(source: Source, collection: str) -> bool:
    """`ScanningSource.scans` of a source that has it; of any other, no."""
    return isinstance(source, ScanningSource) and source.scans(collection)


def given_by(source: Source) -> dict[str, Any] | None:
    """What `Source.given` of a source that has it gives; of any other, nothing besides its spec."""
    give = getattr(source, "given", None)
    return {} if give is None else give()
