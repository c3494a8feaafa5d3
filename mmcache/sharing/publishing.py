"""Building, rebuilding and clearing, told to every process: `storage.publish` with a control page.

One rebuild per need over all processes: whoever waited for another's build takes its result, be it a file or an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import LockTimeoutError, MmcacheError, SourceError
from ..format.layout import Layout
from ..schema import Schema
from ..sources import Source, as_source, closing, from_spec
from ..sources.iterable import Records
from ..storage import publish as storage
from ..storage.publish import LOCK_TIMEOUT, BuildReport, Progress, Serves
from ..storage.trust import name_owners, uids_of
from . import levers, metrics
from .announce import Announcer
from .attach import look
from .page import Page

__all__ = ["build", "build_once", "clear", "rebuild"]

log = logging.getLogger("mmcache")


def build(
    path: str | os.PathLike[str],
    records: Source | Records | Mapping[str, Records],
    *schemas: Schema,
    cluster_by: str | Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    timeout: float = LOCK_TIMEOUT,
    trust: str | int | Iterable[str | int] = (),
) -> BuildReport:
    """Build a file from a source or from records, and publish it at `path`.

    records: a `Source`; or an iterable of mappings with one schema; or a mapping of collection name to iterable.
    cluster_by: a field whose equal values shall stand together, which makes each of them one contiguous view;
        of several collections, a mapping of collection to field.
    metadata: a map of anything msgpack carries, to be found as `Snapshot.metadata`.
    progress: called as progress(stage, done, total).
    timeout: seconds to wait for another build of this file.
    trust: owners, by name or uid, who are trusted with the directory besides this user and root: see `mmcache.open`.

    The directory is made where it is missing. What was held by a rollback is not held any more.
    The same records give the same bytes, and then the published file stays in place and counts as built now. Workers
    that have the path open move to the new file within their next get.
    Raises BuildError for records that cannot be stored, SourceError, LockTimeoutError, UntrustedPathError, and
    PublishError for what the system refuses; after any of them the published file is as it was.
    """
    name_owners(os.fspath(path), uids_of(trust))
    return build_once(
        path,
        as_source(records, schemas),
        cluster_by=cluster_by,
        metadata=metadata,
        progress=progress,
        timeout=timeout,
    )


def rebuild(
    path: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    timeout: float = LOCK_TIMEOUT,
    asked_ns: int | None = None,
    lock: int | None = None,
) -> BuildReport:
    """Build a file anew from the source that is named in it, with the same schemas, clustering and metadata.

    asked_ns: wall clock; a file that was built from what the source held after that is left as it is. lock: a
    descriptor that holds the build lock already. Where the file itself is missing or damaged, its backup says how.
    Raises what `build` raises; SourceError for a file that was built from records in memory; UnusableFileError where
    neither file nor backup can be read."""
    layout = storage.described(os.fspath(path))
    if layout.source is None:
        raise SourceError("was built from records in memory and names no source: build it again", path=os.fspath(path))
    schemas = tuple(collection.schema for collection in layout.collections.values())
    with closing(from_spec(layout.source, schemas)) as source:
        assert source is not None
        return build_once(
            path,
            source,
            cluster_by={name: c.cluster_by for name, c in layout.collections.items() if c.cluster_by is not None},
            metadata=layout.metadata,
            progress=progress,
            timeout=timeout,
            asked_ns=asked_ns,
            lock=lock,
        )


def build_once(
    path: str | os.PathLike[str],
    source: Source,
    *,
    page: Page | None = None,
    slot: metrics.Slot | None = None,
    cluster_by: str | Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    timeout: float = LOCK_TIMEOUT,
    serves: Serves | None = None,
    asked_ns: int | None = None,
    since: float | None = None,
    lock: int | None = None,
) -> BuildReport:
    """Build from a source, unless somebody else did while we waited for the lock.

    serves: whether the file that is there will do. asked_ns: one that was built, or found to be right, after that does.
    A build that failed while we waited is not tried again: its error is raised here too. since: from when on, by
    time.monotonic(), for a caller who waited before. page, slot: the page and the counters to use, if the caller has
    them. lock: a descriptor that holds the build lock already.
    """
    name = os.path.abspath(os.fspath(path))
    control = Announcer(name, page)
    begun = time.monotonic()
    is_asked_for = lock is None and serves is None  # by a person, and not because a worker found it due
    told: list[MmcacheError] = []
    served: list[Layout] = []

    def unless(there: Layout | None) -> bool:
        failure = control.failure
        if failure is not None and failure.at > (begun if since is None else since):
            told.append(failure.error)
            raise failure.error
        if there is None:
            return False
        if (serves is not None and serves(there)) or (asked_ns is not None and _is_after(there, control, asked_ns)):
            served.append(there)
        return bool(served)

    with _counted(name, slot) as counts, contextlib.ExitStack() as ending:
        ending.callback(control.close)
        try:
            report = storage.publish(
                name,
                source,
                cluster_by=cluster_by,
                metadata=metadata,
                progress=progress,
                timeout=timeout,
                unless=unless,
                control=control,
                lock=lock,
            )
        except LockTimeoutError:
            raise
        except Exception as error:
            if error not in told:
                counts.add(metrics.REBUILDS_FAILED)
                failure = control.failure
                if failure is None or failure.at < begun:  # it did not get as far as building, which tells by itself
                    control.failed(error)
                metrics.record_event(name, "rebuild_failed")
                log.warning("%s: build failed: %s", name, str(error), extra={"event": "build_failed", "path": name})
            else:
                log.warning("%s: not built: %s", name, str(error), extra={"event": "build_failed", "path": name})
            raise
        if served and is_asked_for:
            levers.release(name, page)
        if served:  # by another's build, which is counted there
            return report
        control.succeeded()
        if is_asked_for:
            levers.release(name, page)
        _count(name, report, counts, begun)
        if control.superseded:
            counts.add(metrics.REBUILDS_SUPERSEDED)
    return report


def _is_after(layout: Layout, control: Announcer, asked_ns: int) -> bool:
    # What is ahead of the clock, which then went back since, may be from any time.
    return asked_ns < control.covered_ns(layout.header) <= time.time_ns()


@contextlib.contextmanager
def _counted(path: str, slot: metrics.Slot | None) -> Iterator[metrics.Slot]:
    if slot is not None:
        yield slot
        return
    own = metrics.Slot.open(path, label="build")
    try:
        yield own
    finally:
        own.close()


def _count(path: str, report: BuildReport, slot: metrics.Slot, begun: float) -> None:
    took = time.monotonic() - begun
    if report.changed:
        slot.add(metrics.REBUILDS_OK)
        slot.observe(metrics.BUILD, took)
        metrics.record_event(path, "rebuild", report.generation)
        log.info(
            "%s: generation %d published in %.3f s",
            path,
            report.generation,
            took,
            extra={"event": "published", "path": path, "generation": report.generation, "seconds": took},
        )
        return
    slot.add(metrics.REBUILDS_UNCHANGED)
    metrics.record_event(path, "unchanged", report.generation)
    log.info(
        "%s: generation %d is still right",
        path,
        report.generation,
        extra={"event": "revalidated", "path": path, "generation": report.generation, "seconds": took},
    )


def clear(path: str | os.PathLike[str], *, timeout: float = LOCK_TIMEOUT, dry_run: bool = False) -> list[str]:
    """Remove a file, its backup, its metrics, and the temporary files of dead writers. The paths of what was there.

    The lock file and the control page stay: others may be waiting on the one and have the other mapped, and the page
    knows which generation was the last. Readers keep what they have mapped. Raises what `storage.publish.clear` raises.
    dry_run: only look, without the lock.
    """
    name = os.fspath(path)
    found = storage.clear(name, timeout=timeout, dry_run=dry_run)
    found += metrics.remove(name, dry_run=dry_run)
    if not dry_run:
        levers.release(os.path.abspath(name))
        page = look(name)
        if page is not None:
            Announcer(name, page).cleared()
            page.close()
    return found
