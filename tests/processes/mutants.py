"""mmcache with a mistake in it, for the history test to find: each is called in a child before it opens its cache.

A mistake is a function with the rules that it breaks, at least one of which a campaign has to find broken. The first
ones are deep in how processes coordinate; those behind them are of answers with many records, by public names only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mmcache import Cache, Record, tiers
from mmcache.format.header import Header
from mmcache.sharing.control import ControlPage
from mmcache.sharing.staleness import doubt_about
from mmcache.storage import publish

MISTAKES: dict[str, tuple[str, ...]] = {}
"""Name -> rules."""

Mistake = Callable[[], None]


def breaks(*rules: str) -> Callable[[Mistake], Mistake]:
    def note(mistake: Mistake) -> Mistake:
        MISTAKES[mistake.__name__] = rules
        return mistake

    return note


# --- of coordination --------------------------------------------------------------------------------------------------


@breaks("stale")
def capture_after_read() -> None:
    """The builder captures what was invalidated after it has read the source, and not before: what was committed and
    invalidated in between is in the ring before the file, and not in the file."""
    pages: list[ControlPage] = []
    begin, stage = ControlPage.begin, publish._stage

    def remember(self: ControlPage) -> None:
        pages[:] = [self]
        begin(self)

    def staged(*args: Any) -> Any:
        result = stage(*args)
        time.sleep(0.01)  # so that it need not be searched for long
        return result

    def header(**fields: Any) -> Header:
        late = pages[-1].tokens()
        return Header(**fields | {"soft": late.soft, "hard": late.hard, "ring": late.ring, "page": late.page})

    ControlPage.begin = remember  # type: ignore[method-assign]
    publish._stage = staged  # type: ignore[assignment]
    publish.Header = header  # type: ignore[attr-defined, assignment]


@breaks("stale")
def ring_ignored() -> None:
    """Readers never look at the ids that were invalidated."""
    ControlPage.entries = lambda self, since, until: []  # type: ignore[method-assign]


@breaks("stale")
def hard_ignored() -> None:
    """Readers let the file answer although everything was invalidated."""
    tiers.doubt_about = lambda *args: doubt_about(*args)._replace(hard=False)  # type: ignore[attr-defined]


@breaks("late")
def wake_unheard() -> None:
    """Readers find out what is new only once in a second."""
    really = tiers.Tiers.look

    def look(self: tiers.Tiers, now: float) -> None:
        if now >= self.due:
            really(self, now)

    tiers.Tiers.look = look  # type: ignore[method-assign]


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
