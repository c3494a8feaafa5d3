"""What an operator does with the releases of a store. Each change is one entry; nothing is ever overwritten."""

from __future__ import annotations

from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, Final, NamedTuple

from ..errors import MissingFileError, ReleaseError, StoreError
from ..logs import log
from ..store import Found, Store
from .arguments import at_least_one, seconds
from .entries import Entry, blob_path, entry_path
from .log import ReleaseLog
from .publishing import Release, release_of

__all__ = ["Pruned", "pin", "prune", "releases", "rollback", "unpin", "withdraw"]

_CLOCK: Final = "clock.json"
_BARRED: Final = 20
"""Contents withdrawn last that are not published again."""
_UNCLAIMED: Final = timedelta(days=1)
"""Age, by the store's clock, from which a blob that no entry names is garbage: its publisher is dead."""


def releases(url: str, *, limit: int | None = None) -> list[Release]:
    """The releases of a store, the newest first; at most `limit` of them. Raises StoreError.

    >>> for reason in ("monday", "tuesday"):
    ...     _ = mmcache.build("cache.mmc", [{"id": reason}], Schema("items"))
    ...     _ = mmcache.publish("cache.mmc", "memory://listed/items", reason=reason, min_records_ratio=0)
    >>> [(release.number, release.reason) for release in mmcache.releases("memory://listed/items")]
    [(2, 'tuesday'), (1, 'monday')]
    """
    if limit is not None:
        at_least_one("limit", limit)
    store = Store(url)
    releases = ReleaseLog(store)
    newest = releases.newest()
    found: list[Release] = []
    if newest is not None:
        for entry in releases.releases():
            if limit is not None and len(found) >= limit:
                break
            found.append(release_of(store.url, entry, newest))
    return found


def pin(url: str, number: int, *, reason: str = "") -> Release:
    """Have every follower adopt this release, and stay with it whatever is published, until `unpin`.

    Raises MissingFileError where there is no such release, ReleaseError for one that was withdrawn, and StoreError.

    >>> for n in (1, 2):
    ...     _ = mmcache.build("cache.mmc", [{"id": n}], Schema("items"))
    ...     _ = mmcache.publish("cache.mmc", "memory://pinned/items", min_records_ratio=0)
    >>> mmcache.pin("memory://pinned/items", 1, reason="2 is slow").number
    1
    >>> mmcache.follow("memory://pinned/items", "node.mmc").release
    1
    """
    operation = _Operation(url)
    entry = operation.release(number)

    def fields(newest: Entry | None) -> dict[str, Any] | None:
        state = operation.checked(newest, number)
        if number in state.withdrawn:
            raise ReleaseError(f"release {number} was withdrawn", path=operation.store.url, rule="withdrawn")
        return (
            None if state.pinned == number else {"kind": "pin", "pinned": number, "current": number, "reason": reason}
        )

    return operation.commit(fields, entry)


def unpin(url: str, *, reason: str = "") -> Release | None:
    """Have every follower adopt the newest release again; which that is, None where every one was withdrawn.

    >>> for n in (1, 2):
    ...     _ = mmcache.build("cache.mmc", [{"id": n}], Schema("items"))
    ...     _ = mmcache.publish("cache.mmc", "memory://unpinned/items", min_records_ratio=0)
    >>> mmcache.pin("memory://unpinned/items", 1).number, mmcache.unpin("memory://unpinned/items").number
    (1, 2)
    """
    operation = _Operation(url)

    def fields(newest: Entry | None) -> dict[str, Any] | None:
        state = operation.state(newest)
        if state.pinned is None:
            return None
        return {"kind": "unpin", "pinned": None, "current": state.newest, "reason": reason}

    state = operation.committed(fields)
    return None if state.current is None else release_of(operation.store.url, operation.release(state.current), state)


def withdraw(url: str, number: int, *, reason: str = "") -> Release | None:
    """Have every follower leave a release, pinned ones as well, for the newest that was not withdrawn; which that is.

    None where none is left: then followers keep what they have. Its content is not published again, also once the
    release was pruned; `rollback` brings it back. Raises MissingFileError and StoreError.

    >>> for n in (1, 2):
    ...     _ = mmcache.build("cache.mmc", [{"id": n}], Schema("items"))
    ...     _ = mmcache.publish("cache.mmc", "memory://withdrawn/items", min_records_ratio=0)
    >>> mmcache.withdraw("memory://withdrawn/items", 2, reason="prices of yesterday").number
    1
    """
    operation = _Operation(url)
    file = operation.release(number).file
    assert file is not None
    digest = file.sha256

    def fields(newest: Entry | None) -> dict[str, Any] | None:
        state = operation.checked(newest, number)
        if number in state.withdrawn:
            return None
        withdrawn = state.withdrawn | {number}
        barred = {**state.barred, digest: number}
        last, pinned = state.newest, state.pinned
        if last == number:
            before = (one.number for one in operation.log.releases(number) if one.number not in withdrawn)
            last = next(before, None)
        pinned = None if pinned == number else pinned
        current = last if pinned is None else pinned
        kept = dict(sorted(barred.items(), key=itemgetter(1))[-_BARRED:])
        changes = {"withdrawn": withdrawn, "barred": kept, "newest": last, "pinned": pinned, "current": current}
        return {"kind": "withdraw", "of": number, "reason": reason, **changes}

    state = operation.committed(fields)
    return None if state.current is None else release_of(operation.store.url, operation.release(state.current), state)


def rollback(url: str, *, to: int | None = None, reason: str = "") -> Release:
    """Make the content of an earlier release a new one, under a new number; by default of the one before the newest.

    Needs none of its bytes, here or in the store. What was withdrawn may come back so. Raises MissingFileError where
    there is no such release, and StoreError.

    >>> for n in (1, 2):
    ...     _ = mmcache.build("cache.mmc", [{"id": n}], Schema("items"))
    ...     _ = mmcache.publish("cache.mmc", "memory://back/items", min_records_ratio=0)
    >>> release = mmcache.rollback("memory://back/items", reason="2 lacks items")
    >>> release.number, release.kind, release.of
    (3, 'rollback', 1)
    """
    operation = _Operation(url)

    def fields(newest: Entry | None) -> dict[str, Any] | None:
        state = operation.state(newest)
        number = to if to is not None else operation.before(state)
        operation.checked(state, number)
        file = operation.release(number).file
        assert file is not None
        made = state.number + 1
        current = made if state.pinned is None else state.pinned
        barred = {digest: n for digest, n in state.barred.items() if digest != file.sha256}
        changes = {"file": file, "barred": barred, "newest": made, "current": current}
        return {"kind": "rollback", "of": number, "reason": reason, **changes}

    entry = operation.committed(fields)
    return release_of(operation.store.url, entry, operation.log.newest(entry) or entry)


class Pruned(NamedTuple):
    """What a prune removed. releases: whose entries and blobs were removed, or would be. blobs, bytes: removed from the
    store, those of dead publishers included.

    >>> _ = mmcache.publish("cache.mmc", "memory://pruned/items")
    >>> mmcache.prune("memory://pruned/items", dry_run=True)
    Pruned(releases=[], blobs=[], bytes=0)
    """

    releases: list[int]
    blobs: list[str]
    bytes: int


def prune(url: str, *, keep: int = 5, older_than: float = 7 * 86_400.0, dry_run: bool = False) -> Pruned:
    """Remove releases, and blobs that no release needs any more.

    Kept are the newest `keep` that were not withdrawn, those that are pinned or adopted, and those younger than
    `older_than` seconds, by the store's clock. Blobs older than a day that no entry names go, too. A follower that
    needs a release which is gone keeps its file and says so. dry_run: only look. Raises StoreError.

    >>> for n in range(3):
    ...     _ = mmcache.build("cache.mmc", [{"id": n}], Schema("items"))
    ...     _ = mmcache.publish("cache.mmc", "memory://kept/items", min_records_ratio=0)
    >>> mmcache.prune("memory://kept/items", keep=1, older_than=0).releases
    [1, 2]
    """
    keep, age = at_least_one("keep", keep), timedelta(seconds=seconds("older_than", older_than))
    pruning = _Pruning(Store(url), keep, age)
    return pruning.dry_run() if dry_run else pruning.run()


class _Operation:
    """A change of a store that has releases."""

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        self.log = ReleaseLog(self.store)

    def state(self, newest: Entry | None) -> Entry:
        if newest is None:
            raise MissingFileError("there are no releases here: publish one first", path=self.store.url)
        return newest

    def checked(self, newest: Entry | None, number: int) -> Entry:
        """The newest entry, which has not retired a release."""
        state = self.state(newest)
        if number < state.oldest and number not in (state.current, state.newest, state.pinned):
            raise MissingFileError(f"release {number} was pruned", path=self.store.url)
        return state

    def release(self, number: int) -> Entry:
        return self.log.release(number)

    def before(self, state: Entry) -> int:
        """The release that was adopted before the newest one."""
        below = state.newest if state.newest is not None else state.number + 1
        for entry in self.log.releases(below):
            if entry.number not in state.withdrawn:
                return entry.number
        raise MissingFileError("there is no release before the newest one", path=self.store.url)

    def committed(self, fields: Any) -> Entry:
        """The entry of this operation, or that which holds already."""
        self.state(self.log.newest())  # before anything is put into what may be the wrong place
        entry, is_new = self.log.commit(fields)
        assert entry is not None
        if is_new:
            extra = {"event": "release_operation", "path": self.store.url}
            log.info("%s: %s, followers adopt release %s", self.store.url, entry.kind, entry.current, extra=extra)
        return entry

    def commit(self, fields: Any, entry: Entry) -> Release:
        return release_of(self.store.url, entry, self.committed(fields))


class _Pruning:
    """One prune. What it removes it has said in an entry before: see `entries`."""

    def __init__(self, store: Store, keep: int, older_than: timedelta) -> None:
        self.store = store
        self.log = ReleaseLog(store)
        self._keep = keep
        self._older_than = older_than
        self._plan = _Plan(1, (), ())

    def dry_run(self) -> Pruned:
        newest = self.log.newest()
        return Pruned([], [], 0) if newest is None else self._planned(newest).report()

    def run(self) -> Pruned:
        newest = self.log.newest()
        if newest is None:
            return Pruned([], [], 0)
        self.log.commit(self._fields)
        # Entries first: none that can be read names a blob which is gone.
        for number in self._plan.numbers:
            self.store.remove(entry_path(number))
        for found in self._plan.blobs:
            self.store.remove(found.name)
        return self._plan.report()

    def _fields(self, newest: Entry | None) -> dict[str, Any] | None:
        assert newest is not None
        self._plan = plan = self._planned(newest)
        if not plan.numbers and not plan.blobs:
            return None
        names = frozenset(found.name.rpartition("/")[2] for found in plan.blobs)
        # What was withdrawn stays so: a node that was away, and is pinned to it, has to leave it still.
        return {"kind": "prune", "oldest": plan.oldest, "retired": names}

    def _planned(self, newest: Entry) -> _Plan:
        now = self._now()
        numbers = self.log.numbers()
        ages = {found.name: now - found.modified for found in self.store.listed("generations")}
        entries = {number: entry for number in numbers if (entry := self.log.at(number)) is not None}
        good = [n for n in sorted(entries, reverse=True) if entries[n].file is not None and n not in newest.withdrawn]
        kept = {*good[: self._keep], *(n for n in good if ages[entry_path(n)] < self._older_than)}
        oldest = max(newest.oldest, min({newest.number, *kept}))
        in_use = {newest.current, newest.newest, newest.pinned}
        removed = [n for n in sorted(entries) if n < oldest and n not in in_use]
        needed = {path for n, entry in entries.items() if n not in removed for path in _paths(entry)}
        freed = {path for n in removed for path in _paths(entries[n])}
        blobs = [
            found
            for directory in ("blobs", "deltas")
            for found in self.store.listed(directory)
            if found.name not in needed and (found.name in freed or now - found.modified > _UNCLAIMED)
        ]
        return _Plan(oldest, tuple(removed), tuple(blobs))

    def _now(self) -> datetime:
        """By the store's clock, which is another than ours: of an object that is put now."""
        self.store.hint(_CLOCK, b"{}")
        found = self.store.stat(_CLOCK)
        if found is None:
            raise StoreError(f"{_CLOCK} cannot be put, so the store's time is not known", path=self.store.url)
        return found.modified


class _Plan(NamedTuple):
    oldest: int
    numbers: tuple[int, ...]
    blobs: tuple[Found, ...]

    def report(self) -> Pruned:
        names = [found.name.rpartition("/")[2] for found in self.blobs]
        return Pruned(list(self.numbers), names, sum(found.size for found in self.blobs))


def _paths(entry: Entry) -> set[str]:
    if entry.file is None:
        return set()
    return {blob_path(entry.file.blob), *(blob_path(delta.name) for delta in entry.file.deltas)}
