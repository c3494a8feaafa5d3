"""Which tier answers for one collection of a cache: the file, as far as its view lets it, else the source.

`CachedCollection` asks here for whatever is not a hit of a get. Only `UnusableFileError` sends a read on to the source,
one key at a time where one record is damaged; an error of the caller's own is never taken for a fault of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from .errors import SourceError, UnusableFileError
from .format.keys import Key, check_keys
from .query import Query
from .schema import Schema, check_width
from .sharing import metrics
from .sharing.widening import schemas_of
from .sourcetier import SourceTier, note_key_types
from .storage.asked import SearchOptions
from .storage.mending import going_on
from .storage.overlay import Overlay
from .storage.record import Record, attach
from .storage.selection import Selection, or_else
from .storage.snapshot import DirtyError, FileCollection, Snapshot
from .watch import Watch

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from .search.neighbours import Neighbours

__all__ = ["NOT_HERE", "Tiers"]

T = TypeVar("T")

NOT_HERE: Final = KeyError, DirtyError, UnusableFileError
"""Raised by a reader of the file for a record that the source has to answer."""


class Tiers:
    """name: of the collection; None for the default one, whatever it is called. source: asked in the file's place."""

    def __init__(self, watch: Watch, name: str | None) -> None:
        self._watch = watch
        self._name = name
        self.source = SourceTier(watch, name)

    @property
    def schema(self) -> Schema:
        """As the source has it, or without one the file."""
        schema = self.source.schema
        if schema is not None:
            return schema
        snapshot = self._watch.current().snapshot
        assert snapshot is not None, "without a source, there is a snapshot, or current() raises"
        return self.collection_of(snapshot).schema

    def collection_of(self, snapshot: Snapshot) -> FileCollection:
        """The collection in a file."""
        return snapshot.default if self._name is None else snapshot.collection(self._name)

    # --- the file, if it may answer

    def reader(self) -> tuple[FileCollection | None, str]:
        """What a lookup by key asks; else None, and why not."""
        view = self._watch.current()
        return view.readers.get(self._name), view.cause

    def why_not(self, error: Exception) -> str:
        """The cause for which the source answers in place of a file that raised one of `NOT_HERE`."""
        if isinstance(error, UnusableFileError):
            return self._watch.damaged(error)
        return "invalidated" if isinstance(error, DirtyError) else "absent"

    def whole(self) -> tuple[FileCollection | Overlay | None, str]:
        """All records: the file's collection, or that with the source's answers for dirty ids; else None, and why."""
        view = self._watch.current()
        whole = view.wholes.get(self._name)
        if whole is not None:
            return whole, ""
        if self._name not in view.readers:
            return None, view.cause
        try:
            return view.overlay(self._name, self.source.overlay), view.cause
        except UnusableFileError as error:
            return None, self._watch.damaged(error)

    def all_of(
        self, read: Callable[[], Iterator[T]], key_of: Callable[[T], Key], told: Callable[[Record], T]
    ) -> Iterator[T]:
        """What is read of all records of the file; from where that is damaged on, of the others as the source has them.

        key_of: of what is read. told: what is given of a record of the source. See `going_on`.
        """
        return going_on(read, key_of, lambda error: map(told, self.source.records(self._watch.damaged(error))))

    def indexed(self, query: Query, held: Snapshot | None = None) -> tuple[FileCollection | Overlay | None, str]:
        """The same, or the collection of a file that is held, where all fields of a query have an index there."""
        whole, cause = self.whole() if held is None else (self.collection_of(held), "")
        if whole is not None and not set(query).issubset(whole.schema.index):
            return None, "incompatible"  # another version of the program built the file without this index
        return whole, cause

    def falling_back(self, found: Selection, query: Query) -> Selection:
        """What was found in the file, which the source gives anew where the file turns out to be damaged."""
        return or_else(found, partial(self._found_instead, query))

    def _found_instead(self, query: Query, error: UnusableFileError) -> Selection:
        return self.source.find(query, self._watch.damaged(error))

    def nearest(
        self, query: Query, held: Snapshot | None, matrix: ArrayLike, k: int, options: SearchOptions
    ) -> list[Neighbours]:
        """The k nearest of the records that answer a query, to each row of a matrix. held: as for `indexed`."""
        whole, cause = self.indexed(query, held)
        if "skip" in options:
            options = {**options, "skip": check_keys(options["skip"])}  # which may be read once only
        if whole is not None:
            try:
                found = whole.find(query).nearest_many(matrix, k, **options)
            except UnusableFileError as error:
                cause = self._watch.damaged(error)
            else:
                self._count_hits(len(found))
                for vector, one in zip(
                    np.array(matrix, np.float32), found, strict=True
                ):  # a copy: the caller's may change
                    or_else(one, partial(self._nearest_instead, query, vector, k, options))
                return found
        return self.source.nearest(query, cause, matrix, k, options)

    def _nearest_instead(
        self, query: Query, vector: NDArray[np.float32], k: int, options: SearchOptions, error: UnusableFileError
    ) -> Selection:
        return self.source.nearest(query, self._watch.damaged(error), [vector], k, options)[0]

    def block(self, read: Callable[[FileCollection | Selection], T]) -> T:
        """What one array of all records is: the file's, if it may answer at all, else made from the source."""
        reader, cause = self.reader()
        try:
            if reader is not None:
                return read(reader)
        except UnusableFileError as error:
            cause = self._watch.damaged(error)
        return read(self.source.everything(cause))

    # --- several keys

    def read(self, keys: list[Key], *, embeddings: bool = False) -> list[Record | None]:
        """From the file what it has and may answer, from the source the rest. embeddings: with that of each."""
        reader, cause = self.reader()
        if reader is None:
            return self.source.fetch(keys, cause)
        try:
            found = reader.get_many(keys, embeddings=embeddings)
        except DirtyError:
            return self._around(reader, keys, embeddings=embeddings)
        except UnusableFileError:  # one of them is damaged: the others are not
            return [self._one(reader, key, embeddings=embeddings) for key in keys]
        missing = [i for i, record in enumerate(found) if record is None]
        if len(found) > len(missing):
            self._count_hits(len(found) - len(missing))
        if missing:
            for i, record in zip(missing, self.source.fetch([keys[i] for i in missing], "absent"), strict=True):
                found[i] = record
        return found

    def _around(self, reader: FileCollection, keys: list[Key], *, embeddings: bool) -> list[Record | None]:
        """The same, where some of the ids are dirty."""
        dirty = [i for i, key in enumerate(keys) if reader.is_dirty(key)]
        clean = sorted(set(range(len(keys))).difference(dirty))
        found: list[Record | None] = [None] * len(keys)
        for i, record in zip(dirty, self.source.fetch([keys[i] for i in dirty], "invalidated"), strict=True):
            found[i] = record
        # Case: an id of the rest became dirty meanwhile. Then it is asked for like these.
        rest = self.read([keys[i] for i in clean], embeddings=embeddings) if clean else ()
        for i, record in zip(clean, rest, strict=True):
            found[i] = record
        return found

    def _one(self, reader: FileCollection, key: Key, *, embeddings: bool) -> Record | None:
        try:
            record = reader[key]
            if embeddings:
                attach([record])
        except NOT_HERE as error:
            return self.source.fetch([key], self.why_not(error))[0]
        self._count_hits(1)
        return record

    def _count_hits(self, count: int) -> None:
        self._watch.counting.add(metrics.BATCH_HITS, count)

    # --- arguments

    def check_embedding(self, field: str | None) -> int | None:
        """Numbers in an embedding, by default the first; None where that is not known. Raises ValueError for a field
        that is none, naming those that there are."""
        schema, snapshot = self.schema, self._watch.view.snapshot
        dim = schema.first_dim if field is None else schema.dim_of(field)
        return dim or (None if snapshot is None else self.collection_of(snapshot).dim_of(field))

    def known(self, name: str) -> str:
        """The name of a collection, if there is one. Raises KeyError naming those that there are."""
        source = self._watch.source
        if source is not None:
            known = [schema.name for schema in source.schemas]
        else:
            snapshot = self._watch.files.snapshot or self._watch.current().snapshot
            known = list(snapshot.collections) if snapshot is not None else []
        if name not in known:
            raise KeyError(f"no collection {name!r}; there are: {', '.join(known)}")
        return name

    def answerable(self, collection: str, ids: list[Key]) -> list[Key]:
        """The ids, if they can be keys of a collection, and a source may know better than the file."""
        source, snapshot = self._watch.source, self._watch.files.snapshot
        if source is None and snapshot is not None and snapshot.layout.source is None:
            raise SourceError(
                "nothing can answer for single ids: this cache was opened without a source, and its file was built "
                "from none that it could name; open it with its source, or build the file anew",
                path=self._watch.path,
            )
        schemas = source.schemas if source is not None else [] if snapshot is None else schemas_of(snapshot.layout)
        schema = next((schema for schema in schemas if schema.name == collection), None)
        if schema is not None and schema.key is not None:
            for key in ids:
                check_width(schema, key)
        if snapshot is not None and collection in snapshot.collections:
            ids = check_keys(ids)
            note_key_types(self._watch.path, snapshot.collection(collection), ids, "to invalidate")
        return ids
