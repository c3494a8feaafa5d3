"""`Cache`: the file first, the source for whatever the file cannot answer.

A get takes no lock: it looks whether anything is new (see `tiers`), reads one attribute, the snapshot that answers now,
and asks it. Only `UnusableFileError` sends a caller on to the source, one id at a time where one record is damaged; an
error of the caller's own is never taken for a fault of the file. Readers in the middle of something finish with the
generation that they began with.

Call grammar: open (read | invalidate | rebuild | refresh)* close.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet, ValuesView
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from . import freshness
from .errors import SourceError, UnusableFileError
from .schema import Query, Schema, parse_query
from .sharing import metrics
from .sharing.control import WAKE, entry_of, wildcard_of
from .sharing.status import Status, status_of
from .sources.base import Source, SourceRecord
from .storage.publish import LOCK_TIMEOUT, BuildReport
from .storage.record import Record, RecordItems, RecordValues, detached
from .storage.selection import Selection
from .storage.snapshot import Access, Collection, EmbeddingRef, Snapshot, Verify
from .tiers import EXECUTORS, Tiers, is_disabled
from .words import html_of, number

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

__all__ = ["Cache", "CachedCollection", "FoundRecords", "Stats", "open"]

Executor = Literal["subprocess", "thread", "inline", "external"]
Profile = Literal["development", "staging", "production"]

_clock = time.monotonic


@dataclass(frozen=True, slots=True)
class Stats:
    """What this process has seen of one cache.

    hits: the file answered. misses: no tier had the id. fallbacks: the source answered, by cause: "absent" (an id that
    the file lacks), "invalidated", "expired", "record" (damage in what was read), "slow", "building" (another process
    is), "disabled", or why there is no file: "missing", "corrupt", "incompatible", "unreadable", "untrusted".
    stale_served: answers of a file that was due to be built again, or had expired while the source failed.
    corruptions: damage met, in a file or in a record. opens: files opened; adoptions: those in the place of another;
    refusals: files that were not right. load_seconds: how long the last opening took. fallback_seconds: spent in the
    source, all together. rebuilds, build_failures: builds that this cache ran itself, in a get or a thread.
    invalidations: said here. slow_lookups: beyond `slow_after`. generation: of the file; None while there is none.
    state: "fresh", "stale", "expired", "invalidated", "slow", "no file", "disabled"; "starting" before the first look.
    """

    hits: int
    misses: int
    fallbacks: Mapping[str, int]
    stale_served: int
    corruptions: int
    opens: int
    adoptions: int
    refusals: int
    rebuilds: int
    build_failures: int
    invalidations: int
    slow_lookups: int
    load_seconds: float
    fallback_seconds: float
    generation: int | None
    state: str

    @property
    def hit_rate(self) -> float:
        """Answers from the file over all answers; 1.0 before the first."""
        total = self.hits + self.misses + sum(self.fallbacks.values())
        return self.hits / total if total else 1.0


class CachedCollection(Mapping[str, Record]):
    """One collection of a cache: a read-only mapping over both tiers.

    What the file cannot answer, or may not because it was invalidated or has expired, is answered by the source.
    Raises KeyError where no tier has the key, SourceError where the source fails or is missing, ClosedError after the
    cache was closed.
    """

    def __init__(self, tiers: Tiers, name: str | None) -> None:
        self._tiers = tiers
        self._name = name  # None is the default collection, whatever it is called

    # --- look-ups by key

    def __getitem__(self, key: str) -> Record:
        tiers = self._tiers
        begun = _clock()
        if begun >= tiers.due or tiers.words[WAKE] != tiers.seen:
            tiers.look(begun)
        snapshot = tiers.answering
        if snapshot is not None:
            try:
                record = (snapshot.default if self._name is None else snapshot.collection(self._name))[key]
            except KeyError:
                cause = "absent"
            except UnusableFileError as error:
                cause = tiers.damaged(error)
            else:
                hits = tiers.bump()
                if not hits & tiers.mask:
                    tiers.sample(begun, hits)
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
        if not isinstance(key, str):
            return False
        collection, cause = self._file(key)
        if collection is not None:
            try:
                if key in collection:
                    self._tiers.count(metrics.BATCH_HITS)
                    return True
                cause = "absent"
            except UnusableFileError as error:
                cause = self._tiers.damaged(error)
        return self._fetch([key], cause)[0] is not None

    def embedding(self, key: str) -> NDArray[np.float32] | None:
        """float32, (dim,), read-only: a view of the file, or the source's; None for a record without one."""
        tiers = self._tiers
        begun = _clock()
        if begun >= tiers.due or tiers.words[WAKE] != tiers.seen:
            tiers.look(begun)
        snapshot = tiers.answering
        collection: Collection | None
        if snapshot is not None:
            collection, cause = snapshot.default if self._name is None else snapshot.collection(self._name), ""
        else:
            collection, cause = self._file(key)
        if collection is not None:
            try:
                embedding = collection.embedding(key)
            except KeyError:
                cause = "absent"
            except UnusableFileError as error:
                cause = tiers.damaged(error)
            else:
                hits = tiers.bump()
                if not hits & tiers.mask:
                    tiers.sample(begun, hits)
                return embedding
        record = self._fetch([key], cause)[0]
        if record is None:
            raise KeyError(key)
        return record.embedding

    def get_embeddings(self, keys: Iterable[str]) -> NDArray[np.float32]:
        """float32, (number of keys, dim): the embeddings of these keys in their order, zeros where a record has none.

        Gathered from the file at the speed of memory, if that may answer all of them; else read one by one. Raises
        KeyError for a key that no tier has.
        """
        wanted = list(keys)
        snapshot, _, dirty = self._tiers.view()
        if snapshot is not None and not dirty:
            with contextlib.suppress(KeyError, UnusableFileError):
                found = self._collection_of(snapshot).get_embeddings(wanted)
                self._tiers.count(metrics.BATCH_HITS, len(wanted))
                return found
        return _matrix(
            [None if (one := self.embedding(key)) is None else one.tobytes() for key in wanted], self.schema.dim
        )

    def embedding_ref(self, key: str) -> EmbeddingRef:
        """What to send to another process in place of an embedding. Raises KeyError; SourceError while only the source
        may answer for this id: send the embedding itself."""
        collection, _ = self._file(key)
        if collection is None:
            raise SourceError("the source answers now, and only a file has rows: send the embedding itself")
        return collection.embedding_ref(key)

    # --- all of it

    def __len__(self) -> int:
        collection, cause = self._file()
        if collection is not None:
            return len(collection)
        try:
            with self._source().read() as reading:
                count = reading.count(self.schema.name)
                return count if count is not None else sum(1 for _ in reading.records(self.schema.name))
        except SourceError:
            return len(self._stand_in(cause))

    def __iter__(self) -> Iterator[str]:
        collection, cause = self._file()
        if collection is not None:
            yield from collection
        else:
            yield from (record.id for record in self._read_source(cause))

    def values(self) -> ValuesView[Record]:
        """The records, decoded in batches."""
        return RecordValues(self)

    def items(self) -> ItemsView[str, Record]:
        """Keys and records, decoded in batches."""
        return RecordItems(self)

    def all_records(self) -> Iterator[Record]:
        """What `values` iterates over."""
        collection, cause = self._file()
        return self._read_source(cause) if collection is None else collection.all_records()

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (n, dim), read-only: the file's block, as of its generation, whatever single ids were invalidated.

        A copy made from the source while the file may not answer at all.
        """
        snapshot, cause, _ = self._tiers.view()
        try:
            if snapshot is not None:
                return self._collection_of(snapshot).embeddings
        except UnusableFileError as error:
            cause = self._tiers.damaged(error)
        return self._all_found(cause).embeddings

    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """A pyarrow.Table of all records: see `Collection.to_arrow`.

        From the file, without a copy of the embeddings, if that may answer for every id; else from the source, a copy.
        """
        collection, cause = self._file()
        if collection is not None:
            try:
                return collection.to_arrow(columns)
            except UnusableFileError as error:
                cause = self._tiers.damaged(error)
        return self._all_found(cause).to_arrow(columns)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """See `Collection.__arrow_c_stream__`."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    @property
    def schema(self) -> Schema:
        source = self._tiers.source
        if source is not None:
            return next(s for s in source.schemas if self._name in (None, s.name))
        snapshot = self._tiers.view().snapshot
        assert snapshot is not None, "without a source, there is a snapshot, or view() raises"
        return self._collection_of(snapshot).schema

    # --- look-ups by field

    def where(
        self, terms: Mapping[str, object] | None = None, /, *, snapshot: bool = False, **more: object
    ) -> Selection | FoundRecords:
        """The records whose indexed fields have these values: AND over fields, a list means OR within one.

        From the file; from the source while ids of this collection are invalidated, or the file may not answer, or its
        index is damaged. snapshot: the answer of the file's generation all the same, if there is a file. (A field of
        that name goes into `terms`.)
        """
        query = parse_query(self.schema, terms, more)
        collection, cause = self._file()
        if snapshot and (held := self._tiers.snapshot) is not None:
            collection = self._collection_of(held)
        if collection is not None:
            try:
                selection = collection.find(query)
            except UnusableFileError as error:
                cause = self._tiers.damaged(error)
            else:
                self._tiers.count(metrics.BATCH_HITS)
                return selection
        return self._find(query, cause)

    # --- invalidation

    def invalidate(
        self,
        ids: Iterable[str] | None = None,
        *,
        collection: str | None = None,
        reason: str = "manual",
        hard: bool | None = None,
    ) -> Literal["ids", "soft", "hard"]:
        """Say to every process on this machine that the source has changed. When it returns, no get that begins later,
        in whatever process, gives what was before. What it became: "ids", "soft" or "hard".

        ids: exactly these, new and deleted ones too, are answered by the source until a newer generation covers them;
            so are `where`, `len` and iteration. More than some thousand at once count as everything.
        collection: theirs; by default this one, of a cache its first. Without ids: everything in this collection.
        reason: record_stored, record_deleted, config_updated, schema_migration, ttl_expired or manual. Without ids it
            decides, unless `hard` does: soft for record_stored and ttl_expired, hard for the others.
        hard: True: the source answers everything until a rebuild has landed. False, soft: the file goes on answering
            while it is built again.

        Some microseconds, and a few system calls. Commit first, then invalidate. Raises PublishError where the others
        cannot be told, since nothing may be written beside the file or they would not see it: see `mmcache doctor`.
        """
        tiers = self._tiers
        if collection is None:
            collection = self.schema.name if ids is not None or self._name is not None else None
        else:
            collection = self._known(collection)
        return tiers.invalidate(collection, ids, reason=reason, hard=hard)

    def _known(self, name: str) -> str:
        """The name of a collection, if there is one. Raises KeyError naming those that there are."""
        source, snapshot = self._tiers.source, self._tiers.snapshot
        if source is not None:
            known = [schema.name for schema in source.schemas]
        else:
            snapshot = snapshot or self._tiers.view().snapshot
            known = list(snapshot.collections) if snapshot is not None else []
        if name not in known:
            raise KeyError(f"no collection {name!r}; there are: {', '.join(known)}")
        return name

    # --- the tiers

    def _file(self, key: str | None = None) -> tuple[Collection | None, str]:
        """The collection of the file, if that may answer for a key, or for all of them; else None, and why not."""
        snapshot, cause, dirty = self._tiers.view()
        if snapshot is None:
            return None, cause
        collection = self._collection_of(snapshot)
        if dirty and _is_dirty(dirty, collection.name, None if key is None else [key]):
            return None, cause
        return collection, cause

    def _collection_of(self, snapshot: Snapshot) -> Collection:
        return snapshot.default if self._name is None else snapshot.collection(self._name)

    def _source(self) -> Source:
        if self._tiers.source is None:
            raise SourceError("the file cannot answer, and the cache has no source to ask", path=self._tiers.path)
        return self._tiers.source

    def _read(self, keys: list[str]) -> list[Record | None]:
        """From the file what it has and may answer, from the source the rest."""
        snapshot, cause, dirty = self._tiers.view()
        if snapshot is None:
            return self._fetch(keys, cause)
        collection = self._collection_of(snapshot)
        if dirty:
            return self._read_around(collection, keys, cause, dirty)
        try:
            found = collection.get_many(keys)
        except UnusableFileError:  # one of them is damaged: the others are not
            return [self.get(key) for key in keys]
        missing = [i for i, record in enumerate(found) if record is None]
        if len(found) > len(missing):
            self._tiers.count(metrics.BATCH_HITS, len(found) - len(missing))
        if missing:
            for i, record in zip(missing, self._fetch([keys[i] for i in missing], "absent"), strict=True):
                found[i] = record
        return found

    def _read_around(
        self, collection: Collection, keys: list[str], cause: str, dirty: AbstractSet[int]
    ) -> list[Record | None]:
        """The same, where some ids were invalidated."""
        name = collection.name
        if wildcard_of(name) in dirty:
            return self._fetch(keys, cause)
        clean = [i for i, key in enumerate(keys) if not isinstance(key, str) or entry_of(name, key) not in dirty]
        found: list[Record | None] = [None] * len(keys)
        try:
            for i, record in zip(clean, collection.get_many([keys[i] for i in clean]), strict=True):
                found[i] = record
        except UnusableFileError as error:
            return self._fetch(keys, self._tiers.damaged(error))
        absent = [i for i in clean if found[i] is None]
        if len(clean) > len(absent):
            self._tiers.count(metrics.BATCH_HITS, len(clean) - len(absent))
        others = sorted(set(range(len(keys))).difference(clean))
        for group, why in ((others, cause), (absent, "absent")):
            if group:
                for i, record in zip(group, self._fetch([keys[i] for i in group], why), strict=True):
                    found[i] = record
        return found

    def _fetch(self, keys: Sequence[str], cause: str) -> list[Record | None]:
        """From the source. Without one, an id that the file lacks is a miss, and anything else an error."""
        tiers = self._tiers
        if cause == "absent" and (tiers.source is None or getattr(tiers.source, "is_constant", False)):
            tiers.count(metrics.MISSES, len(keys))
            return [None] * len(keys)
        wanted = [key for key in keys if isinstance(key, str)]
        begun = time.perf_counter()
        try:
            answers = self._source().fetch(self.schema.name, wanted)
        except SourceError:
            return self._stand_in(cause, wanted).get_many(keys)
        found = {record.values[0]: detached(*record) for record in answers if record is not None}
        tiers.count_fallback(cause, sum(key in found for key in keys), time.perf_counter() - begun)
        if absent := sum(key not in found for key in keys):
            tiers.count(metrics.MISSES, absent)
        return [found.get(key) for key in keys]

    def _find(self, query: Query, cause: str) -> Selection | FoundRecords:
        begun = time.perf_counter()
        try:
            found = FoundRecords(self._source().find(self.schema.name, query), self.schema)
        except SourceError:
            return self._stand_in(cause).find(query)
        self._tiers.count_fallback(cause, 1, time.perf_counter() - begun)
        return found

    def _all_found(self, cause: str) -> FoundRecords | Collection:
        """Everything that the source has, in memory."""
        try:
            with self._source().read() as reading:
                return FoundRecords(reading.records(self.schema.name), self.schema)
        except SourceError:
            return self._stand_in(cause)

    def _read_source(self, cause: str) -> Iterator[Record]:
        given = 0
        try:
            with self._source().read() as reading:
                for given, record in enumerate(reading.records(self.schema.name), 1):  # noqa: B007
                    yield detached(*record)
        except SourceError:
            if given:
                raise
            yield from self._stand_in(cause).all_records()

    def _stand_in(self, cause: str, keys: Sequence[str] | None = None) -> Collection:
        """For a source that has just failed: the file, if it may answer for these keys, or all, in its place. Raises
        the source's error."""
        view = self._tiers.stand_in(cause)
        if view is None or _is_dirty(view.dirty, self.schema.name, keys):
            raise  # noqa: PLE0704 (called while it is handled)
        assert view.snapshot is not None
        self._tiers.count(metrics.STALE_SERVED)
        return self._collection_of(view.snapshot)

    def __repr__(self) -> str:
        name = "" if self._name is None else f", collection {self._name!r}"
        return f"<{type(self).__name__} {self._tiers.path!r}{name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Opened again where it arrives."""
        tiers = self._tiers
        return _reopen, (
            tiers.path,
            tiers.source,
            {k: v for k, v in tiers.options.items() if k != "policy"},
            self._name,
        )


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
        ttl: float | None = None,
        profile: Profile = "staging",
        refresh_at: float | None = None,
        max_stale: float | None = None,
        build: bool = True,
        executor: Executor = "subprocess",
        rebuild_after: float = 60.0,
        build_timeout: float = 600.0,
        wait: float = 30.0,
        check_interval: float = 1.0,
        slow_after: float | None = None,
        fallback_on_slow: bool = False,
        verify: Verify = "auto",
        access: Access = "mmap",
        cluster_by: str | Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        label: str = "",
    ) -> None:
        """The arguments of `mmcache.open`; the file is opened, or built, at the first read."""
        if source is not None and not isinstance(source, Source):
            raise TypeError(
                f"source must be a Source such as SQLiteSource(path, schema), not {type(source).__name__}; "
                "for records in memory use mmcache.build, or IterableSource(records, schema)"
            )
        if executor not in EXECUTORS:
            raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, not {executor!r}")
        arguments = {
            "ttl": ttl,
            "profile": profile,
            "refresh_at": refresh_at,
            "max_stale": max_stale,
            "build": build,
            "executor": executor,
            "rebuild_after": _seconds("rebuild_after", rebuild_after),
            "build_timeout": _seconds("build_timeout", build_timeout),
            "wait": _seconds("wait", wait),
            "check_interval": _seconds("check_interval", check_interval),
            "slow_after": None if slow_after is None else _seconds("slow_after", slow_after),
            "fallback_on_slow": fallback_on_slow,
            "verify": verify,
            "access": access,
            "cluster_by": cluster_by,
            "metadata": metadata,
            "label": label,
        }
        policy = freshness.policy(profile, ttl=ttl, refresh_at=refresh_at, max_stale=max_stale)
        options = arguments | {"policy": policy}
        super().__init__(Tiers(os.path.abspath(os.fspath(path)), source, options), None)

    def collection(self, name: str) -> CachedCollection:
        """A collection by name. Raises KeyError naming those that there are."""
        return CachedCollection(self._tiers, self._known(name))

    @property
    def path(self) -> str:
        """Absolute."""
        return self._tiers.path

    @property
    def source(self) -> Source | None:
        return self._tiers.source

    @property
    def snapshot(self) -> Snapshot | None:
        """The file of now; None while there is none that can be used.

        Whether it may answer is another question: see `Stats.state`.
        """
        self._tiers.view()
        return self._tiers.snapshot

    @property
    def generation(self) -> int | None:
        """Of the snapshot; None without one."""
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
        """Look now at everything that is otherwise looked at once in `check_interval`; whether there was a newer file.

        A newer file is noticed without it, within one get where there is a control page.
        """
        return self._tiers.refresh()

    def rebuild(self, *, timeout: float = LOCK_TIMEOUT) -> BuildReport:
        """Build from the source what it holds now, publish it, and move to it.

        Single-flight: if another process built, while we waited for it, from what the source held after this call
        began, that is the result. Raises what `mmcache.build` raises; SourceError without a source.
        """
        self._source()
        report = self._tiers.build(timeout=timeout, asked_ns=time.time_ns())
        self.refresh()
        return report

    def stats(self) -> Stats:
        """What this process has seen."""
        tiers = self._tiers
        tiers.settle_hits()
        slot, snapshot = tiers.slot, tiers.snapshot
        counts = slot.counters()
        return Stats(
            hits=counts["hits"] + counts["batch_hits"],
            misses=counts["misses"],
            fallbacks={cause: n for cause in metrics.CAUSES if (n := counts[f"fallback_{cause}"])},
            stale_served=counts["stale_served"],
            corruptions=counts["corruptions"],
            opens=counts["opens"],
            adoptions=counts["adoptions"],
            refusals=counts["refusals"],
            rebuilds=counts["rebuilds_ok"],
            build_failures=counts["rebuilds_failed"],
            invalidations=counts["invalidations_ids"] + counts["invalidations_soft"] + counts["invalidations_hard"],
            slow_lookups=counts["slow_lookups"],
            load_seconds=slot.words[metrics.LOAD_NS] / 1e9,
            fallback_seconds=counts["fallback_ns"] / 1e9,
            generation=None if snapshot is None else snapshot.generation,
            state=metrics.STATES[slot.words[metrics.STATE]],
        )

    def status(self) -> Status:
        """What all processes of this machine that have the cache open see of it, and what the file lacks and why."""
        return status_of(self.path, self._tiers.policy, self._tiers.source)

    def _repr_html_(self) -> str:
        """What a notebook shows: this process's own counts, and the file's generation, age, collections and sizes.

        As of the last read: showing opens nothing, looks at nothing and builds nothing.
        """
        stats, snapshot = self.stats(), self._tiers.snapshot
        state = "closed" if self._tiers.closed else stats.state
        facts = {"state": state, "hit rate": f"{stats.hit_rate:.1%}", "hits": number(stats.hits)}
        facts |= {f"from the source, {cause}": number(n) for cause, n in stats.fallbacks.items()}
        told = html_of(f"{type(self).__name__}: {self.path}", facts, (), ())
        return told if snapshot is None else f"{told}\n{snapshot._repr_html_()}"

    def close(self) -> None:
        """Let go of the file. Views and pinned snapshots stay valid, and keep it mapped, until they are dropped.

        The source is the caller's, and stays as it is.
        """
        self._tiers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reopen(path: str, source: Source | None, arguments: dict[str, Any], name: str | None) -> CachedCollection:
    cache = Cache(path, source, **arguments)
    return cache if name is None else CachedCollection(cache._tiers, name)


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value!r}")
    return float(value)


def open(
    path: str | os.PathLike[str],
    source: Source | None = None,
    *,
    ttl: float | None = None,
    profile: Profile = "staging",
    refresh_at: float | None = None,
    max_stale: float | None = None,
    build: bool = True,
    executor: Executor = "subprocess",
    rebuild_after: float = 60.0,
    build_timeout: float = 600.0,
    wait: float = 30.0,
    check_interval: float = 1.0,
    slow_after: float | None = None,
    fallback_on_slow: bool = False,
    verify: Verify = "auto",
    access: Access = "mmap",
    cluster_by: str | Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    label: str = "",
) -> Cache:
    """Open a cache: the file at `path`, and the source that answers for whatever the file cannot.

    Where the file is missing or damaged it is built now, by one process; the others wait for it. Times in seconds.

    source: without one, the cache is read-only over the file, and raises where the file cannot answer.
    ttl: age at which a file expires, and the source answers until it is built again; math.inf: never. By default that
        of `profile`: development 600, staging 3600, production 86,400.
    refresh_at: share of the ttl from which on one process builds it again in the background, 0.8; earlier, where builds
        take long. max_stale: how long beyond the ttl it may still answer if the source fails, a day.
    build: False never builds: the source answers until someone else publishes a file.
    executor: how it is built again: "subprocess"; "thread", for sources that no other process can read, and in place of
        a subprocess where none can be had; "inline", in the get that finds it due; "external": not by us, but by cron.
    rebuild_after: age before which neither ids that were invalidated nor a source that has changed make it be built
        again; until then the source answers these ids. build_timeout: after that a subprocess that builds ends itself.
    wait: for another process that builds the first file; after that the source answers.
    check_interval: how often to look for what nobody tells: another file at the path, a source that was written to.
    slow_after: count look-ups in the file that took longer; with fallback_on_slow, some in a row send reads to the
        source for half a minute. Off, for a look-up that waits for the disk once leaves the page in memory.
    verify, access: see `Snapshot.open`; "auto" checksums nothing that was verified on this machine since it started.
    cluster_by, metadata: see `mmcache.build`. label: what `mmcache status` calls this worker.

    Raises UnusableFileError (missing, corrupt, incompatible, unreadable, untrusted) only without a source.
    """
    cache = Cache(
        path,
        source,
        ttl=ttl,
        profile=profile,
        refresh_at=refresh_at,
        max_stale=max_stale,
        build=build,
        executor=executor,
        rebuild_after=rebuild_after,
        build_timeout=build_timeout,
        wait=wait,
        check_interval=check_interval,
        slow_after=slow_after,
        fallback_on_slow=fallback_on_slow,
        verify=verify,
        access=access,
        cluster_by=cluster_by,
        metadata=metadata,
        label=label,
    )
    if source is None or not is_disabled():
        _ = cache.snapshot
    return cache


def _is_dirty(dirty: AbstractSet[int], collection: str, keys: Sequence[str] | None) -> bool:
    """Whether any of these keys, or of all, was invalidated."""
    everything = wildcard_of(collection)
    if keys is None:
        # Copied at once: another thread that looks may be adding to it.
        return any(entry >> 48 == everything >> 48 for entry in tuple(dirty))
    return everything in dirty or any(entry_of(collection, key) in dirty for key in keys)


def _matrix(vectors: Sequence[bytes | None], dim: int | None) -> NDArray[np.float32]:
    """Little-endian float32 bytes as a matrix, read-only; a row of zeros for None."""
    import numpy as np

    dim = dim or next((len(vector) // 4 for vector in vectors if vector is not None), 0)
    data = b"".join(bytes(4 * dim) if vector is None else vector for vector in vectors)
    return np.frombuffer(data, "<f4").reshape(len(vectors), dim)


class FoundRecords(Sequence[Record]):
    """What a source found: the shape of a `Selection`, without rows, for there is no file that they could be of."""

    def __init__(self, found: Iterable[SourceRecord], schema: Schema) -> None:
        self._found = list(found)
        self._schema = schema

    @property
    def ids(self) -> list[str]:
        return [record.values[0] for record in self._found]

    @property
    def rows(self) -> NDArray[np.uint32]:
        raise SourceError("the source answered, and only a file has rows: use ids or embeddings, or pin a snapshot")

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """float32, (len, dim), read-only; zeros for a record without one."""
        return _matrix([record.vector for record in self._found], self._schema.dim)

    def to_arrow(self, columns: Iterable[str] | None = None) -> pa.Table:
        """A pyarrow.Table with the columns that these records have: see `Collection.to_arrow`. A copy."""
        from .storage.arrow import Vectors, table_of

        there = [record.vector is not None for record in self._found]

        def vectors() -> Vectors:
            import numpy as np

            return self.embeddings, None if all(there) else np.packbits(there, bitorder="little")

        shapes = dict.fromkeys(record.names for record in self._found)
        names = list(dict.fromkeys(name for shape in shapes for name in shape))
        embedding = self._schema.embedding if self._schema.dim or any(there) else None
        return table_of(self, names, embedding, vectors, columns)

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
            return FoundRecords(self._found[i], self._schema)
        return detached(*self._found[i])

    def __repr__(self) -> str:
        return f"<FoundRecords: {len(self)} from the source>"
