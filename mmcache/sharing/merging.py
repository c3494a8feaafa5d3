"""`mmcache.merge`: cache files into one, published as a build publishes. See `storage.merging`.

The files that are merged are only read. One of them may be the file that is made. Of several merges that add to one
file at once, each adds to what the one before it has published.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from ..errors import BuildError
from ..progress import Progress, Shown, shown
from ..schema import AnySchema
from ..sources import Source
from ..sources.base import Where
from ..storage import fs
from ..storage.lane import Lane
from ..storage.merging import Segment, joined, opened, same_schemas
from ..storage.publish import LOCK_TIMEOUT, BuildReport, Order, Stages, summaries
from ..storage.trust import name_owners, uids_of
from .publishing import build_once

__all__ = ["merge"]


class _Files:
    """The files that are merged, in the place of a source: all that a build asks of one which it does not read.

    own: the one among them that is the file which is made. was_overtaken: whether another has taken its place.
    """

    def __init__(self, segments: Sequence[Segment], own: Segment | None) -> None:
        self.segments = segments
        self._own = own
        self.was_overtaken = False
        self.schemas: tuple[AnySchema, ...] = same_schemas(segments)

    def spec(self) -> dict[str, Any] | None:
        """That of all, if they have one source."""
        first, *others = (segment.layout.source for segment in self.segments)
        return first if all(other == first for other in others) else None

    def fingerprint(self) -> bytes:
        first, *others = (segment.layout.header.fingerprint for segment in self.segments)
        return first if self.spec() is not None and all(other == first for other in others) else bytes(32)

    def read_ns(self) -> int:
        """When the oldest of them was built: what was invalidated since may not be in it."""
        return min(segment.layout.header.created_ns for segment in self.segments)

    def clusters(self) -> dict[str, str]:
        """Collection -> field, where all files are clustered so."""
        first, *others = (
            {name: one.cluster_by for name, one in segment.layout.collections.items() if one.cluster_by is not None}
            for segment in self.segments
        )
        return {name: by for name, by in first.items() if all(other.get(name) == by for other in others)}

    def metadata(self) -> dict[str, Any]:
        first, *others = (segment.layout.metadata for segment in self.segments)
        return first if all(other == first for other in others) else {}

    def overtaken(self) -> bool:
        """See `build_once`."""
        own = self._own
        self.was_overtaken = own is not None and fs.identity_of(own.file.path) != own.file.identity
        return self.was_overtaken

    def stage(
        self,
        _: Source,
        clusters: Mapping[str, str],
        directory: fs.Directory,
        lane: Lane,
        progress: Progress | None,
    ) -> Stages:
        """See `storage.publish.Stage`."""
        staged = joined(self.segments, clusters, lambda: lane.keep(directory.scratch()), progress)
        return Stages(staged, summaries(staged, lambda _: {}))


def merge(
    path: str | os.PathLike[str],
    shards: Iterable[Where],
    *,
    cluster_by: str | Mapping[str, str] | None = None,
    metadata: Mapping[str, object] | None = None,
    progress: Shown = None,
    timeout: float = LOCK_TIMEOUT,
    trust: str | int | Iterable[str | int] = (),
) -> BuildReport:
    """Merge cache files into one, and publish it at `path`: the records of the first file, then those of the next.

    The file has the bytes that one build of all these records has. docs/shards.md says how that is done, and where it
    pays.

    shards: paths of files with the same schemas. Each is verified whole. One of them may be the file at `path`: then
        the others are added to what is published there when this merge has the build lock.
    cluster_by: as of `build`. By default as the files have it, where all have it so. Files that are clustered give
        their records cluster by cluster.
    metadata: by default that of the files, where all have the same.
    progress, timeout, trust: as of `build`.

    A key of several files is an error, or the first or the last counts, as `Schema.on_duplicate` has it. What the files
    left out is counted and named together; a key that a file left out is not known any more, and another file's record
    with that key stays. The source is that of the files, if all name the same one; else `mmcache rebuild` knows none.
    Raises BuildError for files that do not fit together, UnusableFileError for one that cannot be read, and what
    `build` raises; after any of them the published file is as it was.

    >>> for name, key in (("a.mmc", 1), ("b.mmc", 2)):
    ...     _ = mmcache.build(name, [{"id": key}], Schema("pairs"))
    >>> dict(mmcache.merge("both.mmc", ["a.mmc", "b.mmc"]).records)
    {'pairs': 2}
    """
    name_owners(os.fspath(path), uids_of(trust))
    if isinstance(shards, (str, bytes, os.PathLike)):
        raise TypeError(
            f"shards must be several paths, not {type(shards).__name__} {shards!r:.200}: put it into a list"
        )
    places = [os.fspath(place) for place in shards]
    if not places:
        reason = "there is no file to merge; give one or more"
        raise BuildError(reason, reason=reason)
    while True:
        with contextlib.ExitStack() as held, shown(progress) as step:
            segments = [opened(place, held) for place in places]
            own = next((segment for segment in segments if _is_at(segment.file.path, os.fspath(path))), None)
            files = _Files(segments, own)
            order = Order(
                cast("Source", files),  # of which a build with a `stage` of its own asks no more
                files.clusters() if cluster_by is None else cluster_by,
                files.metadata() if metadata is None else metadata,
                stage=files.stage,
                read_ns=files.read_ns(),
            )
            # What another merge failed with says nothing of these files.
            done = build_once(path, order, progress=step, timeout=timeout, since=math.inf, overtaken=files.overtaken)
        if not files.was_overtaken:
            return done
        # Case: another writer published after `own` was opened, and before we had the lock.


def _is_at(one: str, other: str) -> bool:
    """Whether both name one place, whatever is there now."""
    return os.path.basename(one) == os.path.basename(other) and fs.same_directory(one, other)
