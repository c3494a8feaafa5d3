"""What a source of truth must be able to do: the protocol, and the one form a record has on its way.

A source is asked two kinds of things: to be read whole, once, consistently (a build), and to answer for
single ids or terms (the fallback tier). Both give a `SourceRecord`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ..format.keys import Key
from ..schema import Query, Schema

__all__ = [
    "Changes",
    "EvolvingSource",
    "Key",
    "OrderedSource",
    "Reading",
    "Source",
    "SourceRecord",
    "TrackedSource",
    "ordered",
    "plain_path",
]


def plain_path(path: str) -> str | bytes:
    """A path as a spec holds it: the bytes of one that is not UTF-8."""
    data = os.fsencode(path)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class SourceRecord(NamedTuple):
    """One record as a source gives it.

    names: the fields, the key first, the embedding not among them. The same tuple object for records of one
        shape where that costs nothing: the builder recognises a shape by identity first.
    values: as many values as names. Values may be anything msgpack carries; the builder checks them.
    vector: the embedding as little-endian float32 bytes, checked to be whole numbers of 4 bytes and, where the
        schema gives `dim`, of that length; or None. The builder checks that all have one length and are finite.
    """

    names: tuple[str, ...]
    values: Sequence[Any]
    vector: bytes | None


class Changes(NamedTuple):
    """What was written between two fingerprints of a source.

    fingerprint: the later one, what `Source.fingerprint` said at that moment.
    keys: collection -> the keys of records that were inserted, updated or deleted; one entry for each collection.
    """

    fingerprint: bytes
    keys: Mapping[str, frozenset[Key]]


class Reading(Protocol):
    """One consistent view of all collections of a source; valid inside `with source.read()`."""

    def count(self, collection: str) -> int | None:
        """How many records there are, or None where only reading them would tell. For progress, not for layout."""
        ...

    def records(self, collection: str) -> Iterator[SourceRecord]:
        """Every record once, in the source's own stable order. Streams; raises BuildError naming collection and key."""
        ...


@runtime_checkable
class Source(Protocol):
    """The source of truth. Safe to use from several threads, after a fork, and, pickled, in another process.

    One that has an attribute `is_constant` that is true has nothing that a file built from it lacks, and is not asked
    for an id that is not there.
    """

    @property
    def schemas(self) -> tuple[Schema, ...]:
        """One per collection, the default collection first."""
        ...

    def read(self) -> AbstractContextManager[Reading]:
        """One consistent read of all collections: later writers do not show in it."""
        ...

    def fetch(self, collection: str, ids: Sequence[Key]) -> list[SourceRecord | None]:
        """The records with these ids, in their order, None where there is none, as for a key of a type that no record
        of the source has. Raises SourceError."""
        ...

    def find(self, collection: str, query: Query) -> Iterator[SourceRecord]:
        """The records that answer the query, in the order of `Reading.records`. Raises SourceError."""
        ...

    def fingerprint(self) -> bytes:
        """32 bytes that differ when the source may have changed since; cheap, and never the same by mistake
        for a change that went through the source's own means."""
        ...

    def spec(self) -> dict[str, Any] | None:
        """Plain data (with `kind`) from which `from_spec` makes the source again, schemas apart; None if it cannot."""
        ...


@runtime_checkable
class TrackedSource(Protocol):
    """What a source may be able to do besides: tell which records changed."""

    def changes(self, since: bytes) -> Changes | None:
        """The keys that were written between the fingerprint `since` and now; None where that cannot be told, and
        everything may have changed.

        Perhaps more keys than changed, never fewer: a fingerprint taken before a read began is a valid `since` for
        what that read did not see. Raises SourceError.
        """
        ...


@runtime_checkable
class OrderedSource(Protocol):
    """What a source may be able to do besides: put some keys into its own order."""

    def in_order(self, collection: str, ids: Sequence[Key]) -> list[Key]:
        """Those of these keys that the source has, each once, in the order of `Reading.records`.

        Costs the keys, not the collection, where the source has an index. Raises SourceError.
        """
        ...


@runtime_checkable
class EvolvingSource(Protocol):
    """What a source may be able to do besides: tell what of a schema it still has."""

    def available(self, schemas: Iterable[Schema]) -> tuple[Schema, ...]:
        """The schemas, without the indexes and columns that the source does not have, and without collections of which
        it lacks more than that. Cheap. Raises SourceError."""
        ...


def ordered(source: Source, collection: str, ids: Sequence[Key]) -> list[Key]:
    """`OrderedSource.in_order` of a source that has it; of any other the ids as given, each once, whether there or not.

    Raises SourceError.
    """
    if isinstance(source, OrderedSource):
        return source.in_order(collection, ids)
    return list(dict.fromkeys(ids))
