"""`Watched` and `Hits`: what a hit of a cache shares with its `Watch` and its `Counting`, which these are the bases of.

The compiled core has a twin of each, whose attributes it reads without a call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .native import core

__all__ = ["Hits", "PureHits", "PureWatched", "Watched"]


class PureWatched:
    """word, seen, due, view: what a get looks at. They are read without a lock, and replaced as a whole."""

    word: Any
    seen: int | None
    due: float
    view: Any


class PureHits:
    """bump: gives the number of each hit. mask: a sample is due when a hit's number has none of its bits."""

    bump: Callable[[], int]
    mask: int

    def restart(self) -> None:
        """Begin at 1 again."""
        self.bump = itertools.count(1).__next__


if TYPE_CHECKING or core is None:
    Watched = PureWatched
    Hits = PureHits
else:
    Watched = core.Watched
    Hits = core.Hits
