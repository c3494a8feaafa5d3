"""mmcache with a mistake in it, for the history test to find: each is called in a child before it opens its cache.

A mistake is a function with the rules that it breaks, at least one of which a campaign has to find broken. The first
ones are deep in how processes coordinate; those behind them are of answers with many records, by public names only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mmcache import Cache, Record
from mmcache.format.header import Header
from mmcache.remote import covering, follower
from mmcache.sharing import decide, events, hearing
from mmcache.sharing.announce import Announcer
from mmcache.storage import publish
from mmcache.storage.overlay import Overlay
from mmcache.view import View
from mmcache.watch import Watch

MISTAKES: dict[str, tuple[str, ...]] = {}
"""Name -> rules."""

FOLLOWING: dict[str, tuple[str, ...]] = {
    "releases_cover_everything": ("stale", "wrong count"),
    "releases_cover_a_second_more": ("stale", "wrong count"),
}
"""Likewise of those that matter where the file is of releases."""

Mistake = Callable[[], None]


def breaks(*rules: str) -> Callable[[Mistake], Mistake]:
    def note(mistake: Mistake) -> Mistake:
        MISTAKES[mistake.__name__] = rules
        return mistake

    return note


# --- of coordination --------------------------------------------------------------------------------------------------


@breaks("stale", "wrong count")
def capture_after_read() -> None:
    """The builder captures what was invalidated after it has read the source, and not before: what was committed and
    invalidated in between is logged before the file's position, and not in the file."""
    builders: list[Announcer] = []
    begin, stage = Announcer.begin, publish.stage_all

    def remember(self: Announcer) -> None:
        builders[:] = [self]
        begin(self)

    def staged(*args: Any) -> Any:
        result = stage(*args)
        time.sleep(0.01)  # so that it need not be searched for long
        return result

    def header(**fields: Any) -> Header:
        late = builders[-1].tokens()
        return Header(**fields | {"soft": late.soft, "hard": late.hard, "ring": late.ring, "page": late.page})

    Announcer.begin = remember  # type: ignore[method-assign]
    publish.stage_all = staged  # type: ignore[assignment]
    publish.Header = header  # type: ignore[attr-defined, assignment]


@breaks("stale", "wrong count")
def ids_ignored() -> None:
    """Readers never look at the ids that were invalidated."""
    really = events.fold

    def fold(said: events.Said, new: Any, until: int, chain: int) -> None:
        really(said, [event for event in new if event.kind is not events.Kind.IDS], until, chain)

    hearing.fold = fold  # type: ignore[assignment, attr-defined]


@breaks("stale", "wrong count")
def hard_ignored() -> None:
    """Readers let the file answer although everything was invalidated."""
    really = decide._doubt
    decide._doubt = lambda *args: really(*args)._replace(hard="")


@breaks("late", "stale", "wrong count")
def wake_unheard() -> None:
    """Readers find out what is new only once in a second."""
    really = Watch.catch_up

    def catch_up(self: Watch, now: float) -> None:
        if now >= self.due:
            really(self, now)

    Watch.catch_up = catch_up  # type: ignore[method-assign]


@breaks("stale", "wrong count")
def answers_survive_events() -> None:
    """What a view remembers of the source is taken over by the next one."""
    kept: dict[str | None, Any] = {}
    really = View.overlay

    def overlay(self: View, name: str | None, ask: Any) -> Any:
        if name not in kept:
            found = really(self, name, ask)
            if found is not None:
                kept[name] = found
        return kept[name]

    View.overlay = overlay  # type: ignore[method-assign]


@breaks("stale", "wrong count", "of no tier")
def new_ids_forgotten() -> None:
    """An overlay has no record that the file has no row for."""
    really = Overlay.__init__

    def begin(self: Overlay, collection: Any, keys: Any, records: Any, gone: Any = None) -> None:
        really(self, collection, keys, [record for record in records if record.values[0] in collection], gone)

    Overlay.__init__ = begin  # type: ignore[method-assign]


# --- of answers with many records -------------------------------------------------------------------------------------

_class: Any = Cache


@breaks("stale")
def where_of_the_file() -> None:
    """`where` knows nothing of dirty ids."""
    _class.where = lambda self, **terms: self.snapshot.where(**terms)


@breaks("wrong count")
def len_of_the_file() -> None:
    """`len` knows nothing of dirty ids."""
    _class.__len__ = lambda self: len(self.snapshot)


@breaks("wrong count")
def dirty_rows_counted_twice() -> None:
    """`len` adds what the source answers for dirty ids, and does not take off their rows."""
    really = Cache.__len__
    _class.__len__ = lambda self: really(self) + len(_changed_rows(self))


@breaks("twice")
def dirty_rows_shown_too() -> None:
    """Iteration gives the row of the file beside the record of the source."""
    really = Cache.values
    _class.values = lambda self: [*really(self), *_changed_rows(self)]


@breaks("stale")
def deleted_rows_shown() -> None:
    """A dirty id that the source has no more is still given by its row."""
    really = Cache.values

    def values(self: Cache) -> Any:
        found = list(really(self))
        keys = {record.id for record in found}
        return [*found, *(row for row in _rows(self) if row.id not in keys)]

    _class.values = values


@breaks("not asked for")
def rows_chosen_by_the_old_index() -> None:
    """`where` takes the rows of the file's index, and the source's answer for those that are dirty."""

    class Found(list[Record]):
        ids = property(lambda found: [record.id for record in found])
        embeddings = property(lambda found: np.array([record.embedding for record in found]))

    def where(self: Cache, **terms: Any) -> Any:
        ids = [] if self.snapshot is None else self.snapshot.where(**terms).ids
        return Found(record for record in self.get_many(ids) if record is not None)

    _class.where = where


@breaks("stale")
def answers_kept_until_the_next_file() -> None:
    """What the source answered to `where` is remembered, whatever is invalidated meanwhile."""
    really = Cache.where
    kept: dict[Any, Any] = {}

    def where(self: Cache, **terms: Any) -> Any:
        question = self.generation, str(terms)
        if question not in kept:
            kept[question] = really(self, **terms)
        return kept[question]

    _class.where = where


def _rows(cache: Cache) -> list[Record]:
    return [] if cache.snapshot is None else list(cache.snapshot.values())


def _changed_rows(cache: Cache) -> list[Record]:
    """Of keys that are there in another version."""
    rows = _rows(cache)
    records = cache.get_many([row.id for row in rows])
    return [
        row
        for row, record in zip(rows, records, strict=True)
        if record is not None and record["version"] != row["version"]
    ]


# --- of followers -----------------------------------------------------------------------------------------------------


def releases_cover_everything() -> None:
    """A release is taken to hold whatever was invalidated before it was brought."""

    def covered(page: Any, *_: Any, **__: Any) -> Any:
        return page.tokens()

    follower.covered = covered  # type: ignore[attr-defined]


def releases_cover_a_second_more() -> None:
    """And here whatever was invalidated up to a second after it was made."""
    really = covering.covered

    def covered(*args: Any, skew_ns: int, **more: Any) -> Any:
        return really(*args, skew_ns=skew_ns - 10**9, **more)

    follower.covered = covered  # type: ignore[attr-defined]
