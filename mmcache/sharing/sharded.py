"""A build whose source is read in shards, by the workers of an executor: see `mmcache.build` and docs/shards.md.

The build holds its lock and its control page like any other; only how the source is read differs. Each worker makes a
segment, a cache file of its shard; the segments are merged when all are there. Nothing is published before that.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from itertools import islice
from typing import Final

from ..errors import BuildError, MmcacheError, SourceError
from ..progress import Progress
from ..sources import Source
from ..sources.base import ShardedSource, fingerprint_of
from ..sources.mappings import LOOKED_AT
from ..sources.plain import plain_rows
from ..storage import fs
from ..storage.lane import Lane
from ..storage.merging import Segment, joined, opened
from ..storage.publish import Stages, lasting_fingerprint, summaries
from ..storage.segments import Made, Sent, Task, make, moved, remove
from ..storage.shared import boot_id
from ..store import is_url, public_url

__all__ = ["Sharded"]

_TICK: Final = 1.0
"""Seconds after which a build that waits for its workers looks again."""


class Sharded:
    """shards: at most so many. executor: whose workers read them; it stays the caller's. segments: the directory, which
    all workers see, where segments wait; None for that of the file. Or the URL of an object store, through which they
    travel."""

    def __init__(self, shards: int, executor: Executor, segments: str | os.PathLike[str] | None = None) -> None:
        if type(shards) is not int or shards < 1:
            raise ValueError(f"shards must be an int, 1 or more, not {shards!r}")
        if not callable(getattr(executor, "submit", None)):
            raise TypeError(f"executor must be a concurrent.futures.Executor, not {type(executor).__name__}")
        self.shards = shards
        self.executor = executor
        where = None if segments is None else os.fspath(segments)
        self.url = where if where is not None and is_url(where) else None
        if self.url is not None:
            public_url(self.url)  # which refuses what is none of a store
        self.segments = None if where is None or self.url is not None else os.path.abspath(where)

    def stage(
        self,
        source: Source,
        clusters: Mapping[str, str],
        directory: fs.Directory,
        lane: Lane,
        progress: Progress | None,
    ) -> Stages:
        """See `storage.publish.Stage`. Raises SourceError where the source was written to meanwhile."""
        before = lasting_fingerprint(source)
        parts = cut(source, self.shards)
        host, now = _host(), time.time()
        path = directory.path if self.segments is None else os.path.join(self.segments, directory.name)
        sent = None if self.url is None else Sent(self.url)
        through = (None, "") if sent is None else (sent.url, sent.build)
        tasks = [Task(i, part, path, lasting_fingerprint(part), host, now, *through) for i, part in enumerate(parts)]
        made: list[Made] = []
        held = lane.keep(contextlib.ExitStack())
        held.callback(_remove_all, made, sent)
        self._run(tasks, made, progress, {} if progress is None else _counts(source))
        made.sort()
        if len(made) > 1:
            _read_first_records(source, made[0])
        if fingerprint_of(source) != before:
            raise moved(source)
        if sent is not None:
            made[:] = [one._replace(path=sent.brought(one.path, directory, held)) for one in made]
        segments = [_opened(one, len(made), held) for one in made]
        _check_dims(segments)
        dtypes = _dtypes(segments)
        staged = joined(segments, clusters, lambda: lane.keep(directory.scratch()))
        return Stages(staged, summaries(staged, lambda name: dtypes[name]))

    def _run(
        self, tasks: Sequence[Task], made: list[Made], progress: Progress | None, totals: Mapping[str, int | None]
    ) -> None:
        """Have all segments made. totals: records of each collection, where that is known. Raises the first error; then
        no further one is begun, and those that have begun are waited for."""
        futures: dict[Future[Made], Task] = {}
        counts: dict[str, int] = {}
        try:
            for task in tasks:
                futures[self._submit(task, len(tasks))] = task
            left = set(futures)
            while left:
                done, left = wait(left, timeout=_TICK, return_when=FIRST_COMPLETED)
                for future in done:
                    made.append(_result(future, futures[future], len(tasks)))
                    for name, n in made[-1].records.items():
                        counts[name] = counts.get(name, 0) + n
                        if progress is not None:
                            total = counts[name] if len(made) == len(tasks) else totals.get(name)
                            progress(name, counts[name], total)
        except BaseException:
            for future in futures:
                future.cancel()
            made += _ended(futures, known=made)
            raise

    def _submit(self, task: Task, of: int) -> Future[Made]:
        try:
            return self.executor.submit(_make, task)
        except (RuntimeError, BrokenExecutor) as error:  # shut down, or broken by a worker that ended
            raise _lost(task, of, error) from error


def _make(task: Task) -> Made:
    """In a worker."""
    return make(task, _host())


def _result(future: Future[Made], task: Task, of: int) -> Made:
    try:
        return future.result()
    except MmcacheError:
        raise
    except (BrokenExecutor, CancelledError) as error:
        raise _lost(task, of, error) from error
    except Exception as error:
        reason = f"shard {task.number} of {of} could not be built: {type(error).__name__}: {error}"
        raise SourceError(reason, path=getattr(task.source, "path", None)) from error


def _lost(task: Task, of: int, error: BaseException) -> SourceError:
    why = str(error) or "no reason is known"
    return SourceError(
        f"the executor lost shard {task.number} of {of} ({type(error).__name__}: {why}): a worker was killed, as by a "
        "lack of memory, or the executor was shut down; nothing was published",
        path=getattr(task.source, "path", None),
    )


def _ended(futures: Mapping[Future[Made], Task], *, known: Sequence[Made]) -> Iterator[Made]:
    """The segments that were made all the same, once no worker is at one any more."""
    paths = {one.path for one in known}
    wait([future for future in futures if not future.cancelled()])
    for future in futures:
        if future.done() and not future.cancelled() and future.exception() is None:
            one = future.result()
            if one.path not in paths:
                yield one


def _counts(source: Source) -> dict[str, int | None]:
    """Records of each collection, for progress: the whole, of which the workers' shards are parts."""
    with source.read() as reading:
        return {schema.name: reading.count(schema.name) for schema in source.schemas}


def _remove_all(made: Sequence[Made], sent: Sent | None) -> None:
    if sent is not None:
        with contextlib.suppress(MmcacheError):
            sent.remove()
        return
    for one in made:
        with contextlib.suppress(MmcacheError):
            remove(one.path)


def _opened(made: Made, of: int, held: contextlib.ExitStack) -> Segment:
    return opened(made.path, held, made.notes, name=f"shard {made.number} of {of}")


def _check_dims(segments: Sequence[Segment]) -> None:
    """Raises BuildError where shards have learned otherwise, be it from rows that were left out: one build of all would
    have gone by the first."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for segment in segments:
        for collection, notes in segment.notes.items():
            for field, dim in notes.learned.dims.items():
                known, other = found.setdefault((collection, field), (dim, segment.name))
                if known != dim:
                    raise BuildError.of(
                        collection,
                        None,
                        f"{segment.name} has embeddings {field!r} of {dim} numbers, and {other} of {known}; say how "
                        "many with dim= in the Schema",
                    )


def _dtypes(segments: Sequence[Segment]) -> dict[str, dict[str, str]]:
    """Collection -> embedding -> what its bytes were read as. Raises BuildError where shards have guessed otherwise."""
    found: dict[str, dict[str, str]] = {}
    for segment in segments:
        for collection, notes in segment.notes.items():
            known = found.setdefault(collection, {})
            for field, dtype in notes.learned.dtypes.items():
                if known.setdefault(field, dtype) != dtype:
                    raise BuildError.of(
                        collection,
                        None,
                        f"{segment.name} read the embeddings {field!r} as {dtype!r}, and another as {known[field]!r}; "
                        "say which with dtype= in the Schema",
                    )
    return found


def _read_first_records(source: Source, first: Made) -> None:
    """For fields that none of them has, and that are misspelt: the first shard does that where it has enough of them.

    Raises BuildError.
    """
    few = [name for name, n in first.records.items() if n < LOOKED_AT]
    with source.read() if few else contextlib.nullcontext() as reading:
        for name in few:
            assert reading is not None
            schema = next(schema for schema in source.schemas if schema.name == name)
            for _ in islice(plain_rows(source, schema, reading.records(name)), LOOKED_AT):
                pass


def cut(source: Source, shards: int) -> Sequence[Source]:
    """The parts of a source. Raises SourceError for one that has none."""
    if not isinstance(source, ShardedSource):
        raise SourceError(
            f"a {type(source).__name__} cannot be read in shards: it has no method shards(n); build without shards=, "
            "or build several files and merge them",
            path=getattr(source, "path", None),
        )
    parts = source.shards(shards)
    if not parts:
        raise SourceError(f"shards({shards}) of {type(source).__name__} gave none")
    expected = [schema.resolved() for schema in source.schemas]
    for part in parts:
        if [schema.resolved() for schema in part.schemas] != expected:
            raise SourceError(f"a shard of {type(source).__name__} has other schemas than the source")
    return parts


def _host() -> bytes:
    """What differs between two hosts: on one, all processes see the same files alike."""
    return hashlib.blake2b(boot_id() + socket.gethostname().encode(), digest_size=16).digest()
