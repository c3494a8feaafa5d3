"""The source tier: what a source answers for one collection in the file's place, and the file in its place if it fails.

Only here is a source asked for records. Whatever it raises, an expired file stands in while it may (stale-if-error,
RFC 5861), but never for an id that was invalidated.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .errors import BuildError, SearchTimeoutError, SourceError, UnusableFileError
from .format.keys import Key, check_keys, check_length, type_of
from .format.leftout import may_have
from .logs import log_once
from .query import Query, Term, order_key, terms_in
from .schema import Schema
from .sharing import metrics
from .sources.base import Invalid, Source, SourceRecord, fingerprint_lately, ordered, scans
from .sources.plain import plain_rows
from .storage.admission import admitted
from .storage.asked import SearchOptions
from .storage.ends import is_over
from .storage.overlay import Overlay
from .storage.record import Record, detached
from .storage.selection import Selection
from .storage.snapshot import DirtyError, FileCollection
from .view import View
from .watch import Watch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from .search.neighbours import Neighbours

__all__ = ["SourceTier"]


class SourceTier:
    """name: of the collection; None for the default one, whatever it is called."""

    def __init__(self, watch: Watch, name: str | None) -> None:
        self._watch = watch
        self._name = name

    @property
    def source(self) -> Source:
        """Raises SourceError for a cache without one."""
        if self._watch.source is None:
            raise SourceError("the file cannot answer, and the cache has no source to ask", path=self._watch.path)
        return self._watch.source

    @property
    def schema(self) -> Schema | None:
        """As the source has it; None without one."""
        source = self._watch.source
        return None if source is None else next(s for s in source.schemas if self._name in (None, s.name))

    def _collection(self) -> str:
        schema = self.schema
        return "" if schema is None else schema.name

    def _embeddings(self) -> tuple[str, ...]:
        schema = self.schema
        return () if schema is None else schema.embeddings

    def _admitted(self, rows: Iterable[SourceRecord | Invalid], *, chosen: bool = False) -> Iterator[SourceRecord]:
        """The records that a build takes; embeddings fit those of the file."""
        schema, snapshot = self.schema, self._watch.files.snapshot
        assert schema is not None
        dims: dict[str, int] = {}
        if schema.on_invalid == "skip" and snapshot is not None and schema.name in snapshot.layout.collections:
            layout = snapshot.layout.collections[schema.name]
            dims = {name: embedding.dim for name, embedding in layout.embeddings.items()}
        return admitted(schema, self._plain(rows), dims, chosen=chosen)

    def _plain(self, rows: Iterable[Any]) -> Iterator[Any]:
        """See `plain_rows`. Raises SourceError where that refuses a row."""
        schema = self.schema
        assert schema is not None
        try:
            yield from plain_rows(self.source, schema, rows)
        except BuildError as error:
            raise SourceError(error.message, path=error.path) from error

    def fetch(self, keys: Sequence[Key], cause: str) -> list[Record | None]:
        """The records of these keys, in their order. Without a source, an id that the file lacks is a miss.

        Raises TypeError for what is no key, or none of this collection.
        """
        watch, keys = self._watch, check_keys(keys)
        is_absent = cause == "absent"  # which the file says of what may be a key
        if not is_absent and (length := self._length) > 1:
            for key in keys:
                check_length(key, length)
        begun = time.perf_counter()
        try:
            if is_absent and (watch.source is None or self._lacks(watch.source, keys)):
                self._missed(keys)
                return [None] * len(keys)
            answers = list(self._plain(self.source.fetch(self._collection(), keys)))
        except Exception as error:  # noqa: BLE001 (raised again by `stale_if_error` unless the file may answer)
            return self._from_file(keys, cause, error)
        # A row that is left out of all else is given to a lookup as the source has it.
        raw = [self._living(row.record if isinstance(row, Invalid) else row) for row in answers]
        fields = self._embeddings()
        found = {record.values[0]: detached(*record, fields) for record in raw if record is not None}
        if absent := [key for key in keys if key not in found]:
            self._missed(absent)
        watch.counting.add_fallback(cause, sum(key in found for key in keys), time.perf_counter() - begun)
        return [found.get(key) for key in keys]

    def _lacks(self, source: Source, keys: Sequence[Key]) -> bool:
        """Whether a source that would have to be read whole is known to have none of these keys, because the file has
        none of them, and was built from what the source holds now. Raises what the source raises."""
        view, name = self._watch.view, self._collection()
        reader = view.readers.get(self._name)
        if reader is None or not scans(source, name) or fingerprint_lately(source) != view.fingerprint:
            return False
        assert view.snapshot is not None
        left_out = view.snapshot.layout.collections[reader.name].left_out
        try:
            # Case: the file that lacked them is not this one, or one of them was invalidated meanwhile.
            return not any(may_have(left_out, key) or key in reader for key in keys)
        except (DirtyError, UnusableFileError):
            return False

    def _living(self, record: SourceRecord | None) -> SourceRecord | None:
        """The record, unless its end has passed."""
        schema = self.schema
        if record is None or schema is None or schema.expires is None:
            return record
        return None if is_over(record, schema, time.time()) else record

    def takes(self, key: Key) -> bool:
        """Whether it may be a key of this collection: see `check_length`."""
        try:
            check_length(key, self._length)
        except TypeError:
            return False
        return True

    @property
    def _length(self) -> int:
        """Of the keys, where they are tuples; else 1."""
        schema, collection = self.schema, self._in_file
        key = None if schema is None else schema.key
        if key is None and collection is not None:
            key = collection.schema.key
        return len(key) if isinstance(key, tuple) else 1

    @property
    def _in_file(self) -> FileCollection | None:
        """The collection of the file that is open, whether it may answer or not."""
        snapshot = self._watch.files.snapshot
        if snapshot is None:
            return None
        return snapshot.default if self._name is None else snapshot.collection(self._name)

    def _missed(self, keys: Sequence[Key]) -> None:
        """Count keys that no tier has; a line, once a collection, for one of a type that no key in the file has."""
        watch, collection = self._watch, self._in_file
        watch.counting.add(metrics.MISSES, len(keys))
        types = None if collection is None else collection.key_types
        if collection is None or not types:  # of a file without records, or with keys of very many types
            return
        for key in keys:
            if (found := type_of(key)) not in types:
                name, expected = collection.name, ", ".join(types)
                text = f"collection {name!r} was asked for a key of type {found}; its keys are of type {expected}"
                log_once("key_type", watch.path, text, about=name, collection=name, expected=expected, found=found)
                return

    def _from_file(self, keys: Sequence[Key], cause: str, error: Exception) -> list[Record | None]:
        reader = self._other_view(cause, error).readers[self._name]
        self._watch.counting.add(metrics.STALE_SERVED)
        try:
            return reader.get_many(keys)
        except DirtyError:
            raise _told(error) from None

    def find(self, query: Query, cause: str) -> Selection:
        """The records that answer a query."""
        begun = time.perf_counter()
        try:
            source = self.source
            schema = self.schema
            assert schema is not None
            found = Selection.from_source(self._admitted(source.find(schema.name, query), chosen=True), schema)
        except Exception as error:
            reader = self.stale_if_error(cause, error)
            if not set(query).issubset(reader.schema.index):
                raise
            return reader.find(query)
        self._watch.counting.add_fallback(cause, 1, time.perf_counter() - begun)
        return found

    def nearest(self, query: Query, cause: str, matrix: ArrayLike, k: int, options: SearchOptions) -> list[Neighbours]:
        """The k nearest of the records that answer a query, to each row of a matrix. Reads them once, streaming."""
        from .search.streamed import Streamed

        begun, schema = time.perf_counter(), self.schema
        searching = None if schema is None else Streamed(schema, self._dim(options), matrix, k, options)
        try:
            source = self.source
            assert searching is not None
            found = searching.over(self._admitted(source.find(self._collection(), query), chosen=True))
        except Exception as error:
            if isinstance(error, SearchTimeoutError):
                raise
            reader = self.stale_if_error(cause, error)
            if not set(query).issubset(reader.schema.index):
                raise
            return reader.find(query).nearest_many(matrix, k, **options)
        self._watch.counting.add_fallback(cause, len(found), time.perf_counter() - begun)
        return found

    def _dim(self, options: SearchOptions) -> int | None:
        """Of the embeddings that are searched, where a file knows it."""
        collection, field = self._in_file, options.get("embedding")
        if collection is None or (field is not None and field not in collection.embedding_fields):
            return None
        return collection.dim_of(field)

    def everything(self, cause: str) -> Selection | FileCollection:
        """All records, in memory."""
        try:
            with self.source.read() as reading:
                schema = self.schema
                assert schema is not None
                return Selection.from_source(self._admitted(reading.records(schema.name)), schema)
        except Exception as error:  # noqa: BLE001 (as in `fetch`)
            whole = self.stale_if_error(cause, error)
            return whole.everything() if isinstance(whole, Overlay) else whole

    def count(self, cause: str) -> int:
        """How many records there are."""
        try:
            with self.source.read() as reading:
                schema = self.schema
                is_plain = schema is None or (
                    schema.on_invalid == schema.on_duplicate == "raise" and schema.expires is None
                )
                count = reading.count(self._collection()) if is_plain else None
                return (
                    count if count is not None else sum(1 for _ in self._admitted(reading.records(self._collection())))
                )
        except Exception as error:  # noqa: BLE001 (as in `fetch`)
            return len(self.stale_if_error(cause, error))

    def records(self, cause: str) -> Iterator[Record]:
        """All records, streamed. The file stands in only before the first was given."""
        given = 0
        try:
            fields = self._embeddings()
            with self.source.read() as reading:
                for given, record in enumerate(self._admitted(reading.records(self._collection())), 1):  # noqa: B007
                    yield detached(*record, fields)
        except Exception as error:
            if given:
                raise
            yield from self.stale_if_error(cause, error).all_records()

    def terms(self, field: str, cause: str) -> dict[Term, int]:
        """The values of an indexed field and how many records have each, in the order of terms. Reads all records."""
        counts: dict[Term, int] = {}
        try:
            with self.source.read() as reading:
                for record in self._admitted(reading.records(self._collection())):
                    with contextlib.suppress(TypeError):  # a value that is no term is in no index
                        for term in terms_in(detached(*record), field):
                            counts[term] = counts.get(term, 0) + 1
        except Exception as error:
            reader = self.stale_if_error(cause, error)
            if field not in reader.schema.index:
                raise
            return reader.terms(field)
        return {term: counts[term] for term in sorted(counts, key=order_key)}

    def overlay(self, collection: FileCollection, keys: list[Key], gone: NDArray[np.uint32]) -> Overlay:
        """A collection of the file with the source's answers for these keys, without these rows. One fetch, if any."""
        if not keys:
            return Overlay(collection, keys, (), gone)
        begun = time.perf_counter()
        there = [row for row in self.source.fetch(collection.name, keys) if isinstance(row, SourceRecord)]
        records = {found.values[0]: found for found in self._admitted(there, chosen=True)}
        new = [key for key in records if key not in collection]
        if len(new) > 1:
            new = ordered(self.source, collection.name, new)
        chosen: dict[Key, SourceRecord] = {key: records[key] for key in records.keys() - set(new)}
        chosen |= {key: records[key] for key in new if key in records}
        self._watch.counting.add_fallback("invalidated", len(records), time.perf_counter() - begun)
        return Overlay(collection, keys, chosen.values(), gone)

    def stale_if_error(self, cause: str, error: Exception) -> FileCollection | Overlay:
        """What is read as a whole of the file, in the place of a source that has just failed, if it may answer, which
        dirty ids forbid; else raises the source's error."""
        view, other = self._watch.view, self._other_view(cause, error)
        if view.dirty(other.readers[self._name].name):
            raise _told(error)
        self._watch.counting.add(metrics.STALE_SERVED)
        return other.overlay(self._name, self.overlay) or other.readers[self._name]

    def _other_view(self, cause: str, error: Exception) -> View:
        """The view in which the file answers, if it may; else raises the source's error."""
        view: View = self._watch.view
        other = view.stale_if_error() if view.decision.stale_if_error and cause == view.cause else view
        if other is view or self._name not in other.readers:
            raise _told(error)
        return other


def _told(error: Exception) -> Exception:
    """A source's error as a read raises it: a KeyError of a source would say that no tier has the key."""
    if not isinstance(error, KeyError):
        return error
    told = SourceError(f"the source failed: {type(error).__name__}: {error}")
    told.__cause__ = error
    return told
