"""Telling every process on the machine that what a file says is not so any more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Literal

from ..errors import PublishError
from . import metrics
from .control import REASONS, RING_SIZE, ControlPage, attach, entry_of, wildcard_of

__all__ = ["Kind", "invalidate", "invalidate_file"]

log = logging.getLogger("mmcache")

Kind = Literal["ids", "soft", "hard"]
_TRIES = 5
_COUNTERS: dict[Kind, int] = {
    "ids": metrics.INVALIDATIONS_IDS,
    "soft": metrics.INVALIDATIONS_SOFT,
    "hard": metrics.INVALIDATIONS_HARD,
}


def invalidate_file(
    path: str,
    collection: str | None,
    ids: Iterable[str] | None = None,
    *,
    reason: str = "manual",
    hard: bool | None = None,
) -> Kind:
    """`Cache.invalidate` without a cache: for tools. collection: needed with ids."""
    slot = metrics.Slot.open(path, label="invalidate")
    try:
        return invalidate(path, lambda: attach(path), collection, ids, reason=reason, hard=hard, count=slot.add)
    finally:
        slot.close()


def invalidate(
    path: str,
    page_of: Callable[[], ControlPage],
    collection: str | None,
    ids: Iterable[str] | None,
    *,
    reason: str,
    hard: bool | None,
    count: Callable[[int, int], None],
) -> Kind:
    """Tell everybody, and say what was told; when this returns, no get that begins later overlooks it.

    page_of: gives the page that is at the path now; asked again where it was replaced meanwhile.
    count: adds to a counter of `metrics`.
    Raises PublishError where there is no page that others see.
    """
    if reason not in REASONS:
        raise ValueError(f"reason must be one of {', '.join(REASONS)}, not {reason!r}")
    if isinstance(ids, (str, bytes)):
        raise TypeError(f"ids must be an iterable of ids, not one: [{ids!r}]")
    entries = None
    if ids is not None:
        if hard is not None:
            raise ValueError("hard is for what is invalidated as a whole: ids are always answered by the source")
        assert collection is not None
        entries = sorted({entry_of(collection, _key(key)) for key in ids})
    else:
        hard = REASONS[reason].hard if hard is None else hard
        if collection is not None and hard:
            entries = [wildcard_of(collection)]
    kind = _tell(page_of, entries, reason, hard=bool(hard))
    count(_COUNTERS[kind], 1)
    if kind == "ids":
        count(metrics.INVALIDATED_IDS, len(entries or ()))
    else:  # an event; of the other kind there may be one for every write
        metrics.record_event(path, "invalidation")
    log.info(
        "%s: %s invalidated (%s)",
        path,
        f"{len(entries or ())} ids" if kind == "ids" else f"everything, {kind}",
        reason,
        extra={"event": "invalidated", "path": path, "kind": kind, "reason": reason},
    )
    return kind


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"an id is text, not {key!r}")
    return key


def _tell(page_of: Callable[[], ControlPage], entries: list[int] | None, reason: str, *, hard: bool) -> Kind:
    if entries is not None and not entries:
        return "ids"
    for _ in range(_TRIES):
        page = page_of()
        if not page.writable:
            raise PublishError("the other processes cannot be told: no permission to write the control page")
        if not page.shared:
            _tell_page(page, entries, reason, hard=hard)
            raise PublishError(f"the other processes cannot be told, only this one knows: {page.problem}")
        kind = _tell_page(page, entries, reason, hard=hard)
        if kind is not None and page.is_current():
            return kind
    raise PublishError("the other processes cannot be told: the control page is replaced again and again")


def _tell_page(page: ControlPage, entries: list[int] | None, reason: str, *, hard: bool) -> Kind | None:
    if entries is None:
        page.invalidate(reason, hard=hard)
        return "hard" if hard else "soft"
    if len(entries) <= RING_SIZE // 2:
        if page.append(entries, reason):
            return "ids"
        if page.shared and not page.is_current():
            return None
    # More than the ring should hold, or its lock is stuck with a process that was stopped: nothing may be lost.
    page.invalidate(reason, hard=True)
    return "hard"
