"""`on_event=`: what happened to a cache, as small values that a callback is given."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, Literal

from .errors import MmcacheError
from .format.keys import Key
from .sharing.events import Event, Kind
from .sharing.head import Head

__all__ = ["CacheEvent", "of_page"]


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """One thing that happened, in this process or in another of the machine that told it.

    kind: "invalidated": by id, a collection, or all (`ids` and `collection` None), for a `reason`, softly or hard;
    "adopted": this process has moved to `generation`; "rebuilt": a file was published, or by a rebuild found unchanged;
    "refused": the file at the path was not right, see `error`; "failed": a build has failed, see `error`.
    ids: those that changed; an invalidation of many ids is several events. A key above 1 KiB is not among them.

    >>> seen = []
    >>> with mmcache.open("cache.mmc", cache.source, on_event=seen.append) as items:
    ...     _ = items["a"], items.invalidate(["b"], reason="record_stored"), items["a"]
    >>> [(event.kind, event.ids, event.reason) for event in seen]
    [('invalidated', ('b',), 'record_stored')]
    """

    kind: Literal["invalidated", "adopted", "rebuilt", "refused", "failed"]
    path: str
    generation: int | None = None
    collection: str | None = None
    ids: tuple[Key, ...] | None = None
    reason: str = ""
    hard: bool = False
    error: MmcacheError | None = None


_INVALIDATIONS: Final = (Kind.IDS, Kind.COLLECTION, Kind.SOFT, Kind.HARD)


def of_page(path: str, event: Event, head: Head) -> CacheEvent | None:
    """An event of the page; None for one that is no matter of callers."""
    kind, reason, payload = event
    if kind in _INVALIDATIONS:
        return CacheEvent(
            "invalidated",
            path,
            collection=payload[0] if payload else None,
            ids=payload[1] if kind is Kind.IDS else None,
            reason=reason,
            hard=kind is not Kind.SOFT,
        )
    if kind in (Kind.PUBLISHED, Kind.COVERED) and payload and payload[0]:
        return CacheEvent("rebuilt", path, payload[0], reason="unchanged" if kind is Kind.COVERED else "")
    if kind is Kind.FAILED:
        failure = head.failure(time.monotonic())
        return CacheEvent("failed", path, error=None if failure is None else failure.error)
    return None
