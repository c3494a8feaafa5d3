"""The source tier: what a source answers for one collection in the file's place, and the file in its place if it fails.

Only here is a source asked for records. Whatever it raises, an expired file stands in while it may (stale-if-error,
RFC 5861), but never for an id that was invalidated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from .errors import SourceError
from .format.keys import Key
from .schema import Query, Schema
from .sharing import metrics
from .sources.base import Source, SourceRecord, ordered
from .storage.overlay import Overlay
from .storage.record import Record, detached
from .storage.selection import Selection
from .storage.snapshot import Collection, DirtyError
from .view import View
from .watch import Watch

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

    def fetch(self, keys: Sequence[str], cause: str) -> list[Record | None]:
        """The records of these keys, in their order. Without a source, an id that the file lacks is a miss."""
        watch = self._watch
        if cause == "absent" and (watch.source is None or getattr(watch.source, "is_constant", False)):
            watch.counting.add(metrics.MISSES, len(keys))
            return [None] * len(keys)
        begun = time.perf_counter()
        try:
            answers = self.source.fetch(self._collection(), [key for key in keys if isinstance(key, str)])
        except Exception as error:  # noqa: BLE001 (raised again by `stand_in` unless the file may answer)
            return self._from_file(keys, cause, error)
        found = {record.values[0]: detached(*record) for record in answers if record is not None}
        if absent := sum(key not in found for key in keys):
            watch.counting.add(metrics.MISSES, absent)
        watch.counting.add_fallback(cause, sum(key in found for key in keys), time.perf_counter() - begun)
        return [found.get(key) for key in keys]

    def _from_file(self, keys: Sequence[str], cause: str, error: Exception) -> list[Record | None]:
        try:
            return self.stand_in(cause, error, whole=False).get_many(keys)
        except DirtyError:
            raise error from None

    def find(self, query: Query, cause: str) -> Selection:
        """The records that answer a query."""
        begun = time.perf_counter()
        try:
            source = self.source
            schema = self.schema
            assert schema is not None
            found = Selection.from_source(source.find(schema.name, query), schema)
        except Exception as error:
            reader = self.stand_in(cause, error)
            if not set(query).issubset(reader.schema.index):
                raise
            return reader.find(query)
        self._watch.counting.add_fallback(cause, 1, time.perf_counter() - begun)
        return found

    def everything(self, cause: str) -> Selection | Collection:
        """All records, in memory."""
        try:
            with self.source.read() as reading:
                schema = self.schema
                assert schema is not None
                return Selection.from_source(reading.records(schema.name), schema)
        except Exception as error:  # noqa: BLE001 (as in `fetch`)
            return self.stand_in(cause, error)

    def count(self, cause: str) -> int:
        """How many records there are."""
        try:
            with self.source.read() as reading:
                count = reading.count(self._collection())
                return count if count is not None else sum(1 for _ in reading.records(self._collection()))
        except Exception as error:  # noqa: BLE001 (as in `fetch`)
            return len(self.stand_in(cause, error))

    def records(self, cause: str) -> Iterator[Record]:
        """All records, streamed. The file stands in only before the first was given."""
        given = 0
        try:
            with self.source.read() as reading:
                for given, record in enumerate(reading.records(self._collection()), 1):  # noqa: B007
                    yield detached(*record)
        except Exception as error:
            if given:
                raise
            yield from self.stand_in(cause, error).all_records()

    def overlay(self, collection: Collection, keys: list[Key]) -> Overlay:
        """A collection of the file with the source's answers for these keys. One fetch."""
        begun = time.perf_counter()
        records = {found.values[0]: found for found in self.source.fetch(collection.name, keys) if found is not None}
        new = [key for key in records if key not in collection]
        if len(new) > 1:
            new = ordered(self.source, collection.name, new)
        chosen: dict[Key, SourceRecord] = {key: records[key] for key in records.keys() - set(new)}
        chosen |= {key: records[key] for key in new if key in records}
        self._watch.counting.add_fallback("invalidated", len(records), time.perf_counter() - begun)
        return Overlay(collection, keys, chosen.values())

    def stand_in(self, cause: str, error: Exception, *, whole: bool = True) -> Collection:
        """The file in the place of a source that has just failed, if it may answer; else raises the source's error.

        whole: for what is read as a whole, which dirty ids forbid; else the collection raises DirtyError for them.
        """
        view: View = self._watch.view
        reader = None
        if view.decision.stale_if_error and cause == view.cause:
            reader = view.stand_in().readers.get(self._name)
        if reader is None or (whole and view.dirty(reader.name)):
            raise error
        self._watch.counting.add(metrics.STALE_SERVED)
        return reader
