"""Building, rebuilding and clearing, told to every process: `storage.publish` with a control page.

One rebuild per need over all processes: one that waited for another's build takes its result, be it a file or an error.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..additive import union
from ..errors import LockTimeoutError, MissingFileError, MmcacheError, SourceError
from ..format.layout import Layout
from ..logs import INFO, WARNING, log
from ..progress import Progress, Shown, shown
from ..schema import AnySchema, OnDuplicate, OnInvalid
from ..sources import Source, as_source, closing, from_spec, moved, with_rules
from ..sources.base import Where
from ..sources.iterable import Embeddings, Records
from ..storage import publish as storage
from ..storage.describe import layout_from_file_or_backup
from ..storage.descriptors import Descriptor
from ..storage.fs import with_name
from ..storage.publish import LOCK_TIMEOUT, BuildReport, Order, Serves
from ..storage.trust import name_owners, uids_of
from . import metrics, operate
from .announce import Announcer
from .attach import open_existing
from .counters import WorkerCounters, record_event, remove
from .levers import read_levers
from .page import Page
from .widening import as_found, schemas_of, still_there, widened

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["build", "build_once", "clear", "clear_and_rebuild", "rebuild"]


def build(
    path: str | os.PathLike[str],
    records: Source | Records | Mapping[str, Records] | Where,
    *schemas: AnySchema,
    embeddings: Embeddings | None = None,
    cluster_by: str | Mapping[str, str] | None = None,
    metadata: Mapping[str, object] | None = None,
    progress: Shown = None,
    timeout: float = LOCK_TIMEOUT,
    trust: str | int | Iterable[str | int] = (),
    on_invalid: OnInvalid | None = None,
    max_invalid: int | None = None,
    on_duplicate: OnDuplicate | None = None,
    shards: int | None = None,
    executor: Executor | None = None,
    segments: str | os.PathLike[str] | None = None,
) -> BuildReport:
    """Build a file from a source or from records, and publish it at `path`.

    records: a `Source`; or an iterable of mappings with one schema; or a mapping of collection name to iterable; or the
        path or URL of a source, with a schema.
    cluster_by: a field whose equal values shall stand together, which makes each of them one contiguous view;
        of several collections, a mapping of collection to field.
    metadata: a map of anything msgpack carries, to be found as `Snapshot.metadata`.
    embeddings: of records in memory, an (n, dim) array whose row i is the embedding of record i; or a mapping of
        collection to array: see `IterableSource`.
    progress: True shows on stderr how far it is, where that is a terminal; "lines" prints lines of text wherever it
        goes; a function is called as progress(stage, done, total).
    timeout: seconds to wait for another build of this file.
    trust: owners, by name or uid, who are trusted with the directory besides this user and root: see `mmcache.open`.
    on_invalid, max_invalid, on_duplicate: which rows are left out: see `Schema`. For all collections; None leaves it as
        their schemas have it. What was left out, `BuildReport.left_out` counts and names.
    shards, executor: read the source in so many parts at most, by the workers of a `concurrent.futures.Executor`, such
        as a `ProcessPoolExecutor` or `Client.get_executor()` of Dask. The file has the same bytes. docs/shards.md says
        which sources can be cut, and where it pays. Raises SourceError where the source was written to meanwhile.
    segments: the directory where what workers made waits to be merged, the same for all; by default that of the file.
        Where workers share no disk with this process, the URL of an object store: s3://bucket/scratch.

    The directory is made where it is missing. What was held by a rollback is not held any more.
    The same records give the same bytes, and then the published file stays in place and counts as built now. Workers
    that have the path open move to the new file within their next get.
    Raises BuildError for records that cannot be stored, SourceError, LockTimeoutError, UntrustedPathError, and
    PublishError for what the system refuses; after any of them the published file is as it was.

    >>> vectors = np.eye(2, dtype="f4")
    >>> report = mmcache.build("pairs.mmc", [{"id": 7}, {"id": 8}], Schema("pairs", embedding="v"), embeddings=vectors)
    >>> report.generation, dict(report.records)
    (1, {'pairs': 2})
    """
    name_owners(os.fspath(path), uids_of(trust))
    given = as_source(records, schemas, embeddings=embeddings)
    source = with_rules(given, on_invalid=on_invalid, max_invalid=max_invalid, on_duplicate=on_duplicate)
    stage = _sharded(shards, executor, segments)
    with closing(None if source is given else source), shown(progress) as step:
        order = Order(source, cluster_by, metadata, stage=stage)
        return build_once(path, order, progress=step, timeout=timeout)


def _sharded(
    shards: int | None, executor: Executor | None, segments: str | os.PathLike[str] | None
) -> storage.Stage | None:
    """How the source is read; None for here. Raises TypeError and ValueError."""
    if shards is None and executor is None:
        if segments is not None:
            raise TypeError("segments= goes with shards= and executor=")
        return None
    if shards is None or executor is None:
        raise TypeError("shards= and executor= go together: how many parts, and whose workers read them")
    from .sharded import Sharded

    return Sharded(shards, executor, segments).stage


def rebuild(
    path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    timeout: float = LOCK_TIMEOUT,
    asked_ns: int | None = None,
    source: str | os.PathLike[str] | None = None,
    given: Mapping[str, Any] | None = None,
    exact: bool = False,
    on_invalid: OnInvalid | None = None,
    max_invalid: int | None = None,
    on_duplicate: OnDuplicate | None = None,
) -> BuildReport:
    """Build a file anew from the source that is named in it, with the same schemas, clustering and metadata, so far as
    the source still has what they name.

    asked_ns: wall clock; a file that was built from what the source held after that is left as it is. source: path of
    the source, if it was moved. given: what its file cannot be believed in, such as functions: see `from_spec`. exact:
    without what builders kept for other versions of their program: what remains is what the last one asked for itself.
    on_invalid, max_invalid, on_duplicate: of all collections from now on; None: as the file says. Workers that do not
    leave out what this file leaves out are answered by their source.
    Where the file itself is missing or damaged, its backup says how; a file of an older format describes itself, too.
    Raises what `build` raises; SourceError for a file that was built from records in memory; UnusableFileError where
    neither file nor backup can be read."""
    layout = _described(os.fspath(path))
    options: dict[str, Any] = {"progress": progress, "timeout": timeout, "asked_ns": asked_ns}
    rules = {"on_invalid": on_invalid, "max_invalid": max_invalid, "on_duplicate": on_duplicate}
    return _build_as(layout, path, source=source, given=given, exact=exact, rules=rules, **options)


def _described(path: str) -> Layout:
    """What the file, or its backup, says of itself, with a source. Raises UnusableFileError and SourceError."""
    try:
        layout = layout_from_file_or_backup(path, older=True)
    except MissingFileError:
        raise MissingFileError(
            "neither this file nor a backup is there to say how it was built: mmcache build SOURCE -o FILE, or open it "
            "with its source",
            path=path,
        ) from None
    if layout.source is None:
        raise SourceError(
            "its source cannot be named in a file (records in memory, or a source of your own): build it again, or "
            "call rebuild() of a cache that has the source",
            path=path,
        )
    return layout


def _build_as(
    layout: Layout,
    path: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    given: Mapping[str, Any] | None = None,
    exact: bool = False,
    rules: Mapping[str, Any] | None = None,
    **options: Any,
) -> BuildReport:
    """Build what a file describes, so far as the source still has it."""
    assert layout.source is not None
    spec = layout.source if source is None else moved(layout.source, os.fspath(source))
    schemas = layout.asked if exact and layout.asked else schemas_of(layout)
    with closing(from_spec(spec, schemas, given)) as described:
        assert described is not None
        schemas = still_there(described) or schemas
    with closing(from_spec(spec, schemas, given)) as again:
        assert again is not None
        again = with_rules(again, **(rules or {}))
        order = as_found(Order(again, asked=() if exact else layout.asked), layout)
        return build_once(path, order, **options)


def build_once(
    path: str | os.PathLike[str],
    order: Order,
    *,
    page: Page | None = None,
    counters: WorkerCounters | None = None,
    progress: Progress | None = None,
    timeout: float = LOCK_TIMEOUT,
    serves: Serves | None = None,
    asked_ns: int | None = None,
    since: float | None = None,
    lock: Descriptor | None = None,
    exact: bool = True,
    overtaken: Callable[[], bool] | None = None,
) -> BuildReport:
    """Build from a source, unless another process did while we waited for the lock.

    serves: whether the file that is there will do. asked_ns: one that was built, or found to be right, after that does.
    A build that failed while we waited is not tried again: its error is raised here too. since: from when on, by
    time.monotonic(), for a caller that waited before. page, counters: those to use, if the caller has them. lock: a
    descriptor that holds the build lock already. exact: build what is asked for here and no more; else what the
    published file has for other versions stays: see `widening`. overtaken: asked under the lock, whether what is to be
    built was read from a file that is not the published one any more; then that stays, and the caller looks again.
    """
    name = with_name(path)  # or counters would be files of the root directory
    begun = time.monotonic()
    is_asked_for = lock is None and serves is None  # by a person, and not because a worker found it due
    with _counted(name, counters) as counts, contextlib.closing(Announcer(name, page)) as control:
        need = _Need(name, control, order.source, exact, serves, asked_ns, begun if since is None else since, overtaken)
        revise = None if exact else widened
        try:
            report = storage.publish(
                name,
                order,
                revise=revise,
                progress=progress,
                timeout=timeout,
                unless=need.is_met,
                control=control,
                lock=lock,
            )
        except LockTimeoutError:
            raise
        except Exception as error:
            if error is not need.failure:
                _count_failure(name, error, control, counts, begun)
            _log_failure(name, error, is_asked_for=is_asked_for, is_new=error is not need.failure)
            raise
        if not need.served:
            control.succeeded()
            operate.settle(name, page)
        if is_asked_for:
            operate.release(name, page)
        if not need.served:  # else by another's build, which is counted there
            _count(name, report, counts, begun)
            if counters is None:  # else a cache says so, as it moves to the file
                _tell_left_out(name, report)
            if control.superseded:
                counts.add(metrics.REBUILDS_SUPERSEDED)
    return report


@dataclass
class _Need:
    """Whether a build is still needed when it has the lock.

    serves, asked_ns, since, exact, overtaken: as of `build_once`. served: the file that is there will do. failure: the
    error of a build that failed meanwhile.
    """

    path: str
    control: Announcer
    source: Source
    exact: bool
    serves: Serves | None
    asked_ns: int | None
    since: float
    overtaken: Callable[[], bool] | None
    served: bool = False
    failure: MmcacheError | None = None

    def is_met(self, there: Layout | None) -> bool:
        """there: the published file, if it is whole. Raises the error of a build that failed meanwhile."""
        failed = self.control.failure
        if failed is not None and failed.at > self.since:
            self.failure = error = failed.error
            raise error
        if there is not None:
            was_overtaken = self.overtaken is not None and self.overtaken()
            self.served = was_overtaken or self._is_after(there) or (self.serves is not None and self.serves(there))
        return self.served

    def _is_after(self, there: Layout) -> bool:
        """Whether it was built, or found to be right, after it was asked for, and has the schemas that are needed."""
        # Case: a rollback came first. Its file says that it is of then, and has older records.
        if self.asked_ns is None or read_levers(self.path).rolled_back:
            return False
        # What is ahead of the clock, which then went back since, may be from any time.
        is_later = self.asked_ns < self.control.covered_ns(there.header) <= time.time_ns()
        return is_later and _has(there, self.source, exact=self.exact)


def _has(layout: Layout, source: Source, *, exact: bool) -> bool:
    """Whether a file has the schemas that are asked for."""
    found = schemas_of(layout)
    return found == source.schemas or (not exact and union(found, source.schemas) == found)


def _log_failure(path: str, error: Exception, *, is_asked_for: bool, is_new: bool) -> None:
    """A person gets the exception; from a build that upkeep started, none but the log tells. is_new: it is of this
    build."""
    text = "%s: build failed: %s" if is_new else "%s: not built: %s"
    level = INFO if is_asked_for else WARNING
    log.log(level, text, path, str(error), extra={"event": "build_failed", "path": path})


@contextlib.contextmanager
def _counted(path: str, counters: WorkerCounters | None) -> Iterator[WorkerCounters]:
    if counters is not None:
        yield counters
        return
    own = WorkerCounters.open(path, label="build")
    try:
        yield own
    finally:
        own.close()


def _count_failure(path: str, error: Exception, control: Announcer, counters: WorkerCounters, begun: float) -> None:
    counters.add(metrics.REBUILDS_FAILED)
    failure = control.failure
    if failure is None or failure.at < begun:  # it did not get as far as building, which tells by itself
        control.failed(error)
    record_event(path, "rebuild_failed")


def _count(path: str, report: BuildReport, counters: WorkerCounters, begun: float) -> None:
    took = time.monotonic() - begun
    if report.changed:
        counters.add(metrics.REBUILDS_OK)
        counters.observe(metrics.BUILD, took)
        record_event(path, "rebuild", report.generation)
        log.info(
            "%s: generation %d published in %.3f s",
            path,
            report.generation,
            took,
            extra={"event": "published", "path": path, "generation": report.generation, "seconds": took},
        )
        return
    counters.add(metrics.REBUILDS_UNCHANGED)
    record_event(path, "unchanged", report.generation)
    log.info(
        "%s: generation %d is still right",
        path,
        report.generation,
        extra={"event": "revalidated", "path": path, "generation": report.generation, "seconds": took},
    )


def _tell_left_out(path: str, report: BuildReport) -> None:
    for collection, rows in report.left_out.items():
        if rows.invalid:
            log.warning(
                "%s: generation %d leaves out rows of collection %r: %s",
                path,
                report.generation,
                collection,
                str(rows),
                extra={"event": "left_out", "path": path, "generation": report.generation},
            )


def clear_and_rebuild(
    path: str | os.PathLike[str], *, progress: Progress | None = None, timeout: float = LOCK_TIMEOUT
) -> tuple[list[str], BuildReport]:
    """`clear`, and a build of what the file, or its backup, said of itself. What was removed, and what is published.

    Nothing is removed where that says too little, or the source cannot be asked: raises as `rebuild`."""
    name = os.fspath(path)
    layout = _described(name)
    assert layout.source is not None
    with closing(from_spec(layout.source, schemas_of(layout))) as source:
        assert source is not None
        source.fingerprint()
    removed = clear(name, timeout=timeout)
    return removed, _build_as(layout, name, progress=progress, timeout=timeout)


def clear(path: str | os.PathLike[str], *, timeout: float = LOCK_TIMEOUT, dry_run: bool = False) -> list[str]:
    """Remove a file, its backup, its metrics, and the temporary files of dead writers. The paths of what was there.

    The lock file and the control page stay: others may be waiting on the one and have the other mapped, and the page
    knows which generation was the last. Readers keep what they have mapped. Raises what `storage.publish.clear` raises.
    dry_run: only look, without the lock.
    """
    name = os.fspath(path)
    found = storage.clear(name, timeout=timeout, dry_run=dry_run)
    found += remove(name, dry_run=dry_run)
    if not dry_run:
        operate.release(os.path.abspath(name))
        page = open_existing(name)
        if page is not None:
            Announcer(name, page).cleared()
            page.close()
    return found
