"""Building a file and making it visible: lock, stage, write, verify, back up, rename.

    lock  re-check  sweep  [read the source]  temp  allocate  body  header  fsync  verify  .bak  rename  fsync dir
                                                                                                 ^ commit  ^ durable

A process killed anywhere before the rename leaves the published file as it was, and a temporary file that the next
writer sweeps away; killed after it, the new file is there whole. An error does the same, and removes its temporary
file itself. A failed fsync is never tried again: the second one would report a success that did not happen.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from ..errors import (
    BuildError,
    MissingFileError,
    MmcacheError,
    PublishError,
    UntrustedPathError,
    UnusableFileError,
)
from ..format.header import HEADER_SIZE, MAGIC, Header, Tokens, parse_header
from ..format.layout import Layout
from ..schema import Schema
from ..sources import Source
from . import fs
from .builder import Progress, Staged, lay_out, stage, write
from .describe import description_in
from .descriptors import Descriptor
from .verify import verify_bytes

__all__ = [
    "LOCK_TIMEOUT",
    "BuildReport",
    "Control",
    "Order",
    "Progress",
    "Revise",
    "Serves",
    "clear",
    "publish",
]

log = logging.getLogger("mmcache")

MODE = 0o444
"""Of a published file: a stray in-place write, which would pull the pages from under every reader, fails."""

LOCK_TIMEOUT = 600.0

_TICK = 0.025
"""Longer than a tick of any file system's clock."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What is published now, and what this build did about it.

    records: per collection. size: of the file, bytes. build_id, sha256: of the content, hexadecimal.
    seconds: that this call took. changed: whether the published file is another than before; False when the content
    was the same, or when someone else had just built it. durable: False if the file system could not promise that
    the new name survives a power cut.
    """

    path: str
    generation: int
    records: Mapping[str, int]
    size: int
    build_id: str
    sha256: str
    seconds: float
    changed: bool
    durable: bool = True


class Order(NamedTuple):
    """What to build. cluster_by, metadata: None where nothing was said about them."""

    source: Source
    cluster_by: str | Mapping[str, str] | None = None
    metadata: Mapping[str, Any] | None = None


Serves = Callable[[Layout | None], bool]
Revise = Callable[[Order, Layout | None], Order]
"""What to build, seen what the published file, or else its backup, says of itself."""


class Control(Protocol):
    """What publishing asks of a control page, and tells it."""

    @property
    def generation(self) -> int:
        """The last that was announced; 0 for none."""
        ...

    def tokens(self) -> Tokens: ...
    def begin(self) -> None: ...
    def end(self) -> None: ...
    def failed(self, error: BaseException) -> None: ...
    def noticed(self, header: Header) -> None: ...
    def verified(self, header: Header, identity: fs.Identity, *, keep: fs.Identity | None) -> None: ...
    def published(self, layout: Layout, before: Layout | None) -> None: ...
    def revalidated(
        self, header: Header, tokens: Tokens, checked_ns: int, elapsed_ns: int, fingerprint: bytes
    ) -> bool: ...


def publish(
    path: str | os.PathLike[str],
    source: Source,
    *,
    cluster_by: str | Mapping[str, str] | None = None,
    metadata: Mapping[str, Any] | None = None,
    revise: Revise | None = None,
    asked: Sequence[Schema] = (),
    progress: Progress | None = None,
    timeout: float = LOCK_TIMEOUT,
    unless: Serves | None = None,
    control: Control | None = None,
    lock: Descriptor | None = None,
    lead_ns: int = 0,
) -> BuildReport:
    """Build from a source. `unless` is asked, once we have the lock, whether the whole file that is there already
    serves, because another process built it while we waited; then it stays. It may raise, too.

    control: the tokens are captured before the source is read. Whatever is invalidated after that makes the new file
    stale, and what was before it is in it. lock: a descriptor that holds the build lock already. revise: gives what is
    really built; a source that it made is closed here. asked: what the file says was asked for, if it has more.
    lead_ns: what it took until this call, which the next rebuild has to allow for.
    """
    begun, order, wanted = time.monotonic(), Order(source, cluster_by, metadata), asked or source.schemas
    _clusters(order)  # what cannot be meant is refused at once
    opened = fs.Directory(os.fspath(path), make=True)
    with opened as directory, directory.lock(timeout, lock), contextlib.ExitStack() as building:
        for name in (directory.name, fs.backup_name(directory.name)):
            _check_replaceable(directory, name)
        if control is not None:
            _announce(directory, control)
        old = _Published.of(directory)
        if unless is not None and unless(old.layout) and old.layout is not None:
            return _report(directory, old.layout, begun, changed=False)
        building.enter_context(_announced(control))
        before = old.layout or description_in(directory)
        if revise is not None:
            order = revise(order, before)
            if order.source is not source:
                building.callback(_close, order.source)
        source, clusters = order.source, _clusters(order)
        directory.sweep()
        with contextlib.ExitStack() as scratch, directory.create() as file:
            tokens = Tokens() if control is None else control.tokens()
            fingerprint = _fingerprint(source)
            created_ns, started_ns = time.time_ns(), time.monotonic_ns()
            staged = _stage(source, clusters, directory, scratch, progress)
            plan = lay_out(
                staged,
                writer=_writer(),
                source=source.spec(),
                metadata=order.metadata,
                asked=() if set(wanted) == set(source.schemas) else wanted,
            )
            file.allocate(plan.size)
            digest = write(plan, file, progress)
            current = old.layout if old.is_there(directory) else _Published.of(directory).layout
            elapsed_ns = lead_ns + time.monotonic_ns() - started_ns
            as_good_as = tokens, created_ns, elapsed_ns, fingerprint
            if (
                current is not None
                and current.header.build_id == digest.build_id
                # Where this cannot be noted for everybody, only a new header can tell.
                and (control is None or control.revalidated(current.header, *as_good_as))
            ):
                return _report(directory, current, begun, changed=False)
            header = Header(
                file_size=digest.size,
                section_count=digest.section_count,
                generation=_next_generation(directory, 0 if control is None else control.generation),
                created_ns=created_ns,
                elapsed_ns=elapsed_ns,
                build_id=digest.build_id,
                sha256=digest.sha256,
                fingerprint=fingerprint,
                soft=tokens.soft,
                hard=tokens.hard,
                ring=tokens.ring,
                page=tokens.page,
            )
            file.write(0, header.pack())
            file.seal(MODE)
            layout = _read_back(directory, file, header)
            if control is not None:  # a reader may open it from the moment on at which it has its name
                control.verified(header, file.identity(), keep=fs.identity_of(directory.path))
            if lock is not None:
                directory.check_lock(lock)  # whatever replaced the lock file meanwhile let another builder in
            if current is not None:
                _back_up(directory)
            directory.rename(file.name or "", directory.name)
            file.published()
        durable = _sync(directory)
        if control is not None:
            control.published(layout, before)
        return _report(directory, layout, begun, changed=True, durable=durable)


def clear(path: str | os.PathLike[str], *, timeout: float = LOCK_TIMEOUT, dry_run: bool = False) -> list[str]:
    """Remove a file, its backup, and the temporary files of dead writers. The paths of the first two that were there.

    Nothing is removed unless all of it is ours to remove: raises UntrustedPathError for what is not a regular file or
    was not written by mmcache. The lock file stays: a writer that waits on it would lock a file without a name, and
    the next one a new file, both at once. Readers keep what they have mapped.
    dry_run: only look, without the lock.
    """
    whole = os.fspath(path)
    with fs.Directory(whole) as directory, contextlib.ExitStack() as held:
        places = {directory.name: whole, fs.backup_name(directory.name): fs.backup_name(whole)}
        if all(fs.identity_of(place) is None for place in (*places.values(), fs.lock_name(whole))):
            return []  # no writer was ever here: leave no lock file behind either
        if not dry_run:
            held.enter_context(directory.lock(timeout))
        found = [name for name in places if _check_replaceable(directory, name)]
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


def _fingerprint(source: Source) -> bytes:
    """The source's. One that was written to at this very moment gives none that lasts; a moment later it does."""
    fingerprint = source.fingerprint()
    if source.fingerprint() != fingerprint:
        time.sleep(_TICK)
        fingerprint = source.fingerprint()
    return fingerprint


def _check_replaceable(directory: fs.Directory, name: str) -> bool:
    """Whether there is a file, which is a cache file: a mistyped path replaces no database.

    A file that is empty, begins with zeros or has up to two wrong bytes in its magic may be one that was damaged.
    Raises UntrustedPathError for any other.
    """
    try:
        file = directory.read(name)
    except MissingFileError:
        return False
    with contextlib.closing(file):
        head = file.read(0, len(MAGIC))
    if any(head) and sum(map(operator.eq, head, MAGIC)) < len(MAGIC) - 2:
        raise UntrustedPathError(
            f"is not an mmcache file (it begins with {head!r}), and is left alone: use another path, or remove it",
            path=file.path,
        )
    return True


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


def _stage(
    source: Source,
    clusters: Mapping[str, str],
    directory: fs.Directory,
    scratch: contextlib.ExitStack,
    progress: Progress | None,
) -> list[Staged]:
    """Every collection of the source, read in one transaction."""
    with source.read() as reading:
        return [
            stage(
                schema,
                reading.records(schema.name),
                lambda: scratch.enter_context(directory.scratch()),
                cluster_by=clusters.get(schema.name),
                total=reading.count(schema.name) if progress is not None else None,
                progress=progress,
            )
            for schema in source.schemas
        ]


class _Published(NamedTuple):
    """The published file as it was found. layout: None unless every byte of it passes its checksum."""

    layout: Layout | None
    identity: fs.Identity | None

    @classmethod
    def of(cls, directory: fs.Directory) -> _Published:
        """O(file): it is read once."""
        try:
            file = directory.read(directory.name)
            try:
                return cls(verify_bytes(file.read, file.size), file.identity)
            finally:
                file.close()
        except UnusableFileError:
            return cls(None, fs.identity_of(directory.path))

    def is_there(self, directory: fs.Directory) -> bool:
        """Whether it was not written since."""
        return fs.identity_of(directory.path) == self.identity


_FURTHEST: Final = 2**20
"""Generations that a page may be ahead of file and backup: one that claims more is wrong."""


def _next_generation(directory: fs.Directory, announced: int) -> int:
    """One more than any generation that a reader can have seen."""
    found = _next_of_files(directory)
    return max(found, announced + 1) if announced < found + _FURTHEST else found


def _next_of_files(directory: fs.Directory) -> int:
    """One more than the published generation.

    The header alone tells, even of a file that is damaged behind it. Where not even that can be read, the backup is
    of the generation before the lost one. A file that is there and that the system does not let us read now could be
    of any generation: raises PublishError.
    """
    for name, step in ((directory.name, 1), (fs.backup_name(directory.name), 2)):
        try:
            file = directory.read(name)
            try:
                return parse_header(file.read(0, HEADER_SIZE), file.size, older=True).generation + step
            finally:
                file.close()
        except UnusableFileError as error:
            if error.cause == UnusableFileError.cause:
                raise PublishError(
                    f"{name!r} {error.message}, so its generation is unknown; the published file is unchanged",
                    path=directory.path,
                ) from None
    return 1


def _read_back(directory: fs.Directory, file: fs.WriteFile, header: Header) -> Layout:
    """Open the new file as a reader would and verify all of it: what is published is known to be readable."""
    try:
        written = directory.read(file.name or "")
        try:
            layout = verify_bytes(written.read, written.size)
        finally:
            written.close()
    except MmcacheError as error:
        raise PublishError(
            f"the new file did not read back as written ({error}); the published file is unchanged", path=directory.path
        ) from None
    if layout.header != header:
        raise PublishError(
            "another file stood in the place of the new one; the published file is unchanged", path=directory.path
        )
    return layout


def _back_up(directory: fs.Directory) -> None:
    """Keep the published file under a second name, without a moment in which either name is missing."""
    backup = fs.backup_name(directory.name)
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


def _sync(directory: fs.Directory) -> bool:
    """Make the rename durable. It cannot be taken back, so a failure is told, not raised."""
    try:
        directory.sync()
    except PublishError as error:
        log.warning("published, but not known to be durable: %s", error, extra={"event": "not_durable"})
        return False
    return True


def _report(
    directory: fs.Directory, layout: Layout, begun: float, *, changed: bool, durable: bool = True
) -> BuildReport:
    return BuildReport(
        path=directory.path,
        generation=layout.header.generation,
        records={name: collection.n for name, collection in layout.collections.items()},
        size=layout.header.file_size,
        build_id=layout.header.build_id.hex(),
        sha256=layout.header.sha256.hex(),
        seconds=time.monotonic() - begun,
        changed=changed,
        durable=durable,
    )


def _writer() -> str:
    from .. import __version__

    return f"mmcache {__version__}"
