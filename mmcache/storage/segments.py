"""A segment: a part of a source as a cache file without a name of its own, made by one worker of a build.

It lies beside the file that is built, or in another directory, under the name of a temporary file: the next writer
there sweeps away what a build that was killed left behind. Or it travels through an object store, where hosts share no
disk: a worker makes it in a temporary directory of its own, and the build brings it beside its file.

It keeps the order of its source, and all rows of a key of which one is chosen later; and it comes with `Notes`. So
merging all of them makes what one build of the source makes.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final, NamedTuple

from ..errors import SourceError, StoreError
from ..format.header import Header, Tokens
from ..progress import Progress
from ..sources import closing
from ..sources.base import Source, fingerprint_of
from ..sources.vectors import Learned
from ..store import Store
from . import fs
from .lane import Lane
from .merging import Notes
from .planning import lay_out
from .publish import stage_all, writer
from .staging import Staged
from .writing import write

__all__ = ["Made", "Sent", "Task", "make", "remove"]

_SEGMENTS: Final = "segments"
_DEAD: Final = timedelta(days=1)
"""Age from which a segment in a store is garbage: no build takes that long."""


@dataclass(frozen=True)
class Task:
    """What a worker is told. source: the part. path: whose temporary file the segment is. fingerprint: of the part as
    the build sees it, on this host. now: when what expires is judged. store: the URL below which the segment becomes an
    object, in the directory `build`; None where it stays a file."""

    number: int
    source: Source
    path: str
    fingerprint: bytes
    host: bytes
    now: float
    store: str | None = None
    build: str = ""


class Made(NamedTuple):
    """What a worker did. path: of the segment, or its name in the store. records: in each collection. notes: see
    `merging`."""

    number: int
    path: str
    records: Mapping[str, int]
    notes: Mapping[str, Notes]
    seconds: float


def make(task: Task, host: bytes, progress: Progress | None = None) -> Made:
    """Read the part, and write the segment. host: where this runs. Raises SourceError where the source was written to
    meanwhile, BuildError, PublishError and StoreError; then no segment is left."""
    if task.store is None:
        return _made(task, host, progress)
    with tempfile.TemporaryDirectory(prefix="mmcache-") as directory:
        made = _made(replace(task, path=os.path.join(directory, "segment")), host, progress)
        name = f"{task.build}/{task.number:06}-{os.urandom(8).hex()}.mmc"
        with contextlib.closing(fs.ReadFile(made.path)) as file:
            Store(task.store).upload(name, file.chunks(0, file.size), file.size)
    return made._replace(path=name)


def _made(task: Task, host: bytes, progress: Progress | None) -> Made:
    begun = time.monotonic()
    with (
        closing(task.source) as source,
        fs.Directory(task.path) as directory,
        directory.create() as file,
        Lane() as lane,
    ):
        assert source is not None
        before = fingerprint_of(source)
        if host == task.host and before != task.fingerprint:
            raise moved(source)
        staged, _, learned = stage_all(source, {}, directory, lane, progress, now=task.now, part=True)
        if fingerprint_of(source) != before:
            raise moved(source)
        plan = lay_out(staged, writer=writer(), sketches=False)  # the build that merges makes them of all rows
        file.allocate(plan.size)
        digest = write(plan, file, lane)
        header = Header(
            file_size=digest.size,
            section_count=digest.section_count,
            generation=1,
            created_ns=time.time_ns(),
            elapsed_ns=0,
            build_id=digest.build_id,
            sha256=digest.sha256,
            fingerprint=before,
            **Tokens()._asdict(),
        )
        file.write(0, header.pack())
        path = os.path.join(os.path.dirname(directory.path), file.name or "")
        notes = {one.schema.name: _notes(one, learned[one.schema.name]) for one in staged}
        file.published()  # it stays, for the build that asked for it
    return Made(task.number, path, {one.schema.name: one.n for one in staged}, notes, time.monotonic() - begun)


def _notes(staged: Staged, learned: Learned) -> Notes:
    return Notes(staged.refused, staged.encoder.maps_at, learned)


def moved(source: Source) -> SourceError:
    """A source that was written to while its parts were read."""
    return SourceError(
        f"the {type(source).__name__} was written to while its shards were read, which share no transaction; build "
        "again, or build without shards=",
        path=getattr(source, "path", None),
    )


def remove(path: str) -> None:
    """A segment that is not needed any more. Raises PublishError."""
    with fs.Directory(path) as directory:
        directory.unlink(directory.name)


class Sent:
    """The segments of one build that travel through a store: objects below `build`, a name that no other build has.

    The store is opened when the workers are done: processes may be forked until then.
    """

    def __init__(self, url: str) -> None:
        self.url = f"{url.rstrip('/')}/{_SEGMENTS}"
        self.build = os.urandom(8).hex()

    def brought(self, name: str, directory: fs.Directory, held: contextlib.ExitStack) -> str:
        """The path of a temporary file with the bytes of a segment, which goes when `held` is closed. That they are
        whole is for the reader to verify. Raises StoreError and PublishError."""
        store = Store(self.url)
        found = store.stat(name)
        if found is None:
            raise StoreError(f"{name} is gone, which a worker has just put there", path=self.url)
        file = held.enter_context(directory.create())
        file.allocate(found.size)
        at = 0
        for piece in store.pieces(name, 0, found.size, found):
            file.write(at, piece)
            at += len(piece)
        return os.path.join(os.path.dirname(directory.path), file.name or "")

    def remove(self) -> None:
        """All of this build, and what builds that were killed left more than a day ago. Raises StoreError."""
        store = Store(self.url)
        listed = store.listed("")
        now = max((found.modified for found in listed), default=None)  # by the store's clock: ours are of now
        for found in listed:
            assert now is not None
            if found.name.startswith(f"{self.build}/") or now - found.modified > _DEAD:
                store.remove(found.name)
