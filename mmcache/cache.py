"""`Cache`: the file first, the source for whatever the file cannot answer.

A get takes no lock: it reads one attribute, the current snapshot, and asks it. Only `UnusableFileError` sends a
caller on to the source, one id at a time where one record is damaged; an error of the caller's own is never
taken for a fault of the file. Adopting a newer file replaces that one attribute; readers in the middle of something
finish with the generation that they began with.

Call grammar: open (read | rebuild | refresh)* close.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
import weakref
from collections import Counter as Tally
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, overload

from .errors import (
    ClosedError,
    IncompatibleFormatError,
    LockTimeoutError,
    MissingFileError,
    MmcacheError,
    SourceError,
    UnusableFileError,
)
from .format.layout import Layout
from .schema import Query, Schema, parse_query
from .sources.base import Source, SourceRecord
from .storage.fs import identity_of
from .storage.publish import LOCK_TIMEOUT, BuildReport, publish
from .storage.record import Record, RecordItems, RecordValues, detached
from .storage.selection import Selection
from .storage.snapshot import Access, Collection, Snapshot, Verify

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Cache", "CachedCollection", "FoundRecords", "Stats", "open"]

log = logging.getLogger("mmcache")

RETRY_SECONDS = 1.0
"""How often a cache without a file looks whether there is one by now."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What this process has seen of one cache.

    hits: the file answered. misses: no tier had the id. fallbacks: the source answered, by cause: "absent" (an id that
    the file lacks), "record" (damage in what was read), "building" (another process is), "disabled", or why there is
    no file: "missing", "corrupt", "incompatible", "unreadable", "untrusted".
    corruptions: damage met, in a file or in a record. opens: files opened; load_seconds: how long the last one took.
    fallback_seconds: spent in the source, all together. rebuilds, build_failures: builds that we ran.
    generation: that is served now; None while there is no file.
    """

    hits: int
    misses: int
    fallbacks: Mapping[str, int]
    corruptions: int
    opens: int
    rebuilds: int
    build_failures: int
    load_seconds: float
    fallback_seconds: float
    generation: int | None

    @property
    def hit_rate(self) -> float:
        """Answers from the file over all answers; 1.0 before the first."""
        total = self.hits + self.misses + sum(self.fallbacks.values())
        return self.hits / total if total else 1.0


class _Hits:
    """A counter that is exact under threads and takes no lock: `next` of a C iterator cannot be interrupted."""

    def __init__(self) -> None:
        self._count = itertools.count()
        self.bump = self._count.__next__
        self._lock = threading.Lock()
        self._looks = 0
        self._added = 0

    def add(self, n: int) -> None:
        with self._lock:
            self._added += n

    def value(self) -> int:
        """So far. Looking counts, so looks are taken off again."""
        with self._lock:
            value = self.bump() - self._looks + self._added
            self._looks += 1
            return value


class _Tiers:
    """What the collections of one cache share: the snapshot, the source, and what has happened.

    `snapshot` is replaced as a whole and read without a lock. Everything else changes under `lock`.
    """

    def __init__(self, path: str, source: Source | None, options: dict[str, Any]) -> None:
        self.path = path
        self.source = source
        self.options = options
        self.snapshot: Snapshot | None = None
        self.closed = False
        self.cause = "missing"
        self._error: UnusableFileError | None = None
        self._next_try = 0.0
        self._may_build = bool(options["build"])
        self.begin_counting()
        _alive.add(self)

    def begin_counting(self) -> None:
        """Counters and locks of this process: at the start, and in a forked child."""
        self.lock = threading.RLock()
        self.hits = _Hits()
        self._tally: Tally[str] = Tally()
        self._fallbacks: Tally[str] = Tally()
        self._load_seconds = 0.0
        self._fallback_seconds = 0.0

    def count(self, what: str, n: int = 1) -> None:
        with self.lock:
            self._tally[what] += n

    def count_fallback(self, cause: str, n: int, seconds: float) -> None:
        with self.lock:
            self._fallback_seconds += seconds
            if n:
                self._fallbacks[cause] += n

    def stats(self) -> Stats:
        snapshot = self.snapshot
        with self.lock:
            return Stats(
                hits=self.hits.value(),
                misses=self._tally["misses"],
                fallbacks=dict(self._fallbacks),
                corruptions=self._tally["corruptions"],
                opens=self._tally["opens"],
                rebuilds=self._tally["rebuilds"],
                build_failures=self._tally["build_failures"],
                load_seconds=self._load_seconds,
                fallback_seconds=self._fallback_seconds,
                generation=None if snapshot is None else snapshot.generation,
            )

    # --- the file

    def attached(self) -> Snapshot | None:
        """The snapshot to read from, opened or built now if need be; None leaves it to the source.

        Raises the file's UnusableFileError where there is no source to leave it to.
        """
        if self.closed:
            raise ClosedError("the cache was closed: open it again with mmcache.open(path, source)", path=self.path)
        if self.snapshot is not None:
            return self.snapshot
        if _disabled():
            self.cause = "disabled"
            if self.source is None:
                raise SourceError("MMCACHE_DISABLE sends every read to the source, and there is none", path=self.path)
            return None
        if not self.lock.acquire(timeout=self.options["wait"]):  # a thread of ours is building
            self.cause = "building"
            return None
        try:
            if self.snapshot is None and time.monotonic() >= self._next_try:
                self._attach()
        finally:
            self.lock.release()
        if self.snapshot is None and self.source is None and self._error is not None:
            raise self._error
        return self.snapshot

    def _attach(self) -> None:
        """Open the file, or build it; or remember why neither was possible, and when to look again."""
        try:
            self.snapshot = self._open()
        except UnusableFileError as error:
            self._refuse(error)
            if self._may_build and self.source is not None and self._is_ours_to_mend(error):
                self._build_first(self.source)
        if self.snapshot is None:
            self._next_try = time.monotonic() + (RETRY_SECONDS if self.source is not None else 0.0)

    def _open(self) -> Snapshot:
        begun = time.perf_counter()
        snapshot = Snapshot.open(self.path, verify=self.options["verify"], access=self.options["access"])
        if not self._has_our_schemas(snapshot.layout):
            raise IncompatibleFormatError(
                "was built with other schemas than the source has now: rebuild it", path=self.path
            )
        self._load_seconds = time.perf_counter() - begun
        self._tally["opens"] += 1
        return snapshot

    def _has_our_schemas(self, layout: Layout) -> bool:
        if self.source is None:
            return True
        return self.source.schemas == tuple(collection.schema for collection in layout.collections.values())

    def _refuse(self, error: UnusableFileError) -> None:
        self._error = error
        self.cause = error.cause
        self._tally["corruptions"] += error.cause == "corrupt"
        if not isinstance(error, MissingFileError):
            log.warning("%s", error, extra={"event": "file_refused", "cause": error.cause, "path": self.path})

    def _is_ours_to_mend(self, error: UnusableFileError) -> bool:
        """A missing or damaged file, or one with other schemas. A file of another major version belongs to workers
        of that version, and what we may not read or trust we do not replace."""
        return error.cause in ("missing", "corrupt") or (
            isinstance(error, IncompatibleFormatError) and error.found is None
        )

    def _build_first(self, source: Source) -> None:
        """One process builds; the others wait until its file is there, take over if it dies, and give up in time."""
        deadline = time.monotonic() + self.options["wait"]
        pause = 0.001
        while self.snapshot is None:
            try:
                self.publish(source, timeout=0.0, unless=self._has_our_schemas)
            except LockTimeoutError:
                if time.monotonic() >= deadline:
                    self.cause = "building"
                    return
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            except MmcacheError as error:
                self._may_build = False
                log.warning("build failed: %s", error, extra={"event": "build_failed", "path": self.path})
                return
            with contextlib.suppress(UnusableFileError):
                self.snapshot = self._open()

    def publish(self, source: Source, *, timeout: float, unless: Callable[[Layout], bool]) -> BuildReport:
        """Build and publish from the source, and count it."""
        try:
            report = publish(
                self.path,
                source,
                cluster_by=self.options["cluster_by"],
                metadata=self.options["metadata"],
                timeout=timeout,
                unless=unless,
            )
        except LockTimeoutError:
            raise
        except MmcacheError:
            self.count("build_failures")
            raise
        if report.changed:
            self.count("rebuilds")
        return report

    def refresh(self) -> bool:
        """Adopt the file at the path if it is another than ours. A file that is not right is refused, ours kept."""
        with self.lock:
            old = self.snapshot
            if old is None:
                self._next_try = 0.0
                return self.attached() is not None
            if identity_of(self.path) == old.identity:
                return False
            try:
                new = self._open()
            except UnusableFileError as error:
                self._refuse(error)
                return False
            if new.generation < old.generation:
                log.warning(
                    "%s: went back from generation %d to %d",
                    self.path,
                    old.generation,
                    new.generation,
                    extra={"event": "generation_went_back", "path": self.path},
                )
            # A reader that took the old snapshot before this line finishes with it; it is unmapped with its last user.
            self.snapshot = new
            return True

    def damaged(self, error: UnusableFileError) -> str:
        """Damage met while reading: count it and name the cause of the fallback; raise it where there is none."""
        self.count("corruptions")
        log.warning("%s", error, extra={"event": "corruption", "path": self.path})
        if self.source is None:
            raise error
        return "record"


_alive: weakref.WeakSet[_Tiers] = weakref.WeakSet()


def _after_fork() -> None:
    """Snapshots are shared with the parent and stay; a lock that another thread held would never be released."""
    for tiers in list(_alive):
        tiers.begin_counting()


os.register_at_fork(after_in_child=_after_fork)


def _disabled() -> bool:
    return os.environ.get("MMCACHE_DISABLE", "0") not in ("", "0")


class CachedCollection(Mapping[str, Record]):
    """One collection of a cache: a read-only mapping over both tiers.

    A look-up by key that the file cannot answer is answered by the source; `len` and iteration are the file's, or the
    source's while there is no file. Raises KeyError where no tier has the key, SourceError where the source fails or
    is missing, ClosedError after the cache was closed.
    """

    def __init__(self, tiers: _Tiers, name: str | None) -> None:
        self._tiers = tiers
        self._name = name  # None is the default collection, whatever it is called

    # --- look-ups by key

    def __getitem__(self, key: str) -> Record:
        tiers = self._tiers
        snapshot = tiers.snapshot
        if snapshot is not None:
            try:
                record = (snapshot.default if self._name is None else snapshot.collection(self._name))[key]
            except KeyError:
                cause = "absent"
            except UnusableFileError as error:
                cause = tiers.damaged(error)
            else:
                tiers.hits.bump()
                return record
            found = self._fetch([key], cause)[0]
        else:
            found = self._read([key])[0]
        if found is None:
            raise KeyError(key)
        return found

    def get(self, key: str, default: Any = None) -> Any:
        """The record, or a default where no tier has it."""
        try:
            return self[key]
        except KeyError:
            return default

    def get_many(self, keys: Iterable[str]) -> list[Record | None]:
        """The records of these keys, in their order, None where no tier has it."""
        return self._read(list(keys))

    def __contains__(self, key: object) -> bool:
        collection = self._file()
        cause = self._tiers.cause
        if collection is not None:
            try:
                if key in collection:
                    self._tiers.hits.bump()
                    return True
                cause = "absent"
            except UnusableFileError as error:
                cause = self._tiers.damaged(error)
        return isinstance(key, str) and self._fetch([key], cause)[0] is not None

    def embedding(self, key: str) -> NDArray[np.float32] | None:
        """float32, (dim,), read-only: a view of the file, or the source's; None for a record without one."""
        collection = self._file()
        cause = self._tiers.cause
        if collection is not None:
            try:
                embedding = collection.embedding(key)
            except KeyError:
                cause = "absent"
            except UnusableFileError as error:
                cause = self._tiers.damaged(error)
            else:
                self._tiers.hits.bump()
                return embedding
        record = self._fetch([key], cause)[0]
        if record is None:
            raise KeyError(key)
        return record.embedding

    # --- all of it

    def __len__(self) -> int:
        collection = self._file()
        if collection is not None:
            return len(collection)
        with self._source().read() as reading:
            count = reading.count(self.schema.name)
            return count if count is not None else sum(1 for _ in reading.records(self.schema.name))

    def __iter__(self) -> Iterator[str]:
        collection = self._file()
        if collection is not None:
            yield from collection
        else:
            for record in self._read_source():
                yield record.values[0]

    def values(self) -> ValuesView[Record]:
        """The records, decoded in batches."""
        return RecordValues(self)

    def items(self) -> ItemsView[str, Record]:
        """Keys and records, decoded in batches."""
        return RecordItems(self)

    def all_records(self) -> Iterator[Record]:
        """What `values` iterates over."""
        collection = self._file()
        if collection is not None:
            return collection.all_records()
        return (detached(*record) for record in self._read_source())

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (n, dim), read-only: the file's block, or, while there is no file, a copy made from the source."""
        collection = self._file()
        if collection is not None:
            try:
                return collection.embeddings
            except UnusableFileError as error:
                self._tiers.damaged(error)
        return FoundRecords(self._read_source(), self.schema.dim).embeddings

    @property
    def schema(self) -> Schema:
        source, snapshot = self._tiers.source, self._tiers.snapshot
        if source is not None:
            return next(s for s in source.schemas if self._name in (None, s.name))
        snapshot = snapshot or self._tiers.attached()
        assert snapshot is not None, "without a source, attached() gives a snapshot or raises"
        return snapshot.schema if self._name is None else snapshot.collection(self._name).schema

    # --- look-ups by field

    def where(self, terms: Mapping[str, object] | None = None, /, **more: object) -> Selection | FoundRecords:
        """The records whose indexed fields have these values: AND over fields, a list means OR within one.

        From the file, as of its generation; from the source while there is no file, or its index is damaged.
        """
        query = parse_query(self.schema, terms, more)
        collection = self._file()
        cause = self._tiers.cause
        if collection is not None:
            try:
                selection = collection.find(query)
            except UnusableFileError as error:
                cause = self._tiers.damaged(error)
            else:
                self._tiers.hits.bump()
                return selection
        return self._find(query, cause)

    # --- the tiers

    def _file(self) -> Collection | None:
        snapshot = self._tiers.snapshot or self._tiers.attached()
        if snapshot is None:
            return None
        return snapshot.default if self._name is None else snapshot.collection(self._name)

    def _source(self) -> Source:
        if self._tiers.source is None:
            raise SourceError("the file cannot answer, and the cache has no source to ask", path=self._tiers.path)
        return self._tiers.source

    def _read(self, keys: list[str]) -> list[Record | None]:
        """From the file what it has, from the source the rest."""
        collection = self._file()
        if collection is None:
            return self._fetch(keys, self._tiers.cause)
        try:
            found = collection.get_many(keys)
        except UnusableFileError:  # one of them is damaged: the others are not
            return [self.get(key) for key in keys]
        missing = [i for i, record in enumerate(found) if record is None]
        self._tiers.hits.add(len(found) - len(missing))
        if missing:
            for i, record in zip(missing, self._fetch([keys[i] for i in missing], "absent"), strict=True):
                found[i] = record
        return found

    def _fetch(self, keys: Sequence[str], cause: str) -> list[Record | None]:
        """From the source. Without one, an id that the file lacks is a miss, and anything else an error."""
        tiers = self._tiers
        if tiers.source is None and cause == "absent":
            tiers.count("misses", len(keys))
            return [None] * len(keys)
        wanted = [key for key in keys if isinstance(key, str)]
        begun = time.perf_counter()
        answers = self._source().fetch(self.schema.name, wanted)
        found = {record.values[0]: detached(*record) for record in answers if record is not None}
        tiers.count_fallback(cause, sum(key in found for key in keys), time.perf_counter() - begun)
        if absent := sum(key not in found for key in keys):
            tiers.count("misses", absent)
        return [found.get(key) for key in keys]

    def _find(self, query: Query, cause: str) -> FoundRecords:
        begun = time.perf_counter()
        found = FoundRecords(self._source().find(self.schema.name, query), self.schema.dim)
        self._tiers.count_fallback(cause, 1, time.perf_counter() - begun)
        return found

    def _read_source(self) -> Iterator[SourceRecord]:
        with self._source().read() as reading:
            yield from reading.records(self.schema.name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._tiers.path!r}, collection {self.schema.name!r}>"


class Cache(CachedCollection):
    """A file and its source, as one read-only mapping: that of the first collection. Make one with `mmcache.open`.

    Safe in threads and after a fork. Pickles to its arguments and opens the file again where it arrives, under
    spawn and forkserver too. A context manager.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        source: Source | None = None,
        *,
        build: bool = True,
        wait: float = 30.0,
        verify: Verify = "auto",
        access: Access = "mmap",
        cluster_by: str | Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """The arguments of `mmcache.open`; the file is opened, or built, at the first read."""
        if source is not None and not isinstance(source, Source):
            raise TypeError(
                f"source must be a Source such as SQLiteSource(path, schema), not {type(source).__name__}; "
                "for records in memory use mmcache.build, or IterableSource(records, schema)"
            )
        options = {
            "build": build,
            "wait": wait,
            "verify": verify,
            "access": access,
            "cluster_by": cluster_by,
            "metadata": metadata,
        }
        super().__init__(_Tiers(os.path.abspath(os.fspath(path)), source, options), None)

    def collection(self, name: str) -> CachedCollection:
        """A collection by name. Raises KeyError naming those that there are."""
        source, snapshot = self._tiers.source, self.snapshot
        if source is not None:
            known = [schema.name for schema in source.schemas]
        else:
            known = list(snapshot.collections) if snapshot is not None else []
        if name not in known:
            raise KeyError(f"no collection {name!r}; there are: {', '.join(known)}")
        return CachedCollection(self._tiers, name)

    @property
    def path(self) -> str:
        """Absolute."""
        return self._tiers.path

    @property
    def source(self) -> Source | None:
        return self._tiers.source

    @property
    def snapshot(self) -> Snapshot | None:
        """What is served from now; None while the source answers everything."""
        return self._tiers.snapshot or self._tiers.attached()

    @property
    def generation(self) -> int | None:
        """Of the snapshot; None while the source answers everything."""
        snapshot = self.snapshot
        return None if snapshot is None else snapshot.generation

    @contextlib.contextmanager
    def pinned(self) -> Iterator[Snapshot]:
        """One generation for a whole block, whatever is published meanwhile.

        Raises UnusableFileError where there is no file: the source has no generations.
        """
        snapshot = self.snapshot
        if snapshot is None:
            raise UnusableFileError("there is no file to pin: the source answers everything now", path=self.path)
        yield snapshot

    def refresh(self) -> bool:
        """Look for a newer file and move to it; whether there was one. A file that is not right is refused.

        Costs one `stat` where nothing has changed.
        """
        return self._tiers.refresh()

    def rebuild(self, *, timeout: float = LOCK_TIMEOUT) -> BuildReport:
        """Build from the source what it holds now, publish it, and move to it.

        Single-flight: if another process built, while we waited for it, from what the source held after this call
        began, that is the result. Raises what `mmcache.build` raises; SourceError without a source.
        """
        asked_ns = time.time_ns()
        report = self._tiers.publish(
            self._source(), timeout=timeout, unless=lambda layout: layout.header.created_ns > asked_ns
        )
        self.refresh()
        return report

    def stats(self) -> Stats:
        """What this process has seen."""
        return self._tiers.stats()

    def close(self) -> None:
        """Let go of the file. Views and pinned snapshots stay valid, and keep it mapped, until they are dropped.

        The source is the caller's, and stays as it is.
        """
        self._tiers.closed = True
        self._tiers.snapshot = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._tiers.path, self._tiers.source, self._tiers.options)


def _reopen(path: str, source: Source | None, options: dict[str, Any]) -> Cache:
    return Cache(path, source, **options)


def open(
    path: str | os.PathLike[str],
    source: Source | None = None,
    *,
    build: bool = True,
    wait: float = 30.0,
    verify: Verify = "auto",
    access: Access = "mmap",
    cluster_by: str | Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Cache:
    """Open a cache: the file at `path`, and the source that answers for whatever the file cannot.

    Where the file is missing or damaged it is built now, by one process; the others wait for it.

    source: without one, the cache is read-only over the file, and raises where the file cannot answer.
    build: False never builds: the source answers until someone else publishes a file.
    wait: seconds to wait for another process that is building; after that the source answers.
    verify, access: see `Snapshot.open`. cluster_by, metadata: see `mmcache.build`.

    Raises UnusableFileError (missing, corrupt, incompatible, unreadable, untrusted) only without a source.
    """
    cache = Cache(
        path,
        source,
        build=build,
        wait=wait,
        verify=verify,
        access=access,
        cluster_by=cluster_by,
        metadata=metadata,
    )
    if source is None or not _disabled():
        _ = cache.snapshot
    return cache


class FoundRecords(Sequence[Record]):
    """What a source found: the shape of a `Selection`, without rows, for there is no file that they could be of."""

    def __init__(self, found: Iterable[SourceRecord], dim: int | None) -> None:
        self._found = list(found)
        self._dim = dim

    @property
    def ids(self) -> list[str]:
        return [record.values[0] for record in self._found]

    @property
    def rows(self) -> NDArray[np.uint32]:
        raise SourceError("the source answered, and only a file has rows: use ids or embeddings, or pin a snapshot")

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (len, dim), read-only; zeros for a record without one."""
        import numpy as np

        vectors = [record.vector for record in self._found]
        dim = self._dim or next((len(vector) // 4 for vector in vectors if vector is not None), 0)
        data = b"".join(bytes(4 * dim) if vector is None else vector for vector in vectors)
        return np.frombuffer(data, "<f4").reshape(len(vectors), dim)

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Record]:
        return (detached(*record) for record in self._found)

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> FoundRecords: ...
    def __getitem__(self, i: int | slice) -> Record | FoundRecords:
        if isinstance(i, slice):
            return FoundRecords(self._found[i], self._dim)
        return detached(*self._found[i])

    def __repr__(self) -> str:
        return f"<FoundRecords: {len(self)} from the source>"
