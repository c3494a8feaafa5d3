"""What two releases, or files, differ in: keys added, removed and changed, and which fields of how many records."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ..errors import MissingFileError
from ..format.keys import Key
from ..progress import unseen
from ..storage import fs
from ..storage.snapshot import Snapshot
from ..store import Store, is_url
from .download import download
from .log import ReleaseLog, target_of

if TYPE_CHECKING:
    from ..storage.collection import FileCollection

__all__ = ["Difference", "diff"]

_BATCH: Final = 1000
_SHOWN: Final = 20
"""Keys of each kind that are named."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one collection. added, removed, changed, same: numbers of records. fields: how many differ in each of them, an
    embedding included. examples: "added", "removed" and "changed", the first 20 keys of each.

    >>> _ = mmcache.build("later.mmc", [{"id": "a", "size": 9}, {"id": "d", "size": 1}], Schema("items"))
    >>> found = mmcache.diff("cache.mmc", "later.mmc")["items"]
    >>> found.added, found.removed, found.changed, found.same, found.examples["added"]
    (1, 2, 1, 0, ['d'])
    """

    added: int
    removed: int
    changed: int
    same: int
    fields: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, Sequence[Key]] = field(default_factory=dict)


def diff(before: str | os.PathLike[str], after: str | os.PathLike[str]) -> dict[str, Difference]:
    """By collection, what differs from one file to another. O(records of both).

    before, after: the path of a file, the URL of a store for the release that followers adopt, or "URL@41". What is in
    a store is downloaded into a temporary directory, and removed.
    Raises UnusableFileError, MissingFileError where there is no such release, and StoreError.

    >>> mmcache.diff("cache.mmc", "cache.mmc")["items"].same
    3
    """
    with _opened(os.fspath(before)) as one, _opened(os.fspath(after)) as other:
        names = [*one.collections, *(name for name in other.collections if name not in one.collections)]
        return {name: _compared(one.collections.get(name), other.collections.get(name)) for name in names}


@contextlib.contextmanager
def _opened(where: str) -> Iterator[Snapshot]:
    if not is_url(where):
        with Snapshot.open(where) as snapshot:
            yield snapshot
        return
    url, _, number = where.rpartition("@")
    if not number.isascii() or not number.isdigit():
        url, number = where, ""
    with tempfile.TemporaryDirectory(prefix="mmcache-diff-") as place:
        path = os.path.join(place, "release.mmc")
        _bring(url, int(number) if number else None, path)
        with Snapshot.open(path) as snapshot:
            yield snapshot


def _bring(url: str, number: int | None, path: str) -> None:
    releases = ReleaseLog(Store(url))
    newest = releases.newest()
    wanted = number if number is not None or newest is None else newest.current
    if newest is None or wanted is None:
        raise MissingFileError("there is no release here", path=releases.store.url)
    file = target_of(releases, newest, wanted).file
    assert file is not None
    with fs.Directory(path) as directory:
        target, _ = download(releases.store, file, directory, unseen)
        with target:
            target.write(0, file.raw)
            target.seal(0o400)
            directory.rename(target.name or "", directory.name)
            target.published()


def _compared(before: FileCollection | None, after: FileCollection | None) -> Difference:
    if before is None or after is None:
        there = before if after is None else after
        assert there is not None
        kind = "removed" if after is None else "added"
        gone, come = (len(there), 0) if after is None else (0, len(there))
        return Difference(come, gone, 0, 0, examples={kind: list(islice(there, _SHOWN))})
    counts: Counter[str] = Counter()
    fields: Counter[str] = Counter()
    examples: dict[str, list[Key]] = {"added": [], "removed": [], "changed": []}

    def count(kind: str, key: Key) -> None:
        counts[kind] += 1
        if kind in examples and len(examples[kind]) < _SHOWN:
            examples[kind].append(key)

    for keys in _batches(after):
        for key, old, new in zip(keys, before.get_many(keys), after.get_many(keys), strict=True):
            if old is None:
                count("added", key)
                continue
            differing = _fields(key, dict(old), dict(new or {}), before, after)
            fields.update(differing)
            count("changed" if differing else "same", key)
    if counts["changed"] + counts["same"] < len(before):
        for keys in _batches(before):
            for key, new in zip(keys, after.get_many(keys), strict=True):
                if new is None:
                    count("removed", key)
    numbers = counts["added"], counts["removed"], counts["changed"], counts["same"]
    return Difference(*numbers, dict(fields.most_common()), {kind: keys for kind, keys in examples.items() if keys})


def _batches(keys: Iterable[Key]) -> Iterator[list[Key]]:
    left = iter(keys)
    while batch := list(islice(left, _BATCH)):
        yield batch


def _fields(
    key: Key, old: Mapping[str, Any], new: Mapping[str, Any], before: FileCollection, after: FileCollection
) -> list[str]:
    """Names of those that differ."""
    names = [*old, *(name for name in new if name not in old)]
    found = [name for name in names if name not in old or name not in new or not _equal(old[name], new[name])]
    vectors = dict.fromkeys((*before.embedding_fields, *after.embedding_fields))
    return found + [name for name in vectors if _vector(before, key, name) != _vector(after, key, name)]


def _vector(collection: FileCollection, key: Key, name: str) -> bytes | None:
    if name not in collection.embedding_fields:
        return None
    found = collection.embedding(key, name)
    return None if found is None else found.tobytes()


def _equal(one: Any, other: Any) -> bool:
    """NaN equals itself here, and 1 is not True."""
    return type(one) is type(other) and (one == other or (one != one and other != other))  # noqa: PLR0124
