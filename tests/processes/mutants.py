"""mmcache with a mistake in it, for the history test to find: each is called in a child before it opens its cache."""

from __future__ import annotations

import time
from typing import Any

from mmcache import tiers
from mmcache.format.header import Header
from mmcache.sharing.control import ControlPage
from mmcache.sharing.staleness import doubt_about
from mmcache.storage import publish


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


def ring_ignored() -> None:
    """Readers never look at the ids that were invalidated."""
    ControlPage.entries = lambda self, since, until: []  # type: ignore[method-assign]


def hard_ignored() -> None:
    """Readers let the file answer although everything was invalidated."""
    tiers.doubt_about = lambda *args: doubt_about(*args)._replace(hard=False)  # type: ignore[attr-defined]


def wake_unheard() -> None:
    """Readers find out what is new only once in a second."""
    really = tiers.Tiers.look

    def look(self: tiers.Tiers, now: float) -> None:
        if now >= self.due:
            really(self, now)

    tiers.Tiers.look = look  # type: ignore[method-assign]
