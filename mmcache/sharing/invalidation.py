"""Invalidating: telling every process of the machine that the source has changed, and what was told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final, Literal

from ..errors import PublishError
from ..format.keys import Key
from ..logs import log
from ..presets.reasons import ALIASES
from . import metrics
from .attach import attach
from .counters import WorkerCounters
from .events import MAX_APPEND, MAX_IDS, REASONS, Event, Kind as EventKind, encode, ids_events
from .page import MovedError, Page

__all__ = ["Kind", "Reason", "invalidate", "invalidate_file"]

Kind = Literal["ids", "soft", "hard"]
Reason = Literal[
    "manual",
    "record_stored",
    "record_deleted",
    "config_updated",
    "schema_migration",
    "ttl_expired",
    "pattern_stored",
    "pattern_deleted",
]
_TRIES: Final = 5
_COUNTERS: Final[dict[Kind, int]] = {
    "ids": metrics.INVALIDATIONS_IDS,
    "soft": metrics.INVALIDATIONS_SOFT,
    "hard": metrics.INVALIDATIONS_HARD,
}


def invalidate_file(
    path: str,
    collection: str | None,
    ids: Iterable[Key] | None = None,
    *,
    reason: str = "manual",
    hard: bool | None = None,
) -> Kind:
    """`Cache.invalidate` without a cache: for tools. collection: needed with ids."""
    path = os.path.abspath(path)
    counters = WorkerCounters.open(path, label="invalidate")
    pages: list[Page] = []

    def page_of() -> Page:
        pages.append(attach(path, previous=pages[-1] if pages else None, patience=1.0))
        return pages[-1]

    try:
        return invalidate(path, page_of, collection, ids, reason=reason, hard=hard, counting=counters)
    finally:
        counters.close()
        for page in pages:
            page.close()


def invalidate(
    path: str,
    page_of: Callable[[], Page],
    collection: str | None,
    ids: Iterable[Key] | None,
    *,
    reason: str,
    hard: bool | None,
    counting: WorkerCounters,
) -> Kind:
    """Tell every process, and say what was told; when this returns, no get that begins later overlooks it.

    page_of: gives the page that is at the path now; asked again where it was replaced meanwhile.
    Raises PublishError where there is no page that others see, or the system refuses to write it.
    """
    reason = ALIASES.get(reason, reason)
    if reason not in REASONS:
        raise ValueError(f"reason must be one of {', '.join(REASONS)}, not {reason!r}")
    if isinstance(ids, (str, bytes, int)):
        raise TypeError(f"ids must be an iterable of ids, not one: [{ids!r}]")
    if ids is not None and hard is not None:
        raise ValueError("hard is for what is invalidated as a whole: ids are always answered by the source")
    kind, events, named = _events(collection, ids, reason, hard=hard)
    if events and not _tell(page_of, events):
        kind = "hard"  # the page lock is stuck with a process that was stopped: nothing may be lost
    counting.add(_COUNTERS[kind])
    if kind == "ids":
        counting.add(metrics.INVALIDATED_IDS, named)
    else:  # an event; of the other kind there may be one for every write
        counting.note_event("invalidation")
    counting.flush()
    log.info(
        "%s: %s invalidated (%s)",
        path,
        f"{named} ids" if kind == "ids" else f"everything, {kind}",
        reason,
        extra={"event": "invalidated", "path": path, "kind": kind, "reason": reason},
    )
    return kind


def _events(
    collection: str | None, ids: Iterable[Key] | None, reason: str, *, hard: bool | None
) -> tuple[Kind, list[Event], int]:
    """What to call it, what to say, and how many ids that names."""
    if ids is not None:
        assert collection is not None
        events = ids_events(collection, ids, reason)
        named = sum(len(keys) + len(hashes) for _, keys, hashes in (event.payload for event in events))
        if named > MAX_IDS or len(encode(events, 0, 0)[0]) > MAX_APPEND:
            return "hard", [Event(EventKind.HARD, reason)], named
        return "ids", events, named
    if not (REASONS[reason].hard if hard is None else hard):
        return "soft", [Event(EventKind.SOFT, reason)], 0
    if collection is not None:
        return "ids", [Event(EventKind.COLLECTION, reason, (collection,))], 1
    return "hard", [Event(EventKind.HARD, reason)], 0


def _tell(page_of: Callable[[], Page], events: list[Event]) -> bool:
    """Whether these events were logged; else everything was invalidated in their place."""
    for _ in range(_TRIES):
        page = page_of()
        if not page.writable:
            raise PublishError("the other processes cannot be told: no permission to write the control page")
        if not page.shared:
            page.say(events)
            raise PublishError(f"the other processes cannot be told, only this one knows: {page.problem}")
        try:
            if page.say(events):
                return True
            page.panic()
        except MovedError:
            continue
        return False
    raise PublishError("the other processes cannot be told: the control page is replaced again and again")
