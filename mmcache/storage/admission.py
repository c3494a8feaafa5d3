"""Which rows of a source are records of a collection: one decision, for the builder and for the source tier.

`stage` reads a collection for a build. What a run of records is refused for is found by halving it, from a state that
is restored each time; so a collection without bad rows costs nothing, and one with some gives the bytes of one without.

`admitted` gives the records that a build would take, of a source that answers in the place of a file. It asks the very
code that a build asks, so that both tiers agree.

Of several rows with one key the schema chooses one first; only then counts whether that row can be taken, and whether
its end has passed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import BuildError, SourceError
from ..format.keys import Key, hash_key, is_key, key_of, pack_key
from ..format.layout import MAX_ROWS
from ..format.leftout import MAX_NAMED, LeftOut, named
from ..format.slots import in_order
from ..schema import Schema
from ..sources.base import Invalid, SourceRecord, refused
from .ends import Ends
from .lane import Lane
from .spool import Scratch
from .staging import Progress, Staged

__all__ = ["admitted", "settle", "stage"]

_RUN = 512
"""Records handled at a time: enough to let C loops do the work, few enough to stay in the CPU's cache."""


def stage(
    schema: Schema,
    records: Iterable[SourceRecord | Invalid],
    scratch: Callable[[], Scratch],
    *,
    lane: Lane | None = None,
    cluster_by: str | None = None,
    total: int | None = None,
    progress: Progress | None = None,
    now: float | None = None,
    part: bool = False,
) -> Staged:
    """Read one collection to its end. scratch, lane: as of `Staged.begin`. now: when what expires is judged.
    part: these are not all rows; those whose key another row has stay, where one of them is chosen later.

    Raises BuildError naming collection, key and reason.
    """
    staged = Staged.begin(schema, cluster_by, scratch, lane)
    if cluster_by is not None and cluster_by not in schema.index:
        known = ", ".join(schema.index) or "none"
        raise staged.fail(None, f"cannot cluster by {cluster_by!r}, which is not indexed; indexed fields: {known}")
    taking = _Taking(staged, now)
    iterator = iter(records)
    while run := list(itertools.islice(iterator, _RUN)):
        taking.take(run)
        if staged.n > MAX_ROWS:
            raise staged.fail(None, f"more than {MAX_ROWS} records do not fit into one collection")
        if progress is not None:
            progress(schema.name, staged.n, total)
    staged.settle()
    staged.refused = taking.refused
    left_out = LeftOut(taking.invalid, 0, tuple(taking.rows))
    if part and schema.on_duplicate != "raise":
        staged.left_out = left_out
        staged.slot_order = in_order(np.array(staged.keys.hashes, np.uint64), staged.raw_key)
    else:
        settle(staged, left_out)
    return staged


def settle(staged: Staged, left_out: LeftOut) -> None:
    """Once all rows are staged: drop those whose key another row has that is chosen. left_out: what is known of others.

    Raises BuildError for keys that stand twice, and for what cannot be clustered.
    """
    dropped = _dropped(staged)
    if dropped:
        staged.drop(dropped)
    staged.left_out = replace(left_out, duplicates=left_out.duplicates + len(dropped))
    staged.slot_order  # noqa: B018 (a key that stands twice is told before the next collection is read)
    field = staged.cluster_by
    if field is not None and not staged.terms[field].single:
        raise staged.fail(None, f"cannot cluster by {field!r}: some records have a list of values of it")


class _Ended(NamedTuple):
    """In the place of a record whose end has passed."""

    key: Any


class _Mortal:
    """Says of rows whether their end has passed, by one moment for all. Raises BuildError for what is no time."""

    def __init__(self, schema: Schema, now: float | None = None) -> None:
        self._schema = schema
        self._ends = Ends(schema)
        self._now = time.time() if now is None else now

    def __call__(self, row: SourceRecord | Invalid) -> SourceRecord | Invalid | _Ended:
        if isinstance(row, Invalid):
            return row
        try:
            return row if self._ends.of(row) > self._now else _Ended(row.values[0])
        except ValueError as error:
            reason = f"{self._schema.expires}: {error}"
            return refused(self._schema, row.values[0], reason, row, cause=error)


class _Taking:
    """Adds rows to a collection, and leaves out those that its schema lets be left out.

    refused: keys of rows that were left out, with the number of the next row; kept only where a key may stand twice.
    """

    def __init__(self, staged: Staged, now: float | None = None) -> None:
        self.staged = staged
        self.mortal = _Mortal(staged.schema, now) if staged.schema.expires is not None else None
        self.invalid = 0
        self.rows: list[tuple[str, str]] = []
        self.refused: list[tuple[int, Key]] = []

    def take(self, run: list[SourceRecord | Invalid]) -> None:
        """The next rows. Raises BuildError."""
        judged: list[SourceRecord | Invalid | _Ended] = [*run] if self.mortal is None else list(map(self.mortal, run))
        if set(map(type, judged)).isdisjoint((Invalid, _Ended)):
            self._add(judged)  # type: ignore[arg-type]
            return
        for kind, rows in itertools.groupby(judged, type):
            if kind not in (Invalid, _Ended):
                self._add(list(rows))  # type: ignore[arg-type]
                continue
            for row in rows:
                if isinstance(row, Invalid):
                    self._leave_out(row.raw_key if row.key is None else row.key, row.reason)
                elif isinstance(row, _Ended):
                    self._count_for_its_key(row.key)

    def _add(self, run: list[SourceRecord]) -> None:
        if self.staged.schema.on_invalid == "raise":
            self.staged.add(run)
            return
        mark = self.staged.mark()
        try:
            self.staged.add(run)
        except BuildError as error:
            self.staged.restore(mark)
            if len(run) == 1:
                self._leave_out(run[0].values[0] if run[0].values else None, error.reason or error.message)
                return
            middle = len(run) // 2
            self._add(run[:middle])
            self._add(run[middle:])

    def _leave_out(self, key: object, reason: str) -> None:
        schema = self.staged.schema
        if schema.on_invalid == "raise":
            raise self.staged.fail(key, reason)
        self.invalid += 1
        if len(self.rows) < MAX_NAMED:
            self.rows.append(named(key, reason))
        if schema.max_invalid is not None and self.invalid > schema.max_invalid:
            allowed = f"more rows cannot be taken than max_invalid={schema.max_invalid}; the last of them: {reason}"
            raise self.staged.fail(key, allowed)
        self._count_for_its_key(key)

    def _count_for_its_key(self, key: object) -> None:
        """A row that is not taken may be the one that is chosen of several."""
        if self.staged.schema.on_duplicate != "raise" and is_key(key):
            self.refused.append((self.staged.n, key))  # type: ignore[arg-type]


def _dropped(staged: Staged) -> set[int]:
    """Rows whose key another row has that is chosen."""
    chosen = staged.schema.on_duplicate
    if chosen == "raise":
        return set()
    dropped: set[int] = set()

    def twice(one: int, other: int) -> None:
        dropped.add(other if chosen == "first" else one)

    hashes = np.array(staged.keys.hashes, np.uint64)
    in_order(hashes, staged.raw_key, twice)
    wanted: dict[bytes, list[int]] = {}
    for at, key in staged.refused:
        wanted.setdefault(pack_key(key), []).append(at)
    sought = [hash_key(key) for _, key in staged.refused]
    for row in np.flatnonzero(np.isin(hashes, np.array(sought, np.uint64))).tolist():
        for at in wanted.get(staged.raw_key(row), ()):
            if (row >= at) if chosen == "first" else (row < at):
                dropped.add(row)
    return dropped


class _Nowhere:
    """Scratch for what is only looked at."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        pass

    def read(self, offset: int, length: int) -> bytes:
        raise AssertionError(f"{length} bytes at {offset} were only looked at")

    def shorten(self, size: int) -> None:
        pass


class _Judge:
    """Says of single records whether a build would take them. dims: of embeddings, where they are known."""

    def __init__(self, schema: Schema, dims: Mapping[str, int]) -> None:
        self._staged = Staged.begin(schema.resolved(), None, _Nowhere)
        for vectors in self._staged.vectors:
            vectors.dim = vectors.dim or dims.get(vectors.name, 0)
        self._mark = self._staged.mark()

    def takes(self, record: SourceRecord) -> bool:
        staged = self._staged
        try:
            staged.add([record])
        except BuildError:
            staged.restore(self._mark)
            return False
        dims = [vectors.dim for vectors in staged.vectors]  # which the first record that has one gives
        staged.restore(self._mark)
        for vectors, dim in zip(staged.vectors, dims, strict=True):
            vectors.dim = dim
        self._mark = staged.mark()
        return True


def admitted(
    schema: Schema,
    rows: Iterable[SourceRecord | Invalid],
    dims: Mapping[str, int] | None = None,
    *,
    chosen: bool = False,
) -> Iterator[SourceRecord]:
    """The records among the rows of a source, as a build would take them. dims: see `_Judge`. chosen: each key stands
    once already. Raises SourceError for a row that cannot be taken, where the schema does not let it be left out; not
    for what only a build looks at.

    Streams, unless the last of several rows with one key is wanted: then all rows are held.
    """
    if not chosen:
        rows = _chosen(schema, rows)
    judge = _Judge(schema, dims or {}) if schema.on_invalid == "skip" else None
    for row in rows if schema.expires is None else _living(schema, rows):
        if type(row) is Invalid:
            if judge is None:
                key = row.raw_key if row.key is None else row.key
                raise SourceError(BuildError.of(schema.name, key, row.reason).message)
        elif judge is None or judge.takes(row):  # type: ignore[arg-type]
            yield row  # type: ignore[misc]


def _living(schema: Schema, rows: Iterable[SourceRecord | Invalid]) -> Iterator[SourceRecord | Invalid]:
    """Without those whose end has passed. Raises SourceError for what is no time, where it is not left out."""
    judge = _Mortal(schema)
    try:
        for row in rows:
            judged = judge(row)
            if not isinstance(judged, _Ended):
                yield judged
    except BuildError as error:
        raise SourceError(error.message, path=error.path) from error


def _chosen(schema: Schema, rows: Iterable[SourceRecord | Invalid]) -> Iterator[SourceRecord | Invalid]:
    """One row for each key; rows without a key as they are."""
    if schema.on_duplicate == "raise":
        yield from rows
    elif schema.on_duplicate == "first":
        seen: set[Key] = set()
        for row in rows:
            key = row_key(row)
            if key is None or key not in seen:
                if key is not None:
                    seen.add(key)
                yield row
    else:
        last: dict[object, SourceRecord | Invalid] = {}
        for number, row in enumerate(rows):
            key = row_key(row)
            place = ("no key", number, None) if key is None else key
            last.pop(place, None)
            last[place] = row
        yield from last.values()


def row_key(row: SourceRecord | Invalid) -> Key | None:
    """The key of a row, if it has a valid one."""
    if isinstance(row, Invalid):
        return row.key
    key = key_of(row.values[0])
    return key if is_key(key) else None
