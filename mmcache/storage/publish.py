"""Building a file and making it visible: lock, stage, write, verify, back up, rename.

    lock  re-check  sweep  [read the source]  temp  allocate  body  header  fsync  verify  .bak  rename  fsync dir
                                                                                                 ^ commit  ^ durable

A process killed anywhere before the rename leaves the published file as it was, and a temporary file that the next
writer sweeps away; killed after it, the new file is there whole. An error does the same, and removes its temporary
file itself. A failed fsync is never tried again: the second one would report a success that did not happen.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .. import wallclock
from ..errors import BuildError, PublishError, UnusableFileError
from ..format.header import HEADER_SIZE, Header, Tokens, parse_header
from ..format.layout import Layout
from ..schema import Schema
from ..sources import Source
from ..sources.base import fingerprint_of
from ..sources.plain import plain_rows
from ..sources.vectors import NOTHING_LEARNED, Learned
from . import buildlock, fs
from .admission import stage
from .commit import (
    MODE,
    BuildReport,
    Control,
    EmbeddingReport,
    Published,
    check_replaceable,
    commit,
    next_generation,
    report,
)
from .describe import description_in
from .descriptors import Descriptor
from .lane import Lane
from .names import backup_name, lock_name
from .planning import lay_out
from .staging import Progress, Staged, check_count
from .writing import Digest, write

__all__ = [
    "LOCK_TIMEOUT",
    "BuildReport",
    "Control",
    "EmbeddingReport",
    "Order",
    "Progress",
    "Revise",
    "Serves",
    "Stage",
    "Stages",
    "backed_up",
    "clear",
    "lasting_fingerprint",
    "publish",
    "stage_all",
    "summaries",
    "writer",
]

LOCK_TIMEOUT = 600.0

_TICK = 0.025
"""Longer than a tick of any file system's clock."""


class Stages(NamedTuple):
    """What a build writes: every collection, and what was taken for its embeddings. learned: by collection, where the
    source tells."""

    collections: list[Staged]
    embeddings: Mapping[str, Mapping[str, EmbeddingReport]]
    learned: Mapping[str, Learned] = {}


Stage = Callable[
    [Source, Mapping[str, str], fs.Directory, Lane, Progress | None],
    Stages,
]
"""How a source is read: stage(source, clusters, directory, lane, progress). clusters: collection -> field. Scratch
files are made in the directory, and closed with the lane."""


class Order(NamedTuple):
    """What to build.

    cluster_by, metadata: None where nothing was said about them. asked: the schemas that were asked for, where these
    are not those of the source. stage: how the source is read, if not here, collection by collection. read_ns: wall
    clock, when it was read, where that was before: then the file covers nothing that was invalidated since, and has the
    age of what it holds. lead_ns: what it took until the build was begun, which the next one has to allow for.
    """

    source: Source
    cluster_by: str | Mapping[str, str] | None = None
    metadata: Mapping[str, Any] | None = None
    asked: tuple[Schema, ...] = ()
    stage: Stage | None = None
    read_ns: int | None = None
    lead_ns: int = 0


Serves = Callable[[Layout | None], bool]
Revise = Callable[[Order, Layout | None], Order]
"""What to build, seen what the published file, or else its backup, says of itself."""


def publish(
    path: str | os.PathLike[str],
    order: Order,
    *,
    revise: Revise | None = None,
    progress: Progress | None = None,
    timeout: float = LOCK_TIMEOUT,
    unless: Serves | None = None,
    control: Control | None = None,
    lock: Descriptor | None = None,
) -> BuildReport:
    """Build from a source, and publish. `unless` is asked, once we have the lock, whether the whole file that is there
    already serves, because another process built it while we waited; then it stays. It may raise, too.

    control: the tokens are captured before the source is read. Whatever is invalidated after that makes the new file
    stale, and what was before it is in it. lock: a descriptor that holds the build lock already. revise: gives what is
    really built; a source that it made is closed here.
    """
    begun, wanted = time.monotonic(), order.asked or order.source.schemas
    _clusters(order)  # what cannot be meant is refused at once
    opened = fs.Directory(os.fspath(path), make=True)
    with opened as directory, buildlock.hold(directory, timeout, lock), contextlib.ExitStack() as building:
        for name in (directory.name, backup_name(directory.name)):
            check_replaceable(directory, name)
        if control is not None:
            _announce(directory, control)
        old = Published.of(directory)
        if unless is not None and unless(old.layout) and old.layout is not None:
            return report(directory, old.layout, begun, changed=False)
        building.enter_context(_announced(control))
        before = old.layout or description_in(directory)
        revised = order if revise is None else revise(order, before)
        if revised.source is not order.source:
            building.callback(_close, revised.source)
        asked = () if set(wanted) == set(revised.source.schemas) else tuple(wanted)
        final = revised._replace(asked=asked)
        return _build(directory, final, old, before=before, lock=lock, progress=progress, control=control, begun=begun)


def _build(
    directory: fs.Directory,
    order: Order,
    old: Published,
    *,
    before: Layout | None,
    lock: Descriptor | None,
    progress: Progress | None,
    control: Control | None,
    begun: float,
) -> BuildReport:
    """Build under the lock, and publish; unless the content is what is published now."""
    directory.sweep()
    with directory.create() as file:
        covered = _Covered.by(order, control, old)
        digest, embeddings = _write(directory, file, order, progress)
        current = old.layout if old.is_there(directory) else Published.of(directory).layout
        elapsed_ns = order.lead_ns + time.monotonic_ns() - covered.started_ns
        good_as = covered.tokens, covered.created_ns, elapsed_ns, covered.fingerprint
        if (
            current is not None
            and current.header.build_id == digest.build_id
            # Where this cannot be noted for everybody, only a new header can tell.
            and (order.read_ns is not None or control is None or control.revalidated(current.header, *good_as))
        ):
            return replace(report(directory, current, begun, changed=False), embeddings=embeddings)
        header = Header(
            file_size=digest.size,
            section_count=digest.section_count,
            generation=next_generation(directory, 0 if control is None else control.generation),
            created_ns=covered.created_ns,
            elapsed_ns=elapsed_ns,
            build_id=digest.build_id,
            sha256=digest.sha256,
            fingerprint=covered.fingerprint,
            **covered.tokens._asdict(),
        )
        keeping = backed_up(directory, lock, there=current is not None)
        done = commit(directory, file, header, control=control, before=before, keeping=keeping, begun=begun)
        return replace(done, embeddings=embeddings)


class _Covered(NamedTuple):
    """What the new file will cover, captured before the source is read. started_ns: by time.monotonic_ns()."""

    tokens: Tokens
    fingerprint: bytes
    created_ns: int
    started_ns: int

    @classmethod
    def by(cls, order: Order, control: Control | None, old: Published) -> _Covered:
        tokens = Tokens() if control is None else control.tokens()
        fingerprint = lasting_fingerprint(order.source)
        created_ns, started_ns = wallclock.now_ns(), time.monotonic_ns()
        if order.read_ns is not None:
            created_ns = min(order.read_ns, created_ns)
            if control is not None:
                tokens = control.tokens_as_of(created_ns, None if old.layout is None else old.layout.header)
        return cls(tokens, fingerprint, created_ns, started_ns)


def _write(
    directory: fs.Directory, file: fs.WriteFile, order: Order, progress: Progress | None
) -> tuple[Digest, Mapping[str, Mapping[str, EmbeddingReport]]]:
    """Read the source, and write all but the header."""
    stage = order.stage or stage_all
    with Lane() as lane:
        staged, embeddings, _ = stage(order.source, _clusters(order), directory, lane, progress)
        plan = lay_out(
            staged,
            writer=writer(),
            source=order.source.spec(),
            metadata=order.metadata,
            asked=order.asked,
        )
        file.allocate(plan.size)
        return write(plan, file, lane, progress), embeddings


def clear(path: str | os.PathLike[str], *, timeout: float = LOCK_TIMEOUT, dry_run: bool = False) -> list[str]:
    """Remove a file, its backup, and the temporary files of dead writers. The paths of the first two that were there.

    Nothing is removed unless all of it is ours to remove: raises UntrustedPathError for what is not a regular file or
    was not written by mmcache. The lock file stays: a writer that waits on it would lock a file without a name, and
    the next one a new file, both at once. Readers keep what they have mapped.
    dry_run: only look, without the lock.
    """
    whole = os.fspath(path)
    with fs.Directory(whole) as directory, contextlib.ExitStack() as held:
        places = {directory.name: whole, backup_name(directory.name): backup_name(whole)}
        if all(fs.identity_of(place) is None for place in (*places.values(), lock_name(whole))):
            return []  # no writer was ever here: leave no lock file behind either
        if not dry_run:
            held.enter_context(buildlock.hold(directory, timeout))
        found = [name for name in places if check_replaceable(directory, name)]
        if not dry_run:
            directory.sweep()
            for name in found:
                directory.unlink(name)
    return [places[name] for name in found]


def _announce(directory: fs.Directory, control: Control) -> None:
    """A builder that was killed after the rename has not said that its file is there."""
    with contextlib.suppress(UnusableFileError):
        file = directory.read(directory.name)
        try:
            control.noticed(parse_header(file.read(0, HEADER_SIZE), file.size))
        finally:
            file.close()


@contextlib.contextmanager
def _announced(control: Control | None) -> Iterator[None]:
    """The control page names this builder meanwhile."""
    if control is None:
        yield
        return
    control.begin()
    try:
        yield
    except BaseException as error:
        control.failed(error)  # before the lock is free, or another would try again who does not know
        raise
    finally:
        control.end()


def lasting_fingerprint(source: Source) -> bytes:
    """The source's. One that was written to at this very moment gives none that lasts; a moment later it does."""
    fingerprint = fingerprint_of(source)
    if fingerprint_of(source) != fingerprint:
        time.sleep(_TICK)
        fingerprint = fingerprint_of(source)
    return fingerprint


def _close(source: Source) -> None:
    """What it holds open."""
    close = getattr(source, "close", None)
    if close is not None:
        close()


def _clusters(order: Order) -> dict[str, str]:
    """Collection -> field. A single field name is meant for every collection that has it indexed."""
    schemas: tuple[Schema, ...] = order.source.schemas
    cluster_by = order.cluster_by
    if cluster_by is None:
        return {}
    if isinstance(cluster_by, str):
        clusters = {schema.name: cluster_by for schema in schemas if cluster_by in schema.index}
        if not clusters:
            indexed = ", ".join(dict.fromkeys(field for schema in schemas for field in schema.index)) or "none"
            reason = f"cannot cluster by {cluster_by!r}, which is not indexed; indexed fields: {indexed}"
            raise BuildError(reason, reason=reason)
        return clusters
    unknown = set(cluster_by) - {schema.name for schema in schemas}
    if unknown:
        reason = f"cluster_by names {', '.join(sorted(unknown))}, which is not a collection here"
        raise BuildError(reason, reason=reason)
    return dict(cluster_by)


def stage_all(
    source: Source,
    clusters: Mapping[str, str],
    directory: fs.Directory,
    lane: Lane,
    progress: Progress | None,
    *,
    now: float | None = None,
    part: bool = False,
) -> Stages:
    """Every collection of the source, read in one transaction. now, part: see `admission.stage`."""
    check_count(source.schemas)
    with source.read() as reading:
        staged = [
            stage(
                schema.resolved(),
                plain_rows(source, schema, reading.records(schema.name)),
                lambda: lane.keep(directory.scratch()),
                lane=lane,
                cluster_by=clusters.get(schema.name),
                total=reading.count(schema.name) if progress is not None else None,
                progress=progress,
                now=now,
                part=part,
            )
            for schema in source.schemas
        ]
        dtypes: Callable[[str], Mapping[str, str]] = getattr(reading, "dtypes", lambda _: {})
        learned: Callable[[str], Learned] = getattr(reading, "learned", lambda _: NOTHING_LEARNED)
        found = {one.schema.name: learned(one.schema.name) for one in staged}
        return Stages(staged, summaries(staged, dtypes), found)


def summaries(
    staged: Sequence[Staged], dtypes: Callable[[str], Mapping[str, str]]
) -> Mapping[str, Mapping[str, EmbeddingReport]]:
    """What was taken for the embeddings of each collection that has some. dtypes: of a collection, by field."""
    reports = {one.schema.name: _embeddings(one, dtypes(one.schema.name)) for one in staged}
    return {name: found for name, found in reports.items() if found}


def _embeddings(staged: Staged, dtypes: Mapping[str, str]) -> Mapping[str, EmbeddingReport]:
    return {
        one.name: EmbeddingReport.of(one.dim, one.norms, one.missing, dtypes.get(one.name))
        for one in staged.vectors
        if one.dim
    }


@contextlib.contextmanager
def backed_up(directory: fs.Directory, lock: Descriptor | None, *, there: bool) -> Iterator[None]:
    """Make the present file the backup, before another takes its place."""
    if lock is not None:
        buildlock.check(directory, lock)  # whatever replaced the lock file meanwhile let another builder in
    if there:
        _back_up(directory)
    yield


def _back_up(directory: fs.Directory) -> None:
    """Keep the published file under a second name, without a moment in which either name is missing."""
    backup = backup_name(directory.name)
    fresh = f"{backup}.new"
    directory.unlink(fresh)
    if directory.link(directory.name, fresh):
        try:
            directory.rename(fresh, backup)
        finally:
            # When both names were one file already, after a crash, the rename did nothing at all.
            directory.unlink(fresh)
        return
    with directory.create() as copy:
        published = directory.read(directory.name)
        try:
            copy.allocate(published.size)
            offset = 0
            for chunk in published.chunks(0, published.size):
                copy.write(offset, chunk)
                offset += len(chunk)
        except UnusableFileError as error:
            raise PublishError(f"the backup could not be written ({error})", path=directory.path) from None
        finally:
            published.close()
        copy.seal(MODE)
        directory.rename(copy.name or "", backup)
        copy.published()


def writer() -> str:
    from .. import __version__

    return f"mmcache {__version__}"
