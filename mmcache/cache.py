"""`Cache`: a file and its source, as one read-only mapping that every process of the machine shares.

Call grammar: open (read | invalidate | rebuild | refresh)* close.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

from .cached import CachedCollection
from .callbacks import CacheEvent
from .errors import SourceError, UnusableFileError
from .known import closed
from .models import M, Model
from .options import Executor, GivenOptions, OpenOptions, Options, Profile, is_disabled
from .progress import Shown
from .schema import AnySchema, OnDuplicate, OnInvalid, R_co, Schema
from .sharing.alerts import WINDOW, Alert, Rules
from .sharing.metrics import stats_of
from .sharing.operate import resume, rollback
from .sharing.status import Status, check, status_of
from .sources import chosen, closing, with_rules
from .sources.base import Source, SourceOf, Where
from .stats import Stats
from .storage import fs
from .storage.publish import LOCK_TIMEOUT, BuildReport
from .storage.snapshot import Access, Snapshot, Verify
from .text import html_of, number
from .watch import Watch

if TYPE_CHECKING:
    from .sources.call import ChangedSince, Fetch, Fingerprint, Load

__all__ = ["Cache", "CachedCollection", "Stats", "open"]


class Cache(CachedCollection[R_co]):
    """A file and its source, as one read-only mapping: that of the first collection. Make one with `mmcache.open`.

    Safe in threads and after a fork. Pickles to its arguments and opens the file again where it arrives, under
    spawn and forkserver too. A context manager.

    >>> cache = mmcache.open("items.mmc", SQLiteSource("items.db", Schema("items", model=Item, index=("kind",))))
    >>> cache["a"]
    Item(id='a', kind='tool', size=1)
    """

    _made: Source | None = None
    """The source that this cache made of the given one, for its rules about bad rows."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        source: Source | None = None,
        *,
        model: type[R_co] | None = None,
        **options: Unpack[OpenOptions],
    ) -> None:
        """The arguments of `mmcache.open`; the file is opened, or built, at the first read."""
        if source is not None and not isinstance(source, Source):
            raise TypeError(
                f"source must be a Source such as SQLiteSource(path, schema), not {type(source).__name__}; "
                "for records in memory use mmcache.build, or IterableSource(records, schema)"
            )
        if source is None and options.get("rollout", 1.0) != 1.0:
            raise ValueError("rollout sends some processes to the source, and there is none")
        given = source
        if source is not None:
            rules = {name: options.get(name) for name in ("on_invalid", "max_invalid", "on_duplicate")}
            source = with_rules(source, **rules)
        self._made = source if source is not given else None
        schema = None if source is None else next(iter(source.schemas), None)
        watch = Watch(os.path.abspath(os.fspath(path)), source, Options(**options))
        super().__init__(watch, None, _model_of(schema, model))

    @overload
    def collection(self, name: str, model: None = None) -> CachedCollection: ...
    @overload
    def collection(self, name: str, model: type[M]) -> CachedCollection[M]: ...
    def collection(self, name: str, model: type[Any] | None = None) -> CachedCollection[Any]:
        """A collection by name. Raises KeyError naming those that there are.

        model: what it gives for a record: see `Schema`, whose own it is by default. It tells a type checker, which
        cannot know what a name stands for.

        >>> cache.collection("items", model=Item)["a"]
        Item(id='a', kind='tool', size=1)
        """
        source, name = self._watch.source, self._tiers.known(name)
        schema = None if source is None else next(one for one in source.schemas if one.name == name)
        return CachedCollection(self._watch, name, _model_of(schema, model))

    @property
    def path(self) -> str:
        """Absolute.

        >>> os.path.basename(cache.path)
        'cache.mmc'
        """
        return self._watch.path

    @property
    def source(self) -> Source | None:
        """As it was given, or with other rules about bad rows where these were given.

        >>> type(cache.source).__name__
        'IterableSource'
        """
        return self._watch.source

    @property
    def snapshot(self) -> Snapshot | None:
        """The file of now; None while there is none that can be used.

        Whether it may answer is another question: see `Stats.state`.

        >>> cache.snapshot.generation == cache.generation == 1
        True
        """
        return self._watch.current().snapshot

    @property
    def generation(self) -> int | None:
        """Of the snapshot; None without one."""
        snapshot = self.snapshot
        return None if snapshot is None else snapshot.generation

    @contextlib.contextmanager
    def pinned(self) -> Iterator[Snapshot]:
        """One generation for a whole block, whatever is published meanwhile.

        Raises UnusableFileError where there is no file: the source has no generations.

        >>> with cache.pinned() as snapshot:
        ...     snapshot["a"]["size"] + snapshot["b"]["size"]
        3
        """
        snapshot = self.snapshot
        if snapshot is None:
            raise UnusableFileError("there is no file to pin: the source answers everything now", path=self.path)
        yield snapshot

    def refresh(self) -> bool:
        """Look now at everything that is otherwise looked at once in `check_interval`; whether there was a newer file.

        A newer file is noticed without it, within one get where there is a control page.

        >>> cache.refresh()
        False
        """
        return self._watch.refresh()

    def rebuild(self, *, timeout: float = LOCK_TIMEOUT, exact: bool = False) -> BuildReport:
        """Build from the source what it holds now, publish it, and move to it.

        exact: drop the indexes, columns and collections that the file has for other versions of the program.

        Single-flight: if another process built, while we waited for it, from what the source held after this call
        began, that is the result. Raises what `mmcache.build` raises; SourceError without a source.

        >>> report = cache.rebuild()
        >>> report.generation, report.changed  # nothing has changed, so the file stays, and counts as built now
        (1, False)
        """
        if self._watch.source is None:
            raise SourceError("a cache without a source cannot be rebuilt; open it with one", path=self._watch.path)
        report = self._watch.build(timeout=timeout, asked_ns=time.time_ns(), exact=exact)
        self.refresh()
        return report

    def rollback(self, *, timeout: float = LOCK_TIMEOUT, reason: str = "") -> BuildReport:
        """Put the backup's records back, for every process, until a person ends that; and move to them.

        They are published under a new generation, and the present file becomes the backup, so that a second rollback
        goes forward again. The state is then "held": the file's age, the source's fingerprint and tracking are not
        consulted, and no automatic rebuild starts, also after a reboot. What is invalidated from now on counts as
        always. `rebuild`, `mmcache build`, `mmcache rebuild` or `resume` ends it. reason: is shown by `status`.

        Raises MissingFileError without a backup, and what `mmcache.build` raises; then all is as it was.

        >>> for size in (1, 2):
        ...     _ = mmcache.build("prices.mmc", [{"id": "a", "size": size}], Schema("prices"))
        >>> with mmcache.open("prices.mmc") as prices:
        ...     _ = prices.rollback(reason="a size is wrong")
        ...     prices["a"]["size"], prices.stats().state, prices.resume()
        (1, 'held', True)
        """
        page, source = self._watch.page_now(), self._watch.source
        report = rollback(self.path, source=source, page=page, timeout=timeout, reason=reason)
        self.refresh()
        return report

    def resume(self) -> bool:
        """End what `rollback` has begun: the file is built again as its age and the source ask for, the first time
        soon, for it is not what the source holds. Whether it was held."""
        if self._watch.is_closed:
            raise closed(self.path)
        was_held = resume(self.path, page=self._watch.hearing.page)
        self.refresh()
        return was_held

    def stats(self) -> Stats:
        """What this process has seen. Costs some microseconds: see `Stats`.

        >>> cache["a"]["kind"], cache.stats().hits
        ('tool', 1)
        """
        watch = self._watch
        watch.counting.settle()
        counters, snapshot = watch.counting.counters, watch.files.snapshot
        return Stats(
            **stats_of(counters.counted(), counters.words),
            generation=None if snapshot is None else snapshot.generation,
            state=watch.view.decision.state,
        )

    def status(self) -> Status:
        """What all processes of this machine that have the cache open see of it, and what the file lacks and why.

        Reads headers and the counter files of all workers: some milliseconds, so not for each request.

        >>> status = cache.status()
        >>> status.state, status.generation, len(status.fleet.workers)
        ('fresh', 1, 1)
        """
        watch = self._watch
        with contextlib.suppress(UnusableFileError, SourceError):
            watch.current()
        return status_of(self.path, watch.options.policy, watch.source, decided=watch.view.decision)

    def alerts(
        self,
        *,
        window: float = WINDOW,
        min_hit_rate: float = 0.90,
        max_load: float = 0.010,
        max_corruptions: int = 1,
        max_rebuilds: int = 10,
        max_lag: float = 300.0,
    ) -> list[Alert]:
        """The rules that this file and its workers break now, as for `mmcache status --check`; none if all is well.

        window: seconds over which the hit rate of all workers is taken, to a second below a minute, to a minute below
        an hour. max_load: seconds, of the last opening of each worker. max_corruptions: damaged places in a day.
        max_rebuilds: in an hour. max_lag: seconds for which the file may be of another release than it should.
        Reads what others have flushed; waits for no process.

        >>> [alert.rule for alert in cache.alerts(max_load=0.0)]
        ['load']
        """
        rules = Rules(min_hit_rate, max_load, max_corruptions, max_rebuilds, window, max_lag)
        return check(self.status(), rules, time.time())

    def _repr_html_(self) -> str:
        """What a notebook shows: this process's own counts, and the file's generation, age, collections and sizes.

        As of the last read: showing opens nothing, looks at nothing and builds nothing.
        """
        stats, snapshot = self.stats(), self._watch.files.snapshot
        state = "closed" if self._watch.is_closed else stats.state
        facts = {"state": state, "hit rate": f"{stats.hit_rate:.1%}", "hits": number(stats.hits)}
        facts |= {f"from the source, {cause}": number(n) for cause, n in stats.fallbacks.items()}
        told = html_of(f"{type(self).__name__}: {self.path}", facts, (), ())
        return told if snapshot is None else f"{told}\n{snapshot._repr_html_()}"

    def close(self) -> None:
        """Let go of the file. Views and pinned snapshots stay valid, and keep it mapped, until they are dropped.

        The source is the caller's, and stays as it is.

        >>> vectors = cache.embeddings
        >>> cache.close()
        >>> vectors.shape
        (3, 2)
        """
        self._watch.close()
        with closing(self._made):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _model_of(schema: AnySchema | None, model: type[M] | None) -> Model[M] | None:
    """What makes instances of the model that is asked for, or else of the schema's."""
    if schema is None:
        return None if model is None else Model(model)
    chosen: type[M] | None = schema.model if model is None else model
    return None if chosen is None else Model(chosen, schema.name, schema.embeddings)


@overload
def open(
    path: Where,
    source: Source | Where | None = None,
    *,
    model: type[M],
    schema: AnySchema | Iterable[AnySchema] | None = None,
    **options: Unpack[GivenOptions],
) -> Cache[M]: ...
@overload
def open(  # type: ignore[overload-overlap]  # a SourceOf is a Source too
    path: Where, source: SourceOf[M], *, model: None = None, **options: Unpack[OpenOptions]
) -> Cache[M]: ...
@overload
def open(
    path: Where, source: Where | None = None, *, schema: Schema[M], model: None = None, **options: Unpack[GivenOptions]
) -> Cache[M]: ...
@overload
def open(
    path: Where,
    source: Source | Where | None = None,
    *,
    schema: Iterable[AnySchema] | None = None,
    model: None = None,
    **options: Unpack[GivenOptions],
) -> Cache: ...
def open(
    path: Where,
    source: Source | Where | None = None,
    *,
    schema: AnySchema | Iterable[AnySchema] | None = None,
    load: Load | str | None = None,
    fetch: Fetch | str | Mapping[str, Fetch | str] | None = None,
    changed_since: ChangedSince | str | None = None,
    fingerprint: Fingerprint | str | None = None,
    model: type[Any] | None = None,
    ttl: float | None = None,
    profile: Profile = "staging",
    refresh_at: float | None = None,
    max_stale: float | None = None,
    build: bool | None = None,
    follow: str | None = None,
    follow_every: float = 5.0,
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
    metadata: Mapping[str, object] | None = None,
    label: str = "",
    rollout: float = 1.0,
    trust: str | int | Iterable[str | int] = (),
    on_event: Callable[[CacheEvent], object] | None = None,
    on_invalid: OnInvalid | None = None,
    max_invalid: int | None = None,
    on_duplicate: OnDuplicate | None = None,
    progress: Shown = None,
) -> Cache[Any]:
    """Open a cache: the file at `path`, and the source that answers whatever the file cannot.

    Start here: a path and a source are enough; `ttl` comes next. Where the file is missing or damaged, one process
    builds it now, and the others wait. Times are in seconds.

    Where records come from:
    source: a source, or the path or URL of one, with `schema`. Without one, the cache is read-only over the file, and
        raises where the file cannot answer.
    load: in place of a source, a function that gives the records, with `schema`. fetch, fingerprint, changed_since:
        what makes it cheaper. See `CallableSource`.
    model: what the cache gives for a record: see `Schema`, whose own it is by default.
    How long a file is good:
    ttl: age at which a file expires, and the source answers until it is built again; math.inf: never. By default that
        of `profile`: development 600, staging 3600, production 86,400.
    refresh_at: share of the ttl from which on one process builds it again in the background, 0.8; earlier, where builds
        take long. max_stale: how long beyond the ttl it may still answer if the source fails, a day.
    check_interval: how often to look for what is not announced: another file at the path, a source that was written to.
    rebuild_after: age before which neither ids that were invalidated nor a source that has changed make it be built
        again; until then the source answers these ids.
    What it follows:
    follow: the URL of a store whose releases the file has: see `mmcache.follow`. "URL@41" stays with release 41. One
        process of the machine polls it every `follow_every` seconds, and downloads each release once for all.
    How it is built:
    build: False never builds: the source answers until another process publishes. By default True, but with follow.
    executor: how it is built again: "subprocess"; "thread", for sources that no other process can read, and in place of
        a subprocess where none can be had; "inline", in the get that finds it due; "external": by cron, not here.
    build_timeout: after that a subprocess that builds ends itself. wait: for another process that builds the first
        file; after that the source answers. cluster_by, metadata: see `mmcache.build`.
    progress: True shows on stderr how far the first build is, where that is a terminal; "lines" prints lines of text
        wherever it goes; a function is called as progress(stage, done, total).
    on_invalid, max_invalid, on_duplicate: which rows of the source are left out, of the file and of every answer but
        `get`: see `Schema`. For all collections; None leaves it as the source's schemas have it.
    How it is read:
    verify, access: see `Snapshot.open`; "auto" checksums nothing that was verified on this machine since it started.
    slow_after: count look-ups in the file that took longer; with fallback_on_slow, some in a row send reads to the
        source for half a minute. Off, for a look-up that waits for the disk once leaves the page in memory.
    How it is operated:
    on_event: is called with a `CacheEvent` for what happens to the cache, in this process or another: as soon as a read
        or a poll notices, in its thread, which should not be kept. No lock is held, so it may use the cache. An
        exception is logged, and changes nothing. It pickles with the cache.
    label: what `mmcache status` calls this worker. rollout: share of the processes that use the file, 0.1 for a tenth;
        the others are answered by the source. Each process draws once for its life, a forked one anew.
    trust: owners, by name or uid, trusted with the directory besides this user, root and those of MMCACHE_TRUST. One
        that anyone may write is accepted only if its owner is named, and each file is this user's or such a one's.

    The directory is made where it is missing, unless the cache builds nothing; PublishError where it cannot be.
    Raises UnusableFileError (missing, corrupt, incompatible, unreadable, untrusted) only without a source.

    >>> with mmcache.open("items.mmc", SQLiteSource("items.db", Schema("items", index=("kind",))), ttl=600) as items:
    ...     items["a"]["kind"], items.where(kind="tool").ids
    ('tool', ['a', 'b'])
    """
    given = chosen(source, schema, load=load, fetch=fetch, changed_since=changed_since, fingerprint=fingerprint)
    cache = Cache(
        path,
        given,
        model=model,
        ttl=ttl,
        profile=profile,
        refresh_at=refresh_at,
        max_stale=max_stale,
        build=build,
        follow=follow,
        follow_every=follow_every,
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
        rollout=rollout,
        trust=trust,
        on_event=on_event,
        on_invalid=on_invalid,
        max_invalid=max_invalid,
        on_duplicate=on_duplicate,
        progress=progress,
    )
    if given is not source:
        cache._made = cache.source  # and so ours to close
    if follow is not None or (given is not None and build is not False):
        fs.make_directory(os.path.dirname(cache.path))
    if given is None or not is_disabled():
        _ = cache.snapshot
    return cache
